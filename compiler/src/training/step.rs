//! A training step as a program: gradients that add up, and the change of the parameters.

use ir::graph::{Def, Graph, Program};
use ir::op::elementwise::{Add, Select};
use ir::verify::VerifyErrors;
use ir::{BuildError, DType, Shape, TensorType, ValueId, Verified, verify};

use super::batch::{self, Batch};
use super::remake::Remake;
use super::ternary;
use crate::autodiff::{self, AutodiffError, Keep, ParamGradient, differentiate, with_cross_entropy};
use crate::optimiser::{AdamW, OptimiserError, gradient_name};

/// The graph that adds the gradients of a batch. Its inputs are `ids`, `span`, `targets` and `first`, which is 1 in the first batch of a step; its
/// output is the mean loss, f32 `[1]`. The entry of the program is the update, with the input `settings` and the norm as its output.
pub const ACCUMULATE: &str = "gradients";

/// What to train, and how.
pub struct StepOptions<'a> {
    /// The sequences of a batch; the program's caches are of this size.
    pub batch: Batch,
    /// Whether the parameter of this key is trained.
    pub wanted: &'a dyn Fn(&str) -> bool,
    /// Whether the parameter of this key decays.
    pub decays: &'a dyn Fn(&str) -> bool,
    /// What layers leave for the backward pass.
    pub keep: Keep,
    /// How parameters change.
    pub optimiser: AdamW,
}

/// A step of training.
#[derive(Clone, Debug)]
pub struct Step {
    /// The graph [`ACCUMULATE`] with its bodies, and the update, which is the entry, with its own.
    pub program: Verified<Program>,
    /// The trained parameters.
    pub parameters: Vec<ParamGradient>,
    /// The sequences of a batch.
    pub batch: Batch,
}

/// Why a program cannot be trained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// A cache of another size or type than the batch's keys and values.
    #[error("`{value}` is {ty}: build the program with f32 caches of the batch's sequences and positions")]
    Cache {
        /// The value.
        value: String,
        /// Its type.
        ty: TensorType,
    },
    /// There are no gradients.
    #[error(transparent)]
    Autodiff(#[from] AutodiffError),
    /// There is no optimiser for the parameters.
    #[error(transparent)]
    Optimiser(#[from] OptimiserError),
    /// The result is not well formed. Always a bug in tritter.
    #[error("internal error: the training step is not well formed:\n{0}")]
    Invalid(#[from] VerifyErrors),
    /// An op of the result does not fit. Always a bug in tritter.
    #[error("internal error: {0}")]
    Build(#[from] BuildError),
}

impl Step {
    /// The step of a decoder whose first output is logits.
    ///
    /// # Errors
    ///
    /// If its caches are of another size than the batch, or a wanted parameter has no gradient.
    pub fn new(program: &Verified<Program>, options: &StepOptions<'_>) -> Result<Self, StepError> {
        let loss = batch::whole(&with_cross_entropy(program, 0)?, options.batch)?;
        let wanted = autodiff::Options { loss: 0, wanted: options.wanted, keep: options.keep };
        let differentiated = differentiate(&loss, &wanted)?;
        let parameters = differentiated.gradients;
        let update = options.optimiser.program(&parameters, options.decays)?;

        let mut graphs = Vec::new();
        for graph in &differentiated.program.graphs {
            let is_entry = graph.name == differentiated.program.entry().name;
            let changing = with_states(graph, options.wanted)?;
            graphs.push(if is_entry { accumulating(&changing, &parameters)? } else { changing });
        }
        for graph in &update.graphs {
            graphs.push(if graph.name == update.entry().name { with_sums(graph)? } else { graph.clone() });
        }
        let graphs = graphs.iter().map(ternary::spell_out).collect::<Result<Vec<_>, _>>()?;
        let name = format!("{}.training", program.name);
        let program = verify(Program { name, symbols: Vec::new(), graphs })?;
        Ok(Self { program, parameters, batch: options.batch })
    }
}

/// The graph with states in the place of trained parameters.
fn with_states(graph: &Graph, wanted: &dyn Fn(&str) -> bool) -> Result<Graph, BuildError> {
    let remake = Remake::new(graph, |remake, id| {
        let value = &graph.values[id];
        Ok::<_, BuildError>(match &value.def {
            Def::Param { key } if wanted(key) => {
                Some(remake.b.state(value.name.as_deref().unwrap_or(key), key, value.ty.clone()))
            }
            _ => None,
        })
    })?;
    Ok(remake.finish(graph))
}

/// The graph whose outputs behind the loss are gradients, as one that adds these up in states.
fn accumulating(graph: &Graph, parameters: &[ParamGradient]) -> Result<Graph, BuildError> {
    let mut remake = Remake::new(graph, |_, _| Ok::<_, BuildError>(None))?;
    let outputs: Vec<ValueId> = graph.outputs.iter().map(|&output| remake.of(output)).collect();
    let b = &mut remake.b;
    let first = b.input("first", TensorType::new(DType::I32, Shape::of(&[1])));
    for (parameter, &gradient) in parameters.iter().zip(&outputs[1..]) {
        let key = gradient_name(&parameter.key);
        let sum = b.state(&key, &key, b.ty(gradient).clone());
        let added = b.op(Add {}, &[sum, gradient])?;
        let new = b.op(Select {}, &[first, gradient, added])?;
        b.update(sum, new);
    }
    let mut made = remake.b.finish(&outputs[..1]).compact();
    made.name = ACCUMULATE.to_owned();
    Ok(made)
}

/// The graph of the update with the sums as states where it takes gradients as inputs.
fn with_sums(graph: &Graph) -> Result<Graph, BuildError> {
    let remake = Remake::new(graph, |remake, id| {
        let (value, label) = (&graph.values[id], graph.label(id));
        let is_gradient = matches!(value.def, Def::Input) && label != "settings";
        Ok::<_, BuildError>(is_gradient.then(|| remake.b.state(&label, &label, value.ty.clone())))
    })?;
    Ok(remake.finish(graph))
}
