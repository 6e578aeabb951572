//! Training against other people's code: losses, gradients of every parameter, and weights after some steps.

use std::collections::HashMap;

use compiler::autodiff::{Differentiated, Keep, Options, ParamGradient, differentiate, with_cross_entropy};
use compiler::optimiser::AdamW;
use compiler::{Target, rewrite};
use ir::op::Concrete;
use ir::reference::{Evaluator, Tensor};
use ir::{DType, Op, Program, Shape, Symbol, TensorType, Verified, verify};
use models::adapter::Adapters;
use tritter_tests::compare::relative_l2;
use tritter_tests::fixture::{self, Tensors};
use tritter_tests::random::Numbers;
use tritter_tests::session::{Build, Model};

/// A checkpoint with what another implementation made of training it on one batch.
struct Fixture {
    expected: Tensors,
    parameters: HashMap<String, Tensor>,
    sources: Vec<(String, String)>,
    program: Verified<Program>,
    inputs: Vec<Tensor>,
}

impl Fixture {
    /// The training program of a checkpoint, for the batch that the fixture has.
    fn open(name: &str) -> Self {
        let directory = fixture::checkpoint(name);
        let expected = Tensors::read(&fixture::data(name).join("expected.safetensors")).unwrap();
        let ids = expected.ids("input_ids").unwrap();
        let built = Model::checkpoint(&directory).unwrap().build(&build_for(&ids)).unwrap();
        let parameters = Tensors::of_checkpoint(&directory).unwrap().parameters(&built.params).unwrap();
        let sources = built.params.iter().map(|binding| (binding.key.clone(), binding.source.clone())).collect();
        let program = loss_of(&built.program, &ids);
        Self { expected, parameters, sources, program, inputs: batch(&ids) }
    }

    fn differentiated(&self, keep: Keep) -> Differentiated {
        differentiate(&self.program, &Options { loss: 0, wanted: &|_| true, keep }).unwrap()
    }

    /// The checkpoint's name of a parameter in one round.
    fn source(&self, key: &str, round: u32) -> String {
        let source = self.sources.iter().find(|(known, _)| known == key).map(|(_, source)| source);
        source.unwrap().replace("{}", &round.to_string())
    }
}

fn build_for(ids: &[Vec<u32>]) -> Build {
    let n = ids.len() * ids[0].len();
    Build { sequences: ids.len() as u32, chunk: n as u32, ..Build::new(ids[0].len()) }
}

/// The loss of a decoder on a batch of this size.
fn loss_of(program: &Verified<Program>, ids: &[Vec<u32>]) -> Verified<Program> {
    let n = (ids.len() * ids[0].len()) as u64;
    let program = with_cross_entropy(program, 0).unwrap();
    verify(program.bind(&[(Symbol::new("n"), n), (Symbol::new("m"), n)])).unwrap()
}

/// The inputs of a loss: all tokens of all sequences, each of which is to say which comes next; the last of a sequence has none.
fn batch(ids: &[Vec<u32>]) -> Vec<Tensor> {
    let n = ids.len() * ids[0].len();
    let of_tokens = |value: &dyn Fn(usize, usize) -> f64| {
        let places = (0..ids.len()).flat_map(|seq| (0..ids[0].len()).map(move |pos| (seq, pos)));
        Tensor::of(DType::I32, &[n], places.map(|(seq, pos)| value(seq, pos)))
    };
    vec![
        of_tokens(&|seq, pos| ids[seq][pos].into()),
        of_tokens(&|seq, _| seq as f64),
        of_tokens(&|_, pos| pos as f64),
        Tensor::of(DType::I32, &[n, 2], vec![0.0; 2 * n]),
        Tensor::of(DType::I32, &[n], (0..n).map(|row| row as f64)),
        of_tokens(&|seq, pos| ids[seq].get(pos + 1).map_or(-1.0, |&id| f64::from(id))),
    ]
}

/// Gradients by key and round, from the outputs of a program.
fn gradients(differentiated: &Differentiated, outputs: &[Tensor]) -> Vec<(String, u32, Vec<f64>)> {
    let mut all = Vec::new();
    for (gradient, tensor) in differentiated.gradients.iter().zip(&outputs[1..]) {
        let rounds = gradient.rounds.unwrap_or(1);
        let parts = tensor.data.chunks(tensor.data.len() / rounds as usize);
        all.extend(parts.zip(0..).map(|(part, round)| (gradient.key.clone(), round, part.to_vec())));
    }
    all
}

