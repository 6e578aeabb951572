//! `tritter verify-context`: whether a long context holds what it promises.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail, ensure};
use ir::plan::Certificate;
use runtime::Session;
use runtime::context::{Found, Journey, Needle, Travelled, find, other_chunk, travel};
use runtime::device::Device;
use runtime::device::any::DeviceKind;
use serde_json::json;

use crate::ui::{self, ModelArgs, Progress, Unit};

/// Go through a whole context and see whether it holds what it promises.
///
/// Every layer takes every position: a prefill of random ids in chunks, then decoding to the last position. Logits are looked at 1, 3, 7 .. positions
/// behind the start; none may be anything but a number, and up to --overlap they are held against those of a shorter context, to the bit. What is taken of the device's memory is held against the plan's certificate. With --needle, a text is hidden at several depths of a longer
/// one and asked for at the end. Fails if anything is not as it should be.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter verify-context big.tritter --context 131072
  tritter verify-context nano.tritter --context 1024 --needle 'KEY = \"q7\"\\n' --question 'assert KEY == \"' --answer 'q7\"'
  tritter verify-context nano.tritter --needle '...' --question '...' --answer '...' --hay book.txt --depths 0,50,100 --json

In the texts, \\n, \\r, \\t, \\0 and \\\\ stand for a newline, a carriage return, a tab, a zero byte and a backslash.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Positions to fill; all that the artifact was compiled for by default.
    #[arg(long, value_name = "N")]
    context: Option<NonZeroUsize>,
    /// How many of them are decoded one by one at the end.
    #[arg(long, value_name = "N", default_value_t = 32)]
    decode: usize,
    /// Tokens of a call of the prefill; the most that the artifact was compiled for by default.
    #[arg(long, value_name = "N")]
    chunk: Option<NonZeroUsize>,
    /// Positions up to which a shorter context is held against the long one.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    overlap: usize,
    /// Tokens of a call of the shorter context's prefill. On a CPU results do not depend on it, so it is another than --chunk by default; on a GPU
    /// attention over caches of few bits takes other sums in other chunks, and it is the same.
    #[arg(long, value_name = "N")]
    shorter_chunk: Option<NonZeroUsize>,
    /// How far logits may be from those of the shorter context, over the largest logit.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    tolerance: f32,
    /// Where the random ids start.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Text that is hidden.
    #[arg(long, value_name = "TEXT", requires_all = ["question", "answer"], value_parser = ui::unescape)]
    needle: Option<String>,
    /// Text at the end that asks for it.
    #[arg(long, value_name = "TEXT", requires = "needle", value_parser = ui::unescape)]
    question: Option<String>,
    /// The right answer.
    #[arg(long, value_name = "TEXT", requires = "needle", value_parser = ui::unescape)]
    answer: Option<String>,
    /// File with the text that it is hidden in, repeated as often as it takes; lines of comments by default.
    #[arg(long, value_name = "FILE", requires = "needle")]
    hay: Option<PathBuf>,
    /// Where it is hidden, in percent of the text.
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_values_t = [0.0, 25.0, 50.0, 75.0, 100.0], requires = "needle")]
    depths: Vec<f64>,
    /// Print a JSON report.
    #[arg(long)]
    json: bool,
}

/// What a needle lies in if nothing else is said.
const HAY: &str = "# Nothing of interest stands in this line, and the next one is like it.\n";

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.depths.iter().all(|depth| (0.0..=100.0).contains(depth)), "--depths are between 0 and 100 percent");
    let mut session = args.model.open()?;
    let context = args.context.map_or(session.context(), NonZeroUsize::get);
    ensure!(
        context <= session.context(),
        "--context is {context}, and {} was compiled for {}; compile with a larger --context",
        args.model.dir().display(),
        session.context()
    );
    let chunk = ui::chunk(&session, args.chunk);
    let shorter_chunk = match (args.shorter_chunk, DeviceKind::of(session.plan())) {
        (Some(chunk), _) => ui::chunk(&session, Some(chunk)),
        (None, DeviceKind::Cpu) => other_chunk(chunk, session.max_tokens()),
        (None, DeviceKind::Cuda) => chunk,
    };
    let tolerance = args.tolerance;
    ensure!(0.0 <= tolerance, "--tolerance is a part of the largest logit, and {tolerance} is none");
    let needle = needle(args, &session)?;

    let mut progress = Progress::new("context", Unit::Tokens);
    let journey = Journey { context, decode: args.decode, chunk, overlap: args.overlap, shorter_chunk, seed: args.seed };
    let travelled = travel(&mut session, &journey, &mut |done, total| {
        progress.set(done as u64, total as u64);
        ui::flow()
    })?;
    drop(progress);
    let mut found = Vec::new();
    for depth in needle.iter().flat_map(|_| &args.depths) {
        let Some(Texts { hay, needle, question, answer, begin }) = &needle else { break };
        let needle = Needle { hay, needle, question, answer, begin };
        let mut progress = Progress::new("needle", Unit::Tokens);
        found.push(find(&mut session, &needle, context, depth / 100.0, chunk, &mut |done, total| {
            progress.set(done as u64, total as u64);
            ui::flow()
        })?);
    }
    let memory = session.device().memory_use()?;
    let overhead = session.plan().budget.overhead_bytes;
    let used = memory.map(|memory| memory.of_model(overhead));
    let certified = Certificate::of(session.plan()).device_bytes();
    let outcome = Outcome { travelled, tolerance, found, certified, used };
    let report = outcome.report();
    if args.json {
        ui::print_json(&report)
    } else {
        ui::print(&outcome.text(&session.device().name())?).map_err(Into::into)
    }?;
    let problems = outcome.problems();
    if problems.is_empty() { Ok(()) } else { Err(anyhow!(problems.join("; "))) }
}

