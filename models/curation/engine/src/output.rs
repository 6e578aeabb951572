//! Writes the output: for each partition a file of Parquet and one of JSONL, the report, and a manifest with the hash of it all.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use curation::Secrets;
use curation::report::{Entry, Report, Settings};
use curation::secrets::redact;
use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchReader, StringArray};
use datafusion::arrow::datatypes::UInt64Type;
use datafusion::arrow::json::writer::{LineDelimited, WriterBuilder};
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::copies::{Copies, Copy};
use crate::error::EngineError;
use crate::functions;
use crate::keep;
use crate::verdict::{INNER, Verdict};

/// What was written.
#[derive(Debug)]
pub struct Output {
    /// What people read.
    pub report: Report,
    /// For each partition, its documents and their bytes.
    pub parts: Vec<(u64, u64)>,
    /// The hash of the hashes of all lines, in their order: it does not depend on where partitions end.
    pub hash: String,
}

/// What one thread makes of a partition.
struct Part {
    verdicts: Vec<(Verdict, bool)>,
    hashes: Vec<blake3::Hash>,
}

/// Writes what was kept of each partition, in their order, with what is a copy known.
pub fn write(
    kept: &[PathBuf],
    copies: &Copies,
    settings: Settings,
    redactor: &Redactor,
    out: &Path,
    n_threads: usize,
) -> Result<Output, EngineError> {
    let (parquet, jsonl) = (out.join("parquet"), out.join("jsonl"));
    for folder in [&parquet, &jsonl] {
        fs::create_dir_all(folder).map_err(EngineError::at(folder))?;
    }
    let mut report = Report::new(settings);
    let mut parts = Vec::new();
    let mut hasher = blake3::Hasher::new();
    for (round, files) in kept.chunks(n_threads.max(1)).enumerate() {
        let written: Vec<Result<Part, EngineError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = files
                .iter()
                .enumerate()
                .map(|(at, file)| {
                    let name = name(round * n_threads.max(1) + at);
                    let (parquet, jsonl) = (&parquet, &jsonl);
                    scope.spawn(move || {
                        let to = |folder: &Path, ending: &str| folder.join(format!("{name}.{ending}"));
                        write_part(file, copies, redactor, &to(parquet, "parquet"), &to(jsonl, "jsonl"))
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        for part in written {
            let part = part?;
            let mut n_bytes = 0;
            for (verdict, is_exact) in &part.verdicts {
                n_bytes += verdict.bytes;
                add(&mut report, verdict, *is_exact);
            }
            parts.push((part.verdicts.len() as u64, n_bytes));
            for hash in &part.hashes {
                hasher.update(hash.as_bytes());
            }
        }
    }
    for folder in [&parquet, &jsonl] {
        let names = (0..kept.len()).map(name).collect();
        remove_others(folder, is_part, &names)?;
    }
    Ok(Output { report, parts, hash: hasher.finalize().to_hex().to_string() })
}

/// Removes the files of a folder that an earlier run wrote, as their stems tell, and that are none of these. What else is there is the user's.
pub fn remove_others(
    folder: &Path,
    is_of_a_run: fn(&str) -> bool,
    stems: &BTreeSet<String>,
) -> Result<(), EngineError> {
    for entry in fs::read_dir(folder).map_err(EngineError::at(folder))? {
        let path = entry.map_err(EngineError::at(folder))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let is_old = |stem: &str| is_of_a_run(stem) && !stems.contains(stem);
        if path.is_file() && stem.is_some_and(is_old) {
            fs::remove_file(&path).map_err(EngineError::at(&path))?;
        }
    }
    Ok(())
}

/// Whether a stem is that of a part, see [`name`].
fn is_part(stem: &str) -> bool {
    stem.strip_prefix("part-")
        .is_some_and(|number| 5 <= number.len() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a stem is a hash.
pub fn is_hash(stem: &str) -> bool {
    stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn name(part: usize) -> String {
    format!("part-{part:05}")
}

fn write_part(
    file: &Path,
    copies: &Copies,
    redactor: &Redactor,
    parquet: &Path,
    jsonl: &Path,
) -> Result<Part, EngineError> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file).map_err(EngineError::at(file))?);
    let reader = reader.and_then(ParquetRecordBatchReaderBuilder::build).map_err(EngineError::of_parquet(file))?;
    let schema = reader.schema();
    let mut batches = vec![without_inner(&RecordBatch::new_empty(schema))?];
    let mut exact = Vec::new();
    for batch in reader {
        let (batch, is_exact) = with_copies(&batch?, copies)?;
        batches.push(redactor.places(&without_inner(&batch)?)?);
        exact.extend(is_exact);
    }
    keep::write(parquet, &batches)?;
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    for batch in &batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    let text = writer.into_inner();
    keep::write_bytes(jsonl, &text)?;
    let (mut verdicts, mut hashes) = (Vec::new(), Vec::new());
    for (line, is_exact) in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).zip(exact) {
        hashes.push(blake3::hash(line));
        let verdict = serde_json::from_slice(line);
        let place = || format!("{}:{}", jsonl.display(), hashes.len());
        verdicts.push((verdict.map_err(|error| EngineError::Line { place: place(), error })?, is_exact));
    }
    Ok(Part { verdicts, hashes })
}

/// The rows with what they are copies of, and for each whether it is one byte for byte.
fn with_copies(batch: &RecordBatch, copies: &Copies) -> Result<(RecordBatch, Vec<bool>), EngineError> {
    let schema = batch.schema();
    let text = |name: &str| -> Result<&StringArray, EngineError> {
        Ok(batch.column(schema.index_of(name)?).as_string::<i32>())
    };
    let (sources, labels, reasons) = (text("source")?, text("label")?, text("reason")?);
    let positions = batch.column(schema.index_of("position")?).as_primitive::<UInt64Type>();
    let copy = |row: usize| copies.get(sources.value(row), positions.value(row));
    let found: Vec<Option<Copy<'_>>> = (0..batch.num_rows()).map(copy).collect();
    let replaced = |column: &StringArray, by: &str| -> ArrayRef {
        let values = found.iter().enumerate();
        let values = values.map(|(row, copy)| if copy.is_some() { by } else { column.value(row) });
        Arc::new(StringArray::from_iter_values(values))
    };
    let mut columns = batch.columns().to_vec();
    columns[schema.index_of("label")?] = replaced(labels, "rejected");
    columns[schema.index_of("reason")?] = replaced(reasons, "duplicate");
    let kept = found.iter().map(|copy| copy.as_ref().map(|copy| copy.kept));
    columns[schema.index_of("copy_of")?] = Arc::new(kept.collect::<StringArray>());
    let is_exact = found.iter().map(|copy| copy.as_ref().is_some_and(|copy| copy.is_exact)).collect();
    Ok((RecordBatch::try_new(schema, columns)?, is_exact))
}

/// The rows without the columns that other plans need.
fn without_inner(batch: &RecordBatch) -> Result<RecordBatch, EngineError> {
    let schema = batch.schema();
    let columns: Vec<usize> =
        (0..schema.fields().len()).filter(|at| !INNER.contains(&schema.field(*at).name().as_str())).collect();
    Ok(batch.project(&columns)?)
}

/// Takes credentials out of paths: what a text may not have in it its name may not either.
pub struct Redactor {
    secrets: &'static Secrets,
}

/// The columns that say where a document is.
const PLACES: [&str; 4] = ["path", "source", "input", "copy_of"];

impl Redactor {
    /// One with the rules that texts are judged by.
    pub fn new() -> Result<Redactor, EngineError> {
        Ok(Redactor { secrets: functions::secrets()? })
    }

    /// A path without credentials.
    pub fn path(&self, path: &str) -> String {
        let found = self.secrets.find(path.as_bytes(), &functions::count_tokens);
        String::from_utf8_lossy(&redact(path.as_bytes(), &found)).into_owned()
    }

    /// Rows whose places have none.
    pub fn places(&self, batch: &RecordBatch) -> Result<RecordBatch, EngineError> {
        let schema = batch.schema();
        let mut columns = batch.columns().to_vec();
        for (column, _) in
            columns.iter_mut().zip(schema.fields()).filter(|(_, field)| PLACES.contains(&field.name().as_str()))
        {
            let texts = column.as_string::<i32>().iter();
            *column = Arc::new(texts.map(|text| text.map(|text| self.path(text))).collect::<StringArray>());
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

fn add(report: &mut Report, verdict: &Verdict, is_exact: bool) {
    // Labels and severities are this program's: others cannot be in what it has just judged.
    let Some(judgement) = verdict.judgement() else { return };
    let entry = Entry {
        path: &verdict.path,
        source: &verdict.input,
        n_bytes: verdict.bytes as usize,
        blake3: &verdict.blake3,
        judgement: &judgement,
        copy_of: verdict.copy_of.as_deref(),
        n_kernels: verdict.kernels as usize,
    };
    report.add(&entry, is_exact);
}
