//! Hugging Face's `tokenizer.json`: which of them are byte-level BPE with ids as ranks, and what they say.
//!
//! tiktoken merges whichever adjacent pair spells the token of the smallest id. That is what the file's list of merges means if, and only if,
//! merges are listed in the order of the ids that they make, and every token of several bytes is made by one.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;

use crate::bpe::{Bpe, Special, byte_chars};
use crate::error::{Refusal, TokenizerError};
use crate::words;

#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Value,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    dropout: Value,
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(default)]
    end_of_word_suffix: Value,
    #[serde(default)]
    byte_fallback: Value,
}

/// A merge: `"left right"` in older files, `["left", "right"]` in newer ones.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

/// Reads a `tokenizer.json`; also the id that its template puts before a text.
pub(crate) fn read(json: &str) -> Result<(Bpe, Option<u32>), TokenizerError> {
    let file: File = serde_json::from_str(json).map_err(|error| TokenizerError::Json(error.to_string()))?;
    let mut refusals = Vec::new();
    match file.model.kind.as_deref() {
        None | Some("BPE") => {}
        Some(kind) => {
            // Nothing else of such a file can be judged by the rules of byte pairs.
            return Err(TokenizerError::Refused(vec![Refusal::Model(kind.to_owned())]));
        }
    }
    check_settings(&file, &mut refusals);
    let pattern = pattern(&file.pre_tokenizer, &mut refusals);
    let special: BTreeMap<String, Special> = file
        .added_tokens
        .iter()
        .map(|token| (token.content.clone(), Special { id: token.id, is_hidden: token.special }))
        .collect();
    let vocab = vocab(&file.model.vocab, &special)?;
    let ordinary = spelt_bytes(&vocab, &mut refusals);
    check_merges(&file.model.merges, &vocab, &ordinary, &mut refusals);
    let bos = template_bos(&file.post_processor, &special);
    if !refusals.is_empty() {
        return Err(TokenizerError::Refused(refusals));
    }
    let mut ordinary: Vec<(Vec<u8>, u32)> = ordinary.into_iter().map(|(text, bytes)| (bytes, vocab[text])).collect();
    ordinary.sort_unstable_by_key(|(_, id)| *id);
    let bpe = Bpe::new(ordinary, special, &pattern).map_err(TokenizerError::Refused)?;
    Ok((bpe, bos))
}

fn refuse(refusals: &mut Vec<Refusal>, key: &'static str, found: &Value, supported: &'static str) {
    refusals.push(Refusal::Setting { key, found: found.to_string(), supported });
}

fn check_settings(file: &File, refusals: &mut Vec<Refusal>) {
    let is_empty = |value: &Value| value.is_null() || value.as_str() == Some("");
    let is_off = |value: &Value| value.is_null() || value.as_bool() == Some(false) || value.as_f64() == Some(0.0);
    let model = &file.model;
    if !file.normalizer.is_null() {
        refuse(refusals, "normalizer", &file.normalizer, "none");
    }
    if !is_off(&model.dropout) {
        refuse(refusals, "dropout", &model.dropout, "none");
    }
    if !is_off(&model.byte_fallback) {
        refuse(refusals, "byte_fallback", &model.byte_fallback, "false");
    }
    if !is_empty(&model.continuing_subword_prefix) {
        refuse(refusals, "continuing_subword_prefix", &model.continuing_subword_prefix, "none");
    }
    if !is_empty(&model.end_of_word_suffix) {
        refuse(refusals, "end_of_word_suffix", &model.end_of_word_suffix, "none");
    }
}

