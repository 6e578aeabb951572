//! `tritterc compile`: a model in, an artifact directory out.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use compiler::artifact::{self, ArtifactError};
use compiler::report::html::{self, FrontPoint, Page};
use compiler::report::human_bytes;
use compiler::schedule::Residency;
use compiler::schedule::tiers::Found;
use compiler::target::Card;
use compiler::weights::{Checkpoint, JoinedWeights, RandomWeights, WeightSource};
use compiler::{Compiled, Options, Target};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ir::param::ParamBinding;
use ir::plan::{Budget, manifest};

use crate::fit::{self, Ask, Device};
use crate::lora;
use crate::memory::{Bytes, MemoryArgs};
use crate::model::{self, BuildArgs, Named};
use crate::nvrtc;
use crate::opt::Packing;
use crate::say;

/// Compiles a model to an artifact that `tritter` runs.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
tritterc compile models/bitnet-code-nano -o nano            a checkpoint, for this CPU\n  \
tritterc compile ./bitnet-2b -o out --kv int4 --context 8192\n  \
tritterc compile bitnet-2b-4t -o big --random-weights 1     a shipped spec, to measure speed\n  \
tritterc compile models/bitnet-code-nano -o nano --target cuda:sm_90a      for an H100\n  \
tritterc compile models/bitnet-code-nano -o nano --packing 2bit --target cuda:sm_80 --target cuda:sm_90a --target native\n  \
tritterc compile 70b -o plan --gpu H100 --budget 14GB --kv int4      what does not fit is streamed\n  \
tritterc compile 70b -o plan                                 no weights: plan, code and report only\n  \
tritterc compile tiny -o plan --report plan.html             what was done, and what it takes, as a page for a browser\n  \
tritterc compile models/bitnet-code-nano -o nano --tuning tuning.ron   with rates that tritter tune measured\n  \
tritterc compile my.ron -o out --weights runs/a/step-00001000/states.safetensors      what `tritter train` saved\n  \
tritterc compile ./bitnet-2b -o out --adapter lora          with adapters, of PEFT's files\n  \
tritterc compile my.ron -o out --random-weights 7 --target x86_64:avx2 --dump stages")]
pub(crate) struct Args {
    /// Checkpoint directory, .ron spec, .tri program, or name of a shipped spec.
    model: String,
    /// Directory to write; an artifact that is there is replaced.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// CPU or GPU to compile for: x86_64:avx512vnni, x86_64:avx2, x86_64, aarch64:neon, scalar, native, or cuda:sm_90a and the like (sm_80, sm_86,
    /// sm_89, sm_90a, sm_100, sm_120). Given several times, the artifact is for all of them, and they share its weights.
    #[arg(long = "target", value_name = "TARGET", default_value = "native")]
    targets: Vec<Target>,
    /// The card to compile for, such as H100 or "RTX 4090" (`tritterc matrix` names them): its target, and its rates.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["targets", "tuning"])]
    gpu: Option<String>,
    /// NVRTC, or the folder that has it, for CUDA targets; by default it is looked for in CUDA_HOME, CUDA_PATH, the Python wheel
    /// nvidia-cuda-nvrtc, and where the loader looks.
    #[arg(long, value_name = "PATH")]
    nvrtc: Option<PathBuf>,
    /// Take CUDA kernels whose registers run out, too.
    #[arg(long)]
    allow_spills: bool,
    /// Rates that `tritter tune` measured on the machine to compile for, instead of guesses.
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    #[command(flatten)]
    build: BuildArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    /// Fill the weights from this seed instead of a checkpoint.
    #[arg(long, value_name = "SEED")]
    random_weights: Option<u64>,
    /// Take the weights from the states of a training run, a safetensors file. A spec with packed weights is built with the real ones that were trained.
    #[arg(long, value_name = "FILE", conflicts_with = "random_weights")]
    weights: Option<PathBuf>,
    /// Adapters beside the projections: a directory that the PEFT library or `tritterc adapter` wrote.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["weights", "budget"])]
    adapter: Option<PathBuf>,
    /// How ternary weights are packed: the faster way for each matmul by the machine's rates, or one way.
    #[arg(long, value_enum, default_value = "auto", conflicts_with = "no_optimize")]
    packing: Packing,
    /// Leave the program as the model declares it.
    #[arg(long)]
    no_optimize: bool,
    /// Write every stage in readable form to this directory.
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
    /// Write a page for a browser to this file: memory, graphs before and after, rewrites and their proofs, a timeline.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    // Without a handler an interrupt would leave the temporary directory behind; with none to be had that is all that is lost.
    let _ = ctrlc::set_handler(move || flag.store(true, Ordering::SeqCst));

