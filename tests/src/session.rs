//! The whole path in one process: a model compiled, written as an artifact, opened and run.
//!
//! The compiler's library takes any program and any weights; what a checkpoint means is put together here as the binary does it.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use compiler::emit::nvrtc::Search;
use compiler::schedule::Residency;
use compiler::training::Step;
use compiler::weights::{Checkpoint, JoinedWeights, RandomWeights, WeightSource};
use compiler::{Compiled, Options, Target, artifact, rewrite};
use ir::packing::TernaryLayout;
use ir::param::ParamBinding;
use ir::plan::Budget;
use ir::reference::Tensor;
use ir::{DType, Program, Verified};
use kernels::Requires;
use models::adapter::Adapters;
use models::spec::KvFormat;
use models::{BuildOptions, HeadFormat, Naming, Spec};
use runtime::training::PlanTrainer;
use runtime::{Session, Token};
use tempfile::TempDir;

/// How to build and compile.
#[derive(Clone, Debug)]
pub struct Build {
    /// Positions that the caches hold.
    pub context: u32,
    /// Sequences that the caches hold.
    pub sequences: u32,
    /// The most tokens, and rows of logits, of a call.
    pub chunk: u32,
    /// The format of the caches.
    pub kv: KvFormat,
    /// The CPU.
    pub target: Target,
    /// Whether the optimiser runs.
    pub optimise: bool,
    /// How ternary weights are packed, if that is not the optimiser's choice.
    pub packing: Option<TernaryLayout>,
    /// Where the layers' weights are.
    pub residency: Residency,
}

impl Build {
    /// One sequence of up to `context` tokens, in one call if one likes, with exact caches, for this CPU.
    pub fn new(context: usize) -> Self {
        let context = context as u32;
        let target = Target::native();
        Self {
            context,
            sequences: 1,
            chunk: context,
            kv: KvFormat::F32,
            target,
            optimise: true,
            packing: None,
            residency: Residency::default(),
        }
    }

    /// The same for another CPU.
    pub fn on(&self, target: &Target) -> Self {
        Self { target: target.clone(), ..self.clone() }
    }
}

/// The targets that this machine runs, the simplest first: those of its CPU, and the GPU that `TRITTER_CUDA` names, such as `cuda:sm_90a`.
pub fn targets() -> Vec<Target> {
    let all = ["scalar", "x86_64:avx2", "x86_64:avx512vnni", "aarch64:neon"];
    let targets = all.iter().map(|name| name.parse::<Target>().expect("the targets are known"));
    let runs = |target: &Target| target.isa().is_some_and(|isa| Requires { isa }.is_available());
    targets.filter(runs).chain(cuda_target()).collect()
}

/// The GPU to test on, if `TRITTER_CUDA` names one.
///
/// # Panics
///
/// If it names something else.
pub fn cuda_target() -> Option<Target> {
    let name = std::env::var("TRITTER_CUDA").ok().filter(|name| !name.is_empty())?;
    let target: Target = name.parse().unwrap_or_else(|error| panic!("TRITTER_CUDA: {error}"));
    assert!(target.isa().is_none(), "TRITTER_CUDA is {name}, which is no GPU");
    Some(target)
}

/// NVRTC: where `TRITTER_NVRTC` or `CUDA_HOME` say, or where the loader looks.
pub fn nvrtc() -> Search {
    let path = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    Search { explicit: path("TRITTER_NVRTC"), cuda_home: path("CUDA_HOME"), site_packages: Vec::new() }
}

/// A model: what it is, and where its weights are.
pub struct Model {
    /// What it is.
    pub spec: Spec,
    naming: Naming,
    directory: Option<PathBuf>,
}

/// A model built for some use.
pub struct Built {
    /// The program as the model declares it.
    pub program: Verified<Program>,
    /// Its parameters.
    pub params: Vec<ParamBinding>,
}

