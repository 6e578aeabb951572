//! Training steps of a compiled plan.

use ir::mask::Span;
use ir::plan::training::settings;
use ir::plan::{Io, Plan};

use super::{Batch, StateInfo, Trainer, Update};
use crate::artifact::Artifact;
use crate::device::Device;
use crate::device::any::AnyDevice;
use crate::error::RuntimeError;
use crate::executor::{Executor, Sizes};
use crate::session::{Options, open_device};
use crate::trace::Trace;

/// A training plan on its device.
pub struct PlanTrainer {
    executor: Executor<AnyDevice>,
    betas: [f64; 2],
    /// Whether the next batch is the first of its step.
    is_first: bool,
    states: Vec<Place>,
    /// Where the times of launches go, while that is asked for.
    trace: Option<Trace>,
}

/// Where a state lies.
struct Place {
    info: StateInfo,
    /// Bytes from the start of the slab.
    offset: u64,
    bytes: u64,
}

impl PlanTrainer {
    /// The training plan of an artifact, with the parameters as the artifact has them.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotTrainable`] if it has none, and if memory or threads cannot be had.
    pub fn new(artifact: Artifact, options: &Options) -> Result<Self, RuntimeError> {
        let Some(training) = &artifact.plan.training else {
            return Err(RuntimeError::NotTrainable { dir: artifact.dir() });
        };
        let betas = training.betas;
        let (plan, device) = open_device(artifact, options)?;
        let states = places(&plan);
        let mut trainer = Self { executor: Executor::new(plan, device), betas, is_first: true, states, trace: None };
        let start = trainer.executor.plan().phases.len();
        trainer.executor.run_phase(start, trainer.sizes(), None)?;
        Ok(trainer)
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.executor.plan()
    }

    /// What it runs on.
    pub fn device(&mut self) -> &mut AnyDevice {
        self.executor.device()
    }

    /// From now on every launch is timed by itself, which slows them down.
    pub fn start_trace(&mut self) {
        self.trace = Some(Trace::default());
    }

    /// Ends that, and gives the times.
    pub fn take_trace(&mut self) -> Option<Trace> {
        self.trace.take()
    }

    fn sizes(&self) -> Sizes {
        let tokens = self.tokens() as u64;
        Sizes { n: tokens, m: tokens, keys: tokens }
    }

    fn write(&mut self, input: &str, values: &[i32]) -> Result<(), RuntimeError> {
        let plan = self.executor.plan();
        let io = named(&plan.inputs, input);
        let offset = plan.buffer(io.buffer).offset;
        self.executor.device().write_i32(offset, values)
    }

    fn read(&mut self, output: &str) -> Result<f32, RuntimeError> {
        let plan = self.executor.plan();
        let io = named(&plan.outputs, output);
        let offset = plan.buffer(io.buffer).offset;
        Ok(self.executor.device().read_f32(offset, 1)?[0])
    }

    /// Refuses a batch of another size, and numbers that kernels would take for places elsewhere.
    fn check(&self, batch: &Batch) -> Result<(), RuntimeError> {
        let (tokens, vocab) = (self.tokens(), self.plan().vocab);
        let refuse = |what: &'static str, value: i64| Err(RuntimeError::Batch { what, value });
        for (what, found, wanted) in [
            ("ids", batch.ids.len(), tokens),
            ("span", batch.span.len(), 2 * tokens),
            ("targets", batch.targets.len(), tokens),
        ] {
            if found != wanted {
                return Err(RuntimeError::BatchSize { what, found, wanted });
            }
        }
        let is_id = |id: i32| u64::try_from(id).is_ok_and(|id| id < vocab);
        if let Some(&id) = batch.ids.iter().find(|id| !is_id(**id)) {
            return refuse("ids", id.into());
        }
        if let Some(&target) = batch.targets.iter().find(|target| 0 <= **target && !is_id(**target)) {
            return refuse("targets", target.into());
        }
        let context = self.plan().context;
        let (spans, _) = batch.span.as_chunks::<2>();
        let sees = |(index, &[first, reach]): (usize, &[i32; 2])| {
            let position = index as u64 % context.max(1);
            let span =
                u32::try_from(first).ok().zip(u32::try_from(reach).ok()).map(|(first, reach)| Span { first, reach });
            span.is_some_and(|span| u64::from(span.first) <= position && u64::from(span.reach) <= context)
        };
        match spans.iter().enumerate().find(|span| !sees(*span)) {
            Some((index, _)) => refuse("span of token", index as i64),
            None => Ok(()),
        }
    }
}

