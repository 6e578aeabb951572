//! The passes, top to bottom: read this first.

use std::time::{Duration, Instant};

use ir::entity::Id;
use ir::plan::{Budget, Certificate, Code as CodePlace, Plan};
use ir::{Program, Verified};

use crate::emit::cuda::{CudaError, CudaKernel};
use crate::emit::nvrtc::{Nvrtc, Search};
use crate::emit::plan::{Emitted, PlanOptions};
use crate::emit::{self, Code, CodeTarget, cuda};
use crate::error::CompileError;
use crate::report::{Dump, Report};
use crate::rewrite;
use crate::schedule::Residency;
use crate::target::{Hardware, Target};
use crate::training::{Batch, Facts, Step};
use crate::weights::WeightPlan;

/// What a compilation may be told. No field has a default here: the binary chooses.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to optimise.
    pub rewrite: rewrite::Options,
    /// Positions of a sequence that the caches hold.
    pub context: u64,
    /// Sequences that the caches hold.
    pub sequences: u64,
    /// Where the layers' weights are while calls run.
    pub residency: Residency,
    /// What running the plan may take of memory.
    pub budget: Budget,
    /// Whether to keep a readable form of every stage.
    pub dumps: bool,
    /// Where NVRTC may be, which only CUDA targets need.
    pub nvrtc: Search,
    /// Whether CUDA kernels made for speed may run out of registers.
    pub allow_spills: bool,
}

/// All that an artifact is written from, but for the weights' values.
#[derive(Debug)]
pub struct Compiled {
    /// The optimised program, which says how each stored tensor follows from the parameters; of a step of training, the graphs of all its programs.
    pub program: Program,
    /// The plan.
    pub plan: Plan,
    /// The generated machine code of a CPU.
    pub code: Code,
    /// All kernels of a CUDA target.
    pub cuda: Vec<CudaKernel>,
    /// The tensors to be stored.
    pub weights: WeightPlan,
    /// What was done and why.
    pub report: Report,
    /// Every stage in readable form, if asked for, in order.
    pub dumps: Vec<Dump>,
}

/// What a compilation for planning may be told: all of [`Options`] that no code is needed for.
#[derive(Clone, Debug)]
pub struct PlanningOptions {
    /// How to optimise.
    pub rewrite: rewrite::Options,
    /// Positions of a sequence that the caches hold.
    pub context: u64,
    /// Sequences that the caches hold.
    pub sequences: u64,
    /// Where the layers' weights are while calls run.
    pub residency: Residency,
    /// What running the plan may take of memory.
    pub budget: Budget,
}

/// A plan without its code: all sizes, places, steps and predicted times.
#[derive(Debug)]
pub struct Planned {
    /// The program in its final form.
    pub program: Program,
    /// The plan. Generated kernels of a CPU have no places in it.
    pub plan: Plan,
    /// The tensors to be stored.
    pub weights: WeightPlan,
}

/// Compiles a program for a target.
///
/// # Errors
///
/// If the program uses something that the target has no kernel for; and every failure that is a bug of tritter.
pub fn compile(program: Verified<Program>, target: &Target, options: &Options) -> Result<Compiled, CompileError> {
    compile_programs(&[program], None, target, options)
}

/// Compiles a step of training; `context` and `sequences` of the options are its batch's.
///
/// # Errors
///
/// As [`compile`].
pub fn compile_step(step: Step, target: &Target, options: &Options) -> Result<Compiled, CompileError> {
    let Batch { sequences, context } = step.facts.batch;
    let options = Options { context, sequences, ..options.clone() };
    compile_programs(&step.programs, Some(step.facts), target, &options)
}

