//! How a checkpoint becomes a spec: from its configuration and the names, types and shapes of its tensors.
//!
//! Nothing is read here but what the caller hands in; whatever does not fit is reported all at once.

mod hugging_face;
mod peft;
mod tritter;

use std::collections::{BTreeMap, BTreeSet};

use ir::param::ParamBinding;
use serde_json::{Map, Value};

pub use hugging_face::hugging_face;
pub use ir::param::TensorInfo;
pub use peft::{peft, peft_config};
pub use tritter::tritter;

use crate::decoder::{BuildOptions, HeadFormat, build};
use crate::error::{ImportError, ImportErrors};
use crate::spec::{Float, Spec};
use crate::weights::Naming;

/// A checkpoint whose tensors are those that its configuration promises.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The model. Its tokenizer is [`crate::spec::TokenizerKind::Bytes`] where the vocabulary has room for bytes: a checkpoint that comes
    /// with a tokenizer of its own overrides it.
    pub spec: Spec,
    /// Whose names the tensors have: what to build with.
    pub naming: Naming,
    /// Which tensor is which parameter, as [`build`] gives it for these names.
    pub params: Vec<ParamBinding>,
    /// The ids that mean something other than text.
    pub special: SpecialIds,
    /// Tensors that the model has no use for, by name.
    pub surplus: Vec<String>,
}

/// The ids that a configuration gives a meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Stands before a text.
    pub bos: Option<u32>,
    /// Any of these ends a text.
    pub eos: Vec<u32>,
}

/// Imports a checkpoint of any known family.
///
/// # Errors
///
/// Everything that does not fit, or [`ImportError::UnknownFamily`].
pub fn import(config_json: &str, tensors: &[TensorInfo]) -> Result<Imported, ImportErrors> {
    match detect(config_json, tensors)? {
        Naming::HuggingFace => hugging_face(config_json, tensors),
        Naming::Tritter | Naming::Own => tritter(config_json, tensors),
    }
}

/// Which family's names a checkpoint has: [`Naming::HuggingFace`] or [`Naming::Tritter`].
///
/// # Errors
///
/// If it is of neither, or the configuration is no JSON object.
pub fn detect(config_json: &str, tensors: &[TensorInfo]) -> Result<Naming, ImportErrors> {
    let config = Config::parse(config_json)?;
    let has = |name: &str| tensors.iter().any(|tensor| tensor.name == name);
    let is_bitnet_class =
        |name: &Value| name.as_str().is_some_and(|name| name.eq_ignore_ascii_case("BitNetForCausalLM"));
    let classes = config.get("architectures").and_then(Value::as_array);
    let model_type = config.get("model_type").and_then(Value::as_str);
    if classes.is_some_and(|classes| classes.iter().any(is_bitnet_class)) || model_type == Some("bitnet") {
        return Ok(Naming::HuggingFace);
    }
    if has("embed_tokens.embedding.weight") || (config.get("num_layers").is_some() && model_type.is_none()) {
        return Ok(Naming::Tritter);
    }
    let model_type = model_type.map_or_else(|| "none".to_owned(), |name| format!("`{name}`"));
    let example = tensors.first().map_or_else(|| "not at all".to_owned(), |tensor| format!("like `{}`", tensor.name));
    Err(ImportErrors(vec![ImportError::UnknownFamily { model_type, example }]))
}

/// A configuration that is read key by key, collecting what is wrong.
struct Config {
    object: Map<String, Value>,
    errors: Vec<ImportError>,
}

impl Config {
    fn parse(text: &str) -> Result<Self, ImportErrors> {
        let failed = |message: String| ImportErrors(vec![ImportError::Json(message)]);
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Ok(Self { object, errors: Vec::new() }),
            Ok(_) => Err(failed("it must be an object `{..}`".to_owned())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// The value of a key, if it is there and not `null`. A point goes into nested objects.
    fn get(&self, key: &str) -> Option<&Value> {
        let mut parts = key.split('.');
        let first = self.object.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part)).filter(|value| !value.is_null())
    }

    fn kind(&mut self, key: &str, expected: &'static str) {
        let found = self.get(key).map_or_else(|| "nothing".to_owned(), ToString::to_string);
        self.errors.push(ImportError::Kind { key: key.to_owned(), expected, found });
    }

    /// A number that must be there; 1 in its place after an error.
    fn count(&mut self, key: &'static str) -> u32 {
        match self.count_if_any(key) {
            Some(count) => count,
            None => {
                if self.get(key).is_none() {
                    self.errors.push(ImportError::MissingKey { key });
                }
                1
            }
        }
    }

    fn count_if_any(&mut self, key: &'static str) -> Option<u32> {
        let value = self.get(key)?;
        let count = value.as_u64().and_then(|value| u32::try_from(value).ok());
        if count.is_none() {
            self.kind(key, "a whole number");
        }
        count
    }

