//! The configuration of adapters as the PEFT library reads and writes it: `adapter_config.json`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Config;
use crate::adapter::{Adapters, TARGETS};
use crate::error::ImportErrors;

/// Keys whose other values change what adapters compute, with the values that leave it as it is here.
const PLAIN: [(&str, &[&str]); 13] = [
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
    // Others change the base as well.
    ("init_lora_weights", &["true", "false", "\"gaussian\"", "\"eva\"", "\"orthogonal\""]),
];

/// Describes adapters as PEFT reads them, beside a base that is called so.
pub fn peft_config(adapters: &Adapters, base: Option<&str>) -> String {
    let modules: Vec<String> = adapters.targets.iter().map(|name| format!("{name}_proj")).collect();
    let config = serde_json::json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "use_rslora": adapters.rank_stabilised,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "use_dora": false,
        "inference_mode": true,
    });
    format!("{config:#}")
}

/// Reads adapters as PEFT describes them.
///
/// # Errors
///
/// Everything that is missing, wrong or not supported.
pub fn peft(config_json: &str) -> Result<Adapters, ImportErrors> {
    let mut config = Config::parse(config_json)?;
    let rank = config.count("r");
    // As libraries of JSON write what is no number.
    if config.object.get("lora_alpha").is_some_and(Value::is_null) {
        config.kind("lora_alpha", "a number");
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
    let adapters = Adapters { rank, alpha, rank_stabilised, targets };
    if config.errors.is_empty()
        && let Some(reason) = adapters.refusal()
    {
        config.unsupported(if rank == 0 { "r" } else { "lora_alpha" }, reason);
    }
    if !config.errors.is_empty() {
        return Err(ImportErrors(config.errors));
    }
    Ok(adapters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let targets = ["q", "down"].map(str::to_owned).into();
        let adapters = Adapters { rank: 16, alpha: 24.5, rank_stabilised: true, targets };
        assert_eq!(peft(&peft_config(&adapters, Some("base"))).unwrap(), adapters);
    }

    #[test]
    fn what_changes_the_base_or_is_no_number_is_refused() {
        let targets: BTreeSet<String> = ["q".to_owned()].into();
        let config = peft_config(&Adapters { rank: 4, alpha: 8.0, rank_stabilised: false, targets }, None);
        for (from, to) in [
            ("\"lora_alpha\": 8.0", "\"lora_alpha\": null"),
            ("\"lora_alpha\": 8.0", "\"lora_alpha\": 1e300"),
            ("\"r\": 4", "\"r\": 0"),
            ("\"bias\": \"none\"", "\"bias\": \"none\", \"init_lora_weights\": \"pissa\""),
        ] {
            let changed = config.replace(from, to);
            assert_ne!(changed, config);
            assert!(peft(&changed).is_err(), "{to}");
        }
    }
}
