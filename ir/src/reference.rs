//! The slow evaluator: every op by its definition, in f64. All tests measure against it.

use std::collections::HashMap;

use crate::dtype::DType;
use crate::entity::Id;
use crate::graph::{Def, Graph, Program, ValueId};
use crate::op::control::Scan;
use crate::op::{Concrete, Op, OpDef};
use crate::shape::{Dim, Symbol, TensorType};
use crate::verify::Verified;

/// A tensor of any element type, each element as f64. Ternary and quantised elements are their mathematical values.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its type.
    pub ty: Concrete,
    /// The elements, in row-major order.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of these elements.
    ///
    /// # Panics
    ///
    /// If there are too many or too few.
    pub fn new(ty: Concrete, data: Vec<f64>) -> Self {
        assert_eq!(data.len(), ty.dims.iter().product::<usize>(), "one element for each place");
        Self { ty, data }
    }

    /// A tensor of this element type and these dimensions.
    pub fn of(dtype: DType, dims: &[usize], data: impl IntoIterator<Item = f64>) -> Self {
        Self::new(Concrete { dtype, dims: dims.to_vec() }, data.into_iter().collect())
    }

    /// A tensor of zeros.
    pub fn zeros(ty: Concrete) -> Self {
        let elements = ty.dims.iter().product();
        Self { ty, data: vec![0.0; elements] }
    }

    /// A tensor whose element at an index is what `f` says.
    pub fn from_fn(ty: &Concrete, mut f: impl FnMut(&[usize]) -> f64) -> Self {
        let elements = ty.dims.iter().product();
        let mut data = Vec::with_capacity(elements);
        let mut at = vec![0; ty.dims.len()];
        for _ in 0..elements {
            data.push(f(&at));
            for axis in (0..at.len()).rev() {
                at[axis] += 1;
                if at[axis] < ty.dims[axis] {
                    break;
                }
                at[axis] = 0;
            }
        }
        Self { ty: ty.clone(), data }
    }

    /// A tensor of these rows, one after another.
    pub fn from_rows(ty: &Concrete, rows: impl Iterator<Item = Vec<f64>>) -> Self {
        Self::new(ty.clone(), rows.flatten().collect())
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.ty.dims
    }

    /// The element at an index.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.broadcast_at(index)
    }

    /// The element that an index into a larger shape means: axes are aligned at the innermost, and 1-sized axes are repeated.
    pub fn broadcast_at(&self, index: &[usize]) -> f64 {
        self.data[self.ty.broadcast_offset(index)]
    }

    /// The rows along the innermost axis.
    ///
    /// # Panics
    ///
    /// If this is a scalar.
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        let (&width, outer) = self.ty.dims.split_last().expect("a scalar has no rows");
        let rows: usize = outer.iter().product();
        (0..rows).map(move |row| &self.data[row * width..][..width])
    }
}

/// Where the evaluator finds parameters: by key, with the round already put in.
pub trait Parameters {
    /// The tensor of this key.
    fn get(&self, key: &str) -> Option<&Tensor>;
}

impl Parameters for HashMap<String, Tensor> {
    fn get(&self, key: &str) -> Option<&Tensor> {
        HashMap::get(self, key)
    }
}

/// Why a program could not be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluateError {
    /// Another number of inputs than the entry has.
    #[error("the program takes {expected} inputs, found {found}")]
    Inputs {
        /// How many it takes.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// An input does not have its type.
    #[error("input `{name}` must be {expected}, found {found}")]
    Input {
        /// The input's name.
        name: String,
        /// Its type.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A parameter is missing.
    #[error("there is no parameter `{0}`")]
    Parameter(String),
}

/// Runs a program; keeps its states from run to run. States start as zeros.
pub struct Evaluator<'a> {
    program: &'a Program,
    parameters: &'a dyn Parameters,
    states: HashMap<String, Tensor>,
}

impl<'a> Evaluator<'a> {
    /// An evaluator with all states zero.
    pub fn new(program: &'a Verified<Program>, parameters: &'a dyn Parameters) -> Self {
        Self { program, parameters, states: HashMap::new() }
    }

    /// Runs the entry once.
    ///
    /// # Errors
    ///
    /// If inputs or parameters are missing or have other types.
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvaluateError> {
        let entry = self.program.entry();
        if inputs.len() != entry.inputs.len() {
            return Err(EvaluateError::Inputs { expected: entry.inputs.len(), found: inputs.len() });
        }
        let mut symbols = HashMap::new();
        for (&id, tensor) in entry.inputs.iter().zip(inputs) {
            if !bind(entry.ty(id), &tensor.ty, &mut symbols) {
                return Err(EvaluateError::Input {
                    name: entry.label(id),
                    expected: entry.ty(id).to_string(),
                    found: format!("{}{:?}", tensor.ty.dtype, tensor.ty.dims),
                });
            }
        }
        self.run_graph(entry, inputs.to_vec(), &symbols, None)
    }

