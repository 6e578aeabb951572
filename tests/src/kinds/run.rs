//! `run`: the program evaluated on numbers that stand in the file, with results that can be checked by hand.
//!
//! ```text
//! ; run: n=2 x=[1 2] w=[0.5 0.5] == [1.5 2.5]
//! ; then: n=1 x=[3] == [3.5]
//! ```
//!
//! Before the sign stand sizes of symbols, inputs by name, and parameters by key (with the round in place of `{}`), in any order; after it the
//! outputs. `==` wants the same numbers, `~=` numbers that round to those given, digit for digit. Each `run` starts with states of zero; a `then`
//! goes on with the states that the line before left, and with its parameters.

use std::collections::HashMap;

use anyhow::{Context, anyhow, bail, ensure};
use ir::graph::Program;
use ir::op::Concrete;
use ir::reference::{Evaluator, Tensor, concrete};
use ir::verify::Verified;
use ir::{DType, Symbol, TensorType};

use super::Kind;
use crate::compare;
use crate::filetest::Case;

/// Evaluates by the reference.
pub struct Run;

impl Kind for Run {
    fn name(&self) -> &'static str {
        "run"
    }

    fn options(&self) -> &'static [&'static str] {
        &[]
    }

    fn run(&self, case: &Case) -> anyhow::Result<Option<String>> {
        let program = program(case)?;
        for session in sessions(case, &program)? {
            let mut evaluator = Evaluator::new(&program, &session.parameters);
            for run in &session.runs {
                let outputs = evaluator.run(&run.inputs).with_context(|| format!("line {}", run.line))?;
                run.check(&outputs)?;
            }
        }
        Ok(None)
    }
}

/// Runs that share their states, one after another.
pub struct Session {
    /// Parameters by key.
    pub parameters: HashMap<String, Tensor>,
    /// The runs.
    pub runs: Vec<RunLine>,
}

/// One run and what it must give.
pub struct RunLine {
    /// The line of the file.
    pub line: usize,
    /// The inputs, in the order of the entry's.
    pub inputs: Vec<Tensor>,
    /// The outputs' numbers as they are written.
    pub expected: Vec<Vec<String>>,
    /// Whether the numbers must be the same, or only round to those given.
    pub exact: bool,
}

impl RunLine {
    /// Checks what came out.
    ///
    /// # Errors
    ///
    /// If it is not what is expected.
    pub fn check(&self, outputs: &[Tensor]) -> anyhow::Result<()> {
        ensure!(
            outputs.len() == self.expected.len(),
            "line {}: the program has {} outputs, the line {}",
            self.line,
            outputs.len(),
            self.expected.len()
        );
        for (index, (output, expected)) in outputs.iter().zip(&self.expected).enumerate() {
            let values = if self.exact { numbers(expected, output.ty.dtype)? } else { decimals(expected)? };
            // What rounds to the digits written is at most half a unit of the last one away; a little more for the sum itself.
            let bound = |at: usize| if self.exact { 0.0 } else { half_unit(&expected[at]) * (1.0 + 1e-9) };
            compare::bounded(&values, &output.data, bound).map_err(|mismatch| {
                anyhow!("line {}, output {index}: {mismatch}\nfound {:?}", self.line, output.data)
            })?;
        }
        Ok(())
    }
}

/// The program of a case, verified.
///
/// # Errors
///
/// If it cannot be read or verified: then all errors, under their lines.
pub fn program(case: &Case) -> anyhow::Result<Verified<Program>> {
    let (program, map) =
        ir::text::parse_with_positions(&case.text).map_err(|errors| anyhow!("\n{}", errors.show(&case.text)))?;
    ir::verify(program.clone())
        .map_err(|errors| anyhow!("\n{}", ir::text::show_verify_errors(&program, &errors, Some((&case.text, &map)))))
}

/// The runs that a file asks for.
///
/// # Errors
///
/// If there are none, or a line cannot be read.
pub fn sessions(case: &Case, program: &Verified<Program>) -> anyhow::Result<Vec<Session>> {
    let mut lines: Vec<(usize, &str, bool)> = Vec::new();
    lines.extend(case.directives("run").iter().map(|&(line, text)| (line, text, true)));
    lines.extend(case.directives("then").iter().map(|&(line, text)| (line, text, false)));
    lines.sort_unstable();
    ensure!(!lines.is_empty(), "the file has no `; run:` line");
    let mut sessions: Vec<Session> = Vec::new();
    for (line, text, starts) in lines {
        if starts {
            sessions.push(Session { parameters: HashMap::new(), runs: Vec::new() });
        }
        let session = sessions.last_mut().with_context(|| format!("line {line}: `then` needs a `run` before"))?;
        let run = run_line(program, line, text, &mut session.parameters).with_context(|| format!("line {line}"))?;
        session.runs.push(run);
    }
    Ok(sessions)
}

