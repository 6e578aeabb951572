//! `tritter tokenize train`: a vocabulary for a corpus.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokenizer::{Layout, Tokenizer};

use super::each_document;
use crate::ui;

/// Learn the byte pairs of a corpus, and write a tokenizer.json of exactly so many ids.
///
/// Ids are laid out as those of the models here: controls, bytes, marks of syntax, byte pairs. The same corpus always gives the same file.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter tokenize train src/ -o tokenizer.json --size 32768
  tritter tokenize train curated/jsonl/ -o tokenizer.json --size 65536 --json
  tritter tokenize train docs/*.md -o small.json --layout my_layout.ron")]
pub(crate) struct Args {
    /// Files, directories, and `.jsonl` files whose objects have a `text`.
    #[arg(value_name = "PATH", required = true)]
    inputs: Vec<PathBuf>,
    /// The file to write.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// How many ids the vocabulary has, all of them together.
    #[arg(long, value_name = "IDS", default_value = "32768")]
    size: u32,
    /// The layout of the ids in place of the usual one of that size: RON as in models/tokenizer/layouts.
    #[arg(long, value_name = "FILE", conflicts_with = "size")]
    layout: Option<PathBuf>,
    /// Print a JSON report.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let layout = match &args.layout {
        Some(file) => {
            let text = String::from_utf8(ui::read(file)?).with_context(|| format!("{} is no text", file.display()))?;
            Layout::from_ron(&text).with_context(|| format!("cannot use {}", file.display()))?
        }
        None => Layout::with_size(args.size).with_context(|| format!("no vocabulary has {} ids", args.size))?,
    };
    ensure!(0 < layout.n_pairs(), "a vocabulary of {} ids has no room for byte pairs", layout.size());
    let mut documents = Vec::new();
    each_document(&args.inputs, |document| {
        documents.push(document.bytes);
        Ok(())
    })?;
    let n_bytes: usize = documents.iter().map(Vec::len).sum();
    let n_pairs = layout.n_pairs();
    let tokenizer = Tokenizer::train(layout, &documents)?;
    let mut file = ui::create_beside(&args.out)?;
    file.write_all(tokenizer.to_json().as_bytes())?;
    file.persist(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
    if args.json {
        return ui::print_json(&json!({
            "file": args.out.display().to_string(),
            "ids": tokenizer.vocab_len(),
            "byte_pairs": n_pairs,
            "documents": documents.len(),
            "bytes": n_bytes,
        }));
    }
    let text = format!(
        "{} ids, {n_pairs} of them byte pairs, from {n_bytes} bytes of {} documents: {}\n",
        tokenizer.vocab_len(),
        documents.len(),
        args.out.display()
    );
    Ok(ui::print(&text)?)
}
