//! Generation: prefill, then token by token until something ends it, with the text as it comes.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tokenizer::StreamDecoder;

use crate::error::RuntimeError;
use crate::sample::{Sampler, Sampling};
use crate::session::{Session, Token};
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
    let mut next = match logits {
        Ok(logits) if 0 < request.max_new_tokens => Some(sampler.sample(logits)?),
        Ok(_) => None,
        Err(RuntimeError::Cancelled) => return Ok(output.end(Finish::Cancelled, start.elapsed(), Duration::ZERO)),
        Err(error) => return Err(error),
    };
    let prefill = start.elapsed();
    let start = Instant::now();
    let finish = loop {
        let Some(id) = next else { break Finish::Length };
        if let Some(finish) = output.push(id, request.end_ids, &mut decoder) {
            break finish;
        }
        if output.token_ids.len() == request.max_new_tokens {
            break Finish::Length;
        }
        if session.length(request.sequence)? == session.plan().context {
            break Finish::Context;
        }
        sampler.see(&[id]);
        let logits = session.forward(&[Token::next(request.sequence, id)], &[0])?;
        let row = logits.rows().next().expect("one row was asked for");
        next = Some(sampler.sample(row)?);
    };
    let decode = start.elapsed();
    let finish = output.flush(finish, &mut decoder);
    Ok(output.end(finish, prefill, decode))
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

    fn end(self, finish: Finish, prefill: Duration, decode: Duration) -> Generation {
        Generation { token_ids: self.token_ids, text: self.text, finish, prefill, decode }
    }
}
