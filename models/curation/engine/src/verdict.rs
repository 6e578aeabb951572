//! What is written of a document, as a row of Parquet and an object of JSONL: one schema for both, for what is kept of a partition and for the output.

use std::borrow::Cow;
use std::sync::Arc;

use curation::duplicates::{Bands, band_keys, signature};
use curation::judge::{Criteria, Finding, Judgement, Label, Severity, judge};
use curation::kernels::{Kernel, find_kernels};
use curation::quality::code::{LANGUAGES, Measures};
use curation::quality::{self, Rejection, RuleSet};
use datafusion::arrow::array::{RecordBatch, StructArray};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::ReaderBuilder;
use serde::{Deserialize, Serialize};

use crate::read::Document;

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
    /// What each rule set says that it was judged by.
    pub quality: Vec<QualityRow>,
    /// How many Triton kernels it has.
    pub kernels: u64,
    /// The keys of its bands; the output has none.
    #[serde(default)]
    pub bands: Vec<u64>,
    /// Its Triton kernels; the output has them apart.
    #[serde(default)]
    pub kernel_rows: Vec<KernelRow>,
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

/// What a rule set says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QualityRow {
    /// The rule set.
    pub rules: String,
    /// The first of its rules that rejects the document; none if it passes.
    pub reason: Option<String>,
    /// What the document has of what that rule counts.
    pub figure: Option<f64>,
    /// The most or the least that the rule takes.
    pub bound: Option<f64>,
}

/// A Triton kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelRow {
    /// The name of its function.
    pub name: String,
    /// The line of its `def`, from 1.
    pub line: u64,
    /// Whether it is under `triton.autotune`.
    pub autotuned: bool,
    /// Whether it is under `triton.heuristics`.
    pub has_heuristics: bool,
    /// The kernels of its module that it calls, directly or through others.
    pub helpers: Vec<String>,
    /// How many functions of its module launch it.
    pub launchers: u64,
    /// The same for copies, whatever their names.
    pub key: String,
    /// It and its module's imports, its helpers and its launchers.
    pub text: String,
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
    pub fn of(document: &Document, criteria: Criteria<'_>, bands: Bands) -> Verdict {
        let Document { path, source, position, input, licence, text } = document;
        let judgement = judge(path, text, licence.as_deref(), criteria);
        let shown = judgement.redacted.as_deref().unwrap_or(text);
        let kernels = if judgement.language == Some("python") { find_kernels(shown) } else { Vec::new() };
        let keys = signature(shown, bands).map(|signature| band_keys(&signature, bands).collect());
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
            quality: judgement.quality.iter().map(QualityRow::of).collect(),
            kernels: kernels.len() as u64,
            bands: keys.unwrap_or_default(),
            kernel_rows: kernels.iter().map(|kernel| KernelRow::of(kernel, shown, &kernels)).collect(),
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
            quality: self.quality.iter().map(QualityRow::verdict).collect::<Option<_>>()?,
            redacted: None,
        })
    }
}

impl QualityRow {
    fn of((set, verdict): &(RuleSet, quality::Verdict)) -> QualityRow {
        let rejection = verdict.err();
        QualityRow {
            rules: set.name().to_owned(),
            reason: rejection.map(|rejection| rejection.reason.to_owned()),
            figure: rejection.map(|rejection| rejection.figure),
            bound: rejection.map(|rejection| rejection.bound),
        }
    }

    fn verdict(&self) -> Option<(RuleSet, quality::Verdict)> {
        let set = RuleSet::of_name(&self.rules)?;
        let verdict = match &self.reason {
            None => Ok(()),
            Some(reason) => {
                let (reason, _) = set.rules().iter().find(|(name, _)| name == reason)?;
                Err(Rejection { reason, figure: self.figure?, bound: self.bound? })
            }
        };
        Some((set, verdict))
    }
}

impl KernelRow {
    fn of(kernel: &Kernel, source: &str, kernels: &[Kernel]) -> KernelRow {
        KernelRow {
            name: kernel.name.clone(),
            line: kernel.line as u64,
            autotuned: kernel.autotuned,
            has_heuristics: kernel.has_heuristics,
            helpers: kernel.helpers.clone(),
            launchers: kernel.launchers.len() as u64,
            key: kernel.key.clone(),
            text: kernel.text(source, kernels),
        }
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
    let quality = structure(vec![
        field("rules", DataType::Utf8),
        field("reason", DataType::Utf8),
        field("figure", DataType::Float64),
        field("bound", DataType::Float64),
    ]);
    let kernel = structure(vec![
        field("name", DataType::Utf8),
        field("line", DataType::UInt64),
        field("autotuned", DataType::Boolean),
        field("has_heuristics", DataType::Boolean),
        field("helpers", list(DataType::Utf8)),
        field("launchers", DataType::UInt64),
        field("key", DataType::Utf8),
        field("text", DataType::Utf8),
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
        field("quality", list(quality)),
        field("kernels", DataType::UInt64),
        field("bands", list(DataType::UInt64)),
        field("kernel_rows", list(kernel)),
        field("text", DataType::Utf8),
    ]))
}

/// The columns that later plans need, and the output does not have.
pub const INNER: [&str; 2] = ["bands", "kernel_rows"];

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
