//! Checkpoints that tests run on: those of `tests/fixtures` with what other code computed from them, and random ones of any shape.
//!
//! Random checkpoints are written tensor by tensor under the names that transformers and the original Tritter use, without a look at what the
//! crate `models` makes of these names, so that an import is held against something of its own.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use ir::DType;
use ir::packing::TernaryLayout;
use ir::param::{ParamBinding, Stored};
use ir::reference::Tensor;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::random::Numbers;
use crate::workspace;

/// The folder of a fixture's checkpoint.
pub fn checkpoint(name: &str) -> PathBuf {
    let shipped = workspace().join("models").join(name);
    if shipped.join("config.json").is_file() { shipped } else { data(name) }
}

/// The folder of what is known of a fixture.
pub fn data(name: &str) -> PathBuf {
    workspace().join("tests/fixtures").join(name)
}

/// The tensors of safetensors files, all in memory.
#[derive(Debug, Default)]
pub struct Tensors(HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    /// The tensors of one file.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let mut tensors = Self::default();
        tensors.add(path).with_context(|| path.display().to_string())?;
        Ok(tensors)
    }

    /// The tensors of a checkpoint: of all files `model*.safetensors`.
    ///
    /// # Errors
    ///
    /// If one cannot be read, or there is none.
    pub fn of_checkpoint(directory: &Path) -> anyhow::Result<Self> {
        let mut tensors = Self::default();
        for path in crate::files_below(directory, "safetensors")? {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("model")) {
                tensors.add(&path).with_context(|| path.display().to_string())?;
            }
        }
        ensure!(!tensors.0.is_empty(), "there are no tensors in {}", directory.display());
        Ok(tensors)
    }

    fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        let bytes = fs::read(path)?;
        for (name, view) in SafeTensors::deserialize(&bytes)?.iter() {
            self.0.insert(name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
        Ok(())
    }

    fn get(&self, name: &str) -> anyhow::Result<&(Dtype, Vec<usize>, Vec<u8>)> {
        self.0.get(name).with_context(|| format!("there is no tensor `{name}`"))
    }

    /// The dimensions of a tensor.
    ///
    /// # Errors
    ///
    /// If there is none of this name.
    pub fn shape(&self, name: &str) -> anyhow::Result<&[usize]> {
        Ok(&self.get(name)?.1)
    }

    /// The elements of a tensor of numbers.
    ///
    /// # Errors
    ///
    /// If there is none, or it holds something else.
    pub fn values(&self, name: &str) -> anyhow::Result<Vec<f64>> {
        let (dtype, _, bytes) = self.get(name)?;
        Ok(match dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect(),
            Dtype::I32 => bytes.as_chunks().0.iter().map(|&bytes| f64::from(i32::from_le_bytes(bytes))).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|&bytes| half::bf16::from_le_bytes(bytes).to_f64()).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f64()).collect(),
            other => bail!("`{name}` holds {other:?}"),
        })
    }

    /// A tensor of token ids, row by row of its last axis.
    ///
    /// # Errors
    ///
    /// If there is none, or it holds something else.
    pub fn ids(&self, name: &str) -> anyhow::Result<Vec<Vec<u32>>> {
        let width = *self.shape(name)?.last().with_context(|| format!("`{name}` is a scalar"))?;
        let ids: Vec<u32> = self.values(name)?.iter().map(|&id| id as u32).collect();
        Ok(ids.chunks(width).map(<[u32]>::to_vec).collect())
    }

    /// The parameters of a program, for the reference evaluator.
    ///
    /// # Errors
    ///
    /// If a tensor is missing or damaged.
    pub fn parameters(&self, bindings: &[ParamBinding]) -> anyhow::Result<HashMap<String, Tensor>> {
        let mut parameters = HashMap::new();
        for binding in bindings {
            let dims: Vec<usize> = binding.dims().iter().map(|&dim| dim as usize).collect();
            for round in 0..binding.rounds {
                let source = binding.source_of(round);
                let values = match binding.stored {
                    Stored::Float => self.values(&source)?,
                    Stored::Ternary(layout) => {
                        let values = layout.decode(&self.get(&source)?.2, dims[0] as u64, dims[1] as u64);
                        let values = values.map_err(|code| anyhow::anyhow!("`{source}`: {code:?}"))?;
                        values.into_iter().map(f64::from).collect()
                    }
                };
                parameters.insert(binding.key_of(round), Tensor::of(binding.ty.dtype, &dims, values));
            }
        }
        Ok(parameters)
    }
}

/// Random token ids.
pub fn random_ids(vocab: u64, length: usize, seed: u64) -> Vec<u32> {
    let mut numbers = Numbers::new(seed);
    (0..length).map(|_| numbers.below(vocab) as u32).collect()
}

/// In which of its three layouts a BitNet checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitnetLayout {
    /// Packed; the scale multiplies.
    Multiplies,
    /// Packed; the scale divides.
    Divides,
    /// Real weights, made ternary when they are used.
    Online,
}