    fn run_graph(
        &mut self,
        graph: &'a Graph,
        inputs: Vec<Tensor>,
        symbols: &HashMap<Symbol, usize>,
        round: Option<u32>,
    ) -> Result<Vec<Tensor>, EvaluateError> {
        let mut values: Vec<Tensor> = Vec::with_capacity(graph.values.len());
        let mut scanned: HashMap<ValueId, Vec<Vec<Tensor>>> = HashMap::new();
        let mut inputs = inputs.into_iter();
        for (id, value) in graph.values.iter() {
            let ty = concrete(&value.ty, symbols);
            let tensor = match &value.def {
                Def::Input => inputs.next().expect("inputs are values of the graph, in order"),
                Def::Param { key } => {
                    let key = key_of_round(key, round);
                    self.parameters.get(&key).ok_or(EvaluateError::Parameter(key))?.clone()
                }
                Def::State { key } => {
                    let key = key_of_round(key, round);
                    self.states.entry(key).or_insert_with(|| Tensor::zeros(ty)).clone()
                }
                Def::Const(constant) => Tensor::new(ty, constant.values().collect()),
                Def::Op { op: Op::Repeat(repeat), inputs } => {
                    let body = self.program.graph(&repeat.body).expect("the verifier found the body");
                    let mut arguments: Vec<Tensor> = inputs.iter().map(|id| values[id.index()].clone()).collect();
                    for round in 0..repeat.count {
                        arguments[0] = self.run_graph(body, arguments.clone(), symbols, Some(round))?.remove(0);
                    }
                    arguments.remove(0)
                }
                Def::Op { op: Op::Scan(scan), inputs } => {
                    let operands = inputs.iter().map(|id| &values[id.index()]).collect();
                    let (carried, outputs) = self.run_scan(scan, operands, symbols)?;
                    scanned.insert(id, outputs);
                    carried
                }
                Def::Op { op: Op::Stacked(stacked), inputs } => {
                    let rounds = scanned.get(&inputs[0]).expect("the verifier found the scan").iter();
                    let parts = rounds.flat_map(|outputs| outputs[stacked.output as usize - 1].data.iter().copied());
                    Tensor::new(ty, parts.collect())
                }
                Def::Op { op, inputs } => {
                    let operands: Vec<&Tensor> = inputs.iter().map(|id| &values[id.index()]).collect();
                    op.reference(&operands, &ty)
                }
            };
            values.push(tensor);
        }
        for update in &graph.updates {
            if let Def::State { key } = &graph.values[update.state].def {
                self.states.insert(key_of_round(key, round), values[update.value.index()].clone());
            }
        }
        Ok(graph.outputs.iter().map(|id: &ValueId| values[id.index()].clone()).collect())
    }

    /// The carried value after all rounds of a scan, and for each round, in the order of their numbers, its other outputs.
    fn run_scan(
        &mut self,
        scan: &Scan,
        operands: Vec<&Tensor>,
        symbols: &HashMap<Symbol, usize>,
    ) -> Result<(Tensor, Vec<Vec<Tensor>>), EvaluateError> {
        let body = self.program.graph(&scan.body).expect("the verifier found the body");
        let (whole, stacked) = operands.split_at(operands.len() - scan.stacked as usize);
        let mut carried = whole[0].clone();
        let mut outputs = vec![Vec::new(); scan.count as usize];
        for step in 0..scan.count {
            let round = if scan.reverse == 1 { scan.count - 1 - step } else { step };
            let parts = stacked.iter().map(|tensor| part(tensor, round as usize));
            let rest = whole[1..].iter().map(|tensor| (*tensor).clone());
            let inputs = [carried].into_iter().chain(rest).chain(parts).collect();
            let mut results = self.run_graph(body, inputs, symbols, Some(round))?;
            carried = results.remove(0);
            outputs[round as usize] = results;
        }
        Ok((carried, outputs))
    }

    /// What a state holds; `None` before the first run that has it, unless it was given a value.
    pub fn state(&self, key: &str) -> Option<&Tensor> {
        self.states.get(key)
    }

    /// Gives a state a value: what it was, or would start as, is forgotten.
    pub fn set_state(&mut self, key: &str, value: Tensor) {
        self.states.insert(key.to_owned(), value);
    }
}

/// What one round of a scan sees of a stacked value.
fn part(stacked: &Tensor, round: usize) -> Tensor {
    let dims = &stacked.dims()[1..];
    let size: usize = dims.iter().product();
    Tensor::of(stacked.ty.dtype, dims, stacked.data[round * size..][..size].iter().copied())
}

/// A type with its symbols resolved.
///
/// # Panics
///
/// If a symbol is not bound: the verifier refuses symbols that no input has.
pub fn concrete(ty: &TensorType, symbols: &HashMap<Symbol, usize>) -> Concrete {
    let dims = ty.shape.dims().iter().map(|dim| match dim {
        Dim::Const(value) => *value as usize,
        Dim::Sym(symbol) => symbols[symbol],
    });
    Concrete { dtype: ty.dtype, dims: dims.collect() }
}

/// The key of a parameter or state in one round of a repeat.
pub fn key_of_round(key: &str, round: Option<u32>) -> String {
    match round {
        Some(round) => key.replace("{}", &round.to_string()),
        None => key.to_owned(),
    }
}

/// Whether `found` has the type `ty`, binding the symbols that are met for the first time.
fn bind(ty: &TensorType, found: &Concrete, symbols: &mut HashMap<Symbol, usize>) -> bool {
    ty.dtype == found.dtype
        && ty.shape.rank() == found.dims.len()
        && ty.shape.dims().iter().zip(&found.dims).all(|(dim, &size)| match dim {
            Dim::Const(value) => *value == size as u64,
            Dim::Sym(symbol) => *symbols.entry(symbol.clone()).or_insert(size) == size,
        })
}