impl Built {
    /// The checkpoint's name of a parameter of one round.
    pub fn source_of(&self, key: &str) -> Option<String> {
        let all = self.params.iter().flat_map(|param| (0..param.rounds.max(1)).map(move |round| (param, round)));
        let mut found = all.filter(|(param, round)| param.key_of(*round) == key);
        found.next().map(|(param, round)| param.source_of(round))
    }
}

impl Model {
    /// A checkpoint.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn checkpoint(directory: &Path) -> anyhow::Result<Self> {
        let config = std::fs::read_to_string(directory.join("config.json"))
            .with_context(|| format!("{} has no config.json", directory.display()))?;
        let headers = open(directory)?.headers();
        let imported = models::import::import(&config, &headers).map_err(|errors| anyhow!("{errors}"))?;
        Ok(Self { spec: imported.spec, naming: imported.naming, directory: Some(directory.to_owned()) })
    }

    /// A shipped spec.
    ///
    /// # Errors
    ///
    /// If there is none of this name.
    pub fn shipped(name: &str) -> anyhow::Result<Self> {
        let text = models::find_shipped(name).with_context(|| format!("there is no spec `{name}`"))?;
        let spec = models::spec::read(text).map_err(|errors| anyhow!("{errors}"))?;
        Ok(Self { spec, naming: Naming::Own, directory: None })
    }

    /// The program.
    ///
    /// # Errors
    ///
    /// If the options do not fit the model.
    pub fn build(&self, build: &Build) -> anyhow::Result<Built> {
        let model = models::build(&self.spec, &self.options(build))?;
        Ok(Built { program: model.program, params: model.params })
    }

    /// The program with adapters, and whose parameters are whose.
    ///
    /// # Errors
    ///
    /// If the options do not fit the model.
    pub fn build_adapted(&self, build: &Build, adapters: &Adapters) -> anyhow::Result<models::Model> {
        Ok(models::decoder::build_adapted(&self.spec, &self.options(build), adapters)?)
    }

    fn options(&self, build: &Build) -> BuildOptions {
        BuildOptions {
            context: build.context,
            sequences: build.sequences,
            chunk: build.chunk,
            logits: build.chunk,
            kv: build.kv,
            head: HeadFormat::Stored,
            naming: self.naming,
        }
    }

    /// The weights: those of the checkpoint, or random ones if there is none.
    ///
    /// # Errors
    ///
    /// If the checkpoint cannot be opened.
    pub fn weights(&self, params: &[ParamBinding]) -> anyhow::Result<Box<dyn WeightSource>> {
        Ok(match &self.directory {
            Some(directory) => Box::new(open(directory)?.bind(params.to_vec())),
            None => Box::new(RandomWeights { seed: 1, params: params.to_vec() }),
        })
    }

    /// The weights of a model with adapters, whose tensors are in a file of their own.
    ///
    /// # Errors
    ///
    /// If one of the files cannot be opened.
    pub fn adapted_weights(&self, model: &models::Model, adapters: &Path) -> anyhow::Result<JoinedWeights> {
        let adapters = Checkpoint::open_file(adapters)?.bind(model.adapters.clone());
        Ok(JoinedWeights(vec![self.weights(&model.params)?, Box::new(adapters)]))
    }

    /// The model as an artifact in a directory of its own.
    ///
    /// # Errors
    ///
    /// If any step fails.
    pub fn artifact(&self, build: &Build) -> anyhow::Result<TempDir> {
        let built = self.build(build)?;
        let compiled = compile(built.program, build)?;
        write(&compiled, &*self.weights(&built.params)?)
    }

    /// A step of its training as an artifact in a directory of its own.
    ///
    /// # Errors
    ///
    /// If any step fails.
    pub fn step_artifact(&self, step: Step, params: &[ParamBinding], build: &Build) -> anyhow::Result<TempDir> {
        write(&compile_step(step, build)?, &*self.weights(params)?)
    }

    /// The model, ready to run on so many threads. The artifact's directory is gone then; what is mapped stays.
    ///
    /// # Errors
    ///
    /// If any step fails.
    pub fn session(&self, build: &Build, threads: usize) -> anyhow::Result<Session> {
        session(self.artifact(build)?.path(), threads)
    }
}

