//! `tritter tokenize`: text to ids, ids to text, and how many; and what comes before training: a vocabulary, and parts to fill in.

mod fim;
mod train;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokenizer::chat::{ChatOptions, ChatTemplate, Message};
use tokenizer::code::Language;
use tokenizer::{Tokenizer, Vocabulary};

use crate::ui;

/// Turn text into token ids and back, or count them.
///
/// TOKENIZER is `bytes`, a public vocabulary (r50k_base, cl100k_base, o200k_base), a tokenizer.json, or a directory that has one: an artifact,
/// or a checkpoint with byte pairs. Any bytes can be encoded, and decoding gives them back.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  tritter tokenize count cl100k_base src/*.rs
  tritter tokenize encode nano prompt.txt
  echo 'def f(): pass' | tritter tokenize encode o200k_base --code python --json
  tritter tokenize encode bytes notes.txt | tritter tokenize decode bytes > same.txt
  tritter tokenize encode DIR --chat DIR/tokenizer_config.json messages.json
  tritter tokenize train src/ curated/jsonl/ --size 32768 -o tokenizer.json
  tritter tokenize fim tokenizer.json src/ --code auto --seed 1 > fill.jsonl")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Print the ids of files, one line for each file.
    Encode(Input),
    /// Print the bytes of ids, which commas or white space separate.
    Decode(Ids),
    /// Print how many ids files have, and of how many bytes.
    Count(Input),
    /// Learn the byte pairs of a corpus, and write a tokenizer.json of exactly so many ids.
    Train(train::Args),
    /// Cut sources where a node of their syntax is, for a model that learns to fill it in; one JSON object for each cut.
    Fim(fim::Args),
}

/// What is encoded, and how.
#[derive(clap::Args)]
struct Input {
    /// `bytes`, r50k_base, cl100k_base, o200k_base, a tokenizer.json, or a directory that has one.
    tokenizer: String,
    /// The files; standard input by default, or for `-`.
    #[arg(value_name = "FILE", default_value = "-")]
    files: Vec<PathBuf>,
    /// Keep tokens within the syntax of a language: python, rust, javascript, typescript, tsx, c, cpp, go, java; or `auto`, by the
    /// files' extensions.
    #[arg(long, value_name = "LANGUAGE", value_parser = parse_code)]
    code: Option<Code>,
    /// Special tokens that are spelt out become their ids. The files have to be text.
    #[arg(long, conflicts_with = "code")]
    special: bool,
    /// The files are JSON lists of messages, to be written by the chat template of this tokenizer_config.json.
    #[arg(long, value_name = "CONFIG", conflicts_with_all = ["code", "special"])]
    chat: Option<PathBuf>,
    /// Print a JSON report.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Ids {
    /// `bytes`, r50k_base, cl100k_base, o200k_base, a tokenizer.json, or a directory that has one.
    tokenizer: String,
    /// The file of ids; standard input by default, or for `-`.
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Print a JSON report, with U+FFFD for bytes that are no text.
    #[arg(long)]
    json: bool,
}

/// Which language a file is in.
#[derive(Clone, Copy)]
enum Code {
    ByExtension,
    Is(Language),
}

fn parse_code(text: &str) -> Result<Code, String> {
    if text == "auto" {
        return Ok(Code::ByExtension);
    }
    let names = || Language::ALL.map(Language::name).join(", ");
    Language::of_name(text).map(Code::Is).ok_or_else(|| format!("not `auto` nor one of {}", names()))
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.action {
        Action::Encode(input) => encode(input),
        Action::Decode(ids) => decode(ids),
        Action::Count(input) => count(input),
        Action::Train(args) => train::run(args),
        Action::Fim(args) => fim::run(args),
    }
}

/// The tokenizer of a name, a file or a directory.
pub(crate) fn open(name: &str) -> Result<Tokenizer> {
    if name == "bytes" {
        return Ok(Tokenizer::bytes());
    }
    if let Some(vocabulary) = Vocabulary::of_name(name) {
        return Ok(Tokenizer::tiktoken(vocabulary)?);
    }
    let path = Path::new(name);
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
    ensure!(
        file.is_file(),
        "there is no {}; a tokenizer is `bytes`, {}, a tokenizer.json or a directory that has one",
        file.display(),
        Vocabulary::ALL.map(Vocabulary::name).join(", ")
    );
    let json = String::from_utf8(ui::read(&file)?).with_context(|| format!("{} is no text", file.display()))?;
    Tokenizer::from_json(&json).with_context(|| format!("cannot use {}", file.display()))
}

impl Input {
    /// The bytes and the ids of a file.
    fn ids(&self, tokenizer: &Tokenizer, file: &Path) -> Result<(usize, Vec<u32>)> {
        let bytes = ui::read(file)?;
        let text = || std::str::from_utf8(&bytes).with_context(|| format!("{} is no text", file.display()));
        let ids = if let Some(config) = &self.chat {
            tokenizer.encode_with_special(&chat(config, file, text()?)?)
        } else if self.special {
            tokenizer.encode_with_special(text()?)
        } else {
            match self.language(file)? {
                Some(language) => tokenizer.encode_code(&bytes, language)?,
                None => tokenizer.encode(&bytes),
            }
        };
        Ok((bytes.len(), ids))
    }

    fn language(&self, file: &Path) -> Result<Option<Language>> {
        match self.code {
            None => Ok(None),
            Some(Code::Is(language)) => Ok(Some(language)),
            Some(Code::ByExtension) => match by_extension(file) {
                Some(language) => Ok(Some(language)),
                None => {
                    bail!("the language of {} is not known by its name: give it with --code LANGUAGE", file.display())
                }
            },
        }
    }
}

