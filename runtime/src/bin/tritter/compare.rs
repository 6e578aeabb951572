//! `tritter compare`: whether two artifacts are the same model.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Result, bail, ensure};
use runtime::Session;
use runtime::device::Device;
use runtime::evaluate::{Evaluation, Windows, evaluate};
use runtime::generate::{Event, Request, generate};
use runtime::sample::Sampling;
use serde_json::json;
use tokenizer::Tokenizer;

use crate::csv;
use crate::eval;
use crate::ui::{self, ModelArgs, Progress, Unit};

const HEADER: &str = "date,model,target_a,device_a,target_b,device_b,greedy_tokens,greedy_equal,scored_tokens,nats_a,nats_b,difference_percent";

/// Compare two artifacts of a model: for two targets, say, or with other caches.
///
/// Both continue a prompt, always with the most probable id, and both score a text as `tritter eval` does. Reported are how many ids are
/// the same before the first that differs, and the nats a token of both. Fails if the nats are further apart than --within, and with --same-ids if an
/// id differs.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter compare nano nano-gpu --text val.bin --same-ids
  tritter compare nano nano-gpu --text val.bin --prompt 'import os' --max-new-tokens 200 --csv parity.csv")]
pub(crate) struct Args {
    /// The artifact to compare with.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The other artifact.
    #[arg(value_name = "B")]
    b: PathBuf,
    /// The text that both score.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Ids of a window; at most the context that the artifacts were compiled for.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    window: usize,
    /// Score only the first so many windows.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The text that both continue.
    #[arg(long, value_name = "TEXT", default_value = "def ")]
    prompt: String,
    /// The most tokens to continue it with.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_new_tokens: usize,
    /// By how many percent the nats of B may differ from those of A.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.1, value_parser = parse_percent)]
    within: f64,
    /// Fail as well if the ids differ anywhere.
    #[arg(long)]
    same_ids: bool,
    /// Threads of a CPU; one for each by default. Results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Append a line to this file, which is made with a header if there is none.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Print a JSON report.
    #[arg(long)]
    json: bool,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent: &f64| percent.is_finite() && 0.0 <= *percent);
    percent.ok_or_else(|| "not a percentage of 0 or more".to_owned())
}

/// What one artifact does.
struct Findings {
    model: String,
    target: String,
    device: String,
    vocab: usize,
    ids: Vec<u32>,
    evaluation: Evaluation,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(file) = &args.csv {
        csv::check(file, HEADER)?;
    }
    let missing: Vec<String> = [&args.a, &args.b]
        .into_iter()
        .filter(|dir| !dir.join("manifest.ron").is_file())
        .map(|dir| dir.display().to_string())
        .collect();
    ensure!(
        missing.is_empty(),
        "no artifact at {}: compile one there with tritterc compile MODEL -o DIR",
        missing.join(" and at ")
    );
    let text = ui::read(&args.text)?;
    ui::listen_for_interrupt()?;
    // One after the other: both at once may be more than a device holds.
    let a = find(args, &args.a, &text)?;
    let b = find(args, &args.b, &text)?;
    ensure!(
        a.vocab == b.vocab,
        "{} has {} ids and {} has {}: they are not one model",
        args.a.display(),
        a.vocab,
        args.b.display(),
        b.vocab
    );
    let equal = a.ids.iter().zip(&b.ids).take_while(|(a, b)| a == b).count();
    // One whose context is shorter ends earlier.
    let tokens = a.ids.len().min(b.ids.len());
    let (nats_a, nats_b) = (a.evaluation.nats_per_token(), b.evaluation.nats_per_token());
    let percent = 100.0 * (nats_b - nats_a) / nats_a;
    report(args, &a, &b, (equal, tokens), percent)?;
    if let Some(file) = &args.csv {
        let date = humantime::format_rfc3339_seconds(SystemTime::now());
        let plain = |text: &str| text.replace(',', " ");
        let line = format!(
            "{date},{},{},{},{},{},{tokens},{equal},{},{nats_a},{nats_b},{percent:.6}",
            plain(&a.model),
            a.target,
            plain(&a.device),
            b.target,
            plain(&b.device),
            a.evaluation.tokens,
        );
        csv::append(file, HEADER, &line)?;
    }
    let mut problems = Vec::new();
    if args.within < percent.abs() {
        problems.push(format!("the nats differ by {percent:.4} %, more than the {} % of --within", args.within));
    }
    if args.same_ids && equal < tokens {
        problems.push(format!("of the {tokens} ids only the first {equal} are the same, and --same-ids asks for all"));
    }
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(())
}

