//! Training against other people's code: losses, gradients of every parameter, and weights after some steps.

use std::collections::HashMap;

use compiler::autodiff::{Differentiated, Keep, Options, differentiate, with_cross_entropy};
use compiler::optimiser::AdamW;
use ir::reference::{Evaluator, Tensor};
use ir::{DType, Symbol, verify};
use tritter_tests::compare::relative_l2;
use tritter_tests::fixture::{self, Tensors};
use tritter_tests::session::{Build, Model};

/// A checkpoint with what another implementation made of training it on one batch.
struct Fixture {
    expected: Tensors,
    parameters: HashMap<String, Tensor>,
    sources: Vec<(String, String)>,
    program: ir::Verified<ir::Program>,
    inputs: Vec<Tensor>,
}

impl Fixture {
    /// The training program of a checkpoint, for the batch that the fixture has.
    fn open(name: &str) -> Self {
        let directory = fixture::checkpoint(name);
        let expected = Tensors::read(&fixture::data(name).join("expected.safetensors")).unwrap();
        let ids = expected.ids("input_ids").unwrap();
        let (sequences, length) = (ids.len(), ids[0].len());
        let n = sequences * length;
        let build = Build { sequences: sequences as u32, chunk: n as u32, ..Build::new(length) };
        let built = Model::checkpoint(&directory).unwrap().build(&build).unwrap();
        let program = with_cross_entropy(&built.program, 0).unwrap();
        let sizes = [(Symbol::new("n"), n as u64), (Symbol::new("m"), n as u64)];
        let program = verify(program.bind(&sizes)).unwrap();

        let parameters = Tensors::of_checkpoint(&directory).unwrap().parameters(&built.params).unwrap();
        let bindings = built.params.iter();
        let sources = bindings.map(|binding| (binding.key.clone(), binding.source.clone())).collect();
        let of_tokens = |value: &dyn Fn(usize, usize) -> f64| {
            let places = (0..sequences).flat_map(|seq| (0..length).map(move |pos| (seq, pos)));
            places.map(|(seq, pos)| value(seq, pos)).collect::<Vec<f64>>()
        };
        let vector = |values: Vec<f64>| Tensor::of(DType::I32, &[n], values);
        // Each token is to say which comes next; the last of a sequence has none.
        let next = |seq: usize, pos: usize| ids[seq].get(pos + 1).map_or(-1.0, |&id| f64::from(id));
        let inputs = vec![
            vector(of_tokens(&|seq, pos| ids[seq][pos].into())),
            vector(of_tokens(&|seq, _| seq as f64)),
            vector(of_tokens(&|_, pos| pos as f64)),
            Tensor::of(DType::I32, &[n, 2], vec![0.0; 2 * n]),
            vector((0..n).map(|row| row as f64).collect()),
            vector(of_tokens(&next)),
        ];
        Self { expected, parameters, sources, program, inputs }
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
            println!("{name} {source}: {error:e}");
            if worst.0 < error {
                worst = (error, source);
            }
        }
        assert!(worst.0 <= 1e-4, "{name}: {} is off by {}", worst.1, worst.0);
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
            let settings = adamw.settings(step, 1e-3, 0.1).map(f64::from);
            outputs[0] = Tensor::of(DType::F32, &[4], settings);
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
        println!("{name}: {worst:?}");
        assert!(worst.0 <= 1e-4, "{name}: {} is off by {}", worst.1, worst.0);
    }
}
