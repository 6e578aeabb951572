//! Generation: prefill, then token by token until something ends it, with the text as it comes.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tokenizer::StreamDecoder;

use crate::device::{Device, Ticket};
use crate::draft::Lookup;
use crate::error::RuntimeError;
use crate::sample::{Sampler, Sampling};
use crate::session::{Ids, Session, Token};
use crate::stop::StopStrings;

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The sequence, which continues where it is.
    pub sequence: usize,
    /// Ids to start from, at least one.
    pub prompt: &'a [u32],
    /// Tokens of a call of the prefill.
    pub chunk: usize,
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// How to choose them.
    pub sampling: Sampling,
    /// The most tokens that are guessed from what occurred before and checked in one call; 0 guesses nothing. On a CPU what is generated does not
    /// depend on it; on a GPU as little as on the sizes of calls.
    pub draft: usize,
    /// Text that ends generation and is not part of it.
    pub stop: &'a [String],
    /// Ids that end generation and have no text.
    pub end_ids: &'a [u32],
}

/// What happens on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// So many of so many tokens of the prompt are done.
    Prefill(usize, usize),
    /// A token was chosen.
    Token(u32),
    /// Text that is certainly part of the result; never empty.
    Text(&'a str),
}

/// Why generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// As many tokens as were wanted.
    Length,
    /// One of the ids that end it.
    End(u32),
    /// A stop string.
    Stop(String),
    /// The sequence is as long as the artifact's context.
    Context,
    /// The caller ended it.
    Cancelled,
}

impl Finish {
    /// A word for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Finish::Length => "length",
            Finish::End(_) => "end",
            Finish::Stop(_) => "stop",
            Finish::Context => "context",
            Finish::Cancelled => "cancelled",
        }
    }
}

/// What was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// All ids that were chosen, with the one that ended it.
    pub token_ids: Vec<u32>,
    /// Their text, up to a stop string; empty without a decoder.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Time of the prefill, up to the first logits.
    pub prefill: Duration,
    /// Time from the first token to the last.
    pub decode: Duration,
    /// Calls after the prefill: fewer than tokens where guesses were right.
    pub decode_calls: usize,
}

impl Generation {
    /// Tokens a second, after the first, which the prefill gives.
    pub fn decode_tokens_per_second(&self) -> f64 {
        let tokens = self.token_ids.len().saturating_sub(1);
        if self.decode.is_zero() { 0.0 } else { tokens as f64 / self.decode.as_secs_f64() }
    }
}

