//! Everything that outlives a call: the opened artifact, its caches, and how far each sequence has come.
//!
//! A session holds as many sequences as the artifact was compiled for. A call takes tokens of any of them, mixed as the caller likes, writes
//! their keys and values at their positions, and gives the logits of the tokens that the caller names. Everything a caller can get wrong is
//! refused before anything is written, so after an error the session is as it was.

use std::ops::ControlFlow;
use std::path::Path;

use ir::mask::Span;
use ir::plan::{Buffer, Plan, Role};
use kernels::sample::Settings;
use tokenizer::Tokenizer;

use crate::artifact::{Artifact, WeightPages};
use crate::device::any::{AnyDevice, DeviceKind};
use crate::device::cpu::CpuDevice;
use crate::device::cuda::CudaDevice;
use crate::device::{Device, Ticket};
use crate::error::RuntimeError;
use crate::executor::{Cost, Executor, Sizes};
use crate::trace::Trace;

/// How to open a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Threads; `None` is one for each CPU that this process may use.
    pub threads: Option<usize>,
    /// The most bytes that caches and activations may take; `None` is what the system gives.
    pub max_slab_bytes: Option<u64>,
    /// Where the weights are read from.
    pub weights: WeightPages,
    /// The kind of device; `None` is the one that the artifact was compiled for.
    pub device: Option<DeviceKind>,
}

/// One thread for each CPU that this process may use.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The device of an artifact, and the plan that it is for.
///
/// # Errors
///
/// If memory or threads cannot be had.
pub(crate) fn open_device(artifact: Artifact, options: &Options) -> Result<(Plan, AnyDevice), RuntimeError> {
    let Artifact { plan, weights, code, cubins, .. } = artifact;
    if let Some(limit) = options.max_slab_bytes.filter(|limit| *limit < plan.slab_bytes) {
        return Err(RuntimeError::MemoryLimit { needed: plan.slab_bytes, limit });
    }
    let kind = DeviceKind::of(&plan);
    if let Some(wanted) = options.device.filter(|wanted| *wanted != kind) {
        return Err(RuntimeError::Device { target: plan.target, wanted: wanted.name() });
    }
    let device = match kind {
        DeviceKind::Cpu => {
            let threads = options.threads.unwrap_or_else(default_threads);
            let weights = match options.weights {
                // What is streamed is not to be in memory, and the rest is copied there anyway.
                _ if plan.placement.resident_bytes < plan.weights_bytes => weights,
                WeightPages::Mapped => weights,
                WeightPages::Copied => weights.copied()?,
            };
            AnyDevice::Cpu(CpuDevice::new(&plan, weights, &code, threads)?)
        }
        DeviceKind::Cuda => AnyDevice::Cuda(CudaDevice::new(&plan, &weights, &cubins)?),
    };
    Ok((plan, device))
}

/// One token of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its sequence.
    pub sequence: usize,
    /// Its position; `None` is the next of its sequence. Earlier positions are overwritten, and all after them forgotten.
    pub position: Option<u32>,
    /// The keys that it sees beside those that the model's mask allows; the default is all up to itself.
    pub span: Span,
}

impl Token {
    /// The next token of a sequence, seeing all before it.
    pub fn next(sequence: usize, id: u32) -> Self {
        Self { id, sequence, position: None, span: Span::default() }
    }
}

/// The logits of the rows that a call asked for, in that order.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    values: &'a [f32],
    vocab: usize,
}

impl<'a> Logits<'a> {
    /// One row each: the scores of all ids.
    pub fn rows(&self) -> std::slice::ChunksExact<'a, f32> {
        self.values.chunks_exact(self.vocab)
    }
}

/// How the token after a row is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The filters.
    pub settings: Settings,
    /// The random bits.
    pub draw: u64,
}

impl Choice {
    /// The most probable token.
    pub const GREEDY: Choice = Choice { settings: Settings::GREEDY, draw: 0 };
}

