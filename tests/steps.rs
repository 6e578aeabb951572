//! Training steps as they are compiled and run: against other people's losses and weights, and against what is expected of a step at all.

use compiler::autodiff::Keep;
use compiler::optimiser::AdamW;
use compiler::training::{Batch as Sequences, Step, StepOptions};
use runtime::training::{Batch, PlanTrainer, Trainer, Update};
use tritter_tests::fixture::{self, Tensors};
use tritter_tests::session::{self, Build, Model, targets};

/// The values of a state of f32.
fn values(trainer: &mut PlanTrainer, state: usize) -> Vec<f64> {
    let mut bytes = Vec::new();
    trainer.read_state(state, &mut bytes).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|word| f64::from(f32::from_le_bytes(*word))).collect()
}

/// All tokens of some sequences, each of which is to say which comes next; the last of a sequence has none.
fn batch(ids: &[Vec<u32>]) -> Batch {
    let next = |sequence: &Vec<u32>, at: usize| sequence.get(at + 1).map_or(-1, |&id| id as i32);
    let all = || ids.iter().flat_map(|sequence| (0..sequence.len()).map(move |at| (sequence, at)));
    Batch {
        ids: all().map(|(sequence, at)| sequence[at] as i32).collect(),
        span: vec![0; 2 * all().count()],
        targets: all().map(|(sequence, at)| next(sequence, at)).collect(),
        ..Batch::default()
    }
}

#[test]
fn five_steps_lead_where_the_reference_goes() {
    for name in ["tritter-mha", "tritter-gqa"] {
        let directory = fixture::checkpoint(name);
        let expected = Tensors::read(&fixture::data(name).join("expected.safetensors")).unwrap();
        let ids = expected.ids("input_ids").unwrap();
        let model = Model::checkpoint(&directory).unwrap();
        for target in targets() {
            for keep in [Keep::Values, Keep::Inputs] {
                let n = ids.len() * ids[0].len();
                let build =
                    Build { sequences: ids.len() as u32, chunk: n as u32, ..Build::new(ids[0].len()) }.on(&target);
                let built = model.build(&build).unwrap();
                // As the fixtures' config.json says.
                let options = StepOptions {
                    batch: Sequences { sequences: ids.len() as u64, context: ids[0].len() as u64 },
                    wanted: &|_| true,
                    decays: &|_| true,
                    keep,
                    optimiser: AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip: None },
                };
                let step = Step::new(&built.program, &options).unwrap();
                let artifact = model.step_artifact(step, &built.params, &build).unwrap();
                let mut trainer = session::trainer(artifact.path(), 2).unwrap();
                let batch = batch(&ids);
                for (step, theirs) in (1..).zip(expected.values("losses").unwrap()) {
                    let loss = f64::from(trainer.accumulate(&batch).unwrap());
                    assert!(
                        (loss - theirs).abs() <= 1e-4,
                        "{name}, {target}, {keep:?}, step {step}: loss {loss}, not {theirs}"
                    );
                    trainer.update(&Update { step, rate: 1e-3, decay: 0.1, batches: 1 }).unwrap();
                }
                let mut compared = 0;
                for (index, state) in trainer.states().into_iter().enumerate() {
                    let source = built.source_of(&state.key);
                    let Some(theirs) = source.and_then(|source| expected.values(&format!("after5.{source}")).ok())
                    else {
                        continue;
                    };
                    let ours = values(&mut trainer, index);
                    let error = theirs.iter().zip(&ours).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(error <= 1e-4, "{name}, {target}, {keep:?}: {} is off by {error}", state.key);
                    compared += 1;
                }
                assert!(0 < compared);
            }
        }
    }
}
