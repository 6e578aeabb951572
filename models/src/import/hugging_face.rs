//! Hugging Face's `BitNetForCausalLM`: what its config.json and its three layouts of weights mean.
//!
//! | `quantization_mode` | `linear_class` | weights | projection |
//! |---|---|---|---|
//! | `offline` | `autobitlinear` | U8, four rows a byte | `(W x + bias) * weight_scale` |
//! | `offline` | `bitlinear` | U8, four rows a byte | `W x / weight_scale + bias` |
//! | `online` | `autobitlinear` | real, made ternary by absmean | `W x * absmean + bias` |
//!
//! (transformers, `integrations/bitnet.py` and `models/bitnet/modeling_bitnet.py`.)

use serde_json::Value;

use super::{Config, Imported, TensorInfo, Tensors, finish};
use crate::error::ImportErrors;
use crate::spec::{
    Activation, Activations, Attention, Block, FeedForward, Float, Head, KvFormat, Linear, Norm, Place, Scale, Spec,
    TokenizerKind, Weights,
};
use crate::weights::Naming;

/// Imports a `BitNetForCausalLM` checkpoint.
///
/// # Errors
///
/// Everything in the configuration that is missing, wrong or not supported; else every tensor that is missing or misshapen.
pub fn hugging_face(config_json: &str, tensors: &[TensorInfo]) -> Result<Imported, ImportErrors> {
    let mut config = Config::parse(config_json)?;
    let tensors = &Tensors::new(tensors, &mut config.errors);
    let (vocab, hidden) = (config.count("vocab_size"), config.count("hidden_size"));
    let heads = config.count("num_attention_heads");
    let layers = config.count("num_hidden_layers");
    let width = config.count("intermediate_size");
    // Where the class's own defaults are meant if a key is missing, they are the values given here.
    let kv_heads = config.count_if_any("num_key_value_heads").unwrap_or(heads);
    let context = config.count_if_any("max_position_embeddings").unwrap_or(2048);
    let eps = config.real_if_any("rms_norm_eps").unwrap_or(1e-5);
    let head_dim = config.count_if_any("head_dim");
    let rope_theta = rope_theta(&mut config);
    let activation = activation(&mut config);
    let has_biases = config.flag_if_any("attention_bias").unwrap_or(false);
    let linear = linear(&mut config, tensors);
    let tied = config.flag_if_any("tie_word_embeddings").unwrap_or_else(|| !tensors.has("lm_head.weight"));
    let special = config.special();

    let is_projection = |name: &str| name.contains("_proj.");
    let is_norm = |name: &str| name.ends_with("norm.weight") && !is_projection(name);
    let biases = tensors.float(Float::Bf16, |name| is_projection(name) && name.ends_with(".bias"));
    let spec = Spec {
        name: name(&config),
        vocab,
        hidden,
        layers,
        context,
        rope_theta,
        embedding: tensors.float(Float::Bf16, |name| name == "model.embed_tokens.weight"),
        norm: Norm::Rms { eps, dtype: tensors.float(Float::Bf16, is_norm) },
        linear,
        blocks: vec![
            Block::Attention(Attention {
                heads,
                kv_heads,
                head_dim,
                qk_norm: false,
                window: None,
                sinks: 0,
                biases: has_biases.then_some(biases),
                norms: vec![Place::Before, Place::Inside],
            }),
            Block::FeedForward(FeedForward {
                width,
                activation,
                gated: true,
                biases: None,
                norms: vec![Place::Before, Place::Inside],
            }),
        ],
        final_norm: true,
        head: if tied { Head::Tied } else { Head::Untied(tensors.float(Float::Bf16, |name| name == "lm_head.weight")) },
        kv: KvFormat::F32,
        tokenizer: if vocab < 264 { TokenizerKind::None } else { TokenizerKind::Bytes },
    };
    finish(spec, Naming::HuggingFace, special, tensors, config.errors)
}

/// The last part of where the checkpoint was saved, or else its family.
fn name(config: &Config) -> String {
    let path = config.get("_name_or_path").and_then(Value::as_str).unwrap_or("");
    match path.rsplit('/').find(|part| !part.is_empty()) {
        Some(part) => part.to_owned(),
        None => "bitnet".to_owned(),
    }
}