/// The tokens of a call of [`Session::step`].
#[derive(Clone, Copy, Debug)]
pub enum Ids<'a> {
    /// These.
    Given(&'a [u32]),
    /// Those that the step before this one chose, in its order, which need not be known yet.
    Chosen,
}

/// What [`Session::score`] gives rows of logits to: with the list and the position that they belong to.
pub type Visit<'a> = dyn FnMut(usize, usize, &[f32]) -> ControlFlow<()> + 'a;

/// A model that runs.
pub struct Session {
    executor: Executor<AnyDevice>,
    tokenizer: Option<Vec<u8>>,
    artifact_bytes: u64,
    /// For each sequence, the first position that is free.
    lengths: Vec<u64>,
    /// Room for the inputs of a call, kept from call to call.
    inputs: Inputs,
    /// How many tokens the last call chose.
    chosen: usize,
    trace: Option<Trace>,
}

/// The inputs of a call as the plan takes them.
#[derive(Default)]
struct Inputs {
    ids: Vec<i32>,
    sequences: Vec<i32>,
    positions: Vec<i32>,
    spans: Vec<i32>,
    rows: Vec<i32>,
    /// Floats, by their bits.
    settings: Vec<i32>,
    draws: Vec<i32>,
    /// For each sequence of this call, the position after its last token.
    next: Vec<Option<u64>>,
    /// Keys that all tokens see together, if the model has no window.
    keys: u64,
}

impl Session {
    /// Opens the artifact in `dir`. See [`Artifact::open`] for what that means.
    ///
    /// # Errors
    ///
    /// As [`Artifact::open`], and if memory or threads cannot be had.
    pub fn open(dir: &Path, options: &Options) -> Result<Self, RuntimeError> {
        Self::new(Artifact::open(dir, options.device, &mut |_, _| ())?, options)
    }

