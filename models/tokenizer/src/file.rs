//! The one file that a tokenizer is written to.
//!
//! ```json
//! {"kind": "bytes", "offset": 8, "bos": 1, "eos": [2]}
//! {"kind": "bpe", "bos": 300, "eos": [301], "pattern": "\\s+|\\S+", "special": {"<bos>": {"id": 300, "hidden": true}}, "vocab": {"a": 0}}
//! ```
//!
//! Either may have a `layout`, with the keys of a layout's RON. Bytes in `vocab` are spelt as in GPT-2's files. Merges need not be listed: ids are their ranks.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use crate::bpe::{Bpe, Special, byte_chars};
use crate::error::{Refusal, TokenizerError};
use crate::layout::{Layout, Meaning};
use crate::{Kind, Tokenizer};

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum File {
    Bytes {
        offset: u32,
        bos: Option<u32>,
        eos: Vec<u32>,
        layout: Option<Layout>,
    },
    Bpe {
        bos: Option<u32>,
        eos: Vec<u32>,
        layout: Option<Layout>,
        pattern: String,
        special: BTreeMap<String, SpecialFile>,
        vocab: BTreeMap<String, u32>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecialFile {
    id: u32,
    hidden: bool,
}

pub(crate) fn read(json: &str) -> Result<Tokenizer, TokenizerError> {
    if is_hugging_face(json) {
        return Tokenizer::from_hugging_face(json, None, &[]);
    }
    let file = serde_json::from_str(json).map_err(|error| TokenizerError::Json(error.to_string()))?;
    match file {
        File::Bytes { offset, bos, eos, layout: None } => Tokenizer::bytes_with(offset, bos, &eos),
        File::Bytes { offset, bos, eos, layout: Some(layout) } => {
            let tokenizer = Tokenizer::bytes_of(layout.checked()?);
            if write(&tokenizer) != write(&Tokenizer { kind: Kind::Bytes { offset }, bos, eos, ..tokenizer.clone() }) {
                return Err(TokenizerError::Refused(vec![Refusal::NotLaidOut]));
            }
            Ok(tokenizer)
        }
        File::Bpe { bos, eos, layout, pattern, special, vocab } => {
            let bytes: HashMap<char, u8> = byte_chars().into_iter().zip(0..=255).collect();
            let mut refusals = Vec::new();
            let mut ordinary = Vec::with_capacity(vocab.len());
            for (text, id) in vocab {
                match text.chars().map(|char| bytes.get(&char).copied()).collect::<Option<Vec<u8>>>() {
                    Some(bytes) if !bytes.is_empty() => ordinary.push((bytes, id)),
                    _ => refusals.push(Refusal::NotBytes(text)),
                }
            }
            if !refusals.is_empty() {
                return Err(TokenizerError::Refused(refusals));
            }
            let special = special.into_iter();
            let special = special.map(|(text, file)| (text, Special { id: file.id, is_hidden: file.hidden })).collect();
            let bpe = Bpe::new(ordinary, special, &pattern).map_err(TokenizerError::Refused)?;
            let layout = layout.map(Layout::checked).transpose()?;
            if let Some(layout) = &layout {
                let is_laid_out = |id, bytes: &[u8]| match layout.meaning(id) {
                    Meaning::Byte(byte) => bytes == [byte],
                    Meaning::Pair(_) => 1 < bytes.len(),
                    _ => false,
                };
                if !bpe.ordinary().all(|(id, bytes)| is_laid_out(id, bytes))
                    || layout.bos_id() != bos
                    || layout.eos_ids() != eos
                {
                    return Err(TokenizerError::Refused(vec![Refusal::NotLaidOut]));
                }
            }
            Ok(Tokenizer { kind: Kind::Bpe(Box::new(bpe)), bos, eos, layout })
        }
    }
}

/// Whether a file is a Hugging Face `tokenizer.json`: those say what model they are of, and no kind.
fn is_hugging_face(json: &str) -> bool {
    #[derive(Deserialize)]
    struct Outline {
        kind: Option<IgnoredAny>,
        model: Option<IgnoredAny>,
    }
    matches!(serde_json::from_str(json), Ok(Outline { kind: None, model: Some(_) }))
}

pub(crate) fn write(tokenizer: &Tokenizer) -> String {
    let Tokenizer { kind, bos, eos, layout } = tokenizer;
    let mut value = match kind {
        Kind::Bytes { offset } => json!({"kind": "bytes", "offset": offset, "bos": bos, "eos": eos}),
        Kind::Bpe(bpe) => {
            let chars = byte_chars();
            let spell = |bytes: &[u8]| bytes.iter().map(|&byte| chars[usize::from(byte)]).collect::<String>();
            let vocab: Map<String, Value> = bpe.ordinary().map(|(id, bytes)| (spell(bytes), json!(id))).collect();
            let special: Map<String, Value> = bpe
                .special()
                .iter()
                .map(|(text, special)| (text.clone(), json!({"id": special.id, "hidden": special.is_hidden})))
                .collect();
            json!({
                "kind": "bpe", "bos": bos, "eos": eos, "pattern": bpe.pattern(), "special": special, "vocab": vocab,
            })
        }
    };
    if let Some(layout) = layout {
        value["layout"] = layout.to_json();
    }
    let mut text = value.to_string();
    text.push('\n');
    text
}
