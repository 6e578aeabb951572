//! `tritter tokenize`: text to ids, ids to text, and how many.

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
  tritter tokenize encode DIR --chat DIR/tokenizer_config.json messages.json")]
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
    }
}

fn open(name: &str) -> Result<Tokenizer> {
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
            tokenizer.encode_with_special(
                &chat(config, text()?).with_context(|| format!("cannot write {}", file.display()))?,
            )
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
            Some(Code::ByExtension) => {
                let extension = file.extension().and_then(|extension| extension.to_str());
                let Some(language) = extension.and_then(Language::of_extension) else {
                    bail!("the language of {} is not known by its name: give it with --code LANGUAGE", file.display());
                };
                Ok(Some(language))
            }
        }
    }
}

/// The text of messages.
fn chat(config: &Path, messages: &str) -> Result<String> {
    let json = String::from_utf8(ui::read(config)?).with_context(|| format!("{} is no text", config.display()))?;
    let template = ChatTemplate::from_config(&json)?;
    let template = template.with_context(|| format!("{} has no chat template", config.display()))?;
    let messages: Vec<Message> = serde_json::from_str(messages).context("the messages are no JSON list of objects")?;
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    Ok(template.render(&messages, &options)?)
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