    /// A session of an artifact.
    ///
    /// # Errors
    ///
    /// If memory or threads cannot be had.
    pub fn new(artifact: Artifact, options: &Options) -> Result<Self, RuntimeError> {
        if artifact.plan.training.is_some() {
            return Err(RuntimeError::ForTraining { dir: artifact.dir() });
        }
        let (tokenizer, bytes) = (artifact.tokenizer.clone(), artifact.bytes);
        let (plan, device) = open_device(artifact, options)?;
        let lengths = vec![0; plan.sequences as usize];
        let executor = Executor::new(plan, device);
        Ok(Self {
            executor,
            tokenizer,
            artifact_bytes: bytes,
            lengths,
            inputs: Inputs::default(),
            chosen: 0,
            trace: None,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.executor.plan()
    }

    /// The device.
    pub fn device(&mut self) -> &mut AnyDevice {
        self.executor.device()
    }

    /// The tokenizer, if the artifact has one. It is read anew each time.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Tokenizer`] if its file is damaged.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>, RuntimeError> {
        let Some(file) = &self.tokenizer else { return Ok(None) };
        // What is not UTF-8 is not JSON either, and is reported as that.
        let json = String::from_utf8_lossy(file);
        Tokenizer::from_json(&json).map(Some).map_err(RuntimeError::Tokenizer)
    }

    /// Bytes of the artifact's files.
    pub fn artifact_bytes(&self) -> u64 {
        self.artifact_bytes
    }

    /// Positions that each sequence has.
    pub fn context(&self) -> usize {
        self.plan().context as usize
    }

    /// Sequences that there are.
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Token ids are below this.
    pub fn vocab(&self) -> usize {
        self.plan().vocab as usize
    }

    /// The most tokens of a call.
    pub fn max_tokens(&self) -> usize {
        self.plan().phases.last().map_or(0, |phase| phase.max_tokens as usize)
    }

    /// The most rows of a call.
    pub fn max_rows(&self) -> usize {
        let bound = self.plan().symbols.iter().find(|symbol| symbol.name == "m");
        bound.map_or(0, |bound| bound.max as usize)
    }

    /// Whether the program chooses the next tokens itself, so that there are steps.
    pub fn chooses(&self) -> bool {
        1 < self.plan().outputs.len()
    }

    /// Positions of a sequence that are filled.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Sequence`].
    pub fn length(&self, sequence: usize) -> Result<u64, RuntimeError> {
        self.lengths.get(sequence).copied().ok_or_else(|| self.no_sequence(sequence))
    }

    /// Forgets a sequence. Its caches need no clearing: a token sees only positions that were written since.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Sequence`].
    pub fn reset(&mut self, sequence: usize) -> Result<(), RuntimeError> {
        self.shorten(sequence, 0)
    }

    /// Forgets all of a sequence but its first positions. One that is no longer stays as it is.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Sequence`].
    pub fn shorten(&mut self, sequence: usize, length: u64) -> Result<(), RuntimeError> {
        let error = self.no_sequence(sequence);
        let own = self.lengths.get_mut(sequence).ok_or(error)?;
        *own = length.min(*own);
        Ok(())
    }

    /// Makes a sequence as long as it would be after so many tokens, without computing any: the caches of all sequences hold zeros then, which
    /// take as long to read as anything else. This is for measurements; what is generated after it means nothing.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Sequence`]; [`RuntimeError::ContextFull`].
    pub fn assume_length(&mut self, sequence: usize, length: usize) -> Result<(), RuntimeError> {
        let context = self.plan().context;
        if context < length as u64 {
            return Err(RuntimeError::ContextFull { sequence, position: length as u64 - 1, context });
        }
        self.reset(sequence)?;
        if 0 < length {
            // Memory that was never written may all be one page, and in a cache.
            let zeros = vec![0; 1 << 18];
            let states = self.plan().buffers.iter().filter(|buffer| buffer.role == Role::State);
            let rounds = |buffer: &Buffer| {
                let (offset, bytes, stride) = (buffer.offset, buffer.bytes, buffer.stride);
                (0..u64::from(buffer.rounds.max(1))).map(move |round| (offset + stride * round, bytes))
            };
            let regions: Vec<(u64, u64)> = states.flat_map(rounds).collect();
            for (start, bytes) in regions {
                for at in (0..bytes).step_by(4 * zeros.len()) {
                    let count = zeros.len().min(((bytes - at) / 4) as usize);
                    self.executor.device().write_i32(start + at, &zeros[..count])?;
                }
            }
        }
        self.lengths[sequence] = length as u64;
        Ok(())
    }

    /// Starts to record the time of each step in `trace`, most often an empty one. It costs a reading of the clock for each launch, and on a GPU
    /// that launches wait for each other.
    pub fn start_trace(&mut self, trace: Trace) {
        self.trace = Some(trace);
    }

    /// Whether times of steps are recorded.
    pub fn is_tracing(&self) -> bool {
        self.trace.is_some()
    }

    /// Ends recording and gives what was recorded.
    pub fn take_trace(&mut self) -> Option<Trace> {
        self.trace.take()
    }

    /// What a call with so many tokens of one sequence after `length` others, and so many rows, moves and computes, by the compiler's
    /// account.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::TooManyTokens`].
    pub fn cost(&mut self, length: usize, tokens: usize, rows: usize) -> Result<Cost, RuntimeError> {
        let keys = (length..length + tokens).map(|position| position as u64 + 1).sum();
        self.cost_of_keys(keys, tokens, rows)
    }

    /// As [`Session::cost`], for tokens of any sequences that see so many keys together.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::TooManyTokens`].
    pub fn cost_of_keys(&mut self, keys: u64, tokens: usize, rows: usize) -> Result<Cost, RuntimeError> {
        self.executor.cost(Sizes { n: tokens as u64, m: rows as u64, keys })
    }

    /// Runs `tokens` and gives the logits of those that `rows` names, ascending indices into `tokens`. The tokens of one sequence have
    /// ascending positions without gaps.
    ///
    /// # Errors
    ///
    /// If an id, sequence, position, span or row is not one that the plan has room for; nothing has changed then. And
    /// [`RuntimeError::Panicked`].
    pub fn forward(&mut self, tokens: &[Token], rows: &[usize]) -> Result<Logits<'_>, RuntimeError> {
        let vocab = self.vocab();
        self.check(tokens, rows)?;
        if tokens.is_empty() {
            return Ok(Logits { values: &[], vocab });
        }
        self.inputs.choose(&vec![Choice { settings: Settings::NONE, draw: 0 }; rows.len()]);
        self.write_inputs()?;
        self.chosen = 0;
        self.run()?;
        let output = self.output(0);
        let values = self.executor.device().read_f32(output, rows.len() * vocab)?;
        Ok(Logits { values, vocab })
    }

