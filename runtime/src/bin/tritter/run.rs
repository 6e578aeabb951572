//! `tritter run`: a prompt in, text out as it comes.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Result, bail};
use runtime::device::Device;
use runtime::generate::{Event, Finish, Generation, Request};
use runtime::{Sampler, Sampling, Session, Trace};
use serde_json::json;
use tokenizer::Tokenizer;

use crate::timeline;
use crate::ui::{self, Ids, ModelArgs, Progress, Unit};

/// Continue a prompt.
///
/// The text comes to standard output token by token, a line about speed to standard error at the end. With temperature 0, the default,
/// every token is the most probable one. The filters apply in this order: repetition penalty, temperature, top-k, top-p, min-p.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter run nano.tritter --prompt 'def read_json(path):' --max-new-tokens 200
  tritter run nano.tritter --prompt-file notes.txt --temperature 0.8 --top-p 0.95 --seed 7 --stop '\\n\\n'
  tritter run nano.tritter --tokens 1,108,109,110 --json
  tritter run nano.tritter --prompt 'for i in range(10):' --draft 8
  tritter run nano.tritter --prompt 'import ' --trace steps.json      open it at ui.perfetto.dev

In --stop, \\n, \\r, \\t, \\0 and \\\\ stand for a newline, a carriage return, a tab, a zero byte and a backslash.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    input: Input,
    /// Tokens to generate at most.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,
    /// 0 takes the most probable token; higher is more random.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the K most probable tokens; 0 is all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from the fewest most probable tokens that have this probability together.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Draw from tokens that have at least this part of the best one's probability.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f64,
    /// Make tokens that occurred less probable; 1 does not.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Where the random numbers start.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Guess up to N tokens from what occurred before, and check them in one call. The result is that without guesses, as far as it does not depend on
    /// the sizes of calls; where text repeats it comes sooner, most of all from a model whose weights are streamed.
    #[arg(long, value_name = "N", default_value_t = 0)]
    draft: usize,
    /// End before this text; may be given several times.
    #[arg(long, value_name = "TEXT", value_parser = ui::unescape)]
    stop: Vec<String>,
    /// Do not put the id that starts a text before the prompt.
    #[arg(long)]
    no_bos: bool,
    /// Go on after an id that ends a text.
    #[arg(long)]
    ignore_eos: bool,
    /// Tokens of a call of the prefill; the most that the artifact was compiled for by default. Results do not depend on it.
    #[arg(long, value_name = "N")]
    chunk: Option<NonZeroUsize>,
    /// Write when each step ran to this file, for Perfetto or Chrome's tracing page. Steps are timed one by one then, which makes a GPU slower.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print one JSON object at the end instead of text on the way.
    #[arg(long)]
    json: bool,
}