fn open(directory: &Path) -> anyhow::Result<Checkpoint> {
    Checkpoint::open(directory).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow!(errors.join("\n"))
    })
}

/// Compiles a program, without dumps.
///
/// # Errors
///
/// As [`compiler::compile`].
pub fn compile(program: Verified<Program>, build: &Build) -> anyhow::Result<Compiled> {
    Ok(compiler::compile(program, &build.target, &options(build))?)
}

/// Compiles a step of training, without dumps.
///
/// # Errors
///
/// As [`compiler::compile_step`].
pub fn compile_step(step: Step, build: &Build) -> anyhow::Result<Compiled> {
    Ok(compiler::compile_step(step, &build.target, &options(build))?)
}

fn options(build: &Build) -> Options {
    let rewrite = if build.optimise { rewrite::Options::all() } else { rewrite::Options::none() };
    let rewrite = rewrite::Options { packing: build.packing, ..rewrite };
    Options {
        rewrite,
        context: build.context.into(),
        sequences: build.sequences.into(),
        dumps: false,
        nvrtc: nvrtc(),
        residency: build.residency,
        budget: Budget::default(),
        allow_spills: false,
    }
}

/// Writes an artifact to a directory of its own.
///
/// # Errors
///
/// As [`artifact::write`].
pub fn write(compiled: &Compiled, weights: &dyn WeightSource) -> anyhow::Result<TempDir> {
    let directory = tempfile::tempdir()?;
    artifact::write(directory.path(), compiled, Some(weights), None, &|_| Ok(()))?;
    Ok(directory)
}

/// Opens an artifact.
///
/// # Errors
///
/// As [`Session::open`].
pub fn session(directory: &Path, threads: usize) -> anyhow::Result<Session> {
    Ok(Session::open(directory, &runtime::Options { threads: Some(threads), ..runtime::Options::default() })?)
}

/// Opens an artifact for training.
///
/// # Errors
///
/// As [`PlanTrainer::new`].
pub fn trainer(directory: &Path, threads: usize) -> anyhow::Result<PlanTrainer> {
    let options = runtime::Options { threads: Some(threads), ..runtime::Options::default() };
    let artifact = runtime::Artifact::open(directory, None, &mut |_, _| ())?;
    Ok(PlanTrainer::new(artifact, &options)?)
}

/// The logits after every token of one sequence, which starts anew, in calls of `chunk` tokens.
///
/// # Errors
///
/// As [`Session::forward`].
pub fn logits(session: &mut Session, sequence: usize, ids: &[u32], chunk: usize) -> anyhow::Result<Vec<f32>> {
    session.reset(sequence)?;
    let mut logits = Vec::new();
    for ids in ids.chunks(chunk) {
        let tokens: Vec<Token> = ids.iter().map(|&id| Token::next(sequence, id)).collect();
        let rows: Vec<usize> = (0..tokens.len()).collect();
        session.forward(&tokens, &rows)?.rows().for_each(|row| logits.extend(row));
    }
    Ok(logits)
}

/// The inputs of a decoder for the reference evaluator: tokens of one sequence that stand at `start..`, all logits wanted.
pub fn reference_inputs(ids: &[u32], start: usize) -> Vec<Tensor> {
    let n = ids.len();
    let count = |from: usize| (from..from + n).map(|at| at as f64);
    vec![
        Tensor::of(DType::I32, &[n], ids.iter().map(|&id| f64::from(id))),
        Tensor::of(DType::I32, &[n], vec![0.0; n]),
        Tensor::of(DType::I32, &[n], count(start)),
        Tensor::of(DType::I32, &[n, 2], vec![0.0; 2 * n]),
        Tensor::of(DType::I32, &[n], count(0)),
        // The most probable token after each.
        Tensor::of(DType::F32, &[n, 4], vec![0.0; 4 * n]),
        Tensor::of(DType::I32, &[n, 2], vec![0.0; 2 * n]),
    ]
}
