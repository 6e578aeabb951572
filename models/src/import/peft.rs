//! The configuration of adapters that the PEFT library wrote: `adapter_config.json`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Config;
use crate::adapter::{Adapters, TARGETS};
use crate::error::ImportErrors;

/// Keys whose other values change what adapters compute, with the values that leave it as it is here.
const PLAIN: [(&str, &[&str]); 12] = [
    ("peft_type", &["\"LORA\""]),
    ("bias", &["\"none\""]),
    ("use_dora", &["false"]),
    ("fan_in_fan_out", &["false"]),
    ("lora_bias", &["false"]),
    ("rank_pattern", &["{}"]),
    ("alpha_pattern", &["{}"]),
    ("modules_to_save", &["[]"]),
    ("layers_to_transform", &["[]"]),
    ("layer_replication", &[]),
    ("target_parameters", &["[]"]),
    ("trainable_token_indices", &[]),
];

/// Reads adapters as PEFT describes them.
///
/// # Errors
///
/// Everything that is missing, wrong or not supported.
pub fn peft(config_json: &str) -> Result<Adapters, ImportErrors> {
    let mut config = Config::parse(config_json)?;
    let rank = config.count("r");
    if rank == 0 {
        config.unsupported("r", "an adapter has at least one row");
    }
    let alpha = config.real_if_any("lora_alpha").unwrap_or(8.0);
    let rank_stabilised = config.flag_if_any("use_rslora").unwrap_or(false);
    for (key, plain) in PLAIN {
        let is_plain = config.get(key).is_none_or(|value| plain.contains(&value.to_string().as_str()));
        if !is_plain {
            config.unsupported(key, "only plain adapters on whole projections are");
        }
    }
    let mut targets = BTreeSet::new();
    match config.get("target_modules").cloned() {
        Some(Value::Array(modules)) => {
            for module in &modules {
                // A module may be named by its path; the last part says which projection it is.
                let name = module.as_str().and_then(|module| module.rsplit('.').next());
                let name = name.and_then(|name| name.strip_suffix("_proj")).filter(|name| TARGETS.contains(name));
                match name {
                    Some(name) => {
                        targets.insert(name.to_owned());
                    }
                    None => config.unsupported("target_modules", "targets are q, k, v, o, gate, up and down `_proj`"),
                }
            }
        }
        _ => config.kind("target_modules", "a list of names"),
    }
    if !config.errors.is_empty() {
        return Err(ImportErrors(config.errors));
    }
    Ok(Adapters { rank, alpha, rank_stabilised, targets })
}