/// Where the prompt comes from.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// The prompt.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A file with the prompt; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// The prompt's ids, separated by commas; nothing is put before them.
    #[arg(long, value_name = "IDS", value_parser = ui::parse_ids)]
    tokens: Option<Ids>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    };
    if args.temperature == 0.0 && (args.top_k != 0 || args.top_p != 1.0 || args.min_p != 0.0) {
        ui::message("note: --top-k, --top-p and --min-p do nothing at temperature 0");
    }
    // Before the model is read, which can take a while.
    Sampler::new(sampling)?;
    let trace_file = match &args.trace {
        Some(path) => Some((path.as_path(), ui::create_beside(path)?)),
        None => None,
    };
    let mut session = args.model.open()?;
    let tokenizer = session.tokenizer()?;
    let prompt = prompt_ids(args, tokenizer.as_ref())?;
    if tokenizer.is_none() && !args.stop.is_empty() {
        bail!("{} has no tokenizer, so --stop cannot be found in its text", args.model.dir().display());
    }
    let end_ids = match &tokenizer {
        Some(tokenizer) if !args.ignore_eos => tokenizer.eos(),
        _ => &[],
    };
    let chunk = ui::chunk(&session, args.chunk);
    let request = Request {
        sequence: 0,
        prompt: &prompt,
        chunk,
        max_new_tokens: args.max_new_tokens,
        sampling,
        draft: args.draft,
        stop: &args.stop,
        end_ids,
    };
    if trace_file.is_some() {
        session.start_trace(Trace::with_timeline());
    }
    let generation = generate(args, &mut session, &request, tokenizer.as_ref())?;
    if let (Some((path, file)), Some(trace)) = (trace_file, session.take_trace()) {
        timeline::write(file, path, &trace, &session.device().name())?;
        let steps = trace.step_spans().count();
        ui::message(&format!("wrote {steps} steps of {} calls to {}", trace.calls(), path.display()));
    }
    let prefill_tokens_per_s = prompt.len() as f64 / generation.prefill.as_secs_f64();
    if args.json {
        return ui::print_json(&json!({
            "text": generation.text,
            "token_ids": generation.token_ids,
            "prompt_tokens": prompt.len(),
            "finish": generation.finish.name(),
            "prefill_seconds": generation.prefill.as_secs_f64(),
            "prefill_tokens_per_s": prefill_tokens_per_s,
            "decode_calls": generation.decode_calls,
            "decode_seconds": generation.decode.as_secs_f64(),
            "decode_tokens_per_s": generation.decode_tokens_per_second(),
            "threads": session.device().threads(),
        }));
    }
    if generation.finish == Finish::Context {
        ui::message(&format!(
            "note: the context of {} tokens is full; compile with a larger --context",
            session.context()
        ));
    }
    ui::message(&format!(
        "{} prompt tokens at {prefill_tokens_per_s:.1}/s, {} new tokens at {:.1}/s, ended by {}",
        prompt.len(),
        generation.token_ids.len(),
        generation.decode_tokens_per_second(),
        generation.finish.name()
    ));
    Ok(())
}

/// Generates and prints what comes, unless a report is wanted.
fn generate(
    args: &Args,
    session: &mut Session,
    request: &Request<'_>,
    tokenizer: Option<&Tokenizer>,
) -> Result<Generation> {
    let mut progress = Progress::new("prefill", Unit::Tokens);
    let mut broken = None;
    let (mut is_first, mut ends_line) = (true, true);
    let mut emit = |text: &str| match ui::print(text) {
        Ok(()) => ui::flow(),
        Err(error) => {
            broken = Some(error);
            ControlFlow::Break(())
        }
    };
    let generation = runtime::generate(session, request, tokenizer.map(Tokenizer::stream), &mut |event| {
        match event {
            Event::Prefill(done, total) => progress.set(done as u64, total as u64),
            Event::Token(id) => {
                progress.clear();
                if !args.json && tokenizer.is_none() {
                    let separator = if is_first { "" } else { " " };
                    (is_first, ends_line) = (false, false);
                    return emit(&format!("{separator}{id}"));
                }
            }
            Event::Text(text) if !args.json => {
                ends_line = text.ends_with('\n');
                return emit(text);
            }
            Event::Text(_) => {}
        }
        ui::flow()
    })?;
    if broken.is_none() && !ends_line && !args.json {
        broken = ui::print("\n").err();
    }
    match broken {
        Some(error) => Err(error.into()),
        None => Ok(generation),
    }
}

fn prompt_ids(args: &Args, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
    if let Some(ids) = &args.input.tokens {
        return Ok(ids.0.clone());
    }
    let text = match (&args.input.prompt, &args.input.prompt_file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(path)) => ui::read(path)?,
        (None, None) => unreachable!("one kind of prompt is required"),
    };
    let Some(tokenizer) = tokenizer else {
        bail!(
            "{} has no tokenizer; give the prompt with --tokens, or compile with a tokenizer",
            args.model.dir().display()
        );
    };
    let bos = if args.no_bos { None } else { tokenizer.bos() };
    let ids: Vec<u32> = bos.into_iter().chain(tokenizer.encode(text)).collect();
    if ids.is_empty() {
        bail!("the prompt is empty");
    }
    Ok(ids)
}
