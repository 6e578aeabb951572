//! What the optimiser did, for people and as plain data.
//!
//! The text leaves out times, so that it is the same for the same input; they are in the data.

use std::collections::BTreeMap;
use std::fmt;

use ir::packing::TernaryLayout;

/// What was done to a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// One for each graph, in the program's order.
    pub graphs: Vec<GraphReport>,
}

/// What was done to one graph.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphReport {
    /// The graph.
    pub graph: String,
    /// The stages that ran.
    pub stages: Vec<StageReport>,
    /// Picoseconds of the source, by the cost model.
    pub cost_before: u64,
    /// Picoseconds of the result, by the cost model.
    pub cost_after: u64,
    /// How the result was found.
    pub extraction: ExtractionReport,
    /// Why the weights of each ternary matmul are packed as they are.
    pub packings: Vec<PackingReport>,
}

/// The ways to pack the weights of one ternary matmul, by the cost model.
#[derive(Clone, Debug, PartialEq)]
pub struct PackingReport {
    /// The matmul.
    pub value: String,
    /// How its weights are packed.
    pub chosen: TernaryLayout,
    /// The way that options allow, if only one.
    pub only: Option<TernaryLayout>,
    /// All ways that the target has kernels for.
    pub ways: Vec<PackingWay>,
}

/// One way to pack them.
#[derive(Clone, Debug, PartialEq)]
pub struct PackingWay {
    /// How.
    pub layout: TernaryLayout,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Picoseconds over all phases, by which ways are compared.
    pub cost: u64,
    /// For each phase, its tokens, and the seconds that reading takes and computing.
    pub phases: Vec<(u64, f64, f64)>,
}

/// What one stage did.
#[derive(Clone, Debug, PartialEq)]
pub struct StageReport {
    /// The stage.
    pub stage: &'static str,
    /// How often each rule showed something new; rules that did not are left out.
    pub rules: BTreeMap<String, usize>,
    /// Rounds.
    pub iterations: usize,
    /// Nodes of the e-graph afterwards.
    pub nodes: usize,
    /// Classes of the e-graph afterwards.
    pub classes: usize,
    /// Why it stopped.
    pub stop: Stop,
    /// Picoseconds of the best graph before, by the cost model.
    pub cost_before: u64,
    /// Picoseconds of the best graph afterwards, by the cost model.
    pub cost_after: u64,
    /// Seconds of wall clock that the rounds took.
    pub seconds: f64,
}

/// Why a stage stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nothing was new.
    Saturated,
    /// The e-graph had too many nodes.
    Nodes,
    /// There were too many rounds.
    Rounds,
}

/// How the cheapest graph was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtractionReport {
    /// Whether the e-graph is proved to have no cheaper one.
    pub proved: bool,
    /// Decisions that the search took.
    pub decisions: u64,
}

impl Report {
    /// Seconds of wall clock over all graphs and stages.
    pub fn seconds(&self) -> f64 {
        self.graphs.iter().flat_map(|graph| &graph.stages).map(|stage| stage.seconds).sum()
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stop::Saturated => "saturated",
            Stop::Nodes => "node limit",
            Stop::Rounds => "round limit",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.graphs.iter().try_for_each(|graph| write!(f, "{graph}"))
    }
}

impl fmt::Display for GraphReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = if self.extraction.proved { "proved best" } else { "best found" };
        writeln!(
            f,
            "@{}: {} -> {} ({found} in {} decisions)",
            self.graph,
            microseconds(self.cost_before),
            microseconds(self.cost_after),
            self.extraction.decisions,
        )?;
        self.stages.iter().try_for_each(|stage| write!(f, "{stage}"))?;
        self.packings.iter().try_for_each(|packing| write!(f, "{packing}"))
    }
}

impl fmt::Display for StageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {}: {} -> {}; {} nodes in {} classes, {} after {} rounds",
            self.stage,
            microseconds(self.cost_before),
            microseconds(self.cost_after),
            self.nodes,
            self.classes,
            self.stop,
            self.iterations,
        )?;
        self.rules.iter().try_for_each(|(rule, count)| writeln!(f, "    {count:>4} {rule}"))
    }
}

impl fmt::Display for PackingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match (self.only, self.ways.len()) {
            (Some(only), _) if only == self.chosen => "as asked for",
            (Some(_), _) => "not as asked for, there is no such kernel or the stage did not run",
            (None, 1) => "the only way that there is",
            (None, _) => "the fastest",
        };
        writeln!(f, "  weights of {} packed in {}: {why}", self.value, bits(self.chosen))?;
        for way in &self.ways {
            write!(f, "    {:>8}: {:8.3} MB", bits(way.layout), way.weight_bytes as f64 / 1e6)?;
            for (tokens, read, compute) in &way.phases {
                let tokens = if *tokens == 1 { "1 token".to_owned() } else { format!("{tokens} tokens") };
                write!(f, "; {tokens}: reading {:.1} us, computing {:.1}", read * 1e6, compute * 1e6)?;
            }
            writeln!(f, "; in all {}", microseconds(way.cost))?;
        }
        Ok(())
    }
}

/// What a packing is called on the command line, too.
pub fn bits(layout: TernaryLayout) -> &'static str {
    match layout {
        TernaryLayout::Tile16Base3 => "1.6bit",
        TernaryLayout::RowMajor4 | TernaryLayout::Blocks4 | TernaryLayout::Tile16 => "2bit",
    }
}

/// Picoseconds as microseconds, to a thousandth.
fn microseconds(picoseconds: u64) -> String {
    let nanoseconds = (picoseconds + 500) / 1000;
    format!("{}.{:03} us", nanoseconds / 1000, nanoseconds % 1000)
}
