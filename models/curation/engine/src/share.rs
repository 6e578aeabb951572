//! What a partition is made of and how it is judged, as it goes to executors; and the key by which what was kept of it is found again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use curation::duplicates::Bands;
use curation::quality::RuleSet;
use serde::{Deserialize, Serialize};

use crate::corpus::{Projects, Unit, Wanted};
use crate::error::EngineError;
use crate::evaluations::Sets;
use crate::read::{Document, read};

/// The hash of the stages that this program has: their sources and their rules.
pub const STAGES: &str = env!("TRITTER_STAGES");

/// How documents are judged, as it goes to executors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The licences that are allowed; all, and none at all, if absent.
    pub licences: Option<Vec<String>>,
    /// The rule sets for quality, by their names.
    pub rules: Vec<String>,
    /// How many bands signatures are cut into.
    pub bands: usize,
    /// How many slots a band has.
    pub rows: usize,
}

impl Settings {
    /// How signatures are cut.
    pub fn bands(&self) -> Bands {
        Bands { n: self.bands, rows: self.rows }
    }

    /// The rule sets.
    pub fn rule_sets(&self) -> Vec<RuleSet> {
        self.rules.iter().filter_map(|name| RuleSet::of_name(name)).collect()
    }
}

/// What all partitions of a run have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// The folder that sources are below.
    pub root: PathBuf,
    /// Where the verdicts of a partition are kept.
    pub kept: PathBuf,
    /// Which documents are looked at.
    pub wanted: Wanted,
    /// How documents are judged.
    pub settings: Settings,
    /// The evaluation sets that nothing may be of.
    pub evaluations: Option<Sets>,
    /// The hash of the stages that the run was planned for.
    pub stages: String,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// How it is judged.
    pub common: Common,
    /// What it is made of.
    pub units: Vec<Unit>,
    /// The licences of folders, for the sources that have documents with paths of their own.
    pub projects: BTreeMap<String, BTreeMap<String, String>>,
}

impl Share {
    /// Reads a description; one of a program with other stages is refused, since its verdicts would be others.
    pub fn parse(text: &str) -> Result<Share, EngineError> {
        let share: Share = serde_json::from_str(text).map_err(EngineError::Description)?;
        if share.common.stages != STAGES {
            return Err(EngineError::OtherStages);
        }
        Ok(share)
    }

    /// The description as text.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("maps have keys of text, and no value refuses to be written")
    }

    /// Every document that is wanted, with the licence of its project.
    pub fn documents(&self) -> Result<Vec<Document>, EngineError> {
        let mut documents = Vec::new();
        for unit in &self.units {
            let folders = self.projects.get(&unit.source);
            read(unit, &self.common.root, |mut document| {
                if let (None, Some(folders)) = (&document.licence, folders) {
                    let mut ancestors = Path::new(&document.path).ancestors().skip(1);
                    let licence = ancestors.find_map(|folder| folders.get(folder.to_str()?));
                    document.licence = licence.cloned();
                }
                if self.common.wanted.has_document(&document) {
                    documents.push(document);
                }
            })?;
        }
        Ok(documents)
    }

    /// What the folders of documents with paths of their own say of licences: source, folder, how, and licence.
    pub fn projects(&self) -> Result<Vec<[String; 4]>, EngineError> {
        let mut found = Vec::new();
        for unit in &self.units {
            let mut projects = Projects::default();
            read(unit, &self.common.root, |document| {
                if Projects::may_name(&document.path) {
                    projects.add(&document.path, &document.text);
                }
            })?;
            let rows = projects.rows();
            found.extend(rows.filter_map(|(folder, said, licence)| {
                Some([&unit.source, folder.to_str()?, said, licence].map(str::to_owned))
            }));
        }
        Ok(found)
    }

    /// The hash of all that verdicts depend on: the stages, how they are run, and the documents.
    pub fn key(&self, documents: &[Document]) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut add = |part: &str| {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        };
        add(&self.common.stages);
        add(&serde_json::to_string(&self.common.settings).expect("settings are lists of names, and numbers"));
        let evaluations = self.common.evaluations.as_ref();
        add(&evaluations.map_or(String::new(), |sets| format!("{} {}", sets.run, sets.hash)));
        for document in documents {
            let Document { path, source, position, input, licence, text } = document;
            add(path);
            add(source);
            add(&position.to_string());
            add(input);
            add(licence.as_deref().unwrap_or(""));
            add(text);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The file of its verdicts.
    pub fn kept(&self, key: &str) -> PathBuf {
        self.common.kept.join(format!("{key}.parquet"))
    }
}
