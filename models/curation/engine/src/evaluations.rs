//! Evaluation sets that nothing may be of: their items are read once, where a run is planned, and go to executors as one file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use curation::contamination::Evaluations;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::corpus::Wanted;
use crate::error::EngineError;
use crate::keep;
use crate::read::read_all;

/// An item: what people call it, and its text.
pub type Item = (String, String);

/// The items of all sets, where every executor finds them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sets {
    file: PathBuf,
    /// The hash of that.
    pub hash: String,
    /// How many words in a row count as an overlap.
    pub run: usize,
}

/// Reads sets: files and folders, whose files are items, and `.jsonl` files, whose objects are items with all their texts.
pub fn read_items(paths: &[PathBuf]) -> Result<Vec<Item>, EngineError> {
    let mut items = Vec::new();
    for path in paths {
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            read_objects(path, &mut items)?;
        } else {
            let files = read_all(std::slice::from_ref(path), &Wanted::All)?;
            items.extend(files.into_iter().map(|file| (file.path, file.text)));
        }
    }
    Ok(items)
}

/// The objects of a file, each with all its texts in their order: sets name their fields as they like.
fn read_objects(path: &Path, items: &mut Vec<Item>) -> Result<(), EngineError> {
    let text = fs::read_to_string(path).map_err(EngineError::at(path))?;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("{}:{}", path.display(), index + 1);
        let value: Value =
            serde_json::from_str(line).map_err(|error| EngineError::Line { place: place.clone(), error })?;
        let mut texts = Vec::new();
        collect_texts(&value, &mut texts);
        items.push((place, texts.join("\n")));
    }
    Ok(())
}

/// The depth is bounded by what the parser accepts.
fn collect_texts<'v>(value: &'v Value, texts: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(values) => values.iter().for_each(|value| collect_texts(value, texts)),
        Value::Object(fields) => fields.values().for_each(|value| collect_texts(value, texts)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl Sets {
    /// Writes items to a folder that executors see.
    pub fn write(items: &[Item], run: usize, folder: &Path) -> Result<Sets, EngineError> {
        let text = serde_json::to_vec(items).expect("pairs of texts can be written");
        let file = folder.join("evaluations.json");
        keep::write_bytes(&file, &text)?;
        Ok(Sets { file, hash: blake3::hash(&text).to_hex().to_string(), run })
    }

    /// The sets, ready to be looked for. They are built once for a process and a run.
    pub fn built(&self) -> Result<Arc<Evaluations>, EngineError> {
        static LAST: Mutex<Option<(Sets, Arc<Evaluations>)>> = Mutex::new(None);
        // Others wait meanwhile, and need the same.
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((sets, built)) if sets == self => Ok(built.clone()),
            _ => {
                let text = fs::read(&self.file).map_err(EngineError::at(&self.file))?;
                if blake3::hash(&text).to_hex().as_str() != self.hash {
                    return Err(EngineError::Changed);
                }
                let items: Vec<Item> = serde_json::from_slice(&text).map_err(EngineError::Description)?;
                let built = Arc::new(Evaluations::new(items, self.run));
                *last = Some((self.clone(), built.clone()));
                Ok(built)
            }
        }
    }
}
