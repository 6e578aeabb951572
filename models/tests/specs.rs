//! Specs: the shipped ones build and have the sizes they should; wrong ones are told everything that is wrong.

use ir::graph::Def;
use ir::{DType, Op};
use proptest::prelude::*;
use tritter_models::spec::{Block, KvFormat, Scale, Spec, SpecCause, Weights, read};
use tritter_models::{
    BuildOptions, HeadFormat, Init, ModelError, Naming, OptionError, SpecError, Stored, build, find_shipped, shipped,
};

fn options(spec: &Spec) -> BuildOptions {
    BuildOptions {
        context: spec.context,
        sequences: 2,
        chunk: 64,
        logits: 64,
        kv: KvFormat::Int4,
        head: HeadFormat::Stored,
        naming: Naming::Own,
    }
}

fn read_shipped(name: &str) -> Spec {
    read(find_shipped(name).unwrap()).unwrap_or_else(|errors| panic!("{name}:\n{errors}"))
}

/// Reads plain RON as `ron` does, with the two extensions that specs use.
fn read_with_ron(text: &str) -> Spec {
    use ron::extensions::Extensions;
    let options =
        ron::Options::default().with_default_extension(Extensions::IMPLICIT_SOME | Extensions::UNWRAP_VARIANT_NEWTYPES);
    options.from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn every_shipped_spec_builds_and_verifies_in_every_cache_format() {
    for (name, text) in shipped() {
        let spec = read(text).unwrap_or_else(|errors| panic!("{name}:\n{errors}"));
        for kv in [KvFormat::F32, KvFormat::Bf16, KvFormat::Int4, KvFormat::K8v4] {
            let model = build(&spec, &BuildOptions { kv, ..options(&spec) });
            let model = model.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(model.program.graphs.len(), 2, "{name}");
        }
    }
}

/// The parameters that the original would instantiate (its own count of `TritterModel`), and for the repaired 30B the sum by hand:
/// with H = 6656, D = 512, F = 17920 each of 60 layers has 2 H^2 + 2 D H + 3 F H ternary weights, as many scales and biases as rows
/// (2 H + 2 D + 2 F + H each), 4 H of layer norms and 4 * 128 of QK norms; then 2 * 65536 H + 65536 + 2 H.
#[test]
fn tritter_sizes_have_the_parameters_of_the_original() {
    let table: [(&str, u64); 13] = [
        ("test", 36_265_472),
        ("125M", 214_256_128),
        ("350M", 537_681_920),
        ("1B", 1_091_416_064),
        ("3B", 2_399_041_536),
        ("7B", 6_210_510_848),
        ("10B", 9_265_213_440),
        ("13B", 11_685_656_576),
        ("30B", 28_075_760_640),
        ("33B", 30_217_291_264),
        ("40B", 42_230_360_064),
        ("65B", 56_452_603_904),
        ("70B", 69_540_962_304),
    ];
    for (name, expected) in table {
        let spec = read_shipped(name);
        let model = build(&spec, &options(&spec)).unwrap();
        assert_eq!(model.parameter_count(), expected, "{name}");
    }
    let (h, d, f, v) = (6656_u64, 512, 17_920, 65_536);
    let rows = 3 * h + 2 * d + 2 * f;
    let layer = 2 * h * h + 2 * d * h + 3 * f * h + 2 * rows + 4 * h + 4 * 128;
    assert_eq!(60 * layer + 2 * v * h + v + 2 * h, 28_075_760_640);
}

#[test]
fn bitnet_sizes() {
    let ternary = |name: &str| -> u64 {
        let spec = read_shipped(name);
        let model = build(&spec, &options(&spec)).unwrap();
        let ternary = model.params.iter().filter(|param| matches!(param.stored, Stored::Ternary(_)));
        ternary.map(|param| param.elements()).sum()
    };
    // 30 layers of 2 H^2 + 2 * 640 H + 3 * 6912 H with H = 2560; 8 of 2 H^2 + 2 * 128 H + 3 * 1408 H with H = 512.
    assert_eq!(ternary("bitnet-2b-4t"), 30 * 2560 * (2 * 2560 + 2 * 640 + 3 * 6912));
    assert_eq!(ternary("bitnet-code-nano"), 8 * 512 * (2 * 512 + 2 * 128 + 3 * 1408));
}

#[test]
fn the_reader_agrees_with_ron_and_with_the_writer() {
    for (name, text) in shipped() {
        let spec = read(text).unwrap();
        assert_eq!(spec, read_with_ron(text), "{name}");
        let written = spec.to_ron();
        assert_eq!(read(&written).unwrap_or_else(|errors| panic!("{errors}\n{written}")), spec, "{name}");
        assert_eq!(read_with_ron(&written), spec, "{name}");
    }
    let spec = read(&all_options()).unwrap();
    assert_eq!(spec, read_with_ron(&all_options()));
    assert_eq!(read(&spec.to_ron()).unwrap(), spec);
}

/// A spec that uses what the shipped ones do not.
fn all_options() -> String {
    r#"/* every /* nested */ option */ (
        name: "all \"options\" \u{e9}", vocab: 0x140, hidden: 1_2, layers: 2, context: 32, rope_theta: 10000,
        embedding: f16, norm: layer(eps: 1e-6, dtype: f16),
        linear: (weights: threshold_row(f16), scale: divides(bf16), activations: f32, scaled_biases: true),
        blocks: [
            attention(heads: 2, kv_heads: 1, window: 8, sinks: 2, biases: bf16, norms: [before, inside, after]),
            feed_forward(width: 7, activation: silu, gated: false, biases: f16, norms: [inside]),
            attention(heads: 3, kv_heads: 3, head_dim: Some(6), qk_norm: true, window: None, norms: [],),
            feed_forward(width: 5, activation: relu, gated: true),
        ],
        final_norm: false, head: untied(f16), kv: k8v4, tokenizer: none,
    ) // the end"#
        .to_owned()
}