#[test]
fn first_gradients_are_those_of_the_reference() {
    for name in ["tritter-mha", "tritter-gqa"] {
        let fixture = Fixture::open(name);
        let losses = fixture.expected.values("losses").unwrap();
        let differentiated = fixture.differentiated(Keep::Values);
        let mut evaluator = Evaluator::new(&differentiated.program, &fixture.parameters);
        let outputs = evaluator.run(&fixture.inputs).unwrap();
        let loss = outputs[0].data[0];
        assert!((loss - losses[0]).abs() <= 1e-4, "{name}: loss {loss} against {}", losses[0]);
        let mut worst = (0.0_f64, String::new());
        for (key, round, gradient) in gradients(&differentiated, &outputs) {
            let source = fixture.source(&key, round);
            let theirs = fixture.expected.values(&format!("grad.{source}")).unwrap();
            let error = relative_l2(&theirs, &gradient);
            if worst.0 < error {
                worst = (error, source);
            }
        }
        assert!(worst.0 <= 1e-5, "{name}: {} is off by {}", worst.1, worst.0);
    }
}

/// The weights after five steps, and the losses before each.
#[test]
fn five_steps_lead_where_the_reference_goes() {
    for name in ["tritter-mha", "tritter-gqa"] {
        let mut fixture = Fixture::open(name);
        let differentiated = fixture.differentiated(Keep::Inputs);
        // As the fixtures' config.json says.
        let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip: None };
        let update = adamw.program(&differentiated.gradients, &|_| true).unwrap();
        let none = HashMap::new();
        let mut optimiser = Evaluator::new(&update, &none);
        let mut parameters = std::mem::take(&mut fixture.parameters);
        for (key, value) in &parameters {
            optimiser.set_state(key, value.clone());
        }
        for (step, theirs) in (1..).zip(fixture.expected.values("losses").unwrap()) {
            let mut outputs = Evaluator::new(&differentiated.program, &parameters).run(&fixture.inputs).unwrap();
            let loss = outputs[0].data[0];
            assert!((loss - theirs).abs() <= 1e-4, "{name}, step {step}: loss {loss} against {theirs}");
            let settings = adamw.settings(step, 1e-3, 0.1, 1).map(f64::from);
            outputs[0] = Tensor::of(DType::F32, &[5], settings);
            optimiser.run(&outputs).unwrap();
            for (key, value) in &mut parameters {
                *value = optimiser.state(key).unwrap().clone();
            }
        }
        let mut worst = (0.0_f64, String::new());
        for gradient in &differentiated.gradients {
            for round in 0..gradient.rounds.unwrap_or(1) {
                let source = fixture.source(&gradient.key, round);
                let Ok(theirs) = fixture.expected.values(&format!("after5.{source}")) else { continue };
                let ours = &parameters[&gradient.key.replace("{}", &round.to_string())].data;
                let error = theirs.iter().zip(ours).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                if worst.0 < error {
                    worst = (error, source);
                }
            }
        }
        assert!(worst.0 <= 5e-5, "{name}: {} is off by {}", worst.1, worst.0);
    }
}

