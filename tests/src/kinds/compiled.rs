//! `compiled`: the `; run:` lines once more, by the compiled artifact, on every target that this CPU has, optimised and not.
//!
//! The program must have the signature that the runtime calls: `ids`, `seq`, `pos`, `span` and `rows` in, logits out. Each `run` line opens the
//! artifact anew, each `then` line goes on with its caches, and all runs of a file must be such as a session accepts: positions without
//! gaps, ids below the width of the logits. A target that this CPU does not have is listed by the test program as ignored.

use anyhow::{Context, ensure};
use compiler::schedule::Residency;
use compiler::{Options, Target, artifact, rewrite};
use ir::graph::Program;
use ir::mask::Span;
use ir::plan::Budget;
use ir::reference::Tensor;
use ir::verify::Verified;
use ir::{DType, ValueId};
use runtime::Token;

use super::{Kind, run};
use crate::filetest::Case;
use crate::given::Given;
use crate::session;

/// Compiles and runs.
pub struct Compiled;

/// Positions of a cache in programs that have none.
const CONTEXT: u64 = 32;

impl Kind for Compiled {
    fn name(&self) -> &'static str {
        "compiled"
    }

    fn options(&self) -> &'static [&'static str] {
        &[]
    }

    fn run(&self, case: &Case) -> anyhow::Result<Option<String>> {
        let program = run::program(case)?;
        let runs = run::sessions(case, &program)?;
        for target in session::targets() {
            for rewrite in [rewrite::Options::none(), rewrite::Options::all()] {
                let optimised = if rewrite.stages.is_empty() { "" } else { ", optimised" };
                on(&program, &runs, &target, rewrite).with_context(|| format!("on {target}{optimised}"))?;
            }
        }
        Ok(None)
    }
}

/// Checks all runs on one target.
fn on(
    program: &Verified<Program>,
    runs: &[run::Session],
    target: &Target,
    rewrite: rewrite::Options,
) -> anyhow::Result<()> {
    let (sequences, context) = cache_size(program);
    let options = Options {
        rewrite,
        context,
        sequences,
        residency: Residency::default(),
        budget: Budget::default(),
        dumps: false,
        nvrtc: session::nvrtc(),
        allow_spills: false,
    };
    let compiled = compiler::compile(program.clone(), target, &options)?;
    for run in runs {
        let directory = tempfile::tempdir()?;
        artifact::write(directory.path(), &compiled, Some(&Given(&run.parameters)), None, &|_| Ok(()))?;
        let mut session = session::session(directory.path(), 2)?;
        for line in &run.runs {
            let (tokens, rows) = call(&line.inputs).with_context(|| format!("line {}", line.line))?;
            let logits = session.forward(&tokens, &rows).with_context(|| format!("line {}", line.line))?;
            let logits: Vec<f64> = logits.rows().flatten().map(|&logit| logit.into()).collect();
            let vocab = session.vocab();
            line.check(&[Tensor::of(DType::F32, &[rows.len(), vocab], logits)])?;
        }
    }
    Ok(())
}

/// Sequences and positions of the caches.
fn cache_size(program: &Program) -> (u64, u64) {
    let states = program.graphs.iter().flat_map(|graph| graph.states().map(|(value, _): (ValueId, _)| graph.ty(value)));
    let caches = states.filter_map(|ty| match ty.shape.dims() {
        [sequences, _, context, _] => Some((sequences.as_const()?, context.as_const()?)),
        _ => None,
    });
    caches.min().unwrap_or((1, CONTEXT))
}

/// The tokens and rows that the inputs of a line stand for.
fn call(inputs: &[Tensor]) -> anyhow::Result<(Vec<Token>, Vec<usize>)> {
    let [ids, sequences, positions, spans, rows] = inputs else {
        anyhow::bail!("a compiled program takes 5 inputs, found {}", inputs.len());
    };
    let natural = |values: &[f64]| -> anyhow::Result<Vec<u32>> {
        let values = values.iter().map(|&value| {
            ensure!(0.0 <= value && value.fract() == 0.0, "{value} is no natural number, but ids and places are");
            Ok(value as u32)
        });
        values.collect()
    };
    let (ids, sequences, positions) = (natural(&ids.data)?, natural(&sequences.data)?, natural(&positions.data)?);
    let spans = natural(&spans.data)?;
    let tokens = (0..ids.len()).map(|at| Token {
        id: ids[at],
        sequence: sequences[at] as usize,
        position: Some(positions[at]),
        span: Span { first: spans[2 * at], reach: spans[2 * at + 1] },
    });
    Ok((tokens.collect(), natural(&rows.data)?.into_iter().map(|row| row as usize).collect()))
}