fn compile_programs(
    programs: &[Verified<Program>],
    training: Option<Facts>,
    target: &Target,
    options: &Options,
) -> Result<Compiled, CompileError> {
    let mut stages = Stages { times: Vec::new(), dumps: Vec::new(), keep: options.dumps };
    let Options { rewrite, context, sequences, residency, budget, .. } = options.clone();
    let planning = PlanningOptions { rewrite, context, sequences, residency, budget };
    let (program, rewriting, emitted) = stages.plan(programs, training, target, &planning)?;
    let Emitted { mut plan, weights, nests, specialised, fused } = emitted;

    // Machine code for the nests, whose places are then known to the plan; for a GPU, for the rows of the table too.
    let (mut code, mut cuda) = (Code::default(), Vec::new());
    match target.hardware() {
        Hardware::Cpu { arch, isa } => {
            let code_target = CodeTarget::new(arch, isa).expect("a target is an instruction set of its architecture");
            code = stages.time("code", || {
                let sources: Vec<_> = nests.iter().map(|(_, lowered)| &lowered.nest).collect();
                emit::assemble(&sources, code_target, options.dumps)
            })?;
            for ((kernel, _), symbol) in nests.iter().zip(&code.symbols) {
                plan.kernels[kernel.index()].code = CodePlace::Generated { offset: symbol.offset, bytes: symbol.len };
            }
        }
        Hardware::Cuda(sm) => {
            cuda = stages.time("code", || -> Result<_, CompileError> {
                let nvrtc = Nvrtc::load(&options.nvrtc).map_err(CudaError::from)?;
                Ok(cuda::assemble(
                    &nests,
                    &specialised,
                    &fused,
                    plan.placement.transit.is_some(),
                    sm,
                    &nvrtc,
                    options.allow_spills,
                )?)
            })?;
        }
    }
    for kernel in &cuda {
        stages.dump(&format!("{}.cu", kernel.name), || kernel.source.clone());
    }
    for listing in &code.listings {
        stages.dump(&format!("{}.clif", listing.name), || listing.clif.clone());
        stages.dump(&format!("{}.s", listing.name), || listing.assembly.clone());
    }

    // The promise of memory is proved by itself, because who asked for too much is to be told so.
    Certificate::prove(&plan).map_err(CompileError::Budget)?;
    // The same check that every reader runs.
    stages.time("check", || ir::plan::check(&plan))?;
    stages.dump("plan.ron", || plan.to_ron());

    let report = Report::new(&plan, &target.machine, &weights, rewriting, &cuda, std::mem::take(&mut stages.times));
    stages.dump("report.txt", || report.to_string());
    Ok(Compiled { program, plan, code, cuda, weights, report, dumps: stages.dumps })
}

/// The plan of a program, in the passes of [`compile`], without code: it needs neither NVRTC nor Cranelift, and takes some hundredths of a second for
/// any size of model.
///
/// # Errors
///
/// As [`compile`].
pub fn plan(program: &Verified<Program>, target: &Target, options: &PlanningOptions) -> Result<Planned, CompileError> {
    let mut stages = Stages { times: Vec::new(), dumps: Vec::new(), keep: false };
    let (program, _, Emitted { plan, weights, .. }) =
        stages.plan(std::slice::from_ref(program), None, target, options)?;
    Certificate::prove(&plan).map_err(CompileError::Budget)?;
    ir::plan::check(&plan)?;
    Ok(Planned { program, plan, weights })
}

/// Times and keeps what the passes give.
struct Stages {
    times: Vec<(&'static str, Duration)>,
    dumps: Vec<Dump>,
    keep: bool,
}

impl Stages {
    /// The passes that need no code: the program in its final form, and its plan.
    fn plan(
        &mut self,
        programs: &[Verified<Program>],
        training: Option<Facts>,
        target: &Target,
        options: &PlanningOptions,
    ) -> Result<(Program, rewrite::Report, Emitted), CompileError> {
        let all = |programs: &[Verified<Program>]| {
            let graphs = programs.iter().flat_map(|program| program.graphs.iter().cloned()).collect();
            Program { graphs, ..Program::clone(&programs[0]) }
        };
        self.dump("source.tri", || ir::text::print(&all(programs)));

        // The compute e-graph: equal programs, and the cheapest of them for this target.
        let mut rewriting = rewrite::Report { graphs: Vec::new() };
        let optimised = self.time("optimise", || {
            let optimised = programs.iter().map(|program| {
                let (program, report) = rewrite::optimise(program, target, &options.rewrite)?;
                rewriting.graphs.extend(report.graphs);
                Ok(program)
            });
            optimised.collect::<Result<Vec<_>, CompileError>>()
        })?;
        let program = all(&optimised);
        self.dump("optimised.tri", || ir::text::print(&program));
        self.dump("rewriting.txt", || rewriting.to_string());

        // Groups, kernels, places: needs the program in its final form.
        let plan_options = PlanOptions {
            hardware: target.hardware(),
            // Copies are queued beside the steps, which are then no graph.
            machine: match options.residency.streamed {
                0 => target.machine.clone(),
                _ => target.machine.clone().streaming(options.residency.packs_copies),
            },
            context: options.context,
            sequences: options.sequences,
            residency: options.residency,
            budget: options.budget,
            training,
        };
        let emitted = self.time("plan", || emit::plan::emit(&program, &plan_options))?;
        self.dump("nests.txt", || {
            let texts: Vec<String> = emitted.nests.iter().map(|(_, lowered)| lowered.nest.to_string()).collect();
            texts.join("\n")
        });
        Ok((program, rewriting, emitted))
    }

    fn time<T>(&mut self, pass: &'static str, run: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = run();
        self.times.push((pass, start.elapsed()));
        result
    }

    fn dump(&mut self, name: &str, text: impl FnOnce() -> String) {
        if self.keep {
            let name = format!("{:02}-{name}", self.dumps.len());
            self.dumps.push(Dump { name, text: text() });
        }
    }
}
