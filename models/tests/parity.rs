//! Imported models compute what the code they come from computes: logits against those of transformers and of the original Tritter.

mod common;

use common::{config, fixture, infos, inputs, parameters, values};
use ir::reference::Evaluator;
use safetensors::SafeTensors;
use tritter_models::spec::KvFormat;
use tritter_models::{BuildOptions, HeadFormat, build, import};

/// Logits of every row of the fixture's `input_ids`, ours and the expected ones, row by row.
struct Compared {
    ours: Vec<f64>,
    theirs: Vec<f64>,
    vocab: usize,
}

/// Runs the fixture's sequences in calls of `chunk` tokens.
fn compare(name: &str, chunk: usize) -> Compared {
    let (weights, expected) = (fixture(name, "model.safetensors"), fixture(name, "expected.safetensors"));
    let imported = import::import(&config(name), &infos(&weights)).unwrap_or_else(|errors| panic!("{errors}"));
    let file = SafeTensors::deserialize(&weights).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let shape = expected.tensor("input_ids").unwrap().shape().to_vec();
    let length = shape[1];
    let options = BuildOptions {
        context: length as u32,
        sequences: 1,
        chunk: chunk as u32,
        logits: chunk as u32,
        kv: KvFormat::F32,
        head: HeadFormat::Stored,
        naming: imported.naming,
    };
    let model = build(&imported.spec, &options).unwrap();
    assert_eq!(model.params, imported.params);
    let parameters = parameters(&file, &model.params);
    let ids = values(&expected, "input_ids");
    let mut ours = Vec::new();
    for sequence in ids.chunks(length) {
        let mut evaluator = Evaluator::new(&model.program, &parameters);
        for (at, ids) in sequence.chunks(chunk).enumerate() {
            ours.extend(evaluator.run(&inputs(ids, at * chunk)).unwrap().remove(0).data);
        }
    }
    Compared { ours, theirs: values(&expected, "logits"), vocab: imported.spec.vocab as usize }
}

fn argmax(row: &[f64]) -> usize {
    (0..row.len()).fold(0, |best, at| if row[best] < row[at] { at } else { best })
}

/// A quantised activation that rounds to the other code moves a row of logits by about a percent, and, through the cache of a later
/// layer, perhaps all later rows of its sequence. The others must agree to rounding.
fn assert_bitnet_parity(name: &str, chunk: usize) {
    let Compared { ours, theirs, vocab } = compare(name, chunk);
    assert_eq!(ours.len(), theirs.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let error = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b)) / norm(&mut theirs.iter().copied());
    assert!(error <= 0.02, "{name}: relative error {error}");
    let rows = || ours.chunks(vocab).zip(theirs.chunks(vocab));
    let n_rows = rows().count() as f64;
    let equal = rows().filter(|(a, b)| argmax(a) == argmax(b)).count() as f64;
    assert!(0.98 <= equal / n_rows, "{name}: the same argmax in {equal} of {n_rows} rows");
    let close: Vec<bool> = rows()
        .map(|(a, b)| norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) <= 1e-5 * norm(&mut b.iter().copied()))
        .collect();
    let n_close = close.iter().filter(|close| **close).count() as f64;
    assert!(0.25 <= n_close / n_rows, "{name}: only {n_close} of {n_rows} rows agree to 1e-5");
}

#[test]
fn packed_weights_with_a_multiplied_scale() {
    assert_bitnet_parity("bitnet-packed", 33);
}

#[test]
fn packed_weights_with_a_divided_scale() {
    assert_bitnet_parity("bitnet-packed-bitlinear", 33);
}

#[test]
fn real_weights_made_ternary_online() {
    assert_bitnet_parity("bitnet-online", 33);
}

#[test]
fn calls_of_any_size_agree() {
    assert_bitnet_parity("bitnet-packed", 7);
}

#[test]
fn the_original_tritter() {
    let Compared { ours, theirs, .. } = compare("tritter-mha", 24);
    let largest = theirs.iter().fold(0.0_f64, |max, logit| max.max(logit.abs()));
    for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert!((ours - theirs).abs() <= 1e-4 * largest, "logit {at}: {ours}, expected {theirs}");
    }
}
