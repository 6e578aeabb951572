//! The original Tritter's checkpoints: real weights with a threshold and a learned scale for each row, or the same packed.
//!
//! Its forward pass never quantises activations, so imported models do not either.

use serde_json::Value;

use super::{Config, Imported, TensorInfo, Tensors, finish};
use crate::error::ImportErrors;
use crate::spec::{
    Activation, Activations, Attention, Block, FeedForward, Float, Head, KvFormat, Linear, Norm, Place, Scale, Spec,
    TokenizerKind, Weights,
};
use crate::weights::Naming;

/// Imports a checkpoint of the original Tritter.
///
/// # Errors
///
/// Everything in the configuration that is missing, wrong or not supported; else every tensor that is missing or misshapen.
pub fn tritter(config_json: &str, tensors: &[TensorInfo]) -> Result<Imported, ImportErrors> {
    let mut config = Config::parse(config_json)?;
    let tensors = &Tensors::new(tensors, &mut config.errors);
    let (vocab, hidden) = (config.count("vocab_size"), config.count("hidden_size"));
    let (layers, heads) = (config.count("num_layers"), config.count("num_heads"));
    let width = config.count("intermediate_size");
    let kv_heads = config.count_if_any("num_kv_heads").unwrap_or(heads);
    // The original's own defaults.
    let context = config.count_if_any("max_position_embeddings").unwrap_or(131_072);
    let rope_theta = config.real_if_any("rope_theta").unwrap_or(500_000.0);
    let eps = config.real_if_any("layer_norm_eps").unwrap_or(1e-5);
    if config.flag_if_any("use_bitnet") == Some(false) {
        config.unsupported("use_bitnet", "without it the projections are not ternary");
    }
    let special = config.special();

    let is_projection = |name: &str| name.contains("_proj.") || name.starts_with("lm_head.");
    let is_norm = |name: &str| name.split('.').any(|part| part.ends_with("norm")) && !is_projection(name);
    let packed = tensors.by_name.keys().any(|name| name.ends_with(".packed_weight"));
    let real = tensors.float(Float::F32, |name| is_projection(name) && name.ends_with(".weight"));
    let scale = tensors.float(Float::F32, |name| is_projection(name) && name.ends_with(".scale"));
    let biases = Some(tensors.float(Float::F32, |name| is_projection(name) && name.ends_with(".bias")));
    let spec = Spec {
        name: config
            .get("model_size")
            .and_then(Value::as_str)
            .map_or_else(|| "tritter".to_owned(), |size| format!("tritter-{}", size.to_lowercase())),
        vocab,
        hidden,
        layers,
        context,
        rope_theta,
        embedding: tensors.float(Float::F32, |name| name == "embed_tokens.embedding.weight"),
        norm: Norm::Layer { eps, dtype: tensors.float(Float::F32, is_norm) },
        linear: Linear {
            weights: if packed { Weights::Packed } else { Weights::ThresholdRow(real) },
            scale: Scale::Row(scale),
            activations: Activations::F32,
            scaled_biases: false,
        },
        blocks: vec![
            Block::Attention(Attention {
                heads,
                kv_heads,
                head_dim: None,
                qk_norm: true,
                window: None,
                sinks: 0,
                biases,
                norms: vec![Place::Before],
            }),
            Block::FeedForward(FeedForward {
                width,
                activation: Activation::Relu2,
                gated: true,
                biases,
                norms: vec![Place::After],
            }),
        ],
        final_norm: true,
        head: Head::Ternary,
        kv: KvFormat::F32,
        tokenizer: if vocab < 264 { TokenizerKind::None } else { TokenizerKind::Bytes },
    };
    finish(spec, Naming::Tritter, special, tensors, config.errors)
}
