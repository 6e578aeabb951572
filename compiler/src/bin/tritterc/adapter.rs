//! `tritterc adapter`: what a run of training left of adapters, as files of the PEFT library.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use compiler::weights::{Checkpoint, WeightSource};
use ir::param::{ParamBinding, TensorInfo};
use models::adapter::{Adapters, Part, TARGETS};
use models::spec::KvFormat;
use models::{BuildOptions, HeadFormat, Naming};
use safetensors::tensor::{Dtype, TensorView};

use crate::lora::FILES;
use crate::model::{self, Named};
use crate::say;

/// Writes the adapters that `tritter train` saved as the PEFT library has them.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
tritterc adapter ./bitnet-2b -o lora --weights runs/a/step-00001000/states.safetensors --lora-alpha 32\n  \
tritterc compile ./bitnet-2b -o model --adapter lora      to generate with")]
pub(crate) struct Args {
    /// The model that they were trained beside: checkpoint directory, .ron spec, or name of a shipped spec.
    model: String,
    /// Directory to write.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The states of the run of training, a safetensors file.
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// The alpha that they were trained with [default: twice the rank].
    #[arg(long, value_name = "ALPHA")]
    lora_alpha: Option<f64>,
    /// They were trained with alpha over the root of the rank.
    #[arg(long)]
    rslora: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let named = model::find(&args.model)?;
    let (spec, naming) = match &named {
        Named::Spec(spec) => (spec, Naming::Own),
        Named::Checkpoint { spec, naming, .. } => (spec, *naming),
        Named::Program { path, .. } => bail!("{} is a program; adapters stand beside a model", path.display()),
    };
    let states = Checkpoint::open_file(&args.weights)?;
    let (rank, targets) = found(&states.headers())
        .ok_or_else(|| anyhow!("{} holds no adapters, or some of several ranks", args.weights.display()))?;
    let alpha = args.lora_alpha.unwrap_or(2.0 * f64::from(rank));
    let adapters = Adapters { rank, alpha, rank_stabilised: args.rslora, targets };
    if let Some(reason) = adapters.refusal() {
        bail!(reason);
    }
    let options = BuildOptions {
        context: 1,
        sequences: 1,
        chunk: 1,
        logits: 1,
        kv: KvFormat::F32,
        head: HeadFormat::Stored,
        naming,
    };
    let built = models::decoder::build_adapted(spec, &options, &adapters)
        .map_err(|error| anyhow!("`{}` cannot be built: {error}", spec.name))?;
    let own = |param: &ParamBinding| ParamBinding { source: param.key.clone(), ..param.clone() };
    let states = states.bind(built.adapters.iter().map(own).collect());
    let mut tensors = Vec::new();
    for param in &built.adapters {
        for round in 0..param.rounds {
            tensors.push((param.source_of(round), states.tensor(&param.key_of(round))?));
        }
    }
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let shape = tensor.dims.iter().map(|&dim| dim as usize).collect();
            Ok((name.as_str(), TensorView::new(Dtype::F32, shape, &tensor.bytes)?))
        })
        .collect::<Result<_, safetensors::SafeTensorError>>()?;
    fs::create_dir_all(&args.output).with_context(|| format!("cannot make {}", args.output.display()))?;
    let base = matches!(named, Named::Checkpoint { .. }).then_some(args.model.as_str());
    let config = models::import::peft_config(&adapters, base);
    let bytes = safetensors::serialize(views, None)?;
    // The tensors first: what describes them is never there without them.
    for (name, bytes) in FILES.into_iter().zip([config.as_bytes(), &bytes]).rev() {
        let (path, beside) = (args.output.join(name), args.output.join(format!("{name}.part")));
        let written = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, &path));
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    say(&format!(
        "{} adapters of rank {rank} -> {}\n",
        built.adapters.iter().map(|param| param.rounds).sum::<u32>() / 2,
        args.output.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The rank of the adapters among these tensors, and the projections that have them.
fn found(headers: &[TensorInfo]) -> Option<(u32, BTreeSet<String>)> {
    let suffix = format!(".{}.weight", Part::A.name());
    let firsts = headers.iter().filter_map(|header| Some((header.name.strip_suffix(&suffix)?, header.shape.first()?)));
    let (mut ranks, mut targets) = (BTreeSet::new(), BTreeSet::new());
    for (projection, rank) in firsts {
        ranks.insert(u32::try_from(*rank).ok()?);
        let name = projection.rsplit('.').next().filter(|name| TARGETS.contains(name))?;
        targets.insert(name.to_owned());
    }
    match (ranks.len(), ranks.first()) {
        (1, Some(&rank)) => Some((rank, targets)),
        _ => None,
    }
}
