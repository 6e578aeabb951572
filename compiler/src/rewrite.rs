//! Which rulesets run, in what order, with what limits; and the optimiser that runs them.
//!
//! Each graph of a program becomes an e-graph of its own. The stages of [`STAGES`] grow it, one after another, each until nothing is new or a
//! limit is met; then the cheapest graph is extracted. What a stage finds equal stays equal in the next, so no stage can lose a better form.
//!
//! Before: a verified program, in whatever ops the model used. After: an equal verified program with the same inputs, outputs, states and
//! parameters, and the names of the values that are still there.
//!
//! Results do not depend on time, memory addresses or threads. Limits count nodes and rounds; the limit on time is a safety net, and an
//! error when it is met.

pub mod rule;

pub mod arithmetic;

pub mod movement;

pub mod matmul;

pub mod ternary;

pub mod norm;

pub mod activation;

pub mod attention;

pub mod report;

pub mod example;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use egg::{Rewrite, Runner, SimpleScheduler};
use ir::op::ternary::{TernaryMatmul, TernaryMatmulBase3};
use ir::packing::TernaryLayout;
use ir::verify::VerifyErrors;
use ir::{Graph, Op, Program, TensorType, Verified, verify};

use crate::egraph::analysis::Problem;
use crate::egraph::convert::{Loaded, store};
use crate::egraph::cost::{self, CostModel, PackingCost};
use crate::egraph::extract::{Choices, NoTerm, extract};
use crate::egraph::{ENode, Facts};
use crate::target::Target;

pub use report::{ExtractionReport, GraphReport, PackingReport, PackingWay, Report, StageReport, Stop};
pub use rule::{Exactness, Rule};

/// One stage: a name, and the families of rules that run together.
pub struct Stage {
    /// What it is called in options and reports.
    pub name: &'static str,
    /// The rules, by family.
    pub families: &'static [fn() -> Vec<Rule>],
}

/// The stages, in order.
pub const STAGES: &[Stage] = &[
    // Brings equal things to one form, so that later patterns meet one form only.
    Stage { name: "canonicalise", families: &[arithmetic::rules, movement::rules] },
    // Dense arithmetic on ternary weights becomes ternary_matmul; the scales on the way are cleaned up by arithmetic.
    Stage { name: "ternary", families: &[matmul::rules, ternary::rules, arithmetic::rules, movement::rules] },
    // Neighbours become one op.
    Stage {
        name: "fuse",
        families: &[norm::rules, activation::rules, attention::rules, arithmetic::rules, movement::rules],
    },
    // After all others, because only then it is known which matmuls over the same activations are needed.
    Stage { name: "merge", families: &[matmul::merges] },
    // How the weights of what is left are stored.
    Stage { name: PACK, families: &[ternary::packings] },
];

/// The stage that chooses packings.
const PACK: &str = "pack";

/// What the optimiser may do.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The stages to run, by name; the order is that of [`STAGES`].
    pub stages: Vec<String>,
    /// Rules that are only as exact as this are left out.
    pub exactness: Exactness,
    /// How ternary weights may be packed: one way, or whichever is fastest.
    pub packing: Option<TernaryLayout>,
    /// Whether merges are recorded, so that they can be explained.
    pub proofs: bool,
    /// When to stop.
    pub limits: Limits,
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Nodes of an e-graph.
    pub nodes: usize,
    /// Rounds of a stage.
    pub rounds: usize,
    /// Decisions of an extraction.
    pub decisions: u64,
    /// Seconds of a stage. Meeting this one is an error.
    pub seconds: u64,
}

impl Options {
    /// All stages and all rules. Limits: a layer's e-graph has a few hundred nodes and is saturated after about five rounds, so ten times
    /// that is far from any model; an extraction of a layer takes a few hundred decisions.
    pub fn all() -> Self {
        Self {
            stages: STAGES.iter().map(|stage| stage.name.to_owned()).collect(),
            exactness: Exactness::Rounding,
            packing: None,
            proofs: false,
            limits: Limits { nodes: 20_000, rounds: 50, decisions: 50_000, seconds: 60 },
        }
    }