    let mut named = model::find(&args.model)?;
    if let (Some(_), Named::Spec(spec)) = (&args.weights, &mut named) {
        **spec = spec.trainable();
    }
    let adapters = args.adapter.as_deref().map(lora::read).transpose()?;
    let built = model::build_adapted(&named, &args.build, adapters.as_ref())?;
    if args.tuning.is_some() && 1 < args.targets.len() {
        bail!("--tuning has the rates of one machine; compile for its target alone");
    }
    let card = args.gpu.as_deref().map(fit::known_card).transpose()?;
    let targets = match card {
        Some(card) if card.capability.is_none() => bail!("no code can be generated for {}", card.name),
        Some(card) => vec![card.target()],
        None => {
            let tuned = args.targets.iter().map(|target| model::tuned(target, args.tuning.as_deref()));
            tuned.collect::<Result<Vec<_>>>()?
        }
    };
    let Placing { residency, packing, front } = placement(args, &named, &targets, card)?;
    let options = Options {
        rewrite: crate::opt::rewrite_options(!args.no_optimize, None, packing),
        context: u64::from(built.context),
        sequences: u64::from(built.sequences),
        dumps: args.dump.is_some(),
        nvrtc: nvrtc::search(args.nvrtc.as_deref()),
        residency,
        budget: Budget::default(),
        allow_spills: args.allow_spills,
    };
    if args.report.is_some() && 1 < targets.len() {
        bail!("--report is about one target; compile for it alone");
    }
    let mut compiled = Vec::new();
    for target in &targets {
        let options = Options { budget: args.memory.budget(target, card), ..options.clone() };
        compiled.push(compiler::compile(built.program.clone(), target, &options)?);
    }
    let page = match args.report {
        Some(_) => {
            let (source, target, rewriting) = (&built.program, &targets[0], &options.rewrite);
            Some(html::page(&Page { source, compiled: &compiled[0], target, rewriting, front: &front })?)
        }
        None => None,
    };
    if let Some(directory) = &args.dump {
        for one in &compiled {
            let folder = if compiled.len() == 1 { String::new() } else { manifest::folder(&one.plan.target) };
            write_dumps(&directory.join(folder), one)?;
        }
    }
    let tokenizer = model::tokenizer(&named)?;
    if let Named::Checkpoint { surplus, .. } = &named
        && !surplus.is_empty()
    {
        eprintln!("note: the model has no use for {} tensors of the checkpoint: {}", surplus.len(), surplus.join(", "));
    }
    let trained = match &args.weights {
        Some(path) => {
            let own = built.params.iter().map(|param| ParamBinding { source: param.key.clone(), ..param.clone() });
            Some(Checkpoint::open_file(path)?.bind(own.collect()))
        }
        None => None,
    };
    let weights: Option<Box<dyn WeightSource>> = match (args.random_weights, named) {
        _ if trained.is_some() => trained.map(|trained| Box::new(trained) as Box<dyn WeightSource>),
        (Some(seed), _) => Some(Box::new(RandomWeights { seed, params: built.params })),
        (None, Named::Checkpoint { checkpoint, .. }) => Some(Box::new(checkpoint.bind(built.params))),
        (None, _) => None,
    };
    let weights = match (&args.adapter, weights) {
        (Some(directory), Some(base)) => {
            let adapters = lora::weights(directory, built.adapters)?;
            Some(Box::new(JoinedWeights(vec![base, adapters])) as Box<dyn WeightSource>)
        }
        (_, weights) => weights,
    };
    let bar = progress_bar(compiled[0].weights.bytes());
    let progress = |bytes: u64| {
        bar.inc(bytes);
        if interrupted.load(Ordering::SeqCst) { Err(io::Error::from(io::ErrorKind::Interrupted)) } else { Ok(()) }
    };
    let written = artifact::write_all(&args.output, &compiled, weights.as_deref(), tokenizer.as_deref(), &progress);
    bar.finish_and_clear();
    let artifact_bytes = match written {
        Ok(bytes) => bytes,
        Err(ArtifactError::Io { .. }) if interrupted.load(Ordering::SeqCst) => {
            eprintln!("interrupted: nothing was written");
            return Ok(ExitCode::from(130));
        }
        Err(error) => return Err(anyhow!(error)),
    };
    if let (Some(path), Some(page)) = (&args.report, &page) {
        artifact::write_file(path, page.as_bytes())?;
    }
    let summary = Summary {
        compiled: &compiled,
        output: &args.output,
        report: args.report.as_deref(),
        artifact_bytes,
        has_weights: weights.is_some(),
        elapsed: start.elapsed(),
    };
    say(&if args.json { summary.json() } else { summary.text() })?;
    Ok(ExitCode::SUCCESS)
}

/// Where the layers' weights are to be, how they are packed, and what else there was to choose from.
struct Placing {
    residency: Residency,
    packing: Packing,
    front: Vec<FrontPoint>,
}

