//! Well-typed random programs, and inputs for them, that shrink.
//!
//! A [`Recipe`] is a list of small numbers that [`Recipe::program`] reads as choices, so every recipe gives a program that verifies, and what
//! makes a recipe smaller (fewer steps, smaller numbers) makes the program smaller. Each step makes one op: it picks operands among the values
//! that fit, and where none does, makes a parameter.
//!
//! Inputs are bounded so that kernels and evaluator agree on what is meaningful: token `i` has the sequence `i % 2` and the position `i / 2`, so no two tokens of
//! a call are appended to one place; reals lie in `[-2, 2]`.

mod steps;

use std::collections::HashMap;

use ir::graph::{Def, SymbolDecl};
use ir::op::Concrete;
use ir::op::control::Repeat;
use ir::reference::{Tensor, concrete, key_of_round};
use ir::verify::Verified;
use ir::{Builder, DType, Dim, Program, Shape, Symbol, TensorType, ValueId};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any};

/// The most tokens of a call: the bound of the symbol `n`.
pub const MAX_TOKENS: u64 = 8;
/// Sequences of a cache.
pub const SEQUENCES: u64 = 2;
/// Positions of a cache.
pub const CONTEXT: u64 = 6;

/// The most elements of a value that others are made from.
const MAX_ELEMENTS: u64 = 1024;

/// Choices that give a program.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The steps of the entry.
    pub steps: Vec<Step>,
    /// The steps of a repeated body; there is one if this is not empty and the entry has a place for it.
    pub body: Vec<Step>,
    /// How often the body is repeated, at most 3.
    pub count: u8,
    /// Odd names, and constants that are no finite numbers: what the text form must keep, but no arithmetic needs.
    pub wild: bool,
}

/// The choices of one step.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which op, modulo the number of ops.
    pub op: u8,
    /// Which operands, dimensions and attributes, each modulo the number of those that fit.
    pub choices: [u8; 6],
    /// Which name, if any.
    pub name: Option<u8>,
}

/// Recipes of up to so many steps.
pub fn recipes(max_steps: usize, wild: bool) -> impl Strategy<Value = Recipe> {
    let steps = |max| vec(step(), 0..=max);
    (steps(max_steps), steps(max_steps / 2), 0..4_u8).prop_map(move |(steps, body, count)| Recipe {
        steps,
        body,
        count,
        wild,
    })
}

fn step() -> impl Strategy<Value = Step> {
    (any::<u8>(), any::<[u8; 6]>(), any::<Option<u8>>()).prop_map(|(op, choices, name)| Step { op, choices, name })
}

/// Names that a text must keep apart, quote, or both.
const WILD_NAMES: [&str; 12] =
    ["x", "x", "v3", "v12", "return", "a b", "", "layer.0.q", "a-b", "\u{e9}\"\\\n", "0", "nan"];

impl Recipe {
    /// The program; it always verifies.
    ///
    /// # Panics
    ///
    /// If it does not, which is a bug here or in the verifier.
    pub fn program(&self) -> Verified<Program> {
        let program = self.unverified();
        ir::verify(program.clone()).unwrap_or_else(|errors| {
            panic!("{}", ir::text::show_verify_errors(&program, &errors, None));
        })
    }

    fn unverified(&self) -> Program {
        let mut graphs = Vec::new();
        let mut entry = Maker::new("main", self.wild, false);
        for (index, step) in self.steps.iter().enumerate() {
            entry.step(step);
            // In the midst of the entry, so that values before and after meet the repeat.
            if index == self.steps.len() / 2 && !self.body.is_empty() {
                graphs.push(self.repeat(&mut entry));
            }
        }
        graphs.push(entry.finish());
        let mut symbols = Vec::new();
        if graphs.iter().flat_map(|graph| graph.values.values()).any(|value| value.ty.shape.dims().contains(&tokens()))
        {
            symbols.push(SymbolDecl { symbol: Symbol::new("n"), max: MAX_TOKENS });
        }
        Program { name: "random".to_owned(), symbols, graphs }
    }