#[test]
fn blocks_of_one_kind_are_told_apart() {
    let spec = read(&all_options()).unwrap();
    let model = build(&spec, &options(&spec)).unwrap();
    let keys: Vec<&str> = model.params.iter().map(|param| param.key.as_str()).collect();
    for key in ["layers.{}.attention.q.weight", "layers.{}.attention_2.q.weight", "layers.{}.ffn_2.gate.weight"] {
        assert!(keys.contains(&key), "{key} in {keys:?}");
    }
    let mut sorted = keys.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), keys.len(), "each key once");
    let states: Vec<&str> = model.program.graphs[0].states().map(|(_, key)| &**key).collect();
    let expected = ["k_cache", "v_cache", "k_cache_2", "v_cache_2"].map(|name| format!("layers.{{}}.{name}"));
    assert_eq!(states, expected);
    // Head dimensions 6 and 6: one table. A third attention width would need another.
    assert_eq!(model.program.graphs[0].inputs.len(), 6);
}

#[test]
fn the_entry_has_the_inputs_that_all_decoders_have() {
    for (name, _) in shipped() {
        let spec = read_shipped(name);
        let model = build(&spec, &options(&spec)).unwrap();
        let entry = model.program.entry();
        let inputs: Vec<String> =
            entry.inputs.iter().map(|&id| format!("{}: {}", entry.label(id), entry.ty(id))).collect();
        let of_tokens = ["ids: i32[n]", "seq: i32[n]", "pos: i32[n]", "span: i32[n, 2]"];
        let of_rows = ["rows: i32[m]", "settings: f32[m, 4]", "draws: i32[m, 2]"];
        assert_eq!(inputs, [of_tokens.as_slice(), &of_rows].concat());
        let types: Vec<String> = entry.outputs.iter().map(|&id| entry.ty(id).to_string()).collect();
        assert_eq!(types, [format!("f32[m, {}]", spec.vocab), "i32[m]".to_owned()]);
        for graph in &model.program.graphs {
            let mut names: Vec<&str> = graph.values.values().filter_map(|value| value.name.as_deref()).collect();
            let n_names = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), n_names, "{name}: names in `{}` are unique", graph.name);
        }
        let ops = |graph: usize, wanted: fn(&Op) -> bool| {
            let values = model.program.graphs[graph].values.values();
            values.filter(|value| matches!(&value.def, Def::Op { op, .. } if wanted(op))).count()
        };
        // q, k and v share one quantised input, gate and up another; o and down have their own.
        assert_eq!(ops(0, |op| matches!(op, Op::Quantize(_))), 4, "{name}");
        assert_eq!(ops(0, |op| matches!(op, Op::Matmul(_))), 7, "{name}");
        assert_eq!(ops(1, |op| matches!(op, Op::Repeat(_))), 1, "{name}");
    }
}

