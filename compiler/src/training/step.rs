//! A training step as programs over the same states: gradients that add up, and the change of the parameters.

use std::collections::BTreeSet;

use ir::graph::{Def, Graph, Program};
use ir::op::control::Repeat;
use ir::op::elementwise::Cast;
use ir::verify::VerifyErrors;
use ir::{BuildError, Builder, DType, Shape, TensorType, Verified, verify};

use super::accumulate;
use super::batch::{self, Batch};
use super::frozen;
use super::precision::{self, Precision};
use super::remake::Remake;
use super::summaries;
use super::ternary;
use crate::autodiff::{self, AutodiffError, Keep, ParamGradient, differentiate, with_cross_entropy};
use crate::optimiser::{AdamW, OptimiserError, master_name};

/// The graph that adds the gradients of a batch. Its inputs are `ids`, `span`, `targets` and `first`, which is 1 in the first batch of a step; its
/// output is the mean loss, f32 `[1]`. The graph of the update has the input `settings`, and the norm as its output.
pub const ACCUMULATE: &str = "gradients";

/// The graph that gives the parameters their first values.
pub const START: &str = "start";

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
    /// What dense products are computed in.
    pub precision: Precision,
    /// How parameters change.
    pub optimiser: AdamW,
}

/// A step of training.
#[derive(Clone, Debug)]
pub struct Step {
    /// What gives the parameters their first values, what adds the gradients of a batch, and what changes the parameters.
    pub programs: [Verified<Program>; 3],
    /// The trained parameters.
    pub parameters: Vec<ParamGradient>,
    /// What is to be known of it beside the program.
    pub facts: Facts,
}

/// What the plan of a step says of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// The sequences of a batch.
    pub batch: Batch,
    /// Both betas of AdamW.
    pub betas: [f64; 2],
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
        let mut loss = batch::whole(&with_cross_entropy(program, 0)?, options.batch)?;
        if options.precision == Precision::Bf16 {
            loss = precision::in_bf16(&loss, options.wanted)?;
        }
        let wanted = autodiff::Options { loss: 0, wanted: options.wanted, keep: options.keep };
        let differentiated = differentiate(&loss, &wanted)?;
        let parameters = differentiated.gradients;
        let update = options.optimiser.program(&parameters, options.decays)?;

        let mut gradients = Vec::new();
        for graph in &differentiated.program.graphs {
            let is_entry = graph.name == differentiated.program.entry().name;
            let stored = match options.precision {
                Precision::Bf16 if is_entry => DType::BF16,
                Precision::Bf16 | Precision::F32 => DType::F32,
            };
            let changing = ternary::spell_out(&with_states(graph, options.wanted)?, stored)?;
            let changing = frozen::read_packed(&changing, options.precision)?;
            let changing = match options.precision {
                Precision::F32 => changing,
                Precision::Bf16 => precision::stored_narrow(&changing)?,
            };
            gradients.push(changing);
        }
        let gradients = accumulate::added_up(summaries::handed_over(gradients)?, &parameters)?;
        let mut changes = update.graphs.clone();
        if let Some(entry) = changes.last_mut() {
            *entry = with_sums(entry)?;
        }
        let name = format!("{}.training", program.name);
        let program = |graphs| verify(Program { name: name.clone(), symbols: Vec::new(), graphs });
        let programs = [program(start(&parameters)?)?, program(gradients)?, program(changes)?];
        let facts = Facts { batch: options.batch, betas: options.optimiser.betas() };
        Ok(Self { programs, parameters, facts })
    }
}

/// The graph [`START`], behind its bodies.
fn start(parameters: &[ParamGradient]) -> Result<Vec<Graph>, BuildError> {
    let set = |b: &mut Builder, parameter: &ParamGradient| -> Result<(), BuildError> {
        let ParamGradient { key, ty, .. } = parameter;
        let given = b.param(key, key, ty.clone());
        let state = b.state(key, key, ty.clone());
        b.update(state, given);
        if ty.dtype != DType::F32 {
            let key = master_name(key);
            let (wide, master) =
                (b.op(Cast { to: DType::F32 }, &[given])?, b.state(&key, &key, ty.with_dtype(DType::F32)));
            b.update(master, wide);
        }
        Ok(())
    };
    let (mut graphs, mut entry) = (Vec::new(), Builder::new(START));
    let nothing = |b: &mut Builder| b.constant(None, TensorType::new(DType::F32, Shape::of(&[1])), [0.0]);
    let mut carried = nothing(&mut entry);
    let counts: BTreeSet<u32> = parameters.iter().filter_map(|parameter| parameter.rounds).collect();
    for count in counts {
        let name = format!("{START}.{count}");
        let mut body = Builder::new(&name);
        let carried_in = body.input("carried", TensorType::new(DType::F32, Shape::of(&[1])));
        for parameter in parameters.iter().filter(|parameter| parameter.rounds == Some(count)) {
            set(&mut body, parameter)?;
        }
        graphs.push(body.finish(&[carried_in]));
        carried = entry.op(Repeat { body: name.as_str().into(), count }, &[carried])?;
    }
    for parameter in parameters.iter().filter(|parameter| parameter.rounds.is_none()) {
        set(&mut entry, parameter)?;
    }
    graphs.push(entry.finish(&[carried]));
    Ok(graphs)
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

/// The graph of the update with the sums as states where it takes gradients as inputs.
fn with_sums(graph: &Graph) -> Result<Graph, BuildError> {
    let remake = Remake::new(graph, |remake, id| {
        let (value, label) = (&graph.values[id], graph.label(id));
        let is_gradient = matches!(value.def, Def::Input) && label != "settings";
        Ok::<_, BuildError>(is_gradient.then(|| remake.b.state(&label, &label, value.ty.clone())))
    })?;
    Ok(remake.finish(graph))
}
