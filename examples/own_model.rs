//! A model of one's own, declared as data, filled with random weights, compiled and run.
//!
//! `cargo run --release --example own_model`

#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::Result;
use compiler::emit::nvrtc::Search;
use compiler::schedule::Residency;
use compiler::weights::RandomWeights;
use compiler::{Options, Target, artifact, compile, rewrite};
use ir::plan::Budget;
use models::spec::KvFormat;
use models::{BuildOptions, HeadFormat, Naming};
use runtime::{Session, session::Token};

/// A sliding window, gated SiLU, LayerNorm: nothing that any Rust code here knows by name.
const SPEC: &str = r#"(
    name: "mine",
    vocab: 264,
    hidden: 96,
    layers: 4,
    context: 256,
    rope_theta: 10000.0,
    embedding: f32,
    norm: layer(eps: 1e-5, dtype: f32),
    linear: (weights: packed, scale: row(f32), activations: int8),
    blocks: [
        attention(heads: 6, kv_heads: 2, window: 32, sinks: 4, norms: [before]),
        feed_forward(width: 200, activation: silu, gated: true, norms: [before]),
    ],
    final_norm: true,
    head: tied,
    tokenizer: bytes,
)"#;

fn main() -> Result<()> {
    let spec = models::spec::read(SPEC)?;
    let options = BuildOptions {
        context: 256,
        sequences: 1,
        chunk: 64,
        logits: 1,
        kv: KvFormat::Int4,
        head: HeadFormat::Stored,
        naming: Naming::Own,
    };
    let model = models::build(&spec, &options)?;
    println!("{} parameters", model.parameter_count());
    let compile_options = Options {
        rewrite: rewrite::Options::all(),
        context: 256,
        sequences: 1,
        dumps: false,
        nvrtc: Search::default(),
        residency: Residency::default(),
        budget: Budget::default(),
        allow_spills: false,
    };
    let compiled = compile(model.program, &Target::native(), &compile_options)?;
    println!("{}", compiled.report);

    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/mine.tritter");
    let weights = RandomWeights { seed: 7, params: model.params };
    artifact::write(&directory, &compiled, Some(&weights), None, &|_| Ok(()))?;
    let mut session = Session::open(&directory, &runtime::Options::default())?;
    let prompt: Vec<Token> = [1, 72, 105].into_iter().map(|id| Token::next(0, id)).collect();
    let logits = session.forward(&prompt, &[2])?;
    let best = logits.rows().next().map(runtime::sample::greedy);
    println!("the most probable id after the prompt: {best:?}");
    Ok(())
}
