//! Reverse-mode differentiation: from a program with a loss to one that also gives the gradients of chosen parameters.
//!
//! Before: a verified program one of whose outputs is the loss, one f32 number. After: a verified program with the same inputs, whose outputs
//! are that loss and the gradients, each f32 and of its parameter's shape. It is an ordinary program: rewriting, scheduling and lowering see
//! forward and backward pass together and need not know that it was derived.
//!
//! The walk goes from the loss back through the ops that lead from a wanted parameter to it, and asks each for its [`ir::op::OpDef::vjp`];
//! gradients of a value that several ops read are added. **Rolled layers stay rolled**: a repeat becomes a scan whose rounds leave what the
//! backward pass reads of them, stacked, and a second scan that runs through the rounds from the last to the first. The gradient of a
//! parameter of the layers is therefore one value, `[layers, ..]`. [`Keep`] says what rounds leave.
//!
//! **States** are taken as zeros and not updated: the sequences of a training step are whole, so there is nothing before them.
//!
//! How the rest of training attaches:
//!
//! * Quantised training needs nothing more: rounding has its derivatives in [`ir::op::straight_through`], and the real weights that are rounded
//!   are the wanted parameters.
//! * Adapters on packed weights are wanted parameters beside frozen ones. What flows back through a packed matrix is the op
//!   `ternary_matmul_transposed`; its own gradient is dead and goes when the graph is compacted.
//! * An optimiser is another program over the same parameters, as states: see [`crate::optimiser`]. Accumulating gradients over several calls
//!   puts states between the two.
//! * A GPU needs kernels for the ops that gradients are made of, and nothing in this walk.

mod body;
mod objective;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use ir::entity::Id;
use ir::graph::Def;
use ir::op::control::{Scan, Stacked};
use ir::op::movement::Reshape;
use ir::verify::VerifyErrors;
use ir::vjp::{VjpError, Zero, filled, sum_to};
use ir::{BuildError, DType, Dim, Graph, Op, Program, Shape, TensorType, ValueId, Verified, verify};

use body::BodyGradient;
use walk::{Source, Walk};

pub use objective::with_cross_entropy;

/// What a round leaves for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// What the backward pass reads of it, but for what costs nothing to make again.
    Values,
    /// What enters it: the backward pass computes the round again. Memory for activations then grows by one residual stream a layer.
    Inputs,
}

/// What to differentiate.
pub struct Options<'a> {
    /// Which output is the loss.
    pub loss: usize,
    /// Whether the gradient of the parameter of this key is wanted.
    pub wanted: &'a dyn Fn(&str) -> bool,
    /// What rounds leave.
    pub keep: Keep,
}

/// A program that gives its loss and gradients.
#[derive(Clone, Debug)]
pub struct Differentiated {
    /// Its first output is the loss, and the others are the gradients.
    pub program: Verified<Program>,
    /// The gradients, in the order of the outputs.
    pub gradients: Vec<ParamGradient>,
}

/// The gradient of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamGradient {
    /// The parameter's key.
    pub key: String,
    /// The parameter's type, without the axis of the rounds.
    pub ty: TensorType,
    /// How many there are, if the key holds `{}`: the first axis of the gradient.
    pub rounds: Option<u32>,
}

