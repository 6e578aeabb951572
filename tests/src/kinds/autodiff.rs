//! `autodiff`: the gradients of a program's first output.
//!
//! ```text
//! ;! wanted = ["w"]           keys of the parameters whose gradients are wanted; all if this is left out
//! ;! keep = "inputs"          what rounds of repeats leave: "values", or "inputs" only; "values" if this is left out
//! ; run: x=[1 2] w=[3 4] == [11] [1 2]
//! ```
//!
//! Expected is the program that gives loss and gradients, or why there is none. `; run:` lines hold what it gives, whatever is kept; the
//! gradients stand there in the order of their keys.

use anyhow::{Context, bail, ensure};
use compiler::autodiff::{Keep, Options, differentiate};
use ir::reference::Evaluator;

use super::{Kind, run};
use crate::filetest::Case;

/// Expects the program of the gradients.
pub struct Autodiff;

impl Kind for Autodiff {
    fn name(&self) -> &'static str {
        "autodiff"
    }

    fn options(&self) -> &'static [&'static str] {
        &["wanted", "keep"]
    }

    fn run(&self, case: &Case) -> anyhow::Result<Option<String>> {
        let program = run::program(case)?;
        let keys = case.strings("wanted")?;
        let wanted = |key: &str| keys.is_empty() || keys.contains(&key);
        let shown = match case.string("keep")? {
            None | Some("values") => Keep::Values,
            Some("inputs") => Keep::Inputs,
            Some(other) => bail!("`keep` is \"values\" or \"inputs\", not {other:?}"),
        };
        let mut text = None;
        for keep in [Keep::Values, Keep::Inputs] {
            let options = Options { loss: 0, wanted: &wanted, keep };
            let differentiated = match differentiate(&program, &options) {
                Ok(differentiated) => differentiated,
                Err(error) => {
                    ensure!(case.directives("run").is_empty(), "{error}");
                    return Ok(Some(error.to_string()));
                }
            };
            for session in run::sessions(case, &program)? {
                let mut evaluator = Evaluator::new(&differentiated.program, &session.parameters);
                for line in &session.runs {
                    let outputs = evaluator.run(&line.inputs).with_context(|| format!("line {}", line.line))?;
                    line.check(&outputs).with_context(|| format!("keeping {keep:?}"))?;
                }
            }
            if keep == shown {
                text = Some(ir::text::print(&differentiated.program));
            }
        }
        Ok(text)
    }
}