#[test]
fn programs_survive_the_text_form() {
    for spec in [read_shipped("tiny"), read_shipped("70b"), read(&all_options()).unwrap()] {
        let program = build(&spec, &options(&spec)).unwrap().program.into_inner();
        let text = ir::text::print(&program);
        let parsed = ir::text::parse(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        assert_eq!(parsed, program, "{text}");
    }
}

#[test]
fn caches_have_the_format_that_is_asked_for() {
    let spec = read_shipped("tiny");
    for (kv, expected) in [
        (KvFormat::F32, [DType::F32; 2]),
        (KvFormat::Bf16, [DType::BF16; 2]),
        (KvFormat::Int4, [DType::Q4; 2]),
        (KvFormat::K8v4, [DType::Q8, DType::Q4]),
    ] {
        let model = build(&spec, &BuildOptions { kv, ..options(&spec) }).unwrap();
        let layer = &model.program.graphs[0];
        let found: Vec<String> = layer.states().map(|(id, _)| layer.ty(id).to_string()).collect();
        assert_eq!(found, expected.map(|dtype| format!("{dtype}[2, 1, 40, 6]")));
    }
}

#[test]
fn random_parameters_are_ternary_where_the_model_is() {
    let spec = read_shipped("tiny");
    for param in build(&spec, &options(&spec)).unwrap().params {
        assert_eq!(param.init == Init::Ternary, param.ty.dtype == DType::T2, "{}", param.key);
    }
}

#[test]
fn options_that_do_not_fit_are_all_told() {
    let spec = read_shipped("tiny");
    let options = BuildOptions { context: 41, sequences: 0, chunk: 0, logits: 0, ..options(&spec) };
    let Err(ModelError::Options(errors)) = build(&spec, &options) else { panic!("four options are wrong") };
    assert_eq!(errors.len(), 4);
    assert_eq!(errors[0], OptionError::Context { max: 40, found: 41 });
}

#[test]
fn a_spec_made_in_memory_is_judged_too() {
    let mut spec = read_shipped("tiny");
    spec.hidden = 31;
    spec.linear.weights = Weights::Absmean(tritter_models::spec::Float::F32);
    let Err(ModelError::Spec(problems)) = build(&spec, &options(&spec)) else { panic!("two fields are wrong") };
    let fields: Vec<&str> = problems.iter().map(|problem| problem.fields[0].as_str()).collect();
    assert_eq!(fields, ["linear.scale", "blocks[0].heads"]);
}

fn errors_of(text: &str) -> Vec<SpecError> {
    match read(text) {
        Ok(spec) => panic!("accepted as {spec:?}"),
        Err(errors) => errors.0,
    }
}

/// Line, column and message of every error.
fn listed(text: &str) -> Vec<String> {
    errors_of(text).iter().map(ToString::to_string).collect()
}

#[test]
fn five_errors_are_five_lines() {
    let text = "(
    name: \"five\",
    vocab: 320,
    hidden: 100,
    layers: many,
    context: 512,
    rope_theta: 500000.0,
    embedding: bf61,
    norm: rms(eps: 1e-5, dtype: bf16),
    linear: (weights: packed, scale: multiplies(bf16), activations: int8),
    blocks: [
        attention(heads: 10, kv_heads: 3, norms: [before, inside]),
        feed_forward(activation: relu2, gated: true, norms: [before, inside]),
    ],
    final_norm: true,
    hed: tied,
    head: tied,
    tokenizer: bytes,
)";
    assert_eq!(
        listed(text),
        [
            "5:13: `layers` must be a whole number, found `many`",
            "8:16: `embedding` is one of `f32`, `f16`, `bf16`, found `bf61`",
            "12:40: `heads` is 10, which `kv_heads` (3) does not divide",
            "13:9: feed_forward needs the field `width`",
            "16:5: a spec has no field `hed`, only `name`, `vocab`, `hidden`, `layers`, `context`, `rope_theta`, `embedding`, `norm`, `linear`, `blocks`, `final_norm`, `head`, `kv`, `tokenizer`",
        ]
    );
}

