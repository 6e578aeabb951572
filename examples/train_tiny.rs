//! Trains the test-size model on a tiny text until it knows it by heart, and lets the compiled result recite it.
//!
//! `cargo run --release --example train_tiny`

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use compiler::autodiff::Keep;
use compiler::emit::nvrtc::Search;
use compiler::optimiser::AdamW;
use compiler::schedule::Residency;
use compiler::training::{Batch as Sequences, Precision, Step, StepOptions};
use compiler::weights::{RandomWeights, SourceTensor, WeightError, WeightSource};
use compiler::{Options, Target, artifact, compile, compile_step, rewrite};
use ir::plan::Budget;
use models::spec::KvFormat;
use models::{BuildOptions, HeadFormat, Naming, Spec};
use runtime::generate::{Event, Request};
use runtime::training::{Batch, PlanTrainer, StateInfo, Trainer, Update};
use runtime::{Artifact, Session};
use tokenizer::Tokenizer;

/// What is to be learned: 256 bytes.
const TEXT: &str = "Two roads lead from the mill to the sea. One is short and steep, and the miller takes it when his cart is \
empty. The other winds through the orchards for an hour, and he takes it when the flour is heavy. Ask him which is the \
better road, and he says: for what? ";
/// Steps, at most.
const STEPS: u64 = 100;
/// The mean loss, in nats a byte, at which the text is known.
const KNOWN: f32 = 0.01;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/train_tiny");
    std::fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    let text = models::find_shipped("test").context("the spec is shipped")?;
    // Its ternary weights are made of real ones in each call, and these are what is trained.
    let spec = models::spec::read(text)?.trainable();
    let tokenizer = Tokenizer::bytes();
    let ids: Vec<u32> = tokenizer.bos().into_iter().chain(tokenizer.encode(TEXT)).collect();

    let started = Instant::now();
    let context = u32::try_from(ids.len())?;
    let mut trainer = compile_training(&spec, context, &root.join("step"))?;
    let next = |at: usize| ids.get(at + 1).map_or(-1, |&id| id as i32);
    let batch = Batch {
        ids: ids.iter().map(|&id| id as i32).collect(),
        // Everything before a token is to be seen by it.
        span: vec![0; 2 * ids.len()],
        targets: (0..ids.len()).map(next).collect(),
        ..Batch::default()
    };
    let mut loss = f32::INFINITY;
    for step in 1..=STEPS {
        loss = trainer.accumulate(&batch)?;
        // Rising for ten steps, then falling.
        let rate = 2e-3 * (step as f64 / 10.0).min(1.0 - step as f64 / (STEPS + 1) as f64);
        let norm = trainer.update(&Update { step, rate, decay: 0.0, batches: 1 })?;
        println!(
            "step {step:3}: {loss:8.4} nats a byte, gradients {norm:8.3}, {:5.1} s",
            started.elapsed().as_secs_f64()
        );
        if loss <= KNOWN {
            break;
        }
    }
    ensure!(loss <= KNOWN, "{STEPS} steps were not enough: {loss} nats a byte");

    // The ternary model that they stand for, compiled to be run.
    let trained = Trained::of(&mut trainer)?;
    drop(trainer);
    let mut session = compile_trained(&spec, context, &trained, &root.join("model"))?;
    let (prompt, rest) = ids.split_at(18);
    let request = Request {
        draft: 0,
        sequence: 0,
        prompt,
        chunk: session.max_tokens(),
        max_new_tokens: rest.len(),
        sampling: runtime::Sampling::GREEDY,
        stop: &[],
        end_ids: tokenizer.eos(),
    };
    print!("{}|", String::from_utf8_lossy(&tokenizer.decode(&prompt[1..])));
    let mut recited = Vec::new();
    runtime::generate(&mut session, &request, Some(tokenizer.stream()), &mut |event| {
        match event {
            Event::Text(text) => print!("{text}"),
            Event::Token(id) => recited.push(id),
            _ => {}
        }
        if std::io::stdout().flush().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    println!();
    Ok(())
}

fn options(context: u32, tokens: u32, rows: u32) -> BuildOptions {
    BuildOptions {
        context,
        sequences: 1,
        chunk: tokens,
        logits: rows,
        kv: KvFormat::F32,
        head: HeadFormat::Stored,
        naming: Naming::Own,
    }
}

fn compile_options(context: u32) -> Options {
    Options {
        rewrite: rewrite::Options::all(),
        context: u64::from(context),
        sequences: 1,
        dumps: false,
        nvrtc: Search::default(),
        residency: Residency::default(),
        budget: Budget::default(),
        allow_spills: false,
    }
}

/// A step of training, compiled for this CPU, with random weights.
fn compile_training(spec: &Spec, context: u32, directory: &Path) -> Result<PlanTrainer> {
    let model = models::build(spec, &options(context, context, context))?;
    let is_matrix = |key: &str| model.params.iter().any(|param| param.key == key && param.ty.shape.rank() == 2);
    let step = Step::new(
        &model.program,
        &StepOptions {
            batch: Sequences { sequences: 1, context: u64::from(context) },
            wanted: &|_| true,
            decays: &is_matrix,
            keep: Keep::Values,
            precision: Precision::F32,
            optimiser: AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip: Some(1.0) },
        },
    )?;
    let compiled = compile_step(step, &Target::native(), &compile_options(context))?;
    let weights = RandomWeights { seed: 1, params: model.params };
    artifact::write(directory, &compiled, Some(&weights), None, &|_| Ok(()))?;
    let artifact = Artifact::open(directory, None, &mut |_, _| ())?;
    Ok(PlanTrainer::new(artifact, &runtime::Options::default())?)
}

/// The trained model, compiled for this CPU.
fn compile_trained(spec: &Spec, context: u32, trained: &Trained, directory: &Path) -> Result<Session> {
    let model = models::build(spec, &options(2 * context, context, 1))?;
    let compiled = compile(model.program, &Target::native(), &compile_options(2 * context))?;
    artifact::write(directory, &compiled, Some(trained), None, &|_| Ok(()))?;
    Ok(Session::open(directory, &runtime::Options::default())?)
}

/// What a trainer has as weights: the states under the keys of parameters.
struct Trained(HashMap<String, (StateInfo, Vec<u8>)>);

impl Trained {
    fn of(trainer: &mut PlanTrainer) -> Result<Self> {
        let mut all = HashMap::new();
        for (index, state) in trainer.states().into_iter().enumerate() {
            let mut bytes = Vec::new();
            trainer.read_state(index, &mut bytes)?;
            all.insert(state.key.clone(), (state, bytes));
        }
        Ok(Self(all))
    }
}

impl WeightSource for Trained {
    fn tensor(&self, key: &str) -> Result<SourceTensor<'_>, WeightError> {
        let missing = || WeightError::Unbound { key: key.to_owned() };
        let (StateInfo { dtype, shape, .. }, bytes) = self.0.get(key).ok_or_else(missing)?;
        Ok(SourceTensor { dtype: *dtype, dims: shape.clone(), layout: None, bytes: Cow::Borrowed(bytes) })
    }

    fn check(&self, key: &str) -> Result<(), WeightError> {
        self.tensor(key).map(|_| ())
    }
}