impl Trainer for PlanTrainer {
    fn tokens(&self) -> usize {
        self.plan().phases.first().map_or(0, |phase| phase.max_tokens as usize)
    }

    fn context(&self) -> usize {
        usize::try_from(self.plan().context).unwrap_or(usize::MAX)
    }

    fn vocabulary(&self) -> Option<u64> {
        Some(self.plan().vocab)
    }

    fn accumulate(&mut self, batch: &Batch) -> Result<f32, RuntimeError> {
        self.check(batch)?;
        self.write("ids", &batch.ids)?;
        self.write("span", &batch.span)?;
        self.write("targets", &batch.targets)?;
        self.write("first", &[i32::from(self.is_first)])?;
        self.executor.run_phase(0, self.sizes(), self.trace.as_mut())?;
        self.is_first = false;
        self.read("loss")
    }

    fn update(&mut self, update: &Update) -> Result<f32, RuntimeError> {
        let Update { step, rate, decay, batches } = *update;
        let settings = settings(self.betas, step, rate, decay, batches);
        self.write("settings", &settings.map(|setting| setting.to_bits().cast_signed()))?;
        let phase = self.plan().phases.len() + 1;
        self.executor.run_phase(phase, self.sizes(), self.trace.as_mut())?;
        self.is_first = true;
        self.read("norm")
    }

    fn states(&self) -> Vec<StateInfo> {
        self.states.iter().map(|place| place.info.clone()).collect()
    }

    fn read_state(&mut self, state: usize, into: &mut Vec<u8>) -> Result<(), RuntimeError> {
        let Place { offset, bytes, .. } = self.states[state];
        let words = self.executor.device().read_f32(offset, bytes.div_ceil(4) as usize)?;
        into.clear();
        into.extend(words.iter().flat_map(|word| word.to_bits().to_le_bytes()).take(bytes as usize));
        Ok(())
    }

    fn write_state(&mut self, state: usize, bytes: &[u8]) -> Result<(), RuntimeError> {
        let Place { offset, bytes: wanted, .. } = self.states[state];
        if bytes.len() as u64 != wanted {
            return Err(RuntimeError::BatchSize {
                what: "bytes of a state",
                found: bytes.len(),
                wanted: wanted as usize,
            });
        }
        // Buffers end at multiples of more than a word.
        let word = |chunk: &[u8]| std::array::from_fn(|at| chunk.get(at).copied().unwrap_or(0));
        let words: Vec<i32> = bytes.chunks(4).map(|chunk| i32::from_le_bytes(word(chunk))).collect();
        self.executor.device().write_i32(offset, &words)
    }

    fn forget(&mut self) -> Result<(), RuntimeError> {
        self.is_first = true;
        Ok(())
    }
}

/// The states that outlive a step, each round of one by itself, in the order of the plan.
fn places(plan: &Plan) -> Vec<Place> {
    let states = plan.training.iter().flat_map(|training| &training.states);
    let of_state = states.flat_map(|io| {
        let buffer = plan.buffer(io.buffer);
        let shape: Vec<u64> = io.shape.iter().map(|dim| dim.as_const().unwrap_or(0)).collect();
        (0..u64::from(buffer.rounds.max(1))).map(move |round| {
            let info =
                StateInfo { key: io.name.replace("{}", &round.to_string()), dtype: io.dtype, shape: shape.clone() };
            Place { info, offset: buffer.offset + round * buffer.stride, bytes: buffer.bytes }
        })
    });
    of_state.collect()
}

fn named<'a>(all: &'a [Io], name: &str) -> &'a Io {
    all.iter().find(|io| io.name == name).expect("the interface was checked when the artifact was opened")
}
