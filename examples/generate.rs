//! Compiles the model that comes with the project for this CPU, and continues a prompt with it.
//!
//! `cargo run --release --example generate -- "def read_json(path):"`

#![forbid(unsafe_code)]

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use compiler::emit::nvrtc::Search;
use compiler::schedule::Residency;
use compiler::weights::Checkpoint;
use compiler::{Options, Target, artifact, compile, rewrite};
use ir::plan::Budget;
use models::{BuildOptions, HeadFormat, import};
use runtime::Session;
use runtime::generate::{Event, Request};
use tokenizer::Tokenizer;

fn main() -> Result<()> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "def fibonacci(n):".to_owned());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let directory = root.join("target/bitnet-code-nano.tritter");
    compile_checkpoint(&root.join("models/bitnet-code-nano"), &directory)?;

    // From here on there is no compiler: this is all that a deployment does.
    let mut session = Session::open(&directory, &runtime::Options::default())?;
    let tokenizer = session.tokenizer()?.context("the artifact has a tokenizer")?;
    let ids: Vec<u32> = tokenizer.bos().into_iter().chain(tokenizer.encode(&prompt)).collect();
    let request = Request {
        draft: 0,
        sequence: 0,
        prompt: &ids,
        chunk: session.max_tokens(),
        max_new_tokens: 200,
        sampling: runtime::Sampling::GREEDY,
        stop: &[],
        end_ids: tokenizer.eos(),
    };
    print!("{prompt}");
    runtime::generate(&mut session, &request, Some(tokenizer.stream()), &mut |event| {
        if let Event::Text(text) = event {
            print!("{text}");
            // A terminal shows what is flushed; one that is gone needs no more text.
            if std::io::stdout().flush().is_err() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    println!();
    Ok(())
}

/// A checkpoint directory in, an artifact directory out.
fn compile_checkpoint(checkpoint: &Path, directory: &Path) -> Result<()> {
    let config = checkpoint.join("config.json");
    let config = std::fs::read_to_string(&config).with_context(|| format!("cannot read {}", config.display()))?;
    let checkpoint = Checkpoint::open(checkpoint).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow!(lines.join("\n"))
    })?;
    let imported = import::import(&config, &checkpoint.headers())?;
    let options = BuildOptions {
        context: imported.spec.context,
        sequences: 1,
        chunk: 256,
        logits: 1,
        kv: imported.spec.kv,
        head: HeadFormat::Stored,
        naming: imported.naming,
    };
    let model = models::build(&imported.spec, &options)?;
    let compile_options = Options {
        rewrite: rewrite::Options::all(),
        context: u64::from(options.context),
        sequences: u64::from(options.sequences),
        dumps: false,
        nvrtc: Search::default(),
        residency: Residency::default(),
        budget: Budget::default(),
        allow_spills: false,
    };
    let compiled = compile(model.program, &Target::native(), &compile_options)?;
    let weights = checkpoint.bind(model.params);
    let tokenizer = Tokenizer::bytes().to_json();
    artifact::write(directory, &compiled, Some(&weights), Some(tokenizer.as_bytes()), &|_| Ok(()))?;
    Ok(())
}