/// Why a program could not be differentiated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AutodiffError {
    /// There is no such output.
    #[error("the program has {outputs} outputs, and none at {loss}")]
    NoOutput {
        /// Which was to be the loss.
        loss: usize,
        /// How many there are.
        outputs: usize,
    },
    /// The loss is not one number.
    #[error("the loss `{value}` must be one f32 number, found {ty}")]
    Loss {
        /// The value.
        value: String,
        /// Its type.
        ty: TensorType,
    },
    /// The logits are not rows of f32, or the program has an input of the targets' name.
    #[error("`{value}` cannot have a cross-entropy: {reason}")]
    Logits {
        /// The value.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// An op cannot give a gradient.
    #[error("no gradient of `{value}`: {source}")]
    Vjp {
        /// The value.
        value: String,
        /// Why not.
        source: VjpError,
    },
    /// A state has a type that has no zeros.
    #[error("state `{key}` is {ty}: training starts states at zero, in f32 only; build the program with f32 caches")]
    State {
        /// Its key.
        key: String,
        /// Its type.
        ty: TensorType,
    },
    /// The loss does not depend on a parameter whose gradient is wanted.
    #[error("nothing flows back from the loss to `{key}`{}", reasons(.zeros))]
    NoPath {
        /// Its key.
        key: String,
        /// Why gradients ended on the way, wherever they did.
        zeros: Vec<Zero>,
    },
    /// Two bodies use one key for different numbers of tensors.
    #[error("`{0}` is a parameter of two repeats that differ in their rounds")]
    Rounds(String),
    /// The result is not well formed. Always a bug in tritter.
    #[error("internal error: the gradient of the program is not well formed:\n{0}")]
    Invalid(#[from] VerifyErrors),
    /// An op of the result does not fit. Always a bug in tritter.
    #[error("internal error: {0}")]
    Build(#[from] BuildError),
}

fn reasons(zeros: &[Zero]) -> String {
    zeros.iter().map(|zero| format!("; an input has no gradient because {zero}")).collect()
}

/// The program that gives a loss and the gradients of the wanted parameters.
///
/// # Errors
///
/// If the loss is not one number, something on the way back has no gradient, or a wanted parameter is not on the way.
pub fn differentiate(program: &Verified<Program>, options: &Options<'_>) -> Result<Differentiated, AutodiffError> {
    let entry = program.entry();
    let outputs = entry.outputs.len();
    let loss = *entry.outputs.get(options.loss).ok_or(AutodiffError::NoOutput { loss: options.loss, outputs })?;
    let ty = entry.ty(loss);
    if ty.dtype != DType::F32 || ty.shape.elements() != Some(1) {
        return Err(AutodiffError::Loss { value: entry.label(loss), ty: ty.clone() });
    }

    let mut ctx = Ctx { program, options, bodies: BTreeMap::new(), gradients: BTreeMap::new() };
    let mut walk = Walk::new(&entry.name);
    walk.copy(entry, Source { wanted: options.wanted, varying: &|_| false, body_varies: &|body| ctx.varies(body) })?;
    let loss = walk.map[loss.index()];
    let one = filled(&mut walk.b, 1.0, &ty.shape)?;
    walk.add(loss, one)?;
    walk.reverse(&mut |walk, value| ctx.scan(walk, value))?;

    for (key, ty, gradient) in walk.params(options.wanted)? {
        ctx.add(&mut walk, key, ty, None, gradient)?;
    }
    ctx.finish(walk, loss)
}

/// What the walk through the entry learns of the bodies.
struct Ctx<'a> {
    program: &'a Program,
    options: &'a Options<'a>,
    /// Bodies in their new form, by name: with what they leave, and their gradients.
    bodies: BTreeMap<String, BodyGradient>,
    /// The gradients, by key.
    gradients: BTreeMap<String, (ParamGradient, ValueId)>,
}

impl Ctx<'_> {
    /// Whether a body has wanted parameters.
    fn varies(&self, body: &str) -> bool {
        let graph = self.program.graph(body);
        graph.is_some_and(|graph| graph.params().any(|(_, key)| (self.options.wanted)(key)))
    }

    /// The gradients of a repeat: it becomes a scan, and another runs back.
    fn scan(&mut self, walk: &mut Walk, value: ValueId) -> Result<(), AutodiffError> {
        let Some(Op::Scan(scan)) = walk.b.graph().op(value).cloned() else { return Ok(()) };
        let Some(dy) = walk.gradient(value) else { return Ok(()) };
        let operands = walk.b.graph().operands(value).to_vec();
        let body = self.program.graph(&scan.body).expect("the verifier found the body");
        let varying: Vec<bool> = operands.iter().map(|&operand| walk.varies(operand)).collect();
        let gradient = body::differentiate(body, &varying, self.options)?;

        // The backward body reads: the gradient of what is carried, the operands that are the same in all rounds, what rounds left.
        let mut inputs = vec![dy];
        inputs.extend(gradient.whole.iter().map(|&position| operands[position]));
        for (output, ty) in (1..).zip(&gradient.saved) {
            inputs.push(stacked(walk, value, output, ty, scan.count)?);
        }
        let back = Scan {
            body: gradient.backward.name.as_str().into(),
            count: scan.count,
            stacked: gradient.saved.len() as u32,
            reverse: 1,
        };
        let name = format!("{}.backward", walk.b.graph().label(value));
        let back = walk.b.named(&name, back, &inputs)?;
        walk.add_if_varying(operands[0], back)?;

        let mut output = 0;
        for &position in &gradient.operands {
            output += 1;
            let shape = walk.b.ty(operands[position]).shape.clone();
            let rounds = stacked(walk, back, output, &TensorType::new(DType::F32, shape), scan.count)?;
            let sum = over_rounds(walk, rounds)?;
            walk.add_if_varying(operands[position], sum)?;
        }
        for (key, ty) in &gradient.params {
            output += 1;
            let rounds = stacked(walk, back, output, &ty.with_dtype(DType::F32), scan.count)?;
            match key.contains("{}") {
                true => self.add(walk, key.clone(), ty.clone(), Some(scan.count), rounds)?,
                false => {
                    let sum = over_rounds(walk, rounds)?;
                    self.add(walk, key.clone(), ty.clone(), None, sum)?;
                }
            }
        }
        self.bodies.insert(scan.body.to_string(), gradient);
        Ok(())
    }

    fn add(
        &mut self,
        walk: &mut Walk,
        key: String,
        ty: TensorType,
        rounds: Option<u32>,
        gradient: ValueId,
    ) -> Result<(), AutodiffError> {
        let gradient = match self.gradients.get(&key) {
            None => gradient,
            Some((known, _)) if known.rounds != rounds => return Err(AutodiffError::Rounds(key)),
            Some((_, other)) => walk.b.op(ir::op::elementwise::Add {}, &[*other, gradient])?,
        };
        self.gradients.insert(key.clone(), (ParamGradient { key, ty, rounds }, gradient));
        Ok(())
    }

    /// The program around the entry that was walked through.
    fn finish(self, walk: Walk, loss: ValueId) -> Result<Differentiated, AutodiffError> {
        for graph in &self.program.graphs {
            for (_, key) in graph.params() {
                if (self.options.wanted)(key) && !self.gradients.contains_key(&**key) {
                    let zeros = walk.zeros.iter().chain(self.bodies.values().flat_map(|body| &body.zeros));
                    let zeros: BTreeSet<Zero> = zeros.copied().collect();
                    return Err(AutodiffError::NoPath { key: key.to_string(), zeros: zeros.into_iter().collect() });
                }
            }
        }
        let (gradients, values): (Vec<ParamGradient>, Vec<ValueId>) = self.gradients.into_values().unzip();
        let outputs: Vec<ValueId> = [loss].into_iter().chain(values).collect();
        let entry = walk.b.finish(&outputs).compact();
        let is_used = |name: &str| {
            let mut ops = entry.values.ids().filter_map(|id| entry.op(id));
            ops.any(|op| op.body().is_some_and(|(body, _)| body == name))
        };
        let mut graphs = Vec::new();
        for body in &self.program.graphs[..self.program.graphs.len() - 1] {
            match self.bodies.get(&body.name) {
                Some(gradient) => graphs.extend([gradient.forward.clone(), gradient.backward.clone()]),
                None => graphs.push(body::without_states(body)?),
            }
        }
        graphs.retain(|graph| is_used(&graph.name));
        graphs.push(entry);
        let name = format!("{}.gradients", self.program.name);
        let program = Program { name, symbols: self.program.symbols.clone(), graphs };
        Ok(Differentiated { program: verify(program)?, gradients })
    }
}