/// The spec `tiny` with one piece of text replaced.
fn tiny_with(from: &str, to: &str) -> String {
    let text = find_shipped("tiny").unwrap();
    assert!(text.contains(from), "{from}");
    text.replace(from, to)
}

#[test]
fn impossible_dimensions_and_choices_are_refused() {
    use SpecCause as C;
    type Expected = fn(&SpecCause) -> bool;
    let cases: Vec<(&str, &str, Expected)> = vec![
        ("vocab: 267", "vocab: 0", |c| matches!(c, C::Range { field: "vocab", .. })),
        ("vocab: 267", "vocab: 263", |c| matches!(c, C::Range { field: "vocab", min: 264, .. })),
        ("vocab: 267", "vocab: 4294967296", |c| matches!(c, C::Kind { .. })),
        ("vocab: 267", "vocab: 4294967295", |c| matches!(c, C::Range { field: "vocab", .. })),
        ("vocab: 267", "vocab: -1", |c| matches!(c, C::Kind { .. })),
        ("hidden: 30", "hidden: 32", |c| matches!(c, C::Indivisible { whole: "hidden", .. })),
        ("hidden: 30", "hidden: 35", |c| matches!(c, C::OddHeadDim(7))),
        ("hidden: 30", "hidden: 1300", |c| matches!(c, C::Range { field: "head_dim", found: 260, .. })),
        ("hidden: 30", "hidden: 0", |c| matches!(c, C::Range { field: "hidden", .. })),
        ("layers: 3", "layers: 0", |c| matches!(c, C::Range { field: "layers", .. })),
        ("context: 40", "context: 2000000000", |c| matches!(c, C::Range { field: "context", .. })),
        ("rope_theta: 500000.0", "rope_theta: -1.0", |c| matches!(c, C::Real { field: "rope_theta", .. })),
        ("rope_theta: 500000.0", "rope_theta: 1e999", |c| matches!(c, C::Real { field: "rope_theta", .. })),
        ("eps: 1e-5", "eps: 0.0", |c| matches!(c, C::Real { field: "eps", .. })),
        ("kv_heads: 1", "kv_heads: 2", |c| matches!(c, C::Indivisible { part: "kv_heads", .. })),
        ("kv_heads: 1", "kv_heads: 0", |c| matches!(c, C::Range { field: "kv_heads", .. })),
        ("kv_heads: 1", "kv_heads: 1, head_dim: 0", |c| matches!(c, C::Range { field: "head_dim", .. })),
        ("kv_heads: 1", "kv_heads: 1, head_dim: 5", |c| matches!(c, C::OddHeadDim(5))),
        ("kv_heads: 1", "kv_heads: 1, head_dim: 258", |c| matches!(c, C::Range { field: "head_dim", .. })),
        ("kv_heads: 1", "kv_heads: 1, sinks: 4", |c| matches!(c, C::SinksWithoutWindow)),
        ("kv_heads: 1", "kv_heads: 1, window: 0", |c| matches!(c, C::Range { field: "window", .. })),
        ("kv_heads: 1", "kv_heads: 1, window: 41", |c| matches!(c, C::Range { field: "window", max: 40, .. })),
        ("kv_heads: 1", "kv_heads: 1, window: 8, sinks: 40", |c| matches!(c, C::Range { field: "sinks", .. })),
        ("kv_heads: 1", "kv_heads: 1, kv_heads: 1", |c| matches!(c, C::DuplicateField { .. })),
        ("width: 37", "width: 0", |c| matches!(c, C::Range { field: "width", .. })),
        ("width: 37", "width: 3.5", |c| matches!(c, C::Kind { .. })),
        ("activation: relu2", "activation: gelu", |c| matches!(c, C::UnknownName { .. })),
        ("gated: true", "gated: yes", |c| matches!(c, C::Kind { .. })),
        ("multiplies(bf16)", "derived", |c| matches!(c, C::ScaleOfWeights { .. })),
        ("multiplies(bf16)", "multiplies", |c| matches!(c, C::Kind { .. })),
        ("multiplies(bf16)", "multiplies(bf16, f32)", |c| matches!(c, C::Kind { .. })),
        ("weights: packed", "weights: packed(f32)", |c| matches!(c, C::Kind { .. })),
        ("weights: packed", "weights: absmean(f32)", |c| matches!(c, C::ScaleOfWeights { .. })),
        ("[before, inside]),\n        feed", "[before, before]),\n        feed", |c| {
            matches!(c, C::DuplicateNorm("before"))
        }),
        ("head: tied", "head: tide", |c| matches!(c, C::UnknownName { .. })),
        ("norm: rms(", "norm: root(", |c| matches!(c, C::UnknownName { .. })),
        ("feed_forward(", "convolution(", |c| matches!(c, C::UnknownName { .. })),
        ("name: \"tiny\"", "name: \"\"", |c| matches!(c, C::Empty("name"))),
        ("name: \"tiny\"", "name: tiny", |c| matches!(c, C::Kind { .. })),
        ("name: \"tiny\"", "name: \"ti\\qny\"", |c| matches!(c, C::Escape)),
        ("context: 40,", "context: 40", |c| matches!(c, C::Unexpected { .. })),
        ("context: 40,", "context: ,", |c| matches!(c, C::Unexpected { .. })),
        ("context: 40,", "context: 4o0,", |c| matches!(c, C::NotANumber { .. })),
        ("    head: tied,\n", "", |c| matches!(c, C::MissingField { field: "head", .. })),
    ];
    for (from, to, expected) in cases {
        let text = tiny_with(from, to);
        let errors = errors_of(&text);
        assert_eq!(errors.len(), 1, "{to}: {}", listed(&text).join("\n"));
        assert!(expected(&errors[0].cause), "{to}: {errors:?}");
        let line = text.lines().nth(errors[0].line as usize - 1).unwrap();
        assert!(errors[0].col as usize <= line.chars().count() + 1, "{to}: {errors:?}");
    }
}