/// A BitNet of `BitNetForCausalLM` with random weights.
#[derive(Clone, Copy, Debug)]
pub struct Bitnet {
    /// Token ids.
    pub vocab: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Layers.
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Key-value heads.
    pub kv_heads: u64,
    /// Width of a head, if it is not `hidden / heads`.
    pub head_dim: Option<u64>,
    /// Inner width of the feed-forward block.
    pub width: u64,
    /// Layout of the projections.
    pub layout: BitnetLayout,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether the projections of attention have biases.
    pub biases: bool,
    /// How real numbers are stored.
    pub float: DType,
    /// How many files there are; 1 is a `model.safetensors`, more have an index.
    pub shards: usize,
}

impl Bitnet {
    /// Writes the checkpoint.
    ///
    /// # Errors
    ///
    /// If the directory does not allow it.
    pub fn write(&self, directory: &Path, seed: u64) -> anyhow::Result<()> {
        let &Self { vocab, hidden, layers, heads, kv_heads, width, layout, .. } = self;
        let head_dim = self.head_dim.unwrap_or(hidden / heads);
        let (class, mode) = match layout {
            BitnetLayout::Multiplies => ("autobitlinear", "offline"),
            BitnetLayout::Divides => ("bitlinear", "offline"),
            BitnetLayout::Online => ("autobitlinear", "online"),
        };
        let mut config = json!({
            "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "vocab_size": vocab, "hidden_size": hidden,
            "intermediate_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "hidden_act": "relu2", "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": self.tied,
            "attention_bias": self.biases, "rope_parameters": { "rope_theta": 10000.0, "rope_type": "default" },
            "quantization_config": { "quant_method": "bitnet", "linear_class": class, "quantization_mode": mode },
        });
        if let Some(head_dim) = self.head_dim {
            config["head_dim"] = head_dim.into();
        }
        let mut file = Writer { float: self.float, numbers: Numbers::new(seed), tensors: Vec::new() };
        file.real("model.embed_tokens.weight", &[vocab, hidden], 0.0, (hidden as f64).sqrt().recip());
        for layer in 0..layers {
            let layer = format!("model.layers.{layer}");
            for (norm, size) in [
                ("input_layernorm", hidden),
                ("post_attention_layernorm", hidden),
                ("self_attn.attn_sub_norm", heads * head_dim),
                ("mlp.ffn_sub_norm", width),
            ] {
                file.real(&format!("{layer}.{norm}.weight"), &[size], 1.0, 0.3);
            }
            let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
            for (name, rows, cols) in [
                ("self_attn.q_proj", queries, hidden),
                ("self_attn.k_proj", keys, hidden),
                ("self_attn.v_proj", keys, hidden),
                ("self_attn.o_proj", hidden, queries),
                ("mlp.gate_proj", width, hidden),
                ("mlp.up_proj", width, hidden),
                ("mlp.down_proj", hidden, width),
            ] {
                let name = format!("{layer}.{name}");
                // With this the product of normalised activations has a variance of about 1.
                let scale = (1.5 / cols as f64).sqrt();
                match layout {
                    BitnetLayout::Online => file.real(&format!("{name}.weight"), &[rows, cols], 0.0, 2.0 * scale),
                    packed => {
                        let scale = if packed == BitnetLayout::Divides { scale.recip() } else { scale };
                        file.ternary(&format!("{name}.weight"), rows, cols, TernaryLayout::Blocks4);
                        file.real(&format!("{name}.weight_scale"), &[1], scale, 0.2 * scale);
                    }
                }
                if self.biases && name.contains("self_attn") {
                    file.real(&format!("{name}.bias"), &[rows], 0.0, 0.2);
                }
            }
        }
        file.real("model.norm.weight", &[hidden], 1.0, 0.3);
        if !self.tied {
            file.real("lm_head.weight", &[vocab, hidden], 0.0, (hidden as f64).sqrt().recip());
        }
        file.save(directory, &config, self.shards)
    }
}

/// A model of the original Tritter with random weights.
#[derive(Clone, Copy, Debug)]
pub struct Tritter {
    /// Token ids.
    pub vocab: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Layers.
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Key-value heads.
    pub kv_heads: u64,
    /// Inner width of the feed-forward block.
    pub width: u64,
    /// Whether the projections are stored packed.
    pub packed: bool,
    /// How real numbers are stored.
    pub float: DType,
    /// As in [`Bitnet`].
    pub shards: usize,
}