/// The base of the rotary embedding: under `rope_parameters` since version 5, at the top level before.
fn rope_theta(config: &mut Config) -> f64 {
    for key in ["rope_parameters", "rope_scaling"] {
        for kind in ["rope_type", "type"] {
            let key = format!("{key}.{kind}");
            if config.get(&key).is_some_and(|kind| kind.as_str() != Some("default")) {
                config.unsupported(&key, "only the plain rotary embedding, `default`, is");
            }
        }
        if config.get(key).is_some_and(|value| !value.is_object()) {
            config.kind(key, "an object");
        }
    }
    for key in ["partial_rotary_factor", "rope_parameters.partial_rotary_factor"] {
        if config.get(key).is_some_and(|factor| factor.as_f64() != Some(1.0)) {
            config.unsupported(key, "heads are rotated as a whole");
        }
    }
    let nested = config.real_if_any("rope_parameters.rope_theta");
    let top = config.real_if_any("rope_theta");
    nested.or(top).unwrap_or(500_000.0)
}

fn activation(config: &mut Config) -> Activation {
    match config.text_if_any("hidden_act").as_deref() {
        None | Some("relu2") => Activation::Relu2,
        Some("silu" | "swish") => Activation::Silu,
        Some("relu") => Activation::Relu,
        Some(_) => {
            config.unsupported("hidden_act", "`relu2`, `silu` and `relu` are");
            Activation::Relu2
        }
    }
}

/// What `quantization_config` says of the projections.
fn linear(config: &mut Config, tensors: &Tensors<'_>) -> Linear {
    let is_projection = |name: &str| name.contains("_proj.");
    let scale = tensors.float(Float::Bf16, |name| is_projection(name) && name.ends_with(".weight_scale"));
    let mut linear = Linear {
        weights: Weights::Packed,
        scale: Scale::Multiplies(scale),
        activations: Activations::Int8,
        scaled_biases: true,
    };
    match config.get("quantization_config") {
        Some(Value::Object(_)) => {}
        Some(_) => {
            config.kind("quantization_config", "an object");
            return linear;
        }
        None => {
            config.unsupported("quantization_config", "without it the projections are not ternary");
            return linear;
        }
    }
    if config.get("quantization_config.quant_method").is_some_and(|method| method.as_str() != Some("bitnet")) {
        config.unsupported("quantization_config.quant_method", "`bitnet` is");
    }
    if config.flag_if_any("quantization_config.use_rms_norm") == Some(true) {
        config.unsupported("quantization_config.use_rms_norm", "projections have no norms of their own");
    }
    // The head is never ternary in this family, so naming it changes nothing.
    let is_head = |name: &Value| name.as_str() == Some("lm_head");
    let kept = config.get("quantization_config.modules_to_not_convert");
    if kept.is_some_and(|kept| !kept.as_array().is_some_and(|names| names.iter().all(is_head))) {
        config.unsupported("quantization_config.modules_to_not_convert", "all projections but the head are ternary");
    }
    let class = config.text_if_any("quantization_config.linear_class");
    let mode = config.text_if_any("quantization_config.quantization_mode");
    match (class.as_deref().unwrap_or("bitlinear"), mode.as_deref().unwrap_or("offline")) {
        ("autobitlinear", "offline") => {}
        ("bitlinear", "offline") => {
            linear.scale = Scale::Divides(scale);
            linear.scaled_biases = false;
        }
        ("autobitlinear", "online") => {
            let real = tensors.float(Float::Bf16, |name| is_projection(name) && name.ends_with(".weight"));
            linear.weights = Weights::Absmean(real);
            linear.scale = Scale::Derived;
            linear.scaled_biases = false;
        }
        ("autobitlinear" | "bitlinear", _) => {
            config.unsupported(
                "quantization_config.quantization_mode",
                "`offline` is, and with `autobitlinear` also `online`",
            );
        }
        _ => config.unsupported("quantization_config.linear_class", "`autobitlinear` and `bitlinear` are"),
    }
    linear
}