#[test]
fn a_model_larger_than_any_machine_is_a_slip() {
    let text = tiny_with("layers: 3", "layers: 65536").replace("width: 37", "width: 16777216");
    let text = text.replace("hidden: 30", "hidden: 30000000").replace("hidden: 30000000", "hidden: 1280");
    assert!(matches!(errors_of(&text)[0].cause, SpecCause::TooLarge(_)), "{}", listed(&text).join("\n"));
}

#[test]
fn brackets_that_do_not_close_are_told_once() {
    let text = find_shipped("tiny").unwrap();
    let cut = &text[..text.rfind(')').unwrap()];
    assert!(matches!(errors_of(cut)[..], [SpecError { cause: SpecCause::Unclosed { what: "bracket" }, .. }]));
    assert!(matches!(errors_of("((((")[..], [_, ..]));
    assert!(matches!(errors_of(&"(".repeat(100_000))[..], [_, ..]));
    assert!(matches!(errors_of("")[..], [SpecError { line: 1, col: 1, .. }]));
    assert!(matches!(errors_of("/* \n")[0].cause, SpecCause::Unclosed { what: "comment" }));
}

#[test]
fn names_of_shipped_specs_ignore_case() {
    assert_eq!(find_shipped("70B"), find_shipped("70b"));
    assert_eq!(find_shipped("BitNet-2B-4T"), find_shipped("bitnet-2b-4t"));
    assert!(find_shipped("71b").is_none());
    assert!(matches!(read_shipped("70B").blocks[0], Block::Attention(_)));
    assert!(matches!(read_shipped("70B").linear.scale, Scale::Row(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// No text makes the reader panic or run forever, and every refusal has a place.
    #[test]
    fn damaged_specs_are_refused_or_read(at in 0.0..1.0_f64, remove in 0_usize..12, insert in "[a-z0-9(){}\\[\\],:\"/* .\\-\\\\]{0,6}") {
        let text = find_shipped("tiny").unwrap();
        let chars: Vec<char> = text.chars().collect();
        let start = (at * chars.len() as f64) as usize;
        let end = (start + remove).min(chars.len());
        let damaged: String = chars[..start].iter().copied().chain(insert.chars()).chain(chars[end..].iter().copied()).collect();
        match read(&damaged) {
            Ok(spec) => prop_assert!(spec.problems().is_empty()),
            Err(errors) => {
                prop_assert!(!errors.0.is_empty());
                let lines = damaged.lines().count() as u32 + 1;
                prop_assert!(errors.0.iter().all(|error| 0 < error.line && error.line <= lines && 0 < error.col));
            }
        }
    }
}