    /// No stages: the program is only brought into its shortest form.
    pub fn none() -> Self {
        Self { stages: Vec::new(), ..Self::all() }
    }
}

/// Why a program could not be optimised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// Options name stages that are none.
    #[error("there is no stage {}; stages are {}", unknown.join(", "), known())]
    Stages {
        /// The names.
        unknown: Vec<String>,
    },
    /// Options want a packing that no kernel of the target reads.
    #[error(
        "{target} has no kernel for ternary weights packed in {}; it has them for {}",
        report::bits(*.wanted),
        .known.iter().map(|&layout| report::bits(layout)).collect::<Vec<_>>().join(" and ")
    )]
    Packing {
        /// The target.
        target: String,
        /// The packing asked for.
        wanted: TernaryLayout,
        /// Those that there are kernels for.
        known: Vec<TernaryLayout>,
    },
    /// There is nothing of this name to explain.
    #[error("the program has no graph `{graph}` with a value {value}")]
    Explain {
        /// The graph asked for.
        graph: String,
        /// The value asked for.
        value: String,
    },
    /// A rule made an ill-typed node or merged two types. Always a bug in tritter.
    #[error("internal error: in graph `{graph}`, after stage `{stage}`: {}", list(problems))]
    Rules {
        /// The graph.
        graph: String,
        /// The stage.
        stage: String,
        /// What is wrong.
        problems: Vec<Problem>,
    },
    /// A stage took longer than it ever should. Always a bug in tritter.
    #[error("internal error: in graph `{graph}`, stage `{stage}` took more than {seconds} seconds")]
    Time {
        /// The graph.
        graph: String,
        /// The stage.
        stage: String,
        /// The limit.
        seconds: u64,
    },
    /// The e-graph has lost a value. Always a bug in tritter.
    #[error("internal error: in graph `{graph}`: {source}")]
    Extract {
        /// The graph.
        graph: String,
        /// What is wrong.
        source: NoTerm,
    },
    /// The optimised program is not well formed. Always a bug in tritter.
    #[error("internal error: the optimiser produced an invalid program:\n{0}")]
    Invalid(VerifyErrors),
}

fn known() -> String {
    STAGES.iter().map(|stage| stage.name).collect::<Vec<_>>().join(", ")
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// All rules, each once, in the order of the stages.
pub fn rules() -> Vec<&'static Rule> {
    let mut seen: BTreeMap<&str, ()> = BTreeMap::new();
    RULESETS.iter().flatten().filter(|rule| seen.insert(&rule.name, ()).is_none()).collect()
}

/// The rules of each stage. Built once: parsing a few hundred patterns takes a millisecond.
static RULESETS: LazyLock<Vec<Vec<Rule>>> = LazyLock::new(|| {
    let rules = |stage: &Stage| stage.families.iter().flat_map(|family| family()).collect();
    STAGES.iter().map(rules).collect()
});

/// The rules of each stage as egg runs them.
static REWRITES: LazyLock<Vec<Vec<StageRewrite>>> = LazyLock::new(|| {
    let rewrites = |rule: &Rule| -> Vec<StageRewrite> {
        let rewrites = rule.rewrites().unwrap_or_else(|error| panic!("rule `{}`: {error}", rule.name));
        rewrites.into_iter().map(|rewrite| StageRewrite { exactness: rule.exactness, rewrite }).collect()
    };
    RULESETS.iter().map(|rules| rules.iter().flat_map(rewrites).collect()).collect()
});

struct StageRewrite {
    exactness: Exactness,
    rewrite: Rewrite<ENode, Facts>,
}