fn run_line(
    program: &Program,
    line: usize,
    text: &str,
    parameters: &mut HashMap<String, Tensor>,
) -> anyhow::Result<RunLine> {
    let (given, expected, exact) = match (text.split_once("=="), text.split_once("~=")) {
        (Some((given, expected)), None) => (given, expected, true),
        (None, Some((given, expected))) => (given, expected, false),
        _ => bail!("one of `==` and `~=` must stand between inputs and outputs"),
    };
    let mut symbols: HashMap<Symbol, usize> = HashMap::new();
    let mut lists: HashMap<&str, Vec<String>> = HashMap::new();
    let mut rest = given.trim();
    while !rest.is_empty() {
        let (name, value) = rest.split_once('=').with_context(|| format!("expected `name=value` at `{rest}`"))?;
        let name = name.trim();
        if value.starts_with('[') {
            let (list, after) = list(value)?;
            ensure!(lists.insert(name, list).is_none(), "`{name}` is given twice");
            rest = after;
        } else {
            let (size, after) = value.split_once(' ').unwrap_or((value, ""));
            let size = size.parse().with_context(|| format!("`{size}` is no size"))?;
            symbols.insert(Symbol::new(name), size);
            rest = after.trim_start();
        }
    }
    let ty_of = |ty: &TensorType| -> anyhow::Result<Concrete> {
        let unknown = ty.shape.dims().iter().find_map(|dim| match dim {
            ir::Dim::Sym(symbol) if !symbols.contains_key(symbol) => Some(symbol),
            _ => None,
        });
        unknown.map_or_else(|| Ok(concrete(ty, &symbols)), |symbol| bail!("the size of `{symbol}` is not given"))
    };
    let entry = program.entry();
    let mut inputs = Vec::new();
    for &input in &entry.inputs {
        let name = entry.label(input);
        let list = lists.remove(name.as_str()).with_context(|| format!("input `{name}` is not given"))?;
        inputs.push(tensor(&name, ty_of(entry.ty(input))?, &list)?);
    }
    for graph in &program.graphs {
        let rounds = if graph.name == entry.name { None } else { Some(program.rounds(&graph.name)) };
        for (value, key) in graph.params() {
            for round in 0..rounds.unwrap_or(1) {
                let key = ir::reference::key_of_round(key, rounds.map(|_| round as u32));
                if let Some(list) = lists.remove(key.as_str()) {
                    let tensor = tensor(&key, ty_of(graph.ty(value))?, &list)?;
                    parameters.insert(key, tensor);
                }
            }
        }
    }
    if let Some(name) = lists.keys().min() {
        bail!("`{name}` is no input and no parameter");
    }
    let mut outputs = Vec::new();
    let mut rest = expected.trim();
    while !rest.is_empty() {
        let (list, after) = list(rest)?;
        outputs.push(list);
        rest = after;
    }
    Ok(RunLine { line, inputs, expected: outputs, exact })
}

/// The numbers between brackets as they are written, and what follows.
fn list(text: &str) -> anyhow::Result<(Vec<String>, &str)> {
    let inner = text.strip_prefix('[').and_then(|text| text.split_once(']'));
    let (inner, after) = inner.with_context(|| format!("expected `[numbers]` at `{text}`"))?;
    Ok((inner.split_whitespace().map(str::to_owned).collect(), after.trim_start()))
}

fn tensor(name: &str, ty: Concrete, list: &[String]) -> anyhow::Result<Tensor> {
    let elements: usize = ty.dims.iter().product();
    ensure!(elements == list.len(), "`{name}` has {elements} elements, but {} are given", list.len());
    let data = numbers(list, ty.dtype)?;
    Ok(Tensor::new(ty, data))
}

/// The numbers that a tensor of this type can hold: floats as the nearest f32.
fn numbers(list: &[String], dtype: DType) -> anyhow::Result<Vec<f64>> {
    let values = decimals(list)?.into_iter().zip(list);
    values
        .map(|(value, text)| {
            let fits = match dtype {
                DType::T2 => [-1.0, 0.0, 1.0].contains(&value),
                DType::I8 => f64::from(value as i8) == value,
                DType::I32 => f64::from(value as i32) == value,
                DType::F16 => half_value(value, 11) == value || !value.is_finite(),
                DType::BF16 => half_value(value, 8) == value || !value.is_finite(),
                DType::F32 | DType::Q8 | DType::Q4 => true,
            };
            ensure!(fits, "`{text}` is no {dtype}");
            Ok(if dtype == DType::F32 { f64::from(value as f32) } else { value })
        })
        .collect()
}

fn decimals(list: &[String]) -> anyhow::Result<Vec<f64>> {
    list.iter().map(|text| text.parse().with_context(|| format!("`{text}` is no number"))).collect()
}

/// A number cut to so many significant bits, within the normal range.
fn half_value(value: f64, bits: u32) -> f64 {
    let shift = 53 - bits;
    f64::from_bits(value.to_bits() >> shift << shift)
}

/// Half of the value of the last digit of a number as it is written.
fn half_unit(text: &str) -> f64 {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let decimals = mantissa.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    0.5 * 10_f64.powi(exponent.parse().unwrap_or(0) - i32::try_from(decimals).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_written_are_the_bound() {
        assert_eq!(half_unit("2.5"), 0.05);
        assert_eq!(half_unit("-31"), 0.5);
        assert_eq!(half_unit("1.25e3"), 5.0);
    }

    #[test]
    fn numbers_must_be_of_their_type() {
        let numbers = |text: &str, dtype| numbers(&[text.to_owned()], dtype);
        for (text, dtype) in [("2", DType::T2), ("128", DType::I8), ("0.5", DType::I32), ("0.1", DType::F16)] {
            assert!(numbers(text, dtype).is_err(), "{text} {dtype}");
        }
        assert_eq!(numbers("0.5", DType::BF16).unwrap(), [0.5]);
    }
}
