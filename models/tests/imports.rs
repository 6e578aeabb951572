//! Checkpoints are imported with whatever shapes they have, and what does not fit is told all at once.

mod common;

use common::{config, fixture, infos};
use serde_json::{Value, json};
use tritter_models::import::{self, TensorInfo};
use tritter_models::spec::{Activation, Activations, Block, Float, Head, KvFormat, Norm, Scale, Weights};
use tritter_models::{BuildOptions, HeadFormat, ImportError, ImportErrors, Naming, ParamBinding, build};

/// A configuration as transformers writes it, of a model whose sizes are multiples of nothing.
fn odd_config() -> Value {
    json!({
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "_name_or_path": "somewhere/odd-model/",
        "vocab_size": 301,
        "hidden_size": 42,
        "intermediate_size": 57,
        "num_hidden_layers": 3,
        "num_attention_heads": 7,
        "num_key_value_heads": 7,
        "hidden_act": "relu2",
        "max_position_embeddings": 99,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "rope_parameters": {"rope_theta": 12345.0, "rope_type": "default"},
        "bos_token_id": 1,
        "eos_token_id": [2, 7],
        "quantization_config": {
            "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
            "modules_to_not_convert": null,
        },
    })
}

fn set(config: &mut Value, path: &str, value: Value) {
    let mut at = config;
    for part in path.split('.') {
        at = &mut at[part];
    }
    *at = value;
}

fn remove(config: &mut Value, key: &str) {
    config.as_object_mut().unwrap().remove(key);
}

/// The tensors of a Hugging Face checkpoint, written down from the shapes that its classes have.
fn odd_tensors(packed: bool) -> Vec<TensorInfo> {
    let mut tensors = Vec::new();
    let mut add = |name: String, dtype: &str, shape: &[u64]| {
        tensors.push(TensorInfo { name, dtype: dtype.to_owned(), shape: shape.to_vec() });
    };
    add("model.embed_tokens.weight".to_owned(), "BF16", &[301, 42]);
    add("model.norm.weight".to_owned(), "BF16", &[42]);
    for layer in 0..3 {
        let layer = format!("model.layers.{layer}");
        add(format!("{layer}.input_layernorm.weight"), "BF16", &[42]);
        add(format!("{layer}.post_attention_layernorm.weight"), "BF16", &[42]);
        add(format!("{layer}.self_attn.attn_sub_norm.weight"), "BF16", &[42]);
        add(format!("{layer}.mlp.ffn_sub_norm.weight"), "BF16", &[57]);
        let projections = [
            ("self_attn.q_proj", 42, 42),
            ("self_attn.k_proj", 42, 42),
            ("self_attn.v_proj", 42, 42),
            ("self_attn.o_proj", 42, 42),
            ("mlp.gate_proj", 57, 42),
            ("mlp.up_proj", 57, 42),
            ("mlp.down_proj", 42, 57),
        ];
        for (name, out, inner) in projections {
            if packed {
                // 42 and 57 rows, four to a byte: 11 and 15 rows of bytes.
                add(format!("{layer}.{name}.weight"), "U8", &[u64::div_ceil(out, 4), inner]);
                add(format!("{layer}.{name}.weight_scale"), "BF16", &[1]);
            } else {
                add(format!("{layer}.{name}.weight"), "BF16", &[out, inner]);
            }
        }
    }
    tensors
}

fn errors_of(config: &Value, tensors: &[TensorInfo]) -> Vec<ImportError> {
    match import::import(&config.to_string(), tensors) {
        Ok(imported) => panic!("imported {:?}", imported.spec),
        Err(ImportErrors(errors)) => errors,
    }
}

fn attention(spec: &tritter_models::Spec) -> &tritter_models::spec::Attention {
    match &spec.blocks[0] {
        Block::Attention(block) => block,
        Block::FeedForward(_) => panic!("attention comes first"),
    }
}