    fn repeat(&self, entry: &mut Maker) -> ir::Graph {
        let choice = self.body.first().map_or(0, |step| step.choices[5]);
        let carried = entry.some(choice, &|ty| ty.dtype == DType::F32);
        let (seq, pos, span) = entry.places();
        let operands = [carried, seq, pos, span];
        let mut body = Maker::new("body", self.wild, true);
        let mut inputs = operands.iter().zip(["h", "seq", "pos", "span"]);
        let carried_type = entry.builder.ty(carried).clone();
        inputs.by_ref().take(1).for_each(|(_, name)| {
            body.builder.input(name, carried_type.clone());
        });
        body.places();
        for step in &self.body {
            body.step(step);
        }
        // The last value of the carried type goes on; the input itself if there is no other.
        let result = body.last(&|ty| *ty == carried_type);
        let graph = body.finish_with(&[result]);
        let repeat = Repeat { body: "body".into(), count: u32::from(self.count) };
        entry.op(&Step { op: 0, choices: [0; 6], name: None }, repeat, &operands);
        graph
    }
}

/// Tokens of this call.
fn tokens() -> Dim {
    Dim::sym("n")
}

/// Makes one graph.
struct Maker {
    builder: Builder,
    wild: bool,
    is_body: bool,
    n_keys: usize,
    places: Option<(ValueId, ValueId, ValueId)>,
}

impl Maker {
    fn new(name: &str, wild: bool, is_body: bool) -> Self {
        Self { builder: Builder::new(name), wild, is_body, n_keys: 0, places: None }
    }

    /// All values that fit and are small, in order: products and concatenations of large ones would grow without end.
    fn fitting(&self, fits: &dyn Fn(&TensorType) -> bool) -> Vec<ValueId> {
        let is_small = |ty: &TensorType| {
            let size = |dim: &Dim| dim.as_const().unwrap_or(MAX_TOKENS);
            ty.shape.dims().iter().map(size).product::<u64>() <= MAX_ELEMENTS
        };
        let values = self.builder.graph().values.iter();
        values.filter(|(_, value)| is_small(&value.ty) && fits(&value.ty)).map(|(id, _)| id).collect()
    }

    /// One of the values that fit, or a new input or parameter of type f32 `[n, 4]` if none does.
    fn some(&mut self, choice: u8, fits: &dyn Fn(&TensorType) -> bool) -> ValueId {
        let fitting = self.fitting(fits);
        match fitting.len() {
            0 => {
                let ty = TensorType::new(DType::F32, Shape::new([tokens(), Dim::Const(4)]));
                debug_assert!(fits(&ty), "whatever is asked for, this fits");
                self.fresh(ty)
            }
            n => fitting[choice as usize % n],
        }
    }

    fn last(&self, fits: &dyn Fn(&TensorType) -> bool) -> ValueId {
        *self.fitting(fits).last().expect("the carried input is one")
    }

    /// A value of this very type: one that is there, or a new one.
    fn of_type(&mut self, choice: u8, ty: TensorType) -> ValueId {
        let fitting = self.fitting(&|found| *found == ty);
        // One time in four a new one, so that not all operands are one value.
        match fitting.len() {
            n if 0 < n && choice % 4 != 3 => fitting[choice as usize % n],
            _ => self.fresh(ty),
        }
    }

    /// A new input, or a parameter where the type has no symbol or the graph is a body, whose inputs are fixed. Bodies get symbolic values by
    /// broadcasting a parameter.
    fn fresh(&mut self, ty: TensorType) -> ValueId {
        self.n_keys += 1;
        let name = format!("{}{}", if ty.shape.dims().contains(&tokens()) { "x" } else { "w" }, self.n_keys);
        let is_symbolic = ty.shape.dims().contains(&tokens());
        if is_symbolic && !self.is_body {
            return self.builder.input(&name, ty);
        }
        let constant = |dim: &Dim| if dim.as_const().is_some() { dim.clone() } else { Dim::Const(1) };
        let small = TensorType::new(ty.dtype, ty.shape.dims().iter().map(constant).collect());
        let key = self.key(&name);
        let param = self.builder.param(&name, &key, small);
        if !is_symbolic {
            return param;
        }
        let broadcast = ir::op::movement::Broadcast { shape: ty.shape };
        self.builder.op(broadcast, &[param]).expect("a 1 broadcasts to a symbol")
    }

    fn key(&self, name: &str) -> String {
        if self.is_body { format!("layers.{{}}.{name}") } else { name.to_owned() }
    }

    /// The inputs `seq`, `pos` and `span` of the tokens.
    fn places(&mut self) -> (ValueId, ValueId, ValueId) {
        if let Some(places) = self.places {
            return places;
        }
        let mut input = |name, shape| self.builder.input(name, TensorType::new(DType::I32, shape));
        let places = (
            input("seq", Shape::new([tokens()])),
            input("pos", Shape::new([tokens()])),
            input("span", Shape::new([tokens(), Dim::Const(2)])),
        );
        self.places = Some(places);
        places
    }