impl Tritter {
    /// Writes the checkpoint.
    ///
    /// # Errors
    ///
    /// If the directory does not allow it.
    pub fn write(&self, directory: &Path, seed: u64) -> anyhow::Result<()> {
        let &Self { vocab, hidden, layers, heads, kv_heads, width, .. } = self;
        let config = json!({
            "hidden_size": hidden, "num_layers": layers, "num_heads": heads, "num_kv_heads": kv_heads,
            "intermediate_size": width, "vocab_size": vocab, "max_position_embeddings": 128, "rope_theta": 10000.0,
            "layer_norm_eps": 1e-5,
        });
        let mut file = Writer { float: self.float, numbers: Numbers::new(seed), tensors: Vec::new() };
        file.real("embed_tokens.embedding.weight", &[vocab, hidden], 0.0, 1.0);
        let (head_dim, keys) = (hidden / heads, hidden / heads * kv_heads);
        for layer in 0..layers {
            let layer = format!("layers.{layer}");
            for (norm, size) in [
                ("input_layernorm", hidden),
                ("post_mlp_layernorm", hidden),
                ("attention.q_norm", head_dim),
                ("attention.k_norm", head_dim),
            ] {
                file.real(&format!("{layer}.{norm}.weight"), &[size], 1.0, 0.3);
                file.real(&format!("{layer}.{norm}.bias"), &[size], 0.0, 0.3);
            }
            for (name, rows, cols) in [
                ("attention.q_proj", hidden, hidden),
                ("attention.k_proj", keys, hidden),
                ("attention.v_proj", keys, hidden),
                ("attention.o_proj", hidden, hidden),
                ("mlp.gate_proj", width, hidden),
                ("mlp.up_proj", width, hidden),
                ("mlp.down_proj", hidden, width),
            ] {
                self.projection(&mut file, &format!("{layer}.{name}"), rows, cols);
                file.real(&format!("{layer}.{name}.bias"), &[rows], 0.0, 0.2);
            }
        }
        file.real("norm.weight", &[hidden], 1.0, 0.3);
        file.real("norm.bias", &[hidden], 0.0, 0.3);
        self.projection(&mut file, "lm_head", vocab, hidden);
        file.save(directory, &config, self.shards)
    }

    fn projection(&self, file: &mut Writer, name: &str, rows: u64, cols: u64) {
        let scale = (1.5 / cols as f64).sqrt();
        if self.packed {
            file.ternary(&format!("{name}.packed_weight"), rows, cols, TernaryLayout::RowMajor4);
        } else {
            file.real(&format!("{name}.weight"), &[rows, cols], 0.0, 2.0 * scale);
        }
        file.real(&format!("{name}.scale"), &[rows, 1], scale, 0.2 * scale);
    }
}

struct Writer {
    float: DType,
    numbers: Numbers,
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
}

impl Writer {
    /// Numbers around `center`, evenly up to `spread` away.
    fn real(&mut self, name: &str, dims: &[u64], center: f64, spread: f64) {
        let mut bytes = Vec::new();
        for _ in 0..dims.iter().product() {
            let unit = self.numbers.below(1 << 24) as f64 / f64::from(1 << 23) - 1.0;
            let value = center + spread * unit;
            match self.float {
                DType::BF16 => bytes.extend(half::bf16::from_f64(value).to_le_bytes()),
                DType::F16 => bytes.extend(half::f16::from_f64(value).to_le_bytes()),
                _ => bytes.extend((value as f32).to_le_bytes()),
            }
        }
        let dtype = match self.float {
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            _ => Dtype::F32,
        };
        self.tensors.push((name.to_owned(), dtype, dims.iter().map(|&dim| dim as usize).collect(), bytes));
    }

    fn ternary(&mut self, name: &str, rows: u64, cols: u64, layout: TernaryLayout) {
        let values: Vec<i8> = (0..rows * cols).map(|_| self.numbers.below(3) as i8 - 1).collect();
        let bytes = layout.encode(&values, rows, cols);
        let shape = match layout {
            TernaryLayout::Blocks4 => [rows.div_ceil(4), cols],
            _ => [rows, cols.div_ceil(4)],
        };
        self.tensors.push((name.to_owned(), Dtype::U8, shape.map(|dim| dim as usize).to_vec(), bytes));
    }

    fn save(self, directory: &Path, config: &serde_json::Value, shards: usize) -> anyhow::Result<()> {
        fs::write(directory.join("config.json"), serde_json::to_string_pretty(config)?)?;
        let mut weight_map = serde_json::Map::new();
        for shard in 0..shards {
            let file = match shards {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
            };
            // Dealt out one by one, so that a layer's tensors are in different files.
            let mut views = Vec::new();
            for (name, dtype, shape, bytes) in self.tensors.iter().skip(shard).step_by(shards) {
                views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?));
                weight_map.insert(name.clone(), file.clone().into());
            }
            fs::write(directory.join(&file), safetensors::serialize(views, None)?)?;
        }
        if 1 < shards {
            let index = json!({ "metadata": {}, "weight_map": weight_map });
            fs::write(directory.join("model.safetensors.index.json"), index.to_string())?;
        }
        Ok(())
    }
}