/// The texts of a needle as ids.
struct Texts {
    hay: Vec<u32>,
    needle: Vec<u32>,
    question: Vec<u32>,
    answer: Vec<u32>,
    begin: Vec<u32>,
}

fn needle(args: &Args, session: &Session) -> Result<Option<Texts>> {
    let (Some(needle), Some(question), Some(answer)) = (&args.needle, &args.question, &args.answer) else {
        return Ok(None);
    };
    let Some(tokenizer) = session.tokenizer()? else {
        bail!("{} has no tokenizer, so there is no text to hide", args.model.dir().display());
    };
    let hay = match &args.hay {
        Some(path) => ui::read(path)?,
        None => HAY.as_bytes().to_vec(),
    };
    ensure!(!hay.is_empty() && !answer.is_empty(), "neither --hay nor --answer may be empty");
    let ids = |text: &[u8]| tokenizer.encode(text);
    Ok(Some(Texts {
        hay: ids(&hay),
        needle: ids(needle.as_bytes()),
        question: ids(question.as_bytes()),
        answer: ids(answer.as_bytes()),
        begin: tokenizer.bos().into_iter().collect(),
    }))
}

/// All that was seen.
struct Outcome {
    travelled: Travelled,
    tolerance: f32,
    found: Vec<Found>,
    certified: u64,
    used: Option<u64>,
}

impl Outcome {
    /// What is not as it should be.
    fn problems(&self) -> Vec<String> {
        let Travelled { not_finite, rows, overlaps, .. } = &self.travelled;
        let mut problems = Vec::new();
        if 0 < *not_finite {
            problems.push(format!("{not_finite} of {rows} rows of logits have something else than numbers"));
        }
        let far = overlaps.iter().filter(|overlap| self.tolerance < overlap.largest);
        problems.extend(far.map(|overlap| {
            format!(
                "at position {} the logits are off by {:.2e} of the largest in a shorter context",
                overlap.position, overlap.largest
            )
        }));
        if let Some(used) = self.used.filter(|used| self.certified < *used) {
            problems.push(format!("{used} bytes of the device are in use, and {} were certified", self.certified));
        }
        let lost = self.found.iter().filter(|found| !found.is_found).count();
        if 0 < lost {
            problems.push(format!("the needle was lost {lost} times of {}", self.found.len()));
        }
        problems
    }

    fn report(&self) -> serde_json::Value {
        let Travelled { context, prefill, prefilled, decode, decoded, rows, not_finite, overlaps } = &self.travelled;
        let overlaps: Vec<_> = overlaps
            .iter()
            .map(|overlap| {
                json!({
                    "position": overlap.position,
                    "chunk": overlap.chunk,
                    "different": overlap.different,
                    "relative": overlap.largest,
                })
            })
            .collect();
        let found: Vec<_> = self
            .found
            .iter()
            .map(|found| {
                json!({
                    "position": found.position,
                    "length": found.length,
                    "found": found.is_found,
                    "nats_per_token": found.nats,
                })
            })
            .collect();
        json!({
            "sound": self.problems().is_empty(),
            "problems": self.problems(),
            "context": context,
            "prefill_tokens": prefilled,
            "prefill_seconds": prefill.as_secs_f64(),
            "decode_tokens": decoded,
            "decode_seconds": decode.as_secs_f64(),
            "rows": rows,
            "not_finite": not_finite,
            "tolerance": self.tolerance,
            "overlaps": overlaps,
            "needles": found,
            "certified_bytes": self.certified,
            "used_bytes": self.used,
        })
    }

    fn text(&self, device: &str) -> Result<String> {
        let Travelled { context, prefill, prefilled, decode, decoded, rows, not_finite, overlaps } = &self.travelled;
        let rate = |tokens: usize, seconds: f64| if seconds == 0.0 { 0.0 } else { tokens as f64 / seconds };
        let mut text = String::new();
        writeln!(text, "{device}, {context} positions, all layers")?;
        let (prefill, decode) = (prefill.as_secs_f64(), decode.as_secs_f64());
        writeln!(text, "prefill  {prefilled:>8} tokens in {prefill:.2} s, {:.1} a second", rate(*prefilled, prefill))?;
        writeln!(text, "decode   {decoded:>8} tokens in {decode:.2} s, {:.1} a second", rate(*decoded, decode))?;
        writeln!(text, "numbers  {rows:>8} rows of logits, {not_finite} with something else than numbers")?;
        if let Some(last) = overlaps.last() {
            let different: usize = overlaps.iter().map(|overlap| overlap.different).sum();
            let largest = overlaps.iter().fold(0.0_f32, |largest, overlap| largest.max(overlap.largest));
            writeln!(
                text,
                "overlap  {:>8} positions up to {} against a shorter context in calls of {}: {different} logits differ, by {largest:.1e} of the largest \
                 at the most",
                overlaps.len(),
                last.position,
                last.chunk
            )?;
        }
        let mb = |bytes: u64| bytes as f64 / 1e6;
        match self.used {
            Some(used) => {
                writeln!(text, "memory   {:>8.1} MB in use, {:.1} MB certified", mb(used), mb(self.certified))?
            }
            None => writeln!(text, "memory   {:>8.1} MB certified", mb(self.certified))?,
        }
        for Found { position, length, is_found, nats } in &self.found {
            let found = if *is_found { "found" } else { "lost" };
            writeln!(text, "needle   {found} at {position} of {length}, {nats:.3} nats a token of the answer")?;
        }
        let problems = self.problems();
        writeln!(
            text,
            "{}",
            if problems.is_empty() { "sound".to_owned() } else { format!("not sound: {}", problems.join("; ")) }
        )?;
        Ok(text)
    }
}
