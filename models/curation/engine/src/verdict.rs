//! What is written of a document, as a row of Parquet and an object of JSONL: one schema for both, for what is kept of a partition and for the output.

use std::borrow::Cow;
use std::sync::Arc;

use curation::duplicates::{Bands, band_keys, signature};
use curation::judge::{Criteria, Finding, Judgement, Label, Severity, judge};
use curation::kernels::find_kernels;
use curation::quality::code::{LANGUAGES, Measures};
use datafusion::arrow::array::{RecordBatch, StructArray};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::ReaderBuilder;
use serde::{Deserialize, Serialize};

use crate::read::Document;

/// How signatures are cut into bands.
pub const BANDS: Bands = Bands::DEFAULT;

/// What is said of one document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its path, or what its corpus calls it.
    pub path: String,
    /// The file that it is in.
    pub source: String,
    /// Where in that file: the first byte of its line, or its row.
    pub position: u64,
    /// Which of the inputs it is of.
    pub input: String,
    /// The hash of its content as it came.
    pub blake3: String,
    /// The size of that.
    pub bytes: u64,
    /// Its language, by its path.
    pub language: Option<String>,
    /// Its licence.
    pub licence: Option<String>,
    /// What training does with it.
    pub label: String,
    /// What made the label.
    pub reason: String,
    /// The document that stays in its place, if it is a copy.
    pub copy_of: Option<String>,
    /// What was found, by place.
    pub findings: Vec<FindingRow>,
    /// What was counted.
    pub measures: Figures,
    /// How many Triton kernels it has.
    pub kernels: u64,
    /// The keys of its bands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bands: Vec<u64>,
    /// Its content without its secrets; left out where only the figures are read.
    #[serde(skip_deserializing)]
    pub text: String,
}

/// One thing that a stage found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FindingRow {
    /// The stage, a slash, and the rule.
    pub rule: String,
    /// The line, from 1.
    pub line: u64,
    /// The column, in bytes from 1.
    pub column: u64,
    /// How bad it is.
    pub severity: String,
    /// What is wrong, for people.
    pub message: String,
    /// Its line, without secrets.
    pub excerpt: String,
}

/// What was counted in a document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "they are the fields of `Measures`, by their names in the output")]
pub struct Figures {
    pub lines: u64,
    pub max_line: u64,
    pub mean_line: f64,
    pub alphanumeric: f64,
    pub comments: f64,
    pub duplicate_lines: f64,
    pub complexity: u64,
    pub functions: u64,
    pub longest_encoded: u64,
    pub encoded: f64,
    pub generated_line: Option<u64>,
}

impl Verdict {
    /// Judges a document.
    pub fn of(document: &Document, criteria: Criteria<'_>) -> Verdict {
        let Document { path, source, position, input, licence, text } = document;
        let judgement = judge(path, text, licence.as_deref(), criteria);
        let kernels = if judgement.language == Some("python") { find_kernels(text).len() } else { 0 };
        let shown = judgement.redacted.as_deref().unwrap_or(text);
        let bands = signature(shown, BANDS).map(|signature| band_keys(&signature, BANDS).collect());
        Verdict {
            path: path.clone(),
            source: source.clone(),
            position: *position,
            input: input.clone(),
            blake3: blake3::hash(text.as_bytes()).to_hex().to_string(),
            bytes: text.len() as u64,
            language: judgement.language.map(str::to_owned),
            licence: judgement.licence,
            label: judgement.label.name().to_owned(),
            reason: judgement.reason.into_owned(),
            copy_of: None,
            findings: judgement.findings.iter().map(FindingRow::of).collect(),
            measures: Figures::of(&judgement.measures),
            kernels: kernels as u64,
            bands: bands.unwrap_or_default(),
            text: shown.to_owned(),
        }
    }