#[test]
fn sizes_that_are_multiples_of_nothing() {
    let imported = import::import(&odd_config().to_string(), &odd_tensors(true)).unwrap();
    let spec = &imported.spec;
    assert_eq!(spec.name, "odd-model");
    assert_eq!((spec.vocab, spec.hidden, spec.layers, spec.context), (301, 42, 3, 99));
    assert_eq!((spec.rope_theta, spec.norm), (12_345.0, Norm::Rms { eps: 1e-6, dtype: Float::Bf16 }));
    assert_eq!((attention(spec).heads, attention(spec).kv_heads), (7, 7));
    assert_eq!(spec.head, Head::Tied);
    assert_eq!((spec.linear.weights, spec.linear.scale), (Weights::Packed, Scale::Multiplies(Float::Bf16)));
    assert_eq!((imported.special.bos, imported.special.eos), (Some(1), vec![2, 7]));
    assert_eq!(imported.naming, Naming::HuggingFace);
    assert!(imported.surplus.is_empty());
}

#[test]
fn the_three_layouts() {
    let mut config = odd_config();
    set(&mut config, "quantization_config.linear_class", json!("bitlinear"));
    let imported = import::import(&config.to_string(), &odd_tensors(true)).unwrap();
    assert_eq!(imported.spec.linear.scale, Scale::Divides(Float::Bf16));

    let mut config = odd_config();
    set(&mut config, "quantization_config.quantization_mode", json!("online"));
    let imported = import::import(&config.to_string(), &odd_tensors(false)).unwrap();
    assert_eq!(imported.spec.linear.weights, Weights::Absmean(Float::Bf16));
    assert_eq!(imported.spec.linear.scale, Scale::Derived);

    // What is packed is not online, and the reverse: told for each of the 21 projections.
    assert_eq!(errors_of(&config, &odd_tensors(true)).len(), 21);
    // Real weights where packed ones should be, and no scales.
    assert_eq!(errors_of(&odd_config(), &odd_tensors(false)).len(), 42);
}

#[test]
fn older_configurations_and_left_out_keys() {
    let mut config = odd_config();
    for key in
        ["rope_parameters", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "hidden_act", "eos_token_id"]
    {
        remove(&mut config, key);
    }
    set(&mut config, "rope_theta", json!(777.0));
    set(&mut config, "rope_scaling", Value::Null);
    set(&mut config, "head_dim", json!(6));
    let mut tensors = odd_tensors(true);
    let imported = import::import(&config.to_string(), &tensors).unwrap();
    assert_eq!((imported.spec.rope_theta, imported.spec.head), (777.0, Head::Tied));
    assert_eq!(imported.spec.norm, Norm::Rms { eps: 1e-5, dtype: Float::Bf16 });

    // A head of its own is there, and nothing says that it is not meant.
    tensors.push(TensorInfo { name: "lm_head.weight".to_owned(), dtype: "F16".to_owned(), shape: vec![301, 42] });
    let imported = import::import(&config.to_string(), &tensors).unwrap();
    assert_eq!(imported.spec.head, Head::Untied(Float::F16));
    // Where the configuration ties it, it is surplus.
    let imported = import::import(&odd_config().to_string(), &tensors).unwrap();
    assert_eq!((imported.spec.head, imported.surplus), (Head::Tied, vec!["lm_head.weight".to_owned()]));
}

#[test]
fn biases_and_other_activations() {
    let mut config = odd_config();
    set(&mut config, "attention_bias", json!(true));
    set(&mut config, "hidden_act", json!("silu"));
    let mut tensors = odd_tensors(true);
    assert_eq!(errors_of(&config, &tensors).len(), 12, "four biases in each of three layers are missing");
    for layer in 0..3 {
        for name in ["q", "k", "v", "o"] {
            let name = format!("model.layers.{layer}.self_attn.{name}_proj.bias");
            tensors.push(TensorInfo { name, dtype: "F32".to_owned(), shape: vec![42] });
        }
    }
    let imported = import::import(&config.to_string(), &tensors).unwrap();
    assert_eq!(attention(&imported.spec).biases, Some(Float::F32));
    assert!(imported.spec.linear.scaled_biases, "autobitlinear adds biases before it scales");
    assert!(matches!(&imported.spec.blocks[1], Block::FeedForward(block) if block.activation == Activation::Silu));
}