/// The expression that cuts a text into words: GPT-2's, or that of a `Split` before `ByteLevel`.
fn pattern(pre_tokenizer: &Value, refusals: &mut Vec<Refusal>) -> String {
    const SUPPORTED: &str = "`ByteLevel`, or a sequence of one isolating `Split` and `ByteLevel`";
    let is_byte_level = |value: &Value| value["type"] == "ByteLevel" && value["add_prefix_space"] != true;
    let uses_own_pattern = |value: &Value| value["use_regex"] != false;
    let steps = match pre_tokenizer {
        Value::Object(object) if object.get("type").is_some_and(|kind| kind == "Sequence") => {
            pre_tokenizer["pretokenizers"].as_array().map_or(&[][..], |steps| steps)
        }
        _ => std::slice::from_ref(pre_tokenizer),
    };
    match steps {
        [byte_level] if is_byte_level(byte_level) && uses_own_pattern(byte_level) => words::GPT2.to_owned(),
        [split, byte_level]
            if split["type"] == "Split"
                && split["behavior"] == "Isolated"
                && split["invert"] != true
                && is_byte_level(byte_level)
                && !uses_own_pattern(byte_level) =>
        {
            match split["pattern"]["Regex"].as_str() {
                Some(pattern) => pattern.to_owned(),
                None => {
                    refuse(refusals, "pre_tokenizer", &split["pattern"], "a `Regex`");
                    String::new()
                }
            }
        }
        _ => {
            refuse(refusals, "pre_tokenizer", pre_tokenizer, SUPPORTED);
            String::new()
        }
    }
}

/// The vocabulary without the special tokens.
fn vocab<'a>(vocab: &'a Value, special: &BTreeMap<String, Special>) -> Result<HashMap<&'a str, u32>, TokenizerError> {
    let failed = |message: &str| TokenizerError::Json(message.to_owned());
    let object = vocab.as_object().ok_or_else(|| failed("`model.vocab` must be an object of ids"))?;
    let mut ids = HashMap::with_capacity(object.len());
    for (text, id) in object {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| failed(&format!("the id of {text:?} in `model.vocab` is none")))?;
        if !special.contains_key(text) {
            ids.insert(text.as_str(), id);
        }
    }
    Ok(ids)
}

/// The bytes of each token.
fn spelt_bytes<'a>(vocab: &HashMap<&'a str, u32>, refusals: &mut Vec<Refusal>) -> HashMap<&'a str, Vec<u8>> {
    let bytes: HashMap<char, u8> = byte_chars().into_iter().zip(0..=255).collect();
    let mut spelt = HashMap::with_capacity(vocab.len());
    let mut wrong = Vec::new();
    for text in vocab.keys() {
        match text.chars().map(|char| bytes.get(&char).copied()).collect::<Option<Vec<u8>>>() {
            Some(bytes) if !bytes.is_empty() => {
                spelt.insert(*text, bytes);
            }
            _ => wrong.push((*text).to_owned()),
        }
    }
    wrong.sort_unstable();
    refusals.extend(wrong.into_iter().map(Refusal::NotBytes));
    spelt
}

fn check_merges(
    merges: &[Merge],
    vocab: &HashMap<&str, u32>,
    spelt: &HashMap<&str, Vec<u8>>,
    refusals: &mut Vec<Refusal>,
) {
    let mut before = 0;
    let mut made = HashSet::new();
    for merge in merges {
        let (left, right) = match merge {
            Merge::Joined(joined) => joined.split_once(' ').unwrap_or((joined, "")),
            Merge::Pair(left, right) => (left.as_str(), right.as_str()),
        };
        let whole = format!("{left}{right}");
        let known = vocab.contains_key(left) && vocab.contains_key(right);
        match vocab.get(whole.as_str()).filter(|_| known) {
            None => refusals.push(Refusal::UnknownMerge { left: left.to_owned(), right: right.to_owned() }),
            Some(&id) => {
                if id < before {
                    refusals.push(Refusal::Rank { id, before });
                }
                before = before.max(id);
                made.insert(id);
            }
        }
    }
    let unmade = spelt.iter().filter(|(text, bytes)| 1 < bytes.len() && !made.contains(&vocab[**text]));
    let mut unmade: Vec<String> = unmade.map(|(text, _)| (*text).to_owned()).collect();
    unmade.sort_unstable();
    refusals.extend(unmade.into_iter().map(Refusal::Unreachable));
}

/// The id of the special token that a template puts before a text.
fn template_bos(post_processor: &Value, special: &BTreeMap<String, Special>) -> Option<u32> {
    let steps = match post_processor["processors"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(post_processor),
    };
    let template = steps.iter().find(|step| step["type"] == "TemplateProcessing")?;
    let name = template["single"].get(0)?["SpecialToken"]["id"].as_str()?;
    special.get(name).map(|special| special.id)
}