    /// Runs one token more of each of some sequences and chooses the one after it, with `choices` for each sequence. It does not wait for the
    /// result where a device works by itself: [`Session::chosen`] does, and the next step may be queued before.
    ///
    /// # Errors
    ///
    /// As [`Session::forward`]; [`RuntimeError::Choices`] if `ids` or `choices` are not one for each sequence, or the last call chose for another
    /// number of them; [`RuntimeError::NoChoice`] if the program does not choose.
    pub fn step(&mut self, sequences: &[usize], ids: Ids<'_>, choices: &[Choice]) -> Result<Ticket, RuntimeError> {
        if !self.chooses() {
            return Err(RuntimeError::NoChoice);
        }
        let given = match ids {
            Ids::Given(ids) => ids.len(),
            Ids::Chosen => self.chosen,
        };
        if given != sequences.len() || choices.len() != sequences.len() {
            return Err(RuntimeError::Choices { sequences: sequences.len(), ids: given, choices: choices.len() });
        }
        let id = |index: usize| if let Ids::Given(ids) = ids { ids[index] } else { 0 };
        let tokens: Vec<Token> =
            sequences.iter().enumerate().map(|(index, &sequence)| Token::next(sequence, id(index))).collect();
        let rows: Vec<usize> = (0..tokens.len()).collect();
        self.check(&tokens, &rows)?;
        self.inputs.choose(choices);
        self.write_inputs()?;
        let next = self.output(1);
        let n = sequences.len();
        if matches!(ids, Ids::Chosen) && 0 < n {
            let plan = self.executor.plan();
            let to = plan.buffer(plan.inputs[0].buffer).offset;
            self.executor.device().copy(next, to, 4 * n as u64)?;
        }
        if 0 < n {
            self.run()?;
        }
        self.chosen = n;
        self.executor.device().queue_read(next, n)
    }

    /// The ids that a step chose, one for each of its sequences.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NoLogits`] if there was nothing to choose from, and what the device reports.
    ///
    /// # Panics
    ///
    /// If [`crate::device::READINGS`] steps were queued since.
    pub fn chosen(&mut self, ticket: Ticket) -> Result<Vec<u32>, RuntimeError> {
        let ids = self.executor.device().finish_read(ticket)?;
        ids.iter().map(|&id| u32::try_from(id).map_err(|_| RuntimeError::NoLogits)).collect()
    }

    /// Where an output lies in the slab.
    fn output(&self, position: usize) -> u64 {
        let plan = self.plan();
        plan.buffer(plan.outputs[position].buffer).offset
    }

    /// Gives the device the inputs of a call that was checked.
    fn write_inputs(&mut self) -> Result<(), RuntimeError> {
        let plan = self.executor.plan();
        let offsets: Vec<u64> = plan.inputs.iter().map(|io| plan.buffer(io.buffer).offset).collect();
        let Inputs { ids, sequences, positions, spans, rows, settings, draws, .. } = &self.inputs;
        for (offset, values) in offsets.into_iter().zip([ids, sequences, positions, spans, rows, settings, draws]) {
            self.executor.device().write_i32(offset, values)?;
        }
        Ok(())
    }

