//! `tritterc fit`: does a model fit a device, how, and how fast would it be?

mod ask;
mod device;
mod show;

use std::process::ExitCode;

use anyhow::Result;
use compiler::schedule::Residency;
use compiler::training::count::{self, Method, TrainingBytes};
use ir::plan::Budget;

use crate::memory::Bytes;
use crate::model::{self, BuildArgs, Head, Kv, Named};
use crate::opt::Packing;
use crate::{say, say_json};

pub(crate) use ask::{Ask, packing_of, plan, spec_of};
pub(crate) use device::{Device, Wanted, known_card};

/// Says whether a model fits a device, how it would run there, and how fast, before any device is touched.
///
/// Sizes are those of plans, times are predicted from them. What does not fit is refused, with what would.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
tritterc fit 7b                                       this machine: its GPU, or else its CPU\n  \
tritterc fit 70b --gpu H100 --budget 14GB --kv int4 --context 8192\n  \
tritterc fit 70b --gpu \"RTX 5080\" --kv int4 --pareto     all that nothing else is better than\n  \
tritterc fit models/bitnet-code-nano --cpu --json\n  \
tritterc fit 13b --gpu \"RTX 4090\" --train qlora --context 2048")]
pub(crate) struct Args {
    /// Checkpoint directory, .ron spec, .tri program, or name of a shipped spec.
    model: String,
    /// Plan for this card, such as H100 or "RTX 4090" (`tritterc matrix` names them), instead of what this machine has.
    #[arg(long, value_name = "NAME", conflicts_with = "cpu")]
    gpu: Option<String>,
    /// Plan for the CPU of this machine, even if it has a GPU.
    #[arg(long)]
    cpu: bool,
    /// How much of the device may be used, the driver's part included, such as 14GB or 12.5GiB [default: what is free; of a card that is named, what its
    /// size leaves].
    #[arg(long, value_name = "SIZE")]
    budget: Option<Bytes>,
    /// How much host memory may be pinned [default: what is available here; not limited for a card that is named].
    #[arg(long, value_name = "SIZE")]
    host_budget: Option<Bytes>,
    /// Positions that the caches hold [default: the model's, at most 4096]; with --train the tokens of a sequence [default: at most 2048].
    #[arg(long, value_name = "N")]
    context: Option<u32>,
    /// Sequences that are held and decode together.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    sequences: u32,
    /// Formats of the key-value cache to choose from, separated by commas [default: the spec's].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FORMAT,...")]
    kv: Vec<Kv>,
    /// Format of a dense head.
    #[arg(long, value_enum, default_value = "stored")]
    head: Head,
    /// The most tokens in one call [default: what suits the budget].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,
    /// Tokens of the prompt that times are of [default: 512, or the context].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prompt: Option<u32>,
    /// Keep all layers on the device: no streaming.
    #[arg(long)]
    resident: bool,
    /// Count what training would take instead.
    #[arg(long, value_enum, value_name = "METHOD")]
    train: Option<Train>,
    /// Print every schedule that no other is at least as good as in everything.
    #[arg(long)]
    pareto: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// What is trained.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Train {
    /// Adapters beside packed weights.
    Qlora,
    /// Every parameter.
    Full,
}

impl From<Train> for Method {
    fn from(train: Train) -> Self {
        match train {
            Train::Qlora => Method::Qlora,
            Train::Full => Method::Full,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let named = model::find(&args.model)?;
    let wanted = match (&args.gpu, args.cpu) {
        (Some(name), _) => Wanted::Card(name.clone()),
        (None, true) => Wanted::Cpu,
        (None, false) => Wanted::Here,
    };
    let mut device = Device::find(&wanted)?;
    if let Some(Bytes(budget)) = args.budget {
        let more = if device.usable < budget {
            format!(", more than the {} {}", show::bytes(device.usable), device.basis)
        } else {
            String::new()
        };
        device.basis = format!("as asked for{more}");
        device.usable = budget;
    }
    if let Some(Bytes(bytes)) = args.host_budget {
        device.host_bytes = Some(bytes);
    }
    match args.train {
        Some(train) => run_training(args, &named, &device, train),
        None => run_inference(args, &named, &device),
    }
}

fn run_inference(args: &Args, named: &Named, device: &Device) -> Result<ExitCode> {
    let ask = Ask {
        context: args.context,
        sequences: args.sequences,
        kv: args.kv.clone(),
        head: args.head,
        chunk: args.chunk,
        logits: None,
        prompt: args.prompt,
        streaming: !args.resident,
    };
    let (profiles, found) = ask.choose(named, device)?;
    let shown = show::Shown {
        model: show::name_of(named),
        device,
        profiles: &profiles,
        context: ask.context_of(named),
        pareto: args.pareto,
    };
    match found {
        Ok(found) => {
            let certificate = ask.certificate(named, device, &found.point.choice)?;
            match args.json {
                true => say_json(&shown.json(&found, &certificate))?,
                false => say(&shown.text(&found, &certificate))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(mut refusal) => {
            refusal.nearest = ask.nearest(named, device);
            if args.json {
                say_json(&shown.refusal_json(&refusal))?;
                return Ok(ExitCode::FAILURE);
            }
            anyhow::bail!("{} on {} ({}): {refusal}", shown.model, device.name, device.basis)
        }
    }
}

fn run_training(args: &Args, named: &Named, device: &Device, train: Train) -> Result<ExitCode> {
    let tokens = args.context.unwrap_or_else(|| spec_of(named).map_or(2048, |spec| spec.context.min(2048)));
    let bytes = count(named, device, tokens, train)?;
    let shown = show::Training { model: show::name_of(named), device, tokens, train, bytes };
    match args.json {
        true => say_json(&shown.json())?,
        false => say(&shown.text())?,
    }
    Ok(if shown.fits() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What training a model on sequences of so many tokens would take.
pub(crate) fn count(named: &Named, device: &Device, tokens: u32, train: Train) -> Result<TrainingBytes> {
    let args =
        BuildArgs { context: Some(tokens), kv: None, head: Head::Stored, chunk: tokens, sequences: 1, logits: 64 };
    let built = model::build(named, &args)?;
    let planned = plan(&built, &device.target, Packing::TwoBit, Residency::default(), Budget::default())?;
    Ok(count::count(&built.params, &planned, train.into()))
}