/// Generates tokens, and with a decoder their text, which comes in whole characters. `on_event` may end it after any event; what came
/// before is the result.
///
/// # Errors
///
/// As [`Session::prefill`] and [`Sampler::new`]; [`RuntimeError::NoLogits`].
pub fn generate(
    session: &mut Session,
    request: &Request<'_>,
    mut decoder: Option<StreamDecoder<'_>>,
    on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Generation, RuntimeError> {
    let mut sampler = Sampler::new(request.sampling)?;
    sampler.see(request.prompt);
    let mut output = Output {
        token_ids: Vec::new(),
        text: String::new(),
        stops: StopStrings::new(request.stop.iter().cloned()),
        on_event,
    };
    let start = Instant::now();
    let logits = session.prefill(request.sequence, request.prompt, request.chunk, &mut |done, total| {
        (output.on_event)(Event::Prefill(done, total))
    });
    let first = match logits {
        Ok(logits) if 0 < request.max_new_tokens => Some(sampler.sample(logits)?),
        Ok(_) => None,
        Err(RuntimeError::Cancelled) => return Ok(output.end(Finish::Cancelled, start.elapsed(), Duration::ZERO, 0)),
        Err(error) => return Err(error),
    };
    let prefill = start.elapsed();
    let start = Instant::now();
    let mut calls = 0;
    let finish = match first {
        None => Finish::Length,
        Some(first) => {
            let mut following = Following::new(session, request, sampler, first)?;
            let finish = loop {
                match following.next() {
                    Ok(Some(id)) => {
                        if let Some(finish) = output.push(id, request.end_ids, &mut decoder) {
                            break Ok(finish);
                        }
                    }
                    Ok(None) if output.token_ids.len() < request.max_new_tokens => break Ok(Finish::Context),
                    Ok(None) => break Ok(Finish::Length),
                    Err(error) => break Err(error),
                }
            };
            calls = following.calls;
            // Also after an error no step beyond the tokens that were seen is left in the sequence.
            following.end(output.token_ids.len())?;
            finish?
        }
    };
    let decode = start.elapsed();
    let finish = output.flush(finish, &mut decoder);
    Ok(output.end(finish, prefill, decode, calls))
}

/// The tokens of a sequence after its prompt, one after the other. Steps are queued ahead of the token that is waited for, as far as the device
/// runs by itself and nothing of a step depends on what the host has yet to see.
struct Following<'a> {
    session: &'a mut Session,
    sequence: usize,
    sampler: Sampler,
    /// What guesses are made from, and the most tokens of one; none where nothing is guessed.
    lookup: Option<(Lookup, usize)>,
    /// Tokens that were chosen and are yet to be taken, because guesses were right.
    right: VecDeque<u32>,
    /// Calls so far.
    calls: usize,
    /// Whether tokens are chosen from logits by the host: where what occurred changes them, guesses are checked, or the program gives only logits.
    is_chosen_here: bool,
    /// The token that the prefill gave, until it is taken.
    first: Option<u32>,
    /// Tokens in the sequence before the first of these.
    length: u64,
    /// Steps that may yet be queued.
    left: usize,
    /// Steps that are queued, the oldest first.
    queued: VecDeque<Ticket>,
    /// The last token that was taken.
    last: u32,
}

impl<'a> Following<'a> {
    fn new(
        session: &'a mut Session,
        request: &Request<'_>,
        sampler: Sampler,
        first: u32,
    ) -> Result<Self, RuntimeError> {
        let sequence = request.sequence;
        let length = session.length(sequence)?;
        let room = usize::try_from(session.plan().context - length).unwrap_or(usize::MAX);
        let left = (request.max_new_tokens - 1).min(room);
        let is_chosen_here = sampler.needs_logits() || 0 < request.draft || !session.chooses();
        let lookup = (0 < request.draft).then(|| {
            let mut lookup = Lookup::default();
            lookup.see(request.prompt);
            (lookup, request.draft)
        });
        Ok(Self {
            session,
            sequence,
            sampler,
            lookup,
            right: VecDeque::new(),
            calls: 0,
            is_chosen_here,
            first: Some(first),
            length,
            left,
            queued: VecDeque::new(),
            last: first,
        })
    }

    /// The next token; `None` after the last that there is room for.
    fn next(&mut self) -> Result<Option<u32>, RuntimeError> {
        let id = match self.first.take() {
            Some(first) => {
                self.see(first);
                first
            }
            None if self.is_chosen_here => {
                if self.right.is_empty() && 0 < self.left {
                    self.choose()?;
                }
                let Some(id) = self.right.pop_front() else { return Ok(None) };
                id
            }
            None => {
                // A device that does its work at once is asked for a token when it is wanted, not while the last is yet to be shown.
                if self.queued.is_empty() {
                    self.queue()?;
                }
                let Some(ticket) = self.queued.pop_front() else { return Ok(None) };
                let id = self.session.chosen(ticket)?[0];
                self.see(id);
                id
            }
        };
        if !self.is_chosen_here && 0 < self.session.device().runs_ahead() {
            self.queue()?;
        }
        Ok(Some(id))
    }

    /// Notes a token that was chosen.
    fn see(&mut self, id: u32) {
        self.sampler.see(&[id]);
        if let Some((lookup, _)) = &mut self.lookup {
            lookup.see(&[id]);
        }
        self.last = id;
    }

