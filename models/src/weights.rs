//! What checkpoints call the parameters of a model.

use ir::packing::TernaryLayout;

use crate::adapter::Part;

/// Whose names a checkpoint uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Our keys.
    Own,
    /// Those of `BitNetForCausalLM` in Hugging Face's transformers.
    HuggingFace,
    /// Those of the original Tritter.
    Tritter,
}

impl Naming {
    /// The layout in which checkpoints of these names pack ternary weights.
    pub fn ternary_layout(self) -> TernaryLayout {
        match self {
            Naming::HuggingFace => TernaryLayout::Blocks4,
            Naming::Own | Naming::Tritter => TernaryLayout::RowMajor4,
        }
    }

    /// The name that the PEFT library gives an adapter's matrix beside the projection whose weights are the parameter `key`.
    pub fn adapter_source(self, key: &str, part: Part) -> String {
        let weight = self.source(key, false);
        let module = weight.strip_suffix(".weight").unwrap_or(&weight);
        format!("base_model.model.{module}.{}.weight", part.peft_name())
    }

    /// The name of the tensor that holds the parameter `key`. A key that such checkpoints have no name for keeps its own.
    pub fn source(self, key: &str, packed: bool) -> String {
        let (layer, rest) = match key.strip_prefix("layers.{}.") {
            Some(rest) => ("layers.{}.", rest),
            None => ("", key),
        };
        let Some((module, leaf)) = rest.rsplit_once('.') else { return key.to_owned() };
        let projection = |module: &str| {
            let (block, name) = module.split_once('.').unwrap_or(("", module));
            matches!(name, "q" | "k" | "v" | "o" | "gate" | "up" | "down").then(|| (block.to_owned(), name.to_owned()))
        };
        match self {
            Naming::Own => key.to_owned(),
            Naming::HuggingFace => {
                let module = match (module, projection(module)) {
                    ("head", _) => return format!("lm_head.{leaf}"),
                    (_, Some((block, name))) if block == "attention" => format!("self_attn.{name}_proj"),
                    (_, Some((_, name))) => format!("mlp.{name}_proj"),
                    ("embedding", _) => "embed_tokens".to_owned(),
                    ("attention.norm", _) => "input_layernorm".to_owned(),
                    ("attention.sub_norm", _) => "self_attn.attn_sub_norm".to_owned(),
                    ("ffn.norm", _) => "post_attention_layernorm".to_owned(),
                    ("ffn.sub_norm", _) => "mlp.ffn_sub_norm".to_owned(),
                    (module, None) => module.to_owned(),
                };
                let leaf = if leaf == "scale" { "weight_scale" } else { leaf };
                format!("model.{layer}{module}.{leaf}")
            }
            Naming::Tritter => {
                let is_projection = projection(module).is_some() || module == "head";
                let module = match (module, projection(module)) {
                    ("head", _) => "lm_head".to_owned(),
                    (_, Some((block, name))) if block == "attention" => format!("attention.{name}_proj"),
                    (_, Some((_, name))) => format!("mlp.{name}_proj"),
                    ("embedding", _) => "embed_tokens.embedding".to_owned(),
                    ("attention.norm", _) => "input_layernorm".to_owned(),
                    ("ffn.post_norm", _) => "post_mlp_layernorm".to_owned(),
                    (module, None) => module.to_owned(),
                };
                let leaf = if packed && is_projection && leaf == "weight" { "packed_weight" } else { leaf };
                format!("{layer}{module}.{leaf}")
            }
        }
    }
}