/// As the command line says, or as suits the budget.
fn placement(args: &Args, named: &Named, targets: &[Target], card: Option<&Card>) -> Result<Placing> {
    let (Some(Bytes(budget)), None) = (args.memory.budget, args.memory.stream) else {
        return Ok(Placing { residency: args.memory.residency(targets), packing: args.packing, front: Vec::new() });
    };
    if args.no_optimize {
        bail!(
            "what suits a budget is chosen for the optimised program; leave out --no-optimize, or say with --stream what is streamed"
        );
    }
    if args.memory.host_embedding {
        bail!(
            "--budget chooses whether the embedding table stays in the host's memory; leave out --host-embedding, or say with --stream what is streamed"
        );
    }
    let [target] = targets else {
        bail!("--budget is that of one device; compile for it alone, or say with --stream what is streamed")
    };
    let device = Device::of_target(target, card, budget, args.memory.host_budget.map(|Bytes(bytes)| bytes));
    let BuildArgs { context, kv, head, chunk, sequences, logits } = args.build;
    let kv = kv.into_iter().collect();
    let ask =
        Ask { context, sequences, kv, head, chunk: Some(chunk), logits: Some(logits), prompt: None, streaming: true };
    let packing = if args.packing == Packing::Auto { None } else { Some(args.packing) };
    let Found { point, front, .. } = ask.choose_packed(named, &device, packing)?;
    let front = front.points().iter().map(|other| FrontPoint {
        label: other.choice.to_string(),
        token_ns: other.token_ns,
        first_token_ns: other.first_ns,
        device_bytes: other.device_bytes.saturating_add(device.driver_bytes),
        host_bytes: other.host_bytes,
        is_chosen: *other == point,
    });
    let front = front.collect();
    Ok(Placing { residency: point.choice.residency, packing: fit::packing_of(point.choice.packing), front })
}

/// A bar on standard error, if that is a terminal and the work takes more than a moment.
fn progress_bar(bytes: u64) -> ProgressBar {
    let is_worth_it = io::stderr().is_terminal() && 64 << 20 < bytes;
    let target = if is_worth_it { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(bytes), target);
    let style = ProgressStyle::with_template("packing weights {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.with_style(style.expect("the template is well formed"))
}

fn write_dumps(directory: &Path, compiled: &Compiled) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for dump in &compiled.dumps {
        let path = directory.join(&dump.name);
        std::fs::write(&path, &dump.text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

struct Summary<'a> {
    /// For one target at least.
    compiled: &'a [Compiled],
    output: &'a Path,
    /// The page for a browser, if there is one.
    report: Option<&'a Path>,
    artifact_bytes: u64,
    has_weights: bool,
    elapsed: Duration,
}

impl Summary<'_> {
    fn json(&self) -> String {
        let report = &self.compiled[0].report;
        let calls =
            |name: &str| report.phases.iter().find(|phase| phase.0 == name).map_or(0, |phase| phase.2.values().sum());
        let stages = report.times.iter().map(|(pass, time)| ((*pass).to_owned(), time.as_secs_f64().into()));
        let value = serde_json::json!({
            "model": report.model,
            "target": report.target,
            "targets": self.compiled.iter().map(|one| one.report.target.as_str()).collect::<Vec<_>>(),
            "machine": report.machine.to_string(),
            "output": self.output.display().to_string(),
            "report": self.report.map(|path| path.display().to_string()),
            "seconds": self.elapsed.as_secs_f64(),
            "artifact_bytes": self.artifact_bytes,
            "peak_bytes": report.memory.peak(),
            "weights_bytes": report.memory.weights,
            "resident_bytes": report.memory.resident,
            "streamed_bytes": report.memory.streamed,
            "slots_bytes": report.memory.slots,
            "driver_bytes": report.memory.overhead,
            "host_bytes": report.memory.pinned,
            "cache_bytes": report.memory.states,
            "scratch_bytes": report.memory.scratch,
            "has_weights": self.has_weights,
            "calls_per_token": calls("decode"),
            "stage_seconds": serde_json::Value::Object(stages.collect()),
        });
        serde_json::to_string_pretty(&value).expect("plain data serialises")
    }

    fn text(&self) -> String {
        let targets: Vec<&str> = self.compiled.iter().map(|one| one.report.target.as_str()).collect();
        let mut text = format!(
            "{} for {} in {:.2} s -> {} ({})\n",
            self.compiled[0].report.model,
            targets.join(", "),
            self.elapsed.as_secs_f64(),
            self.output.display(),
            human_bytes(self.artifact_bytes)
        );
        for one in self.compiled {
            let memory = one.report.memory;
            let on = if targets.len() == 1 { String::new() } else { format!("{} ", one.report.target) };
            let parts: Vec<String> =
                memory.parts().map(|(what, bytes)| format!("{what} {}", human_bytes(bytes))).collect();
            text += &format!("{on}needs {}: {}\n", human_bytes(memory.peak()), parts.join("; "));
            if memory.streamed != 0 {
                text += &format!("{on}copies {} of weights for each call\n", human_bytes(memory.streamed));
            }
            if memory.pinned != 0 {
                text += &format!("{on}keeps {} of weights in the host's memory\n", human_bytes(memory.pinned));
            }
        }
        if let Some(report) = self.report {
            text += &format!("what was done, for a browser: {}\n", report.display());
        }
        if self.has_weights {
            text += &format!("run it: tritter run {} --prompt \"...\"\n", self.output.display());
        } else {
            text += "without weights it cannot run: give a checkpoint directory, or --random-weights SEED\n";
        }
        text
    }
}
