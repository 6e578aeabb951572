//! `tritter tokenize fim`: sources with a part of their syntax taken out, for a model that learns to fill it in.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokenizer::Tokenizer;
use tokenizer::code::{Language, Span, spans};

use super::{Code, by_extension, each_document, open, parse_code};
use crate::ui;

/// Cut sources where a node of their syntax is, for a model that learns to fill it in; one JSON object for each cut.
///
/// A part is a whole node of the syntax tree: an expression, a statement, a block, a function (AST-FIM, arXiv 2506.00204). Which ones is drawn by the seed and
/// the source alone. `token_ids` are prefix, suffix and middle, each after its mark; a tokenizer of others has no such marks: `--text` gives the three as
/// texts.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter tokenize fim tokenizer.json src/ --code auto > fill.jsonl
  tritter tokenize fim tokenizer.json curated/jsonl/ --code auto --count 4 --seed 7
  tritter tokenize fim cl100k_base lib.rs --text --code rust --min-bytes 40 --max-bytes 400")]
pub(crate) struct Args {
    /// A tokenizer.json, or a directory that has one; see `tritter tokenize --help`.
    tokenizer: String,
    /// Files, directories, and `.jsonl` files whose objects have a `text`.
    #[arg(value_name = "PATH", required = true)]
    inputs: Vec<PathBuf>,
    /// The language of all sources; or `auto`, by their names: sources of other languages are left out.
    #[arg(long, value_name = "LANGUAGE", default_value = "auto", value_parser = parse_code)]
    code: Code,
    /// How many parts of each source, fewer where it has fewer.
    #[arg(long, value_name = "N", default_value = "1")]
    count: usize,
    /// What the parts are drawn by.
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// The shortest part.
    #[arg(long, value_name = "BYTES", default_value = "16")]
    min_bytes: usize,
    /// The longest part.
    #[arg(long, value_name = "BYTES", default_value = "1024")]
    max_bytes: usize,
    /// Print the three texts in place of ids.
    #[arg(long)]
    text: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.min_bytes <= args.max_bytes, "the shortest part is longer than the longest");
    let tokenizer = open(&args.tokenizer)?;
    if !args.text && tokenizer.encode_to_fill(b"", 0..0).is_none() {
        bail!(
            "{} has no marks for prefix, suffix and middle: make one with `tritter tokenize train`, or give --text",
            args.tokenizer
        );
    }
    let (mut n_sources, mut n_parts, mut n_unknown) = (0_usize, 0_usize, 0_usize);
    each_document(&args.inputs, |document| {
        let language = match args.code {
            Code::Is(language) => Some(language),
            Code::ByExtension => by_extension(&document.path),
        };
        let Some(language) = language else {
            n_unknown += 1;
            return Ok(());
        };
        n_sources += 1;
        for part in draw(&document.bytes, language, args)? {
            n_parts += 1;
            let line = line(&tokenizer, &document.path, &document.bytes, &part, args.text)?;
            ui::print(&format!("{line}\n"))?;
        }
        Ok(())
    })?;
    ensure!(0 < n_sources, "no source is of a known language: {n_unknown} were left out; give it with --code LANGUAGE");
    ui::message(&format!("{n_parts} parts of {n_sources} sources; {n_unknown} of unknown languages left out"));
    Ok(())
}

/// Parts of a source that are as long as they may be, as many as are wanted, in the order of the text. Nodes of the same bytes are one part.
fn draw(source: &[u8], language: Language, args: &Args) -> Result<Vec<Span>> {
    let mut candidates = spans(source, language)?;
    candidates.retain(|span| (args.min_bytes..=args.max_bytes).contains(&span.range.len()));
    candidates.dedup_by(|rhs, lhs| rhs.range == lhs.range);
    // The seed and the text decide, so that neither the name nor the order of files does.
    let key = blake3::hash(&[&args.seed.to_le_bytes(), source].concat());
    let mut drawn: Vec<(blake3::Hash, Span)> = candidates
        .into_iter()
        .map(|span| {
            let range = [span.range.start as u64, span.range.end as u64].map(u64::to_le_bytes).concat();
            (blake3::hash(&[key.as_bytes(), &range[..]].concat()), span)
        })
        .collect();
    drawn.sort_by_key(|(key, _)| *key.as_bytes());
    drawn.truncate(args.count);
    let mut drawn: Vec<Span> = drawn.into_iter().map(|(_, span)| span).collect();
    drawn.sort_by_key(|span| (span.range.start, span.range.end));
    Ok(drawn)
}

fn line(tokenizer: &Tokenizer, path: &Path, source: &[u8], part: &Span, is_text: bool) -> Result<Value> {
    let mut line = json!({
        "file": path.display().to_string(),
        "kind": part.kind,
        "start": part.range.start,
        "end": part.range.end,
    });
    if is_text {
        let text = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes);
            text.map(str::to_owned).with_context(|| format!("{} is no text", path.display()))
        };
        line["prefix"] = json!(text(&source[..part.range.start])?);
        line["middle"] = json!(text(&source[part.range.clone()])?);
        line["suffix"] = json!(text(&source[part.range.end..])?);
    } else {
        line["token_ids"] = json!(tokenizer.encode_to_fill(source, part.range.clone()));
    }
    Ok(line)
}