    fn real_if_any(&mut self, key: &str) -> Option<f64> {
        let value = self.get(key)?;
        let real = value.as_f64();
        if real.is_none() {
            self.kind(key, "a number");
        }
        real
    }

    fn flag_if_any(&mut self, key: &str) -> Option<bool> {
        let value = self.get(key)?;
        let flag = value.as_bool();
        if flag.is_none() {
            self.kind(key, "true or false");
        }
        flag
    }

    fn text_if_any(&mut self, key: &str) -> Option<String> {
        let value = self.get(key)?;
        let text = value.as_str().map(str::to_owned);
        if text.is_none() {
            self.kind(key, "a text");
        }
        text
    }

    fn unsupported(&mut self, key: &str, reason: &'static str) {
        let found = self.get(key).map_or_else(|| "missing".to_owned(), ToString::to_string);
        self.errors.push(ImportError::Unsupported { key: key.to_owned(), found, reason });
    }

    /// The ids of `bos_token_id` and `eos_token_id`; the latter may be a list.
    fn special(&mut self) -> SpecialIds {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let bos = self.count_if_any("bos_token_id");
        let eos = match self.get("eos_token_id") {
            None => Some(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        if eos.is_none() {
            self.kind("eos_token_id", "an id or a list of ids");
        }
        SpecialIds { bos, eos: eos.unwrap_or_default() }
    }
}

/// The tensors of a checkpoint, by name.
struct Tensors<'a> {
    by_name: BTreeMap<&'a str, &'a TensorInfo>,
}

impl<'a> Tensors<'a> {
    fn new(tensors: &'a [TensorInfo], errors: &mut Vec<ImportError>) -> Self {
        let mut by_name = BTreeMap::new();
        for tensor in tensors {
            if by_name.insert(tensor.name.as_str(), tensor).is_some() {
                errors.push(ImportError::DuplicateTensor(tensor.name.clone()));
            }
        }
        Self { by_name }
    }

    fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The element type of all tensors that `belongs` picks: theirs if they have one, f32 if several, `default` if there are none.
    ///
    /// A parameter of the rolled layers has one element type. Layers that differ are widened to f32, which holds the others.
    fn float(&self, default: Float, belongs: impl Fn(&str) -> bool) -> Float {
        let mut found = self.by_name.values().filter(|tensor| belongs(&tensor.name)).map(|tensor| float(&tensor.dtype));
        match found.next() {
            None => default,
            Some(Some(first)) if found.all(|other| other == Some(first)) => first,
            Some(_) => Float::F32,
        }
    }
}

fn float(dtype: &str) -> Option<Float> {
    match dtype {
        "F32" => Some(Float::F32),
        "F16" => Some(Float::F16),
        "BF16" => Some(Float::Bf16),
        _ => None,
    }
}

/// Judges a spec and holds the tensors against its parameters.
fn finish(
    spec: Spec,
    naming: Naming,
    special: SpecialIds,
    tensors: &Tensors<'_>,
    mut errors: Vec<ImportError>,
) -> Result<Imported, ImportErrors> {
    if errors.is_empty() {
        errors.extend(spec.problems().into_iter().map(ImportError::Problem));
    }
    // With a configuration that makes no sense there is nothing to hold the tensors against.
    let has_config_errors = errors.iter().any(|error| !matches!(error, ImportError::DuplicateTensor(_)));
    if has_config_errors {
        return Err(ImportErrors(errors));
    }
    // Which parameters there are does not depend on these.
    let options =
        BuildOptions { context: 1, sequences: 1, chunk: 1, logits: 1, kv: spec.kv, head: HeadFormat::Stored, naming };
    let params = match build(&spec, &options) {
        Ok(model) => model.params,
        Err(error) => return Err(ImportErrors(vec![ImportError::Model(Box::new(error))])),
    };
    let mut used = BTreeSet::new();
    for binding in &params {
        for round in 0..binding.rounds {
            let (key, source_name) = (binding.key_of(round), binding.source_of(round));
            match tensors.by_name.get_key_value(source_name.as_str()) {
                Some((name, tensor)) => {
                    used.insert(*name);
                    if !binding.accepts(&tensor.dtype, &tensor.shape) {
                        errors.push(ImportError::Misshapen {
                            key,
                            source_name,
                            expected_dtype: binding.stored_dtype(),
                            expected_shape: binding.stored_shape(),
                            dtype: tensor.dtype.clone(),
                            shape: tensor.shape.clone(),
                        });
                    }
                }
                None => errors.push(ImportError::MissingTensor {
                    key,
                    source_name,
                    dtype: binding.stored_dtype(),
                    shape: binding.stored_shape(),
                }),
            }
        }
    }
    if !errors.is_empty() {
        return Err(ImportErrors(errors));
    }
    let surplus = tensors.by_name.keys().filter(|name| !used.contains(*name)).map(|name| (*name).to_owned());
    let surplus = surplus.collect();
    Ok(Imported { spec, naming, params, special, surplus })
}
