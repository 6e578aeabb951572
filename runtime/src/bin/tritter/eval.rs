//! `tritter eval`: how well a model predicts a text.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use runtime::evaluate::{Windows, evaluate};
use serde_json::json;
use tokenizer::Tokenizer;

use crate::ui::{self, ModelArgs, Progress, Unit};

/// Measure how well a model predicts a text.
///
/// The text's ids are cut into windows. Each window is scored on its own from an empty cache, its first id is not scored. Reported are the
/// mean negative log-likelihood a token in nats, e to it (perplexity), and the sum in bits divided by the bytes that the scored ids stand
/// for.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter eval nano.tritter --text val.bin --window 1024
  tritter eval model.tritter --text book.txt --limit 20 --json")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    input: Input,
    /// Ids of a window; at most the context that the artifact was compiled for.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    window: usize,
    /// Score only the first so many windows.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The byte that stands before each document of the text and becomes the id that starts a text; `none` makes all bytes text.
    #[arg(long, value_name = "BYTE", default_value = "0", value_parser = parse_separator)]
    document_separator: Separator,
    /// Tokens of a call; the most that the artifact was compiled for by default. Results do not depend on it.
    #[arg(long, value_name = "N")]
    chunk: Option<NonZeroUsize>,
    /// Windows in one call, up to the sequences that the artifact was compiled for. Results do not depend on it.
    #[arg(long, value_name = "N", default_value = "1")]
    batch: NonZeroUsize,
    /// Print a JSON report.
    #[arg(long)]
    json: bool,
}

/// Where the text comes from.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// The text; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The text's ids, separated by commas or white space.
    #[arg(long, value_name = "FILE")]
    tokens_file: Option<PathBuf>,
}

/// What separates documents.
#[derive(Clone, Copy)]
struct Separator(Option<u8>);

fn parse_separator(text: &str) -> Result<Separator, String> {
    if text == "none" {
        return Ok(Separator(None));
    }
    text.parse().map(|byte| Separator(Some(byte))).map_err(|_| "neither a number below 256 nor `none`".to_owned())
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut session = args.model.open()?;
    let tokenizer = session.tokenizer()?;
    // The id that a separator becomes, which stands for its one byte.
    let separator = args.document_separator.0.zip(tokenizer.as_ref().and_then(Tokenizer::bos));
    let ids = match (&args.input.text, &args.input.tokens_file) {
        (Some(path), _) => {
            let Some(tokenizer) = &tokenizer else {
                bail!("{} has no tokenizer; give ids with --tokens-file", args.model.dir().display());
            };
            documents(tokenizer, separator, &ui::read(path)?)
        }
        (None, Some(path)) => {
            let text = String::from_utf8(ui::read(path)?).with_context(|| format!("{} is no text", path.display()))?;
            ui::parse_ids(&text).map_err(anyhow::Error::msg).with_context(|| path.display().to_string())?.0
        }
        (None, None) => unreachable!("one kind of text is required"),
    };
    let chunk = ui::chunk(&session, args.chunk);
    let windows = Windows { window: args.window, limit: args.limit, chunk, batch: args.batch.get() };
    if windows.of(&ids).next().is_none() {
        bail!("{} ids in windows of {} leave nothing to score", ids.len(), args.window);
    }
    let mut progress = Progress::new("eval", Unit::Tokens);
    let start = Instant::now();
    let evaluation = evaluate(&mut session, &ids, &windows, &mut |done, total| {
        progress.set(done, total);
        ui::flow()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    drop(progress);

    let scored = windows.of(&ids).flat_map(|window| &window[1..]);
    let bytes = tokenizer.map(|tokenizer| {
        let length = |id: &u32| match separator {
            Some((_, bos)) if *id == bos => 1,
            _ => tokenizer.decode(&[*id]).len(),
        };
        scored.map(length).sum::<usize>()
    });
    let bits_per_byte =
        bytes.filter(|bytes| *bytes != 0).map(|bytes| evaluation.nats / std::f64::consts::LN_2 / bytes as f64);
    let protocol = format!(
        "{} windows of {} ids, each scored on its own from an empty cache, first id unscored",
        evaluation.windows, args.window
    );
    if args.json {
        return ui::print_json(&json!({
            "nats_per_token": evaluation.nats_per_token(),
            "bits_per_byte": bits_per_byte,
            "perplexity": evaluation.perplexity(),
            "tokens": evaluation.tokens,
            "bytes": bytes,
            "protocol": protocol,
            "seconds": seconds,
            "tokens_per_s": evaluation.tokens as f64 / seconds,
        }));
    }
    let bits = bits_per_byte.map_or("unknown without a tokenizer".to_owned(), |bits| format!("{bits:.5}"));
    ui::print(&format!(
        "nats per token  {:.5}\nbits per byte   {bits}\nperplexity      {:.4}\ntokens          {}\nprotocol        {protocol}\n",
        evaluation.nats_per_token(),
        evaluation.perplexity(),
        evaluation.tokens
    ))?;
    ui::message(&format!("{:.1} tokens/s", evaluation.tokens as f64 / seconds));
    Ok(())
}

/// The ids of a text whose documents start with a separator.
pub(crate) fn documents(tokenizer: &Tokenizer, separator: Option<(u8, u32)>, text: &[u8]) -> Vec<u32> {
    let Some((byte, bos)) = separator else { return tokenizer.encode(text) };
    let mut ids = Vec::with_capacity(text.len());
    for (position, document) in text.split(|each| *each == byte).enumerate() {
        ids.extend((0 < position).then_some(bos));
        ids.extend(tokenizer.encode(document));
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_become_the_id_that_starts_a_text() {
        let tokenizer = Tokenizer::bytes();
        assert_eq!(documents(&tokenizer, Some((0, 1)), b"\0ab\0\0c"), [1, 105, 106, 1, 1, 107]);
        assert_eq!(documents(&tokenizer, Some((b'b', 1)), b"ab\0"), [105, 1, 8]);
        assert_eq!(documents(&tokenizer, None, b"\0a"), [8, 105]);
    }
}