#[test]
fn floats_of_several_types_are_widened() {
    let mut tensors = odd_tensors(true);
    let one = tensors.iter_mut().find(|tensor| tensor.name.ends_with("1.input_layernorm.weight")).unwrap();
    one.dtype = "F32".to_owned();
    let imported = import::import(&odd_config().to_string(), &tensors).unwrap();
    assert_eq!(imported.spec.norm, Norm::Rms { eps: 1e-6, dtype: Float::F32 });
    assert_eq!(imported.spec.embedding, Float::Bf16);
}

#[test]
fn everything_that_is_not_supported_is_told_at_once() {
    let mut config = odd_config();
    set(&mut config, "rope_parameters.rope_type", json!("yarn"));
    set(&mut config, "hidden_act", json!("gelu"));
    set(&mut config, "quantization_config.use_rms_norm", json!(true));
    set(&mut config, "quantization_config.modules_to_not_convert", json!(["lm_head", "model.layers.0"]));
    set(&mut config, "num_hidden_layers", json!("three"));
    set(&mut config, "eos_token_id", json!({"id": 2}));
    remove(&mut config, "vocab_size");
    let errors = errors_of(&config, &odd_tensors(true));
    let mut keys: Vec<String> = errors
        .iter()
        .map(|error| match error {
            ImportError::Unsupported { key, .. } | ImportError::Kind { key, .. } => key.clone(),
            ImportError::MissingKey { key } => (*key).to_owned(),
            other => panic!("{other}"),
        })
        .collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "eos_token_id",
            "hidden_act",
            "num_hidden_layers",
            "quantization_config.modules_to_not_convert",
            "quantization_config.use_rms_norm",
            "rope_parameters.rope_type",
            "vocab_size",
        ]
    );
    let mut config = odd_config();
    remove(&mut config, "quantization_config");
    assert!(matches!(errors_of(&config, &odd_tensors(false))[..], [ImportError::Unsupported { .. }]));
    let mut config = odd_config();
    set(&mut config, "num_key_value_heads", json!(2));
    assert!(matches!(errors_of(&config, &odd_tensors(true))[..], [ImportError::Problem(_)]));
}

#[test]
fn every_tensor_that_is_missing_or_misshapen_is_told_at_once() {
    let mut tensors = odd_tensors(true);
    tensors.retain(|tensor| tensor.name != "model.layers.2.mlp.up_proj.weight" && tensor.name != "model.norm.weight");
    for tensor in &mut tensors {
        match tensor.name.as_str() {
            "model.layers.0.self_attn.q_proj.weight" => tensor.shape = vec![42, 42],
            "model.layers.1.self_attn.q_proj.weight" => tensor.dtype = "I8".to_owned(),
            "model.embed_tokens.weight" => tensor.shape = vec![300, 42],
            // A scale without dimensions holds one number too.
            "model.layers.0.mlp.up_proj.weight_scale" => tensor.shape = Vec::new(),
            _ => {}
        }
    }
    tensors.push(tensors[0].clone());
    tensors.push(TensorInfo { name: "extra".to_owned(), dtype: "F64".to_owned(), shape: vec![] });
    let mut errors: Vec<String> = errors_of(&odd_config(), &tensors).iter().map(ToString::to_string).collect();
    errors.sort();
    assert_eq!(
        errors,
        [
            "tensor `model.embed_tokens.weight`, the model's `embedding.weight`, must be BF16 [301, 42], found BF16 [300, 42]",
            "tensor `model.layers.0.self_attn.q_proj.weight`, the model's `layers.0.attention.q.weight`, must be U8 [11, 42], found U8 [42, 42]",
            "tensor `model.layers.1.self_attn.q_proj.weight`, the model's `layers.1.attention.q.weight`, must be U8 [11, 42], found I8 [11, 42]",
            "there are two tensors `model.embed_tokens.weight`",
            "there is no tensor `model.layers.2.mlp.up_proj.weight` (U8 [15, 42]), the model's `layers.2.ffn.up.weight`",
            "there is no tensor `model.norm.weight` (BF16 [42]), the model's `norm.weight`",
        ]
    );
}