/// Lets one artifact continue the prompt and score the text.
fn find(args: &Args, dir: &Path, text: &[u8]) -> Result<Findings> {
    let mut session = ModelArgs::of(dir.to_owned(), args.threads).session()?;
    let Some(tokenizer) = session.tokenizer()? else {
        bail!("{} has no tokenizer, so it can read neither text nor prompt", dir.display());
    };
    let ids = continuation(args, &mut session, &tokenizer)?;
    let scored = eval::documents(&tokenizer, tokenizer.bos().map(|bos| (0, bos)), text);
    let windows = Windows { window: args.window, limit: args.limit, chunk: session.max_tokens(), batch: 1 };
    if windows.of(&scored).next().is_none() {
        bail!("{} ids in windows of {} leave nothing to score", scored.len(), args.window);
    }
    let mut progress = Progress::new("scoring", Unit::Tokens);
    let evaluation = evaluate(&mut session, &scored, &windows, &mut |done, total| {
        progress.set(done, total);
        ui::flow()
    })?;
    drop(progress);
    let name = session.device().name();
    let plan = session.plan();
    Ok(Findings {
        model: plan.model.clone(),
        target: plan.target.clone(),
        device: csv::device(&name, &plan.target),
        vocab: session.vocab(),
        ids,
        evaluation,
    })
}

/// The most probable ids after the prompt; what would end a text does not.
fn continuation(args: &Args, session: &mut Session, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut prompt: Vec<u32> = tokenizer.bos().into_iter().collect();
    prompt.extend(tokenizer.encode(args.prompt.as_bytes()));
    let request = Request {
        draft: 0,
        sequence: 0,
        prompt: &prompt,
        chunk: session.max_tokens(),
        max_new_tokens: args.max_new_tokens,
        sampling: Sampling::GREEDY,
        stop: &[],
        end_ids: &[],
    };
    let mut progress = Progress::new("continuing", Unit::Tokens);
    let mut done = 0;
    let generation = generate(session, &request, None, &mut |event| {
        if let Event::Token(_) = event {
            done += 1;
            progress.set(done, args.max_new_tokens as u64);
        }
        ui::flow()
    })?;
    drop(progress);
    if let ControlFlow::Break(()) = ui::flow() {
        return Err(runtime::RuntimeError::Cancelled.into());
    }
    Ok(generation.token_ids)
}

fn report(args: &Args, a: &Findings, b: &Findings, (equal, tokens): (usize, usize), percent: f64) -> Result<()> {
    if args.json {
        let side = |findings: &Findings| {
            json!({
                "target": findings.target,
                "device": findings.device,
                "token_ids": findings.ids,
                "nats_per_token": findings.evaluation.nats_per_token(),
            })
        };
        return ui::print_json(&json!({
            "a": side(a),
            "b": side(b),
            "greedy_tokens": tokens,
            "greedy_equal": equal,
            "scored_tokens": a.evaluation.tokens,
            "difference_percent": percent,
        }));
    }
    let line = |name: &str, findings: &Findings| {
        let nats = findings.evaluation.nats_per_token();
        format!("{name}  {nats:.7} nats a token  {}, {}\n", findings.target, findings.device)
    };
    ui::print(&format!(
        "{}{}   {percent:+.5} % over {} tokens\ngreedy: {equal} of {tokens} ids are the same{}\n",
        line("A", a),
        line("B", b),
        a.evaluation.tokens,
        if equal == tokens { "" } else { " before the first that differs" }
    ))?;
    Ok(())
}