    /// The result of an op, or the value that already is this.
    fn op(&mut self, step: &Step, op: impl Into<ir::Op>, inputs: &[ValueId]) -> ValueId {
        let op = op.into();
        let result = match step.name {
            Some(name) if self.wild => {
                self.builder.named(WILD_NAMES[name as usize % WILD_NAMES.len()], op.clone(), inputs)
            }
            Some(name) => self.builder.named(&format!("{}.{name}", op.name()), op.clone(), inputs),
            None => self.builder.op(op.clone(), inputs),
        };
        result.unwrap_or_else(|error| panic!("steps make ops that fit, but {error}"))
    }

    fn finish(mut self) -> ir::Graph {
        let all: Vec<ValueId> = self.builder.graph().values.ids().collect();
        if all.is_empty() {
            let value = self.some(0, &|_| true);
            return self.finish_with(&[value]);
        }
        let graph = self.builder.graph();
        let mut used = vec![false; all.len()];
        for &value in &all {
            for operand in graph.operands(value) {
                used[ir::entity::Id::index(*operand)] = true;
            }
        }
        // What nothing uses is an output, so that every step matters; the last value always is.
        let mut outputs: Vec<ValueId> = all.iter().zip(&used).filter(|(_, used)| !**used).map(|(id, _)| *id).collect();
        outputs.retain(|&output| matches!(graph.values[output].def, Def::Op { .. }));
        if outputs.is_empty() {
            outputs.push(all[all.len() - 1]);
        }
        self.finish_with(&outputs)
    }

    fn finish_with(self, outputs: &[ValueId]) -> ir::Graph {
        self.builder.finish(outputs)
    }
}

/// Numbers that are the same for the same seed, wherever they are made.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one, below `bound` (SplitMix64; Steele et al., 2014). The slight preference for small ones does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// A tensor of this type: reals are multiples of 1/16 in `[-2, 2]`, which all float types hold; integers lie in `0..=3`.
    ///
    /// # Panics
    ///
    /// If the type is a row format, of which there are no inputs.
    pub fn tensor(&mut self, ty: Concrete) -> Tensor {
        let dtype = ty.dtype;
        assert!(!dtype.is_row_format(), "inputs and parameters are plain numbers");
        Tensor::from_fn(&ty, |_| match dtype {
            DType::T2 => self.below(3) as f64 - 1.0,
            DType::I8 | DType::I32 => self.below(4) as f64,
            _ => (self.below(65) as f64 - 32.0) / 16.0,
        })
    }
}

/// Inputs for a program of a [`Recipe`], with `n` tokens.
pub fn inputs(program: &Verified<Program>, n: usize, seed: u64) -> Vec<Tensor> {
    let mut numbers = Numbers::new(seed);
    let symbols = HashMap::from([(Symbol::new("n"), n)]);
    let entry = program.entry();
    let mut inputs = Vec::new();
    for &input in &entry.inputs {
        let ty = concrete(entry.ty(input), &symbols);
        inputs.push(match entry.label(input).as_str() {
            "seq" => Tensor::from_fn(&ty, |at| (at[0] % SEQUENCES as usize) as f64),
            "pos" => Tensor::from_fn(&ty, |at| (at[0] / SEQUENCES as usize) as f64),
            // A document that starts at 0, with a prefix of up to 3 tokens.
            "span" => Tensor::from_fn(&ty, |at| if at[1] == 0 { 0.0 } else { numbers.below(4) as f64 }),
            _ => numbers.tensor(ty),
        });
    }
    inputs
}

/// Parameters for a program, for every round of its bodies.
pub fn parameters(program: &Verified<Program>, seed: u64) -> HashMap<String, Tensor> {
    let mut numbers = Numbers::new(seed);
    let mut parameters = HashMap::new();
    for graph in &program.graphs {
        let is_entry = graph.name == program.entry().name;
        let rounds = if is_entry { 1 } else { program.rounds(&graph.name) };
        for (value, key) in graph.params() {
            for round in 0..rounds {
                let key = key_of_round(key, (!is_entry).then_some(round as u32));
                parameters.entry(key).or_insert_with(|| numbers.tensor(concrete(graph.ty(value), &HashMap::new())));
            }
        }
    }
    parameters
}