fn by_extension(file: &Path) -> Option<Language> {
    let extension = file.extension().and_then(|extension| extension.to_str());
    extension.and_then(Language::of_extension)
}

/// A document of a corpus, with its name.
pub(crate) struct Document {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
}

/// Folders that hold no sources of the project they are in; those whose names start with a dot are none either.
const SKIPPED: [&str; 4] = ["node_modules", "target", "__pycache__", "venv"];

/// Gives the documents of files, of the files below directories in the order of their paths, and of `.jsonl` files, whose objects have a `text` (or
/// `content`) and may have a `path`. A file that several inputs have is given once, and one below a directory that is no text is left out.
pub(crate) fn each_document(inputs: &[PathBuf], mut found: impl FnMut(Document) -> Result<()>) -> Result<()> {
    let mut given = BTreeSet::new();
    for input in inputs {
        let mut files = Vec::new();
        list(input, &mut files).with_context(|| format!("cannot list {}", input.display()))?;
        files.sort();
        for path in files {
            if !given.insert(std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone())) {
                continue;
            }
            let bytes = ui::read(&path)?;
            if path.extension().is_none_or(|extension| extension != "jsonl") {
                let is_text = || !bytes.contains(&0) && std::str::from_utf8(&bytes).is_ok();
                if path == *input || is_text() {
                    found(Document { path, bytes })?;
                }
                continue;
            }
            for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let place = || format!("{}:{}", path.display(), index + 1);
                let object: Value = serde_json::from_slice(line).with_context(place)?;
                let text = object.get("text").or_else(|| object.get("content")).and_then(Value::as_str);
                let text = text.with_context(|| format!("{} has no `text`", place()))?;
                let name = object.get("path").and_then(Value::as_str).map_or_else(place, str::to_owned);
                found(Document { path: PathBuf::from(name), bytes: text.as_bytes().to_vec() })?;
            }
        }
    }
    Ok(())
}

fn list(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !std::fs::metadata(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        let name = name.to_string_lossy();
        let is_skipped = kind.is_dir() && (name.starts_with('.') || SKIPPED.contains(&&*name));
        // Links may lead round in a circle. A directory that the user names is read, whatever its name.
        if !kind.is_symlink() && !is_skipped {
            list(&entry.path(), files)?;
        }
    }
    Ok(())
}

/// The text of a file's messages.
fn chat(config: &Path, file: &Path, messages: &str) -> Result<String> {
    let json = String::from_utf8(ui::read(config)?).with_context(|| format!("{} is no text", config.display()))?;
    let template = ChatTemplate::from_config(&json).with_context(|| format!("cannot use {}", config.display()))?;
    let template = template.with_context(|| format!("{} has no chat template", config.display()))?;
    let messages: Vec<Message> = serde_json::from_str(messages)
        .with_context(|| format!("{} is no JSON list of messages, each with a role and a content", file.display()))?;
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let text = template.render(&messages, &options);
    text.with_context(|| {
        format!("the template of {} does not take the messages of {}", config.display(), file.display())
    })
}

fn encode(input: &Input) -> Result<()> {
    let tokenizer = open(&input.tokenizer)?;
    let mut reports = Vec::new();
    for file in &input.files {
        let (n_bytes, ids) = input.ids(&tokenizer, file)?;
        if input.json {
            reports.push(
                json!({"file": file.display().to_string(), "bytes": n_bytes, "tokens": ids.len(), "token_ids": ids}),
            );
        } else {
            let words: Vec<String> = ids.iter().map(u32::to_string).collect();
            ui::print(&(words.join(" ") + "\n"))?;
        }
    }
    if input.json { ui::print_json(&Value::Array(reports)) } else { Ok(()) }
}

fn decode(args: &Ids) -> Result<()> {
    let tokenizer = open(&args.tokenizer)?;
    let text =
        String::from_utf8(ui::read(&args.file)?).with_context(|| format!("{} is no text", args.file.display()))?;
    let ids = match text.trim() {
        "" => Vec::new(),
        text => ui::parse_ids(text).map_err(anyhow::Error::msg)?.0,
    };
    if let Some(id) = ids.iter().find(|id| !tokenizer.has(**id)) {
        bail!("{} has no id {id}, of {} ids", args.tokenizer, tokenizer.vocab_len());
    }
    if args.json {
        return ui::print_json(&json!({"text": tokenizer.decode_text(&ids), "tokens": ids.len()}));
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&tokenizer.decode(&ids))?;
    Ok(stdout.flush()?)
}

fn count(input: &Input) -> Result<()> {
    let tokenizer = open(&input.tokenizer)?;
    let (mut files, mut all_bytes, mut all_tokens) = (Vec::new(), 0, 0);
    for file in &input.files {
        let (n_bytes, ids) = input.ids(&tokenizer, file)?;
        all_bytes += n_bytes;
        all_tokens += ids.len();
        let name = file.display().to_string();
        if input.json {
            files.push(json!({"file": name, "bytes": n_bytes, "tokens": ids.len()}));
        } else {
            ui::print(&format!("{:>10} tokens {n_bytes:>12} bytes  {name}\n", ids.len()))?;
        }
    }
    if input.json {
        ui::print_json(&json!({"tokens": all_tokens, "bytes": all_bytes, "files": files}))
    } else if 1 < input.files.len() {
        Ok(ui::print(&format!("{all_tokens:>10} tokens {all_bytes:>12} bytes  in {} files\n", input.files.len()))?)
    } else {
        Ok(())
    }
}