    /// The judgement that it was written from, but for the text. A name that this program does not know makes none.
    pub fn judgement(&self) -> Option<Judgement> {
        let language = self.language.as_deref();
        let figures = &self.measures;
        Some(Judgement {
            label: Label::ALL.into_iter().find(|label| label.name() == self.label)?,
            reason: Cow::Owned(self.reason.clone()),
            language: LANGUAGES.iter().map(|known| known.name).find(|name| Some(*name) == language),
            licence: self.licence.clone(),
            findings: self.findings.iter().map(FindingRow::finding).collect::<Option<_>>()?,
            measures: Measures {
                n_lines: figures.lines as usize,
                max_line: figures.max_line as usize,
                mean_line: figures.mean_line,
                alphanumeric: figures.alphanumeric,
                comments: figures.comments,
                duplicate_lines: figures.duplicate_lines,
                complexity: figures.complexity as usize,
                n_functions: figures.functions as usize,
                longest_encoded: figures.longest_encoded as usize,
                encoded: figures.encoded,
                generated: figures.generated_line.map(|line| line as usize),
            },
            redacted: None,
        })
    }
}

impl FindingRow {
    fn of(finding: &Finding) -> FindingRow {
        FindingRow {
            rule: finding.rule.clone(),
            line: finding.line as u64,
            column: finding.column as u64,
            severity: finding.severity.name().to_owned(),
            message: finding.message.clone().into_owned(),
            excerpt: finding.excerpt.clone(),
        }
    }

    fn finding(&self) -> Option<Finding> {
        Some(Finding {
            rule: self.rule.clone(),
            line: self.line as usize,
            column: self.column as usize,
            severity: Severity::ALL.into_iter().find(|severity| severity.name() == self.severity)?,
            message: Cow::Owned(self.message.clone()),
            excerpt: self.excerpt.clone(),
        })
    }
}

impl Figures {
    /// The figures of a document's measures.
    pub fn of(measures: &Measures) -> Figures {
        Figures {
            lines: measures.n_lines as u64,
            max_line: measures.max_line as u64,
            mean_line: measures.mean_line,
            alphanumeric: measures.alphanumeric,
            comments: measures.comments,
            duplicate_lines: measures.duplicate_lines,
            complexity: measures.complexity as u64,
            functions: measures.n_functions as u64,
            longest_encoded: measures.longest_encoded as u64,
            encoded: measures.encoded,
            generated_line: measures.generated.map(|line| line as u64),
        }
    }
}

/// The columns of [`Verdict`].
pub fn schema() -> SchemaRef {
    let finding = structure(vec![
        field("rule", DataType::Utf8),
        field("line", DataType::UInt64),
        field("column", DataType::UInt64),
        field("severity", DataType::Utf8),
        field("message", DataType::Utf8),
        field("excerpt", DataType::Utf8),
    ]);
    let measures = structure(vec![
        field("lines", DataType::UInt64),
        field("max_line", DataType::UInt64),
        field("mean_line", DataType::Float64),
        field("alphanumeric", DataType::Float64),
        field("comments", DataType::Float64),
        field("duplicate_lines", DataType::Float64),
        field("complexity", DataType::UInt64),
        field("functions", DataType::UInt64),
        field("longest_encoded", DataType::UInt64),
        field("encoded", DataType::Float64),
        field("generated_line", DataType::UInt64),
    ]);
    Arc::new(Schema::new(vec![
        field("path", DataType::Utf8),
        field("source", DataType::Utf8),
        field("position", DataType::UInt64),
        field("input", DataType::Utf8),
        field("blake3", DataType::Utf8),
        field("bytes", DataType::UInt64),
        field("language", DataType::Utf8),
        field("licence", DataType::Utf8),
        field("label", DataType::Utf8),
        field("reason", DataType::Utf8),
        field("copy_of", DataType::Utf8),
        field("findings", list(finding)),
        field("measures", measures),
        field("kernels", DataType::UInt64),
        field("bands", list(DataType::UInt64)),
        field("text", DataType::Utf8),
    ]))
}

/// A column that may have no value, as all of engines' functions may.
pub fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn structure(fields: Vec<Field>) -> DataType {
    DataType::Struct(Fields::from(fields))
}

/// The type of lists of such values.
pub fn list(item: DataType) -> DataType {
    DataType::List(item_field(item))
}

/// What engines call the values of a list.
pub fn item_field(item: DataType) -> FieldRef {
    Arc::new(Field::new_list_field(item, true))
}

/// Rows as columns.
pub fn columns(rows: &[impl Serialize], schema: &SchemaRef) -> Result<StructArray, ArrowError> {
    let mut decoder = ReaderBuilder::new(schema.clone()).build_decoder()?;
    decoder.serialize(rows)?;
    let batch = decoder.flush()?;
    Ok(batch.unwrap_or_else(|| RecordBatch::new_empty(schema.clone())).into())
}