#[test]
fn a_tritter_checkpoint_real_or_packed() {
    let weights = fixture("tritter-mha", "model.safetensors");
    let mut tensors = infos(&weights);
    let config = config("tritter-mha");
    let imported = import::import(&config, &tensors).unwrap();
    let spec = &imported.spec;
    assert_eq!(spec.linear.activations, Activations::F32);
    assert_eq!(spec.linear.weights, Weights::ThresholdRow(Float::F32));
    assert_eq!(imported.naming, Naming::Tritter);
    assert!(imported.surplus.is_empty(), "{:?}", imported.surplus);

    // As the original packs it: four codes a byte along a row.
    for tensor in &mut tensors {
        let is_projection = tensor.name.contains("_proj.") || tensor.name.starts_with("lm_head.");
        if is_projection && tensor.name.ends_with(".weight") {
            tensor.name = tensor.name.replace(".weight", ".packed_weight");
            tensor.dtype = "U8".to_owned();
            tensor.shape[1] = tensor.shape[1].div_ceil(4);
        }
    }
    let imported = import::import(&config, &tensors).unwrap();
    assert_eq!(imported.spec.linear.weights, Weights::Packed);
    let head = imported.params.iter().find(|param| param.key == "head.weight").unwrap();
    assert_eq!((head.source.as_str(), head.stored_shape()), ("lm_head.packed_weight", vec![320, 16]));
    tensors.retain(|tensor| tensor.name != "lm_head.packed_weight");
    assert!(matches!(
        &import::import(&config, &tensors).unwrap_err().0[..],
        [ImportError::MissingTensor { key, source_name, .. }] if key == "head.weight" && source_name == "lm_head.packed_weight"
    ));
}

#[test]
fn what_is_no_known_checkpoint_is_refused() {
    let tensors = [TensorInfo { name: "wte.weight".to_owned(), dtype: "F32".to_owned(), shape: vec![2, 2] }];
    let refused = |config: &str| import::import(config, &tensors).unwrap_err().0;
    assert!(matches!(refused(r#"{"model_type": "gpt2"}"#)[..], [ImportError::UnknownFamily { .. }]));
    assert!(matches!(refused("{}")[..], [ImportError::UnknownFamily { .. }]));
    assert!(matches!(refused("[]")[..], [ImportError::Json(_)]));
    assert!(matches!(refused("{\"model_type\":")[..], [ImportError::Json(_)]));
}

#[test]
fn every_fixture_uses_each_of_its_tensors() {
    for name in ["bitnet-packed", "bitnet-packed-bitlinear", "bitnet-online", "tritter-mha"] {
        let tensors = infos(&fixture(name, "model.safetensors"));
        let imported = import::import(&config(name), &tensors).unwrap();
        assert!(imported.surplus.is_empty(), "{name}: {:?}", imported.surplus);
        let expected: u64 = imported.params.iter().map(|param| u64::from(param.rounds)).sum();
        assert_eq!(expected, tensors.len() as u64, "{name}");
        // The spec that was read out of the checkpoint is one that a file can hold.
        let spec = tritter_models::spec::read(&imported.spec.to_ron()).unwrap();
        let options = BuildOptions {
            context: 8,
            sequences: 1,
            chunk: 8,
            logits: 8,
            kv: KvFormat::F32,
            head: HeadFormat::Stored,
            naming: imported.naming,
        };
        assert_eq!(build(&spec, &options).unwrap().params, imported.params);
        let elements = |params: &[ParamBinding]| params.iter().map(ParamBinding::elements).sum::<u64>();
        assert!(0 < elements(&imported.params));
    }
}