/// Adapters that the PEFT library made for a model whose projections are quantised as they are used: loss, logits and gradients. That all of them are
/// this near means that no activation of the batch was rounded to the other int8 code.
#[test]
fn adapters_are_those_of_peft() {
    let name = "lora-peft";
    let expected = Tensors::read(&fixture::data(name).join("expected.safetensors")).unwrap();
    let config = std::fs::read_to_string(fixture::data(name).join("adapter_config.json")).unwrap();
    let adapters = models::import::peft(&config).unwrap();
    let ids = expected.ids("input_ids").unwrap();
    let base = fixture::checkpoint("bitnet-online");
    let model = Model::checkpoint(&base).unwrap().build_adapted(&build_for(&ids), &adapters).unwrap();
    let mut parameters = Tensors::of_checkpoint(&base).unwrap().parameters(&model.params).unwrap();
    let file = Tensors::read(&fixture::data(name).join("adapter_model.safetensors")).unwrap();
    parameters.extend(file.parameters(&model.adapters).unwrap());

    let mut inputs = batch(&ids);
    let n = inputs[0].data.len();
    inputs[5] = Tensor::of(DType::F32, &[n, 4], vec![0.0; 4 * n]);
    inputs.push(Tensor::of(DType::I32, &[n, 2], vec![0.0; 2 * n]));
    let logits = Evaluator::new(&model.program, &parameters).run(&inputs).unwrap().remove(0);
    let error = relative_l2(&expected.values("logits").unwrap(), &logits.data);
    assert!(error <= 2e-6, "logits are off by {error}");

    let program = loss_of(&model.program, &ids);
    let wanted = |key: &str| model.adapters.iter().any(|adapter| adapter.key == key);
    for keep in [Keep::Values, Keep::Inputs] {
        let differentiated = differentiate(&program, &Options { loss: 0, wanted: &wanted, keep }).unwrap();
        let outputs = Evaluator::new(&differentiated.program, &parameters).run(&batch(&ids)).unwrap();
        let (loss, theirs) = (outputs[0].data[0], expected.values("loss").unwrap()[0]);
        assert!((loss - theirs).abs() <= 1e-5, "loss {loss} against {theirs}");
        let gradients = gradients(&differentiated, &outputs);
        assert_eq!(gradients.len(), 16);
        for (key, round, gradient) in gradients {
            let binding = model.adapters.iter().find(|adapter| adapter.key == key).unwrap();
            let source = binding.source_of(round).replace(".weight", ".default.weight");
            let error = relative_l2(&expected.values(&format!("grad.{source}")).unwrap(), &gradient);
            assert!(error <= 2e-6, "{source} is off by {error}");
        }
    }
}

fn optimised(program: &Verified<Program>) -> Verified<Program> {
    let target: Target = "x86_64:avx2".parse().unwrap();
    rewrite::optimise(program, &target, &rewrite::Options::all()).unwrap().0
}

fn has(program: &Program, is: fn(&Op) -> bool) -> bool {
    program.graphs.iter().any(|graph| graph.values.ids().any(|id| graph.op(id).is_some_and(is)))
}

/// The optimiser takes forward and backward pass for one program like any other.
#[test]
fn optimised_gradients_are_the_same() {
    for name in ["tritter-mha", "bitnet-online"] {
        let fixture = Fixture::open(name);
        for keep in [Keep::Values, Keep::Inputs] {
            let plain = fixture.differentiated(keep).program;
            let better = optimised(&plain);
            assert_ne!(*plain, *better, "{name}");
            let run = |program| Evaluator::new(program, &fixture.parameters).run(&fixture.inputs).unwrap();
            for (index, (ours, theirs)) in run(&better).iter().zip(run(&plain)).enumerate() {
                let error = relative_l2(&theirs.data, &ours.data);
                assert!(error <= 1e-6, "{name}, keeping {keep:?}, output {index} is off by {error}");
            }
        }
    }
}

/// Adapters beside packed weights: gradients flow back through the packed form, of which nothing is unpacked, and are those of the program in which
/// it is.
#[test]
fn gradients_flow_through_packed_weights() {
    let name = "bitnet-packed";
    let ids = vec![fixture::random_ids(300, 12, 1), fixture::random_ids(300, 12, 2)];
    let targets = ["q", "v", "down"].map(str::to_owned).into_iter().collect();
    let adapters = Adapters { rank: 3, alpha: 6.0, rank_stabilised: true, targets };
    let base = fixture::checkpoint(name);
    let model = Model::checkpoint(&base).unwrap().build_adapted(&build_for(&ids), &adapters).unwrap();
    let mut parameters = Tensors::of_checkpoint(&base).unwrap().parameters(&model.params).unwrap();
    let mut numbers = Numbers::new(3);
    for binding in &model.adapters {
        let dims: Vec<usize> = binding.dims().iter().map(|&dim| dim as usize).collect();
        for round in 0..binding.rounds {
            let ty = Concrete { dtype: DType::F32, dims: dims.clone() };
            parameters.insert(binding.key_of(round), numbers.tensor(ty));
        }
    }
    let program = loss_of(&model.program, &ids);
    let wanted = |key: &str| key.contains(".lora_");
    let run = |program: &Verified<Program>| {
        let differentiated = differentiate(program, &Options { loss: 0, wanted: &wanted, keep: Keep::Values }).unwrap();
        let outputs = Evaluator::new(&differentiated.program, &parameters).run(&batch(&ids)).unwrap();
        (differentiated.program, outputs)
    };
    let (unpacked, expected) = run(&program);
    let (packed, outputs) = run(&optimised(&program));
    assert!(has(&unpacked, |op| matches!(op, Op::Unpack(_))));
    assert!(!has(&packed, |op| matches!(op, Op::Unpack(_))), "{}", ir::text::print(&packed));
    assert!(has(&packed, |op| matches!(op, Op::TernaryMatmulTransposed(_))));
    for (index, (ours, theirs)) in outputs.iter().zip(&expected).enumerate() {
        let error = relative_l2(&theirs.data, &ours.data);
        assert!(error <= 1e-6, "output {index} is off by {error}");
    }
}