    /// Runs the call whose inputs were written, and takes its tokens for computed.
    fn run(&mut self) -> Result<(), RuntimeError> {
        let Inputs { ids, rows, next, keys, .. } = &self.inputs;
        let sizes = Sizes { n: ids.len() as u64, m: rows.len() as u64, keys: *keys };
        self.executor.run(sizes, self.trace.as_mut())?;
        for (length, next) in self.lengths.iter_mut().zip(next) {
            *length = next.unwrap_or(*length);
        }
        Ok(())
    }

    /// Checks a call and fills `self.inputs`.
    fn check(&mut self, tokens: &[Token], rows: &[usize]) -> Result<(), RuntimeError> {
        let (vocab, context) = (self.plan().vocab, self.plan().context);
        let (max_tokens, max_rows) = (self.max_tokens(), self.max_rows());
        if max_tokens < tokens.len() {
            return Err(RuntimeError::TooManyTokens { tokens: tokens.len(), max: max_tokens as u64 });
        }
        let mut inputs = std::mem::take(&mut self.inputs);
        inputs.clear(self.lengths.len());
        let mut fill = || {
            for (index, token) in tokens.iter().enumerate() {
                let Token { id, sequence, position, span } = *token;
                if vocab <= u64::from(id) {
                    return Err(RuntimeError::TokenId { index, id, vocab });
                }
                let &length = self.lengths.get(sequence).ok_or_else(|| self.no_sequence(sequence))?;
                let next = inputs.next[sequence];
                let position = position.map_or(next.unwrap_or(length), u64::from);
                // The first token of a sequence may go back, the others follow it; so no two of a call write one place.
                let fits = next.map_or(position <= length, |next| position == next);
                if !fits {
                    return Err(RuntimeError::Position { index, sequence, position, next: next.unwrap_or(length) });
                }
                if context <= position {
                    return Err(RuntimeError::ContextFull { sequence, position, context });
                }
                let Span { first, reach } = span;
                if position < u64::from(first) || context < u64::from(reach) {
                    return Err(RuntimeError::Span { index, first, reach, position, context });
                }
                inputs.next[sequence] = Some(position + 1);
                inputs.keys += (position + 1).max(u64::from(reach)) - u64::from(first);
                // All of these are below the bounds that the plan was checked to keep below 2^31.
                inputs.ids.push(id as i32);
                inputs.sequences.push(sequence as i32);
                inputs.positions.push(position as i32);
                inputs.spans.extend([first as i32, reach as i32]);
            }
            let mut free = 0;
            for &row in rows {
                if row < free || tokens.len() <= row || max_rows < rows.len() {
                    return Err(RuntimeError::Rows { row, tokens: tokens.len(), max: max_rows as u64 });
                }
                free = row + 1;
                inputs.rows.push(row as i32);
            }
            Ok(())
        };
        let result = fill();
        self.inputs = inputs;
        result
    }

    fn no_sequence(&self, sequence: usize) -> RuntimeError {
        RuntimeError::Sequence { sequence, sequences: self.lengths.len() as u64 }
    }

