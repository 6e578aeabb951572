//! Shows what the optimiser does to one linear layer, written in the text form: which rules fire, and the proof.
//!
//! `cargo run --release --example explain`

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use compiler::Target;
use compiler::egraph::explain::explain;
use compiler::rewrite::{Options, optimise};

/// A BitNet linear as a model declares it: quantised activations times scaled ternary weights, in dense arithmetic.
const PROGRAM: &str = r#"program @linear
symbol n <= 16

graph @main(x: f32[n, 64], norm: f32[64]) -> f32[n, 32] {
  param w: t2[32, 64] = "w"
  param s: f32[1] = "s"
  normed = rms_norm x, norm, eps=1e-5
  codes = quantize normed
  values = dequantize codes
  unpacked = unpack w
  weights = mul unpacked, s
  y = matmul values, weights
  return y
}
"#;

fn main() -> Result<()> {
    let program = ir::verify(ir::text::parse(PROGRAM)?)?;
    let (optimised, report) = optimise(&program, &Target::native(), &Options::all())?;
    println!("{}\n{report}", ir::text::print(&optimised));

    let values = &program.entry().values;
    let (y, _) = values.iter().find(|(_, value)| value.name.as_deref() == Some("y")).context("the program has a y")?;
    let proof = explain(&program, "main", y, &Target::native(), &Options::all())?;
    println!("why y became what it is:");
    for step in &proof.steps {
        println!("  {}: {}", step.rule, step.sentence);
    }
    Ok(())
}