/// A parameter of its own, and one of two layers in half precision: clipped, with decay for one of them, over three steps; by numbers worked out here.
#[test]
fn adamw_clips_decays_and_keeps_masters() {
    let gradient = |key: &str, dtype: DType, rounds: Option<u32>| ParamGradient {
        key: key.to_owned(),
        ty: TensorType::new(dtype, Shape::of(&[2])),
        rounds,
    };
    let gradients = [gradient("w", DType::F32, None), gradient("layers.{}.w", DType::BF16, Some(2))];
    let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-3, clip: Some(0.5) };
    let program = adamw.program(&gradients, &|key| key == "w").unwrap();
    let none = HashMap::new();
    let mut evaluator = Evaluator::new(&program, &none);
    let keys = ["w", "layers.0.w", "layers.1.w"];
    let mut weights = [[1.0, -2.0], [0.5, 0.25], [-1.0, 3.0]];
    for (key, values) in keys.iter().zip(weights) {
        evaluator.set_state(key, Tensor::of(if *key == "w" { DType::F32 } else { DType::BF16 }, &[2], values));
        evaluator.set_state(&format!("{key}.master"), Tensor::of(DType::F32, &[2], values));
    }
    let steps = [[0.3, -0.4, 1.2, 0.0, 0.1, -0.2], [0.0, 0.1, -0.1, 0.2, 0.0, 0.0], [3.0, 0.0, 0.0, -4.0, 0.0, 0.0]];
    let (mut mean, mut square) = ([[0.0; 2]; 3], [[0.0; 2]; 3]);
    for (step, slopes) in (1..).zip(steps) {
        let settings = adamw.settings(step, 0.01, 0.1, 1);
        let inputs = [
            Tensor::of(DType::F32, &[5], settings.map(f64::from)),
            Tensor::of(DType::F32, &[2], slopes[..2].iter().copied()),
            Tensor::of(DType::F32, &[2, 2], slopes[2..].iter().copied()),
        ];
        let norm = evaluator.run(&inputs).unwrap()[0].data[0];
        let expected = slopes.iter().map(|slope| slope * slope).sum::<f64>().sqrt();
        assert!((norm - expected).abs() <= 1e-9);
        let clip = (0.5 / (expected + 1e-6)).min(1.0);
        for (tensor, key) in keys.iter().enumerate() {
            for at in 0..2 {
                let slope = slopes[2 * tensor + at] * clip;
                mean[tensor][at] = 0.9 * mean[tensor][at] + 0.1 * slope;
                square[tensor][at] = 0.95 * square[tensor][at] + 0.05 * slope * slope;
                let root = (square[tensor][at] / (1.0 - 0.95_f64.powi(step as i32))).sqrt() + 1e-3;
                let kept = if *key == "w" { 1.0 - 0.01 * 0.1 } else { 1.0 };
                let left = 1.0 - 0.9_f64.powi(step as i32);
                weights[tensor][at] = weights[tensor][at] * kept - 0.01 * mean[tensor][at] / left / root;
            }
            let (state, master) = (evaluator.state(key).unwrap(), evaluator.state(&format!("{key}.master")).unwrap());
            let found = if *key == "w" { state } else { master };
            let error = relative_l2(&weights[tensor], &found.data);
            assert!(error <= 1e-6, "step {step}, {key}: {:?} against {:?}", found.data, weights[tensor]);
            if *key != "w" {
                let rounded: Vec<f64> = master.data.iter().map(|value| half::bf16::from_f64(*value).to_f64()).collect();
                assert_eq!(state.data, rounded, "step {step}, {key}");
            }
        }
    }
    let wrong = adamw.program(&[gradient("t", DType::T2, None)], &|_| true);
    assert_eq!(wrong.unwrap_err().to_string(), "`t` is t2[2]: only parameters of f32, bf16 and f16 can be trained");
    assert_eq!(adamw.program(&[], &|_| true).unwrap_err().to_string(), "there are no parameters to train");
}