/// The cheapest program that the rules find equal to this one.
///
/// # Errors
///
/// If the options name unknown stages; everything else is a bug.
pub fn optimise(
    program: &Verified<Program>,
    target: &Target,
    options: &Options,
) -> Result<(Verified<Program>, Report), RewriteError> {
    check_options(target, options)?;
    let model = CostModel::new(target.machine.clone()).with_packing(options.packing);
    let mut graphs = Vec::new();
    let mut reports = Vec::new();
    for graph in &program.graphs {
        let saturated = saturate(graph, &model, options)?;
        let graph = saturated.to_graph(graph)?;
        reports.push(GraphReport { packings: packings(&graph, &model), ..saturated.report });
        graphs.push(graph);
    }
    let optimised = Program { name: program.name.clone(), symbols: program.symbols.clone(), graphs };
    let optimised = verify(optimised).map_err(RewriteError::Invalid)?;
    Ok((optimised, Report { graphs: reports }))
}

/// What each way to pack the weights of a graph's ternary matmuls would cost.
fn packings(graph: &Graph, model: &CostModel) -> Vec<PackingReport> {
    let ways: [Op; 2] = [TernaryMatmul {}.into(), TernaryMatmulBase3 {}.into()];
    let has_ways = |op: &&Op| matches!(op, Op::TernaryMatmul(_) | Op::TernaryMatmulBase3(_));
    let matmuls =
        graph.values.ids().filter_map(|value| Some((value, cost::layout_of(graph.op(value).filter(has_ways)?)?)));
    let report = |(value, chosen)| {
        let inputs: Vec<&TensorType> = graph.operands(value).iter().map(|&operand| graph.ty(operand)).collect();
        let out = graph.ty(value);
        let way = |op: &Op| {
            let layout = cost::layout_of(op)?;
            let costs =
                model.phases.iter().map(|phase| Some((phase.tokens, model.packing_cost(*phase, op, &inputs, out)?)));
            let costs: Vec<(u64, PackingCost)> = costs.collect::<Option<_>>()?;
            Some(PackingWay {
                layout,
                weight_bytes: costs.first()?.1.weight_bytes,
                cost: costs.iter().zip(&model.phases).map(|((_, cost), phase)| cost.picoseconds(*phase)).sum(),
                phases: costs.iter().map(|(tokens, cost)| (*tokens, cost.read_seconds, cost.compute_seconds)).collect(),
            })
        };
        PackingReport {
            value: graph.describe(value),
            chosen,
            only: model.packing,
            ways: ways.iter().filter_map(way).collect(),
        }
    };
    matmuls.map(report).collect()
}

/// Refuses stages that do not exist, all at once, and a packing that the target has no kernel for.
pub(crate) fn check_options(target: &Target, options: &Options) -> Result<(), RewriteError> {
    let is_unknown = |name: &&String| !STAGES.iter().any(|stage| stage.name == **name);
    let unknown: Vec<String> = options.stages.iter().filter(is_unknown).cloned().collect();
    if !unknown.is_empty() {
        return Err(RewriteError::Stages { unknown });
    }
    let Some(wanted) = options.packing else { return Ok(()) };
    let mut known: Vec<TernaryLayout> = target.machine.products.iter().filter_map(|product| product.layout).collect();
    known.sort();
    known.dedup();
    match known.contains(&wanted) {
        true => Ok(()),
        false => Err(RewriteError::Packing { target: target.to_string(), wanted, known }),
    }
}

/// A graph's e-graph after all stages, and the cheapest graph in it.
pub(crate) struct Saturated {
    pub(crate) loaded: Loaded,
    pub(crate) choices: Choices,
    pub(crate) report: GraphReport,
}

impl Saturated {
    fn to_graph(&self, source: &Graph) -> Result<Graph, RewriteError> {
        store(source, &self.loaded, &self.choices).map_err(|problem| RewriteError::Rules {
            graph: source.name.clone(),
            stage: "extraction".to_owned(),
            problems: vec![problem],
        })
    }
}

