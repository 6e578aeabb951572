//! `tritter shard`: documents into files of tokens to train on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use runtime::RuntimeError;
use runtime::training::corpus::Split;
use runtime::training::shard::Draft;
use runtime::training::storage::{Files, Storage};
use serde_json::json;

use crate::tokenize;
use crate::ui;

/// Write the tokens of documents into shards, for tritter train.
///
/// Each text file is a document, and each object of a `.jsonl` file that has a `text`; directories are walked in the order of their paths. A document
/// gets the id that starts a text and the one that ends it, where the tokenizer has them. Files that are no text are left out. Which documents
/// are kept apart for validation depends on their paths, as they are below PATH, and their contents: the same ones always are.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter shard src/ docs/ -o data --model nano.tritter
  tritter shard curated/jsonl/ -o data --vocabulary cl100k_base --validation 0.001
  tritter shard notes.txt -o data --vocabulary bytes --json")]
pub(crate) struct Args {
    /// Files, directories, and `.jsonl` files whose objects have a `text`.
    #[arg(value_name = "PATH", required = true)]
    inputs: Vec<PathBuf>,
    /// The directory to write into; it may have no shards yet.
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    tokenizer: TokenizerArgs,
    /// The share of the documents that is kept apart for validation.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = parse_share)]
    validation: f64,
    /// Tokens of a shard; the document that reaches them is its last.
    #[arg(long, value_name = "N", default_value_t = 1 << 26)]
    shard_tokens: usize,
    /// Print a JSON report.
    #[arg(long)]
    json: bool,
}

/// Whose ids are written.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct TokenizerArgs {
    /// The artifact that is to be trained: its tokenizer is used.
    #[arg(long, value_name = "ARTIFACT")]
    model: Option<String>,
    /// `bytes`, r50k_base, cl100k_base, o200k_base, or a tokenizer.json.
    #[arg(long, value_name = "VOCABULARY")]
    vocabulary: Option<String>,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "not a number from 0 to 1".to_owned())
}

/// The shards of a split.
struct Shards {
    split: Split,
    draft: Draft,
    written: usize,
    documents: usize,
    tokens: usize,
}

impl Shards {
    /// Writes what there is, if there is anything.
    fn write(&mut self, out: &Path, vocabulary: u32) -> Result<(), RuntimeError> {
        if self.draft.tokens() == 0 {
            return Ok(());
        }
        self.draft.write(&self.split.file(out, self.written), &mut Files)?;
        self.draft = Draft::new(vocabulary);
        self.written += 1;
        Ok(())
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let name = args.tokenizer.model.as_ref().or(args.tokenizer.vocabulary.as_ref());
    let tokenizer = tokenize::open(name.context("a tokenizer is required")?)?;
    let vocabulary = tokenizer.vocab_len();
    let out = &args.out;
    Files.create_dir(out).with_context(|| format!("cannot make {}", out.display()))?;
    for split in Split::ALL {
        if let Some(shard) = split.files(out)?.first() {
            bail!("there is {} already; name another directory, or remove its shards", shard.display());
        }
    }
    let mut all =
        Split::ALL.map(|split| Shards { split, draft: Draft::new(vocabulary), written: 0, documents: 0, tokens: 0 });
    let (mut n_bytes, mut left_out) = (0, 0);
    tokenize::each_document(&args.inputs, |document| {
        let is_text = std::str::from_utf8(&document.bytes).is_ok() && !document.bytes.contains(&0);
        if !is_text || document.bytes.is_empty() {
            left_out += 1;
            return Ok(());
        }
        let ids = tokenizer.encode(&document.bytes);
        let ends = (tokenizer.bos(), tokenizer.eos().first().copied());
        let ids: Vec<u32> = ends.0.into_iter().chain(ids).chain(ends.1).collect();
        let split = Split::of(&name_of(&document.path, &args.inputs), &document.bytes, args.validation);
        n_bytes += document.bytes.len();
        for shards in all.iter_mut().filter(|shards| shards.split == split) {
            shards.draft.push(&ids)?;
            shards.documents += 1;
            shards.tokens += ids.len();
            if args.shard_tokens <= shards.draft.tokens() {
                shards.write(out, vocabulary)?;
            }
        }
        Ok(())
    })?;
    for shards in &mut all {
        shards.write(out, vocabulary)?;
    }
    if args.json {
        let report =
            |shards: &Shards| json!({"documents": shards.documents, "tokens": shards.tokens, "shards": shards.written});
        return ui::print_json(&json!({
            "directory": out.display().to_string(),
            "vocabulary": vocabulary,
            "bytes": n_bytes,
            "left_out": left_out,
            "train": report(&all[0]),
            "validation": report(&all[1]),
        }));
    }
    let mut text = format!("{n_bytes} bytes of text; {left_out} documents left out that are empty or no text\n");
    for Shards { split, written, documents, tokens, .. } in &all {
        text += &format!("{:<10} {tokens:>12} tokens of {documents} documents in {written} shards\n", split.name());
    }
    Ok(ui::print(&text)?)
}

/// The path below that one of the inputs which it was found in: the same wherever they lie.
fn name_of(path: &Path, inputs: &[PathBuf]) -> String {
    let below = inputs.iter().find_map(|input| path.strip_prefix(input).ok());
    let below = match below {
        Some(below) if below != Path::new("") => below,
        _ => Path::new(path.file_name().unwrap_or(path.as_os_str())),
    };
    below.to_string_lossy().replace('\\', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_say_where_the_inputs_lie() {
        let inputs = [PathBuf::from("/home/me/src"), PathBuf::from("notes.txt")];
        let name = |path: &str| name_of(Path::new(path), &inputs);
        assert_eq!(name("/home/me/src/a/b.rs"), "a/b.rs");
        assert_eq!(name("notes.txt"), "notes.txt");
        assert_eq!(name("curated.jsonl:3"), "curated.jsonl:3");
    }

    #[test]
    fn shares_are_from_nothing_to_all() {
        assert_eq!([parse_share("0"), parse_share("0.01"), parse_share("1")], [Ok(0.0), Ok(0.01), Ok(1.0)]);
        assert!(["-0.1", "1.1", "nan", "half"].iter().all(|text| parse_share(text).is_err()));
    }
}