    /// Runs `ids` as the next tokens of a sequence, `chunk` of them in a call, and gives the logits of the last.
    ///
    /// `progress` is told how many of how many tokens are done, and may stop it: then the tokens so far stay.
    ///
    /// # Errors
    ///
    /// As [`Session::forward`]; [`RuntimeError::EmptyPrompt`] without ids; [`RuntimeError::Chunk`]; [`RuntimeError::Cancelled`].
    pub fn prefill(
        &mut self,
        sequence: usize,
        ids: &[u32],
        chunk: usize,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<&[f32], RuntimeError> {
        self.check_chunk(chunk)?;
        let (length, context) = (self.length(sequence)?, self.plan().context);
        if context < length + ids.len() as u64 && !ids.is_empty() {
            // Refused as a whole: half a prompt is of no use to anyone.
            return Err(RuntimeError::ContextFull { sequence, position: length + ids.len() as u64 - 1, context });
        }
        let tokens: Vec<Token> = ids.iter().map(|&id| Token::next(sequence, id)).collect();
        let chunks: Vec<&[Token]> = tokens.chunks(chunk).collect();
        let (last, before) = chunks.split_last().ok_or(RuntimeError::EmptyPrompt)?;
        let mut done = 0;
        for chunk in before {
            self.forward(chunk, &[])?;
            done += chunk.len();
            if progress(done, tokens.len()).is_break() {
                return Err(RuntimeError::Cancelled);
            }
        }
        let logits = self.forward(last, &[last.len() - 1])?;
        Ok(logits.values)
    }

    /// Scores lists of ids, each as a sequence of its own from an empty cache, and gives every row of logits to `visit` with the list and
    /// the position that it belongs to: row `i` says what comes after id `i`. Of one list the rows come in order.
    ///
    /// So many of the lists as `batch` says are in a call together, and so many tokens as `chunk` says. All sequences are reset.
    ///
    /// # Errors
    ///
    /// As [`Session::prefill`]; [`RuntimeError::Sequence`] if the artifact has fewer sequences than `batch`.
    pub fn score(
        &mut self,
        lists: &[&[u32]],
        chunk: usize,
        batch: usize,
        visit: &mut Visit<'_>,
    ) -> Result<(), RuntimeError> {
        self.check_chunk(chunk)?;
        if batch == 0 || self.sequences() < batch {
            return Err(self.no_sequence(batch.saturating_sub(1)));
        }
        let context = self.plan().context;
        if let Some(list) = lists.iter().find(|list| context < list.len() as u64) {
            return Err(RuntimeError::ContextFull { sequence: 0, position: list.len() as u64 - 1, context });
        }
        let chunk = chunk.min(self.max_rows()).max(1);
        let batch = batch.min(chunk);
        for (group, lists) in lists.chunks(batch).enumerate() {
            for sequence in 0..lists.len() {
                self.reset(sequence)?;
            }
            let each = chunk / lists.len();
            let longest = lists.iter().map(|list| list.len()).max().unwrap_or(0);
            for start in (0..longest).step_by(each) {
                let (mut tokens, mut owners) = (Vec::with_capacity(chunk), Vec::with_capacity(chunk));
                for (sequence, list) in lists.iter().enumerate() {
                    let end = list.len().min(start + each);
                    for (position, &id) in list.iter().enumerate().take(end).skip(start) {
                        tokens.push(Token::next(sequence, id));
                        owners.push((group * batch + sequence, position));
                    }
                }
                let rows: Vec<usize> = (0..tokens.len()).collect();
                let logits = self.forward(&tokens, &rows)?;
                for (&(list, position), row) in owners.iter().zip(logits.rows()) {
                    if visit(list, position, row).is_break() {
                        return Err(RuntimeError::Cancelled);
                    }
                }
            }
        }
        Ok(())
    }

    fn check_chunk(&self, chunk: usize) -> Result<(), RuntimeError> {
        let max = self.max_tokens();
        if chunk == 0 || max < chunk { Err(RuntimeError::Chunk { chunk, max }) } else { Ok(()) }
    }
}

impl Inputs {
    /// Says how the token after each row is chosen.
    fn choose(&mut self, choices: &[Choice]) {
        for Choice { settings, draw } in choices {
            self.settings.extend(settings.to_row().map(|value| value.to_bits() as i32));
            self.draws.extend([*draw as u32 as i32, (*draw >> 32) as u32 as i32]);
        }
    }

    fn clear(&mut self, sequences: usize) {
        let Inputs { ids, sequences: sequence_values, positions, spans, rows, settings, draws, next, keys } = self;
        *keys = 0;
        for values in [ids, sequence_values, positions, spans, rows, settings, draws] {
            values.clear();
        }
        next.clear();
        next.resize(sequences, None);
    }
}