/// Runs the stages on one graph.
pub(crate) fn saturate(graph: &Graph, model: &CostModel, options: &Options) -> Result<Saturated, RewriteError> {
    let mut loaded = Loaded::new(graph, options.proofs);
    let best = |loaded: &Loaded, model: &CostModel| {
        extract(&loaded.egraph, &loaded.roots(graph), model, options.limits.decisions)
            .map_err(|source| RewriteError::Extract { graph: graph.name.clone(), source })
    };
    check_facts(graph, "load", &loaded)?;
    // Until there is a choice of packings, a wish for one would only make the extractor avoid what is to be packed.
    let free = model.clone().with_packing(None);
    let mut choices = best(&loaded, &free)?;
    let cost_before = choices.cost;
    let mut stages = Vec::new();
    for (stage, rewrites) in STAGES.iter().zip(REWRITES.iter()) {
        if !options.stages.iter().any(|name| name == stage.name) {
            continue;
        }
        let cost_before = choices.cost;
        let rewrites = rewrites.iter().filter(|rewrite| rewrite.exactness <= options.exactness);
        let rewrites: Vec<&Rewrite<ENode, Facts>> = rewrites.map(|rewrite| &rewrite.rewrite).collect();
        loaded.egraph.analysis.chosen = choices.nodes.clone();
        let rounds = run(graph, stage.name, &mut loaded, &rewrites, &options.limits)?;
        check_facts(graph, stage.name, &loaded)?;
        choices = best(&loaded, if stage.name == PACK { model } else { &free })?;
        stages.push(StageReport {
            stage: stage.name,
            rules: rounds.rules,
            iterations: rounds.count,
            nodes: loaded.egraph.total_number_of_nodes(),
            classes: loaded.egraph.number_of_classes(),
            stop: rounds.stop,
            cost_before,
            cost_after: choices.cost,
            seconds: rounds.seconds,
        });
    }
    let extraction = ExtractionReport { proved: choices.proved, decisions: choices.steps };
    let report = GraphReport {
        graph: graph.name.clone(),
        stages,
        cost_before,
        cost_after: choices.cost,
        extraction,
        packings: Vec::new(),
    };
    Ok(Saturated { loaded, choices, report })
}

/// What the rounds of a stage did.
struct Rounds {
    count: usize,
    rules: BTreeMap<String, usize>,
    stop: Stop,
    seconds: f64,
}

/// Applies rules until nothing is new.
fn run(
    graph: &Graph,
    stage: &str,
    loaded: &mut Loaded,
    rewrites: &[&Rewrite<ENode, Facts>],
    limits: &Limits,
) -> Result<Rounds, RewriteError> {
    let egraph = std::mem::replace(&mut loaded.egraph, crate::egraph::EGraph::new(Facts::default()));
    let runner = Runner::<ENode, Facts, ()>::new(Facts::default())
        .with_egraph(egraph)
        .with_scheduler(SimpleScheduler)
        .with_node_limit(limits.nodes)
        .with_iter_limit(limits.rounds)
        .with_time_limit(Duration::from_secs(limits.seconds))
        .run(rewrites.iter().copied());
    let Runner { egraph, iterations, stop_reason, .. } = runner;
    loaded.egraph = egraph;
    let mut rules: BTreeMap<String, usize> = BTreeMap::new();
    for iteration in &iterations {
        for (name, count) in &iteration.applied {
            let name = name.as_str().split('/').next().unwrap_or_default();
            *rules.entry(name.to_owned()).or_default() += count;
        }
    }
    let stop = match stop_reason {
        Some(egg::StopReason::NodeLimit(_)) => Stop::Nodes,
        Some(egg::StopReason::IterationLimit(_)) => Stop::Rounds,
        Some(egg::StopReason::TimeLimit(_)) => {
            let (graph, stage) = (graph.name.clone(), stage.to_owned());
            return Err(RewriteError::Time { graph, stage, seconds: limits.seconds });
        }
        _ => Stop::Saturated,
    };
    let seconds = iterations.iter().map(|iteration| iteration.total_time).sum();
    Ok(Rounds { count: iterations.len(), rules, stop, seconds })
}

fn check_facts(graph: &Graph, stage: &str, loaded: &Loaded) -> Result<(), RewriteError> {
    let problems = loaded.egraph.analysis.problems.clone();
    debug_assert!(problems.is_empty(), "{stage}: {}", list(&problems));
    if problems.is_empty() {
        return Ok(());
    }
    Err(RewriteError::Rules { graph: graph.name.clone(), stage: stage.to_owned(), problems })
}
