//! Training steps as they are compiled and run: against other people's losses and weights, and against what is expected of a step at all.

use compiler::Target;
use compiler::autodiff::Keep;
use compiler::optimiser::AdamW;
use compiler::training::{Batch as Sequences, Precision, Step, StepOptions};
use ir::packing::TernaryLayout;
use runtime::training::{Batch, PlanTrainer, Trainer, Update};
use tritter_tests::compare::relative_l2;
use tritter_tests::fixture::{self, Tensors, random_ids};
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
                    precision: Precision::F32,
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

/// Adapters that the PEFT library made: the logits with them, and the loss and the gradients of a step that trains nothing else. Its projections read
/// int8 activations and packed weights, so an activation may be rounded to the other code where the reference's was not.
#[test]
fn adapters_are_those_of_peft() {
    let name = "lora-peft";
    let expected = Tensors::read(&fixture::data(name).join("expected.safetensors")).unwrap();
    let config = std::fs::read_to_string(fixture::data(name).join("adapter_config.json")).unwrap();
    let adapters = models::import::peft(&config).unwrap();
    let file = fixture::data(name).join("adapter_model.safetensors");
    let ids = expected.ids("input_ids").unwrap();
    let base = Model::checkpoint(&fixture::checkpoint("bitnet-online")).unwrap();
    let n = ids.len() * ids[0].len();
    for target in targets() {
        let build = Build {
            sequences: ids.len() as u32,
            chunk: n as u32,
            packing: Some(TernaryLayout::Tile16),
            ..Build::new(ids[0].len())
        };
        let build = build.on(&target);
        let model = base.build_adapted(&build, &adapters).unwrap();
        let weights = base.adapted_weights(&model, &file).unwrap();
        let compiled = session::compile(model.program.clone(), &build).unwrap();
        let artifact = session::write(&compiled, &weights).unwrap();
        let mut session = session::session(artifact.path(), 2).unwrap();
        let of_sequence = |(at, ids): (usize, &Vec<u32>)| session::logits(&mut session, at, ids, ids.len()).unwrap();
        let logits: Vec<f64> = ids.iter().enumerate().flat_map(of_sequence).map(f64::from).collect();
        let logits_error = relative_l2(&expected.values("logits").unwrap(), &logits);
        assert!(logits_error <= 0.03, "{target}: logits are off by {logits_error}");

        let of = |precision| [Keep::Values, Keep::Inputs].map(|keep| (precision, keep));
        for (precision, keep) in Precision::ALL.into_iter().flat_map(of) {
            let what = format!("{target}, {precision}, {keep:?}");
            let options = StepOptions {
                batch: Sequences { sequences: ids.len() as u64, context: ids[0].len() as u64 },
                wanted: &|key| model.adapters.iter().any(|adapter| adapter.key == key),
                decays: &|_| false,
                keep,
                precision,
                optimiser: AdamW { beta1: 0.0, beta2: 0.95, eps: 1e-8, clip: None },
            };
            let compiled = session::compile_step(Step::new(&model.program, &options).unwrap(), &build).unwrap();
            // Both directions read the same: the rows of several projections as one, or those of each among them.
            let packed = compiled.plan.buffers.iter().filter(|buffer| buffer.is_ternary);
            let packed: Vec<&str> = packed.map(|buffer| buffer.name.as_str()).collect();
            let names = ["attention.q+k+v", "attention.o", "ffn.gate+up", "ffn.down"];
            assert_eq!(packed, names.map(|name| format!("layers.{{}}.{name}.weight")), "{what}");
            let artifact = session::write(&compiled, &weights).unwrap();
            let mut trainer = session::trainer(artifact.path(), 2).unwrap();
            let loss = f64::from(trainer.accumulate(&batch(&ids)).unwrap());
            let theirs = expected.values("loss").unwrap()[0];
            // The head of this model is dense, and its logits are as large as the loss: rounded by bf16 they turn probabilities by a few hundredths.
            let (bound, gradient_bound) = match precision {
                Precision::F32 => (1e-2, 0.03),
                Precision::Bf16 => (theirs / 512.0, 0.08),
            };
            assert!((loss - theirs).abs() <= bound, "{what}: loss {loss} against {theirs}");
            // Without memory of older gradients the mean of them is the last one.
            trainer.update(&Update { step: 1, rate: 0.0, decay: 0.0, batches: 1 }).unwrap();
            let (mut compared, mut worst) = (0, 0.0_f64);
            for (index, state) in trainer.states().into_iter().enumerate() {
                let Some(key) = state.key.strip_suffix(".first_moment") else { continue };
                let mut all =
                    model.adapters.iter().flat_map(|binding| (0..binding.rounds).map(move |round| (binding, round)));
                let (binding, round) = all.find(|(binding, round)| binding.key_of(*round) == key).unwrap();
                let source = binding.source_of(round).replace(".weight", ".default.weight");
                let theirs = expected.values(&format!("grad.{source}")).unwrap();
                let error = relative_l2(&theirs, &values(&mut trainer, index));
                worst = worst.max(error);
                assert!(error <= gradient_bound, "{what}: {source} is off by {error}");
                compared += 1;
            }
            println!("{what}: logits {logits_error:.1e}, loss {loss} against {theirs}, gradients {worst:.1e}");
            assert_eq!(compared, 16);
        }
    }
}

/// A step of a shipped spec with real weights in f32, for one sequence.
fn trainer_of(name: &str, context: usize, target: &Target, keep: Keep) -> PlanTrainer {
    trainer_in(Precision::F32, name, context, target, keep)
}