/// What all rounds of a scan gave as an output of this type.
fn stacked(walk: &mut Walk, scan: ValueId, output: u32, ty: &TensorType, count: u32) -> Result<ValueId, BuildError> {
    let dims = [Dim::Const(u64::from(count))].into_iter().chain(ty.shape.dims().iter().cloned());
    walk.b.op(Stacked { output, dtype: ty.dtype, shape: dims.collect() }, &[scan])
}

/// The sum of a stacked value over the rounds.
fn over_rounds(walk: &mut Walk, rounds: ValueId) -> Result<ValueId, BuildError> {
    let shape = walk.b.ty(rounds).shape.clone();
    let (_, part) = shape.dims().split_first().expect("stacked values have the axis of the rounds");
    let one: Shape = [Dim::Const(1)].iter().chain(part).cloned().collect();
    let sum = sum_to(&mut walk.b, rounds, &one)?;
    walk.b.op(Reshape { shape: part.iter().cloned().collect() }, &[sum])
}

/// The parameters and constants of a graph, and what follows from them alone: as a flag for each value.
fn follows_from_parameters(graph: &Graph) -> Vec<bool> {
    let mut follows = Vec::with_capacity(graph.values.len());
    for value in graph.values.values() {
        follows.push(match &value.def {
            Def::Param { .. } | Def::Const(_) => true,
            Def::Input | Def::State { .. } => false,
            Def::Op { op, inputs } => op.body().is_none() && inputs.iter().all(|input| follows[input.index()]),
        });
    }
    follows
}
