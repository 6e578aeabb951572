//! Adapters on a command line: new ones, or those of a directory that the PEFT library or `tritterc adapter` wrote.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use compiler::weights::{Checkpoint, RandomWeights, WeightSource};
use ir::param::ParamBinding;
use models::adapter::{Adapters, TARGETS};

/// What the PEFT library calls the description of adapters, and the file of their tensors.
pub(crate) const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Which adapters to train.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
pub(crate) struct LoraArgs {
    /// Train adapters of this rank beside the projections of the layers, and nothing else: the base stays as it is, packed weights packed.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=16_384), conflicts_with = "adapter")]
    lora_rank: Option<u32>,
    /// What adapters add is multiplied by this, over the rank [default: twice the rank].
    #[arg(long, value_name = "ALPHA", requires = "lora_rank", conflicts_with = "adapter")]
    lora_alpha: Option<f64>,
    /// The projections that get adapters.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "q,k,v,o,gate,up,down", value_parser = TARGETS, requires = "lora_rank", conflicts_with = "adapter")]
    lora_targets: Vec<String>,
    /// Divide alpha by the root of the rank instead.
    #[arg(long, requires = "lora_rank", conflicts_with = "adapter")]
    rslora: bool,
    /// The seed of the adapters' first values: normal numbers in A, zeros in B.
    #[arg(long, value_name = "SEED", default_value_t = 0, requires = "lora_rank", conflicts_with = "adapter")]
    lora_seed: u64,
    /// Go on with the adapters of this directory, of PEFT's files.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

impl LoraArgs {
    /// The adapters, if any are asked for.
    pub(crate) fn adapters(&self) -> Result<Option<Adapters>> {
        if let Some(directory) = &self.adapter {
            return read(directory).map(Some);
        }
        let Some(rank) = self.lora_rank else { return Ok(None) };
        let alpha = self.lora_alpha.unwrap_or(2.0 * f64::from(rank));
        let targets: BTreeSet<String> = self.lora_targets.iter().cloned().collect();
        let adapters = Adapters { rank, alpha, rank_stabilised: self.rslora, targets };
        adapters.refusal().map_or(Ok(Some(adapters)), |reason| Err(anyhow!(reason)))
    }

    /// Their first values.
    pub(crate) fn weights(&self, params: Vec<ParamBinding>) -> Result<Box<dyn WeightSource>> {
        Ok(match &self.adapter {
            Some(directory) => weights(directory, params)?,
            None => Box::new(RandomWeights { seed: self.lora_seed, params }),
        })
    }
}

/// The adapters that a directory describes.
pub(crate) fn read(directory: &Path) -> Result<Adapters> {
    let path = directory.join(FILES[0]);
    let config = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    models::import::peft(&config).map_err(|errors| anyhow!("{} cannot be used:\n{errors}", path.display()))
}

/// Their tensors.
pub(crate) fn weights(directory: &Path, params: Vec<ParamBinding>) -> Result<Box<dyn WeightSource>> {
    Ok(Box::new(Checkpoint::open_file(&directory.join(FILES[1]))?.bind(params)))
}