fn trainer_in(precision: Precision, name: &str, context: usize, target: &Target, keep: Keep) -> PlanTrainer {
    let mut model = Model::shipped(name).unwrap();
    model.spec = model.spec.trainable();
    let build = Build::new(context).on(target);
    let built = model.build(&build).unwrap();
    let options = StepOptions {
        batch: Sequences { sequences: 1, context: context as u64 },
        wanted: &|_| true,
        decays: &|key| key.ends_with(".weight"),
        keep,
        precision,
        optimiser: AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip: Some(1.0) },
    };
    let step = Step::new(&built.program, &options).unwrap();
    let artifact = model.step_artifact(step, &built.params, &build).unwrap();
    session::trainer(artifact.path(), 2).unwrap()
}

/// One step on two batches, and what it says.
fn step(trainer: &mut PlanTrainer, step: u64) -> [f32; 3] {
    let n = trainer.tokens();
    let batches = [0, 1].map(|part| batch(&[random_ids(trainer.plan().vocab, n, 2 * step + part)]));
    let losses = batches.map(|batch| trainer.accumulate(&batch).unwrap());
    let norm = trainer.update(&Update { step, rate: 1e-3, decay: 0.1, batches: 2 }).unwrap();
    [losses[0], losses[1], norm]
}

fn states(trainer: &mut PlanTrainer) -> Vec<Vec<u8>> {
    let count = trainer.states().len();
    let read = |state| {
        let mut bytes = Vec::new();
        trainer.read_state(state, &mut bytes).unwrap();
        bytes
    };
    (0..count).map(read).collect()
}

#[test]
fn what_was_interrupted_goes_on_bit_for_bit() {
    for target in targets() {
        for keep in [Keep::Values, Keep::Inputs] {
            let mut whole = trainer_of("tiny", 40, &target, keep);
            let said: Vec<[f32; 3]> = (1..=20).map(|at| step(&mut whole, at)).collect();
            assert!(said.iter().flatten().all(|number| number.is_finite()), "{said:?}");
            let expected = states(&mut whole);
            for stop in [1, 7, 10, 19] {
                let mut first = trainer_of("tiny", 40, &target, keep);
                (1..=stop)
                    .for_each(|at| assert_eq!(step(&mut first, at), said[at as usize - 1], "{target}, step {at}"));
                // What is added up when it stops is not kept.
                let n = first.tokens();
                first.accumulate(&batch(&[random_ids(first.plan().vocab, n, 99)])).unwrap();
                let saved = states(&mut first);
                let mut second = trainer_of("tiny", 40, &target, keep);
                for (state, bytes) in saved.iter().enumerate() {
                    second.write_state(state, bytes).unwrap();
                }
                (stop + 1..=20)
                    .for_each(|at| assert_eq!(step(&mut second, at), said[at as usize - 1], "{target}, step {at}"));
                assert!(states(&mut second) == expected, "{target}, {keep:?}, stopped after {stop}");
            }
        }
    }
}

#[test]
fn recomputed_layers_give_the_same_bits() {
    for target in targets() {
        let [mut kept, mut recomputed] = [Keep::Values, Keep::Inputs].map(|keep| trainer_of("tiny", 40, &target, keep));
        for at in 1..=3 {
            assert_eq!(step(&mut kept, at), step(&mut recomputed, at), "{target}, step {at}");
        }
        assert!(states(&mut kept) == states(&mut recomputed), "{target}");
    }
}

#[test]
fn products_in_bf16_lead_where_those_in_f32_go() {
    for target in targets() {
        for keep in [Keep::Values, Keep::Inputs] {
            let of = |precision| trainer_in(precision, "tiny", 40, &target, keep);
            let [mut exact, mut rounded, mut again] = [Precision::F32, Precision::Bf16, Precision::Bf16].map(of);
            let mut differs = false;
            for at in 1..=20 {
                let [exact, rounded, again] = [&mut exact, &mut rounded, &mut again].map(|trainer| step(trainer, at));
                assert_eq!(rounded, again, "{target}, step {at}: not the same bits twice");
                differs |= exact != rounded;
                // The first gradients are the same but for their rounding; a ternary weight that turns earlier or later then tells the two apart, whose
                // losses still go the same way.
                let (part, compared) = if at == 1 { (0.01, 3) } else { (0.25, 2) };
                for (exact, rounded) in exact.into_iter().zip(rounded).take(compared) {
                    assert!((exact - rounded).abs() <= part * exact, "{target}, step {at}: {rounded}, not {exact}");
                }
            }
            assert!(differs, "{target}: nothing was rounded");
        }
    }
}

#[test]
fn batches_that_mean_nothing_are_refused() {
    let mut trainer = trainer_of("tiny", 40, &targets()[0], Keep::Values);
    let sound = batch(&[random_ids(267, 40, 1)]);
    let mut refused = |change: &dyn Fn(&mut Batch)| {
        let mut batch = sound.clone();
        change(&mut batch);
        trainer.accumulate(&batch).unwrap_err().to_string()
    };
    assert_eq!(refused(&|batch| batch.ids.truncate(3)), "3 ids are given, 40 are wanted");
    assert_eq!(refused(&|batch| batch.span.truncate(3)), "3 span are given, 80 are wanted");
    for change in
        [(|batch| batch.ids[3] = 267) as fn(&mut Batch), |batch| batch.ids[3] = -1, |batch| batch.targets[0] = 300]
    {
        assert!(refused(&change).contains("outside the model's vocabulary"));
    }
    for change in
        [(|batch| batch.span[4] = 3) as fn(&mut Batch), |batch| batch.span[5] = 41, |batch| batch.span[4] = -1]
    {
        assert!(refused(&change).contains("span of token"));
    }
    assert!(trainer.accumulate(&sound).unwrap().is_finite());
}