    /// Chooses the next token from logits, and those after it as long as they are as guessed.
    fn choose(&mut self) -> Result<(), RuntimeError> {
        let most = self.left.min(self.session.max_tokens()).min(self.session.max_rows()) - 1;
        let guess = self.lookup.as_ref().map_or(&[][..], |(lookup, draft)| lookup.guess(most.min(*draft))).to_vec();
        let ids = [self.last].into_iter().chain(guess.iter().copied());
        let tokens: Vec<Token> = ids.map(|id| Token::next(self.sequence, id)).collect();
        let rows: Vec<usize> = (0..tokens.len()).collect();
        let before = self.session.length(self.sequence)?;
        self.calls += 1;
        let logits = self.session.forward(&tokens, &rows)?;
        for (row, guessed) in logits.rows().zip(guess.iter().map(Some).chain([None])) {
            let id = self.sampler.sample(row)?;
            self.sampler.see(&[id]);
            self.right.push_back(id);
            if guessed != Some(&id) {
                break;
            }
        }
        let chosen: Vec<u32> = self.right.iter().copied().collect();
        if let Some((lookup, _)) = &mut self.lookup {
            lookup.see(&chosen);
        }
        self.last = chosen.last().copied().unwrap_or(self.last);
        self.left -= chosen.len();
        // Of the guess only what was right stays.
        self.session.shorten(self.sequence, before + self.right.len() as u64)
    }

    /// Queues steps behind the token that was taken last.
    fn queue(&mut self) -> Result<(), RuntimeError> {
        let ahead = 1 + self.session.device().runs_ahead();
        while 0 < self.left && self.queued.len() < ahead {
            let ids = if self.queued.is_empty() { Ids::Given(&[self.last]) } else { Ids::Chosen };
            let choice = self.sampler.choice();
            self.queued.push_back(self.session.step(&[self.sequence], ids, &[choice])?);
            self.calls += 1;
            self.left -= 1;
        }
        Ok(())
    }

    /// Forgets what was queued beyond the tokens that were taken. The last of them was chosen, and is not in the sequence.
    fn end(self, taken: usize) -> Result<(), RuntimeError> {
        self.session.shorten(self.sequence, self.length + taken.saturating_sub(1) as u64)
    }
}

/// What was generated so far.
struct Output<'a> {
    token_ids: Vec<u32>,
    text: String,
    stops: StopStrings,
    on_event: &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
}

impl Output<'_> {
    /// Adds an id; says if it ends generation.
    fn push(&mut self, id: u32, end_ids: &[u32], decoder: &mut Option<StreamDecoder<'_>>) -> Option<Finish> {
        self.token_ids.push(id);
        if (self.on_event)(Event::Token(id)).is_break() {
            return Some(Finish::Cancelled);
        }
        if end_ids.contains(&id) {
            return Some(Finish::End(id));
        }
        let text = decoder.as_mut()?.push(id);
        let text = self.stops.push(&text);
        let flow = self.emit(&text);
        if let Some(stop) = self.stops.stopped() {
            return Some(Finish::Stop(stop.to_owned()));
        }
        flow.is_break().then_some(Finish::Cancelled)
    }

    /// Lets the rest of the text through. A character that is not complete may turn out to complete a stop string.
    fn flush(&mut self, finish: Finish, decoder: &mut Option<StreamDecoder<'_>>) -> Finish {
        let Some(decoder) = decoder else { return finish };
        let rest = self.stops.push(&decoder.finish()) + &self.stops.finish();
        // Everything is decided; that nobody listens any more changes nothing.
        let _ = self.emit(&rest);
        match self.stops.stopped() {
            Some(stop) => Finish::Stop(stop.to_owned()),
            None => finish,
        }
    }

    fn emit(&mut self, text: &str) -> ControlFlow<()> {
        self.text.push_str(text);
        if text.is_empty() { ControlFlow::Continue(()) } else { (self.on_event)(Event::Text(text)) }
    }

    fn end(self, finish: Finish, prefill: Duration, decode: Duration, decode_calls: usize) -> Generation {
        Generation { token_ids: self.token_ids, text: self.text, finish, prefill, decode, decode_calls }
    }
}
