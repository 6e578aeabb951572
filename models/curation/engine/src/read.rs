//! Reads documents: a file, the lines of a JSONL file that start between two bytes, a group of rows of a Parquet file.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::parquet::arrow::ProjectionMask;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Serialize;
use serde::de::Error as _;
use serde_json::Value;

use crate::corpus::{Corpus, Piece, Unit, Wanted};
use crate::error::EngineError;

/// A larger file is no text that somebody wrote.
const MAX_DOCUMENT: u64 = 256 << 20;

/// A document as it comes in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Document {
    /// Its path, or what its corpus calls it.
    pub path: String,
    /// The file that it is in.
    pub source: String,
    /// Where in that file: the first byte of its line, or its row.
    pub position: u64,
    /// Which of the inputs it is of.
    pub input: String,
    /// The licence that its corpus gives it, or its project's.
    pub licence: Option<String>,
    /// Its content.
    pub text: String,
}

/// What a document is called that its corpus gives no path.
pub fn unnamed(source: &str, position: u64) -> String {
    format!("{source}@{position}")
}

/// A line of a JSONL file.
struct Line {
    path: Option<String>,
    text: String,
    licence: Option<String>,
}

impl Line {
    /// `path` or `id`, `text` or `content`, `licence` or `license`: where both are there, the first. Ids may be numbers.
    fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        let Value::Object(object) = serde_json::from_slice(line)? else {
            return Err(serde_json::Error::custom("it is no object"));
        };
        let find =
            |names: [&str; 2]| names.into_iter().filter_map(|name| object.get(name)).find(|value| !value.is_null());
        let string = |names: [&str; 2]| match find(names) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(serde_json::Error::custom(format!("`{}` is no text", names.join("` or `")))),
        };
        let text = string(TEXTS)?;
        let text = text.ok_or_else(|| serde_json::Error::custom("it has neither `text` nor `content`"))?;
        let path = match find(["path", "id"]) {
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => string(["path", "id"])?.filter(|path| !path.is_empty()),
        };
        Ok(Self { path, text, licence: string(["licence", "license"])? })
    }
}

/// Every document of the inputs that is wanted.
pub fn read_all(inputs: &[PathBuf], wanted: &Wanted) -> Result<Vec<Document>, EngineError> {
    let mut documents = Vec::new();
    for unit in Corpus::list(inputs, wanted, None)?.units() {
        read(unit, Path::new(""), |document| {
            if wanted.has_document(&document) {
                documents.push(document);
            }
        })?;
    }
    Ok(documents)
}

/// Gives the documents of a unit, whose source is below `root`. What is no UTF-8 or has a zero byte is no document.
pub fn read(unit: &Unit, root: &Path, mut each: impl FnMut(Document)) -> Result<(), EngineError> {
    let path = root.join(&unit.source);
    let mut give = |name: String, position: u64, licence: Option<String>, text: String| {
        if !text.contains('\0') {
            let (source, input) = (unit.source.clone(), unit.input.clone());
            each(Document { path: name, source, position, input, licence, text });
        }
    };
    match unit.piece {
        Piece::File => {
            if fs::metadata(&path).map_err(EngineError::at(&path))?.len() <= MAX_DOCUMENT
                && let Ok(text) = String::from_utf8(fs::read(&path).map_err(EngineError::at(&path))?)
            {
                give(unit.source.clone(), 0, unit.project.clone(), text);
            }
            Ok(())
        }
        Piece::Lines { start, end } => read_lines(unit, &path, start, end, give),
        Piece::Rows { group } => read_rows(unit, &path, group, give),
    }
}

/// Whether the lines of a file are documents, as the first that is not blank tells.
pub fn has_lines(path: &Path) -> Result<bool, EngineError> {
    let mut file = BufReader::new(File::open(path).map_err(EngineError::at(path))?.take(MAX_DOCUMENT));
    let mut line = Vec::new();
    loop {
        line.clear();
        if file.read_until(b'\n', &mut line).map_err(EngineError::at(path))? == 0 {
            return Ok(false);
        }
        if !line.trim_ascii().is_empty() {
            return Ok(Line::parse(&line).is_ok());
        }
    }
}

/// Whether the rows of a file are documents: it is Parquet, with a column of texts.
pub fn has_rows(path: &Path) -> Result<bool, EngineError> {
    let file = File::open(path).map_err(EngineError::at(path))?;
    let Ok(builder) = ParquetRecordBatchReaderBuilder::try_new(file) else { return Ok(false) };
    let is_text = |column: &Field| TEXTS.contains(&column.name().as_str()) && column.data_type().is_string();
    Ok(builder.schema().fields().iter().any(|column| is_text(column)))
}

/// What the field or column with the content may be called.
const TEXTS: [&str; 2] = ["text", "content"];

fn read_lines(
    unit: &Unit,
    path: &Path,
    start: u64,
    end: u64,
    mut give: impl FnMut(String, u64, Option<String>, String),
) -> Result<(), EngineError> {
    let io = || EngineError::at(path);
    let mut file = BufReader::new(File::open(path).map_err(io())?);
    let mut at = start;
    let mut line = Vec::new();
    if 0 < start {
        // A line is of the piece that its first byte is in: the one before, unless a line ends right before this piece.
        file.seek(SeekFrom::Start(start - 1)).map_err(io())?;
        at = start - 1 + file.read_until(b'\n', &mut line).map_err(io())? as u64;
    }
    while at < end {
        line.clear();
        let n_bytes = file.read_until(b'\n', &mut line).map_err(io())? as u64;
        if n_bytes == 0 {
            break;
        }
        if !line.trim_ascii().is_empty() {
            let place = || unnamed(&unit.source, at);
            let read = Line::parse(&line).map_err(|error| EngineError::Line { place: place(), error });
            let Line { path, text, licence } = read?;
            give(path.unwrap_or_else(place), at, licence, text);
        }
        at += n_bytes;
    }
    Ok(())
}

fn read_rows(
    unit: &Unit,
    path: &Path,
    group: usize,
    mut give: impl FnMut(String, u64, Option<String>, String),
) -> Result<(), EngineError> {
    let parquet = EngineError::of_parquet(path);
    let file = File::open(path).map_err(EngineError::at(path))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(&parquet)?;
    let groups = builder.metadata().row_groups();
    let mut row: u64 = groups.iter().take(group).map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).sum();
    let roots = ["text", "content", "path", "id", "licence", "license"];
    let mask = ProjectionMask::columns(builder.parquet_schema(), roots);
    let reader = builder.with_projection(mask).with_row_groups(vec![group]).build().map_err(&parquet)?;
    for batch in reader {
        let batch = batch?;
        let column = |names: [&str; 2]| names.iter().find_map(|name| strings(&batch, name));
        let texts = column(TEXTS).ok_or_else(|| EngineError::NoText(path.to_owned()))?;
        let (texts, paths, licences) =
            (texts.as_string::<i32>(), column(["path", "id"]), column(["licence", "license"]));
        let value = |column: &Option<ArrayRef>, at: usize| {
            let column = column.as_ref().map(|column| column.as_string::<i32>())?;
            column.is_valid(at).then(|| column.value(at).to_owned())
        };
        for at in 0..batch.num_rows() {
            if texts.is_valid(at) {
                let name = value(&paths, at).unwrap_or_else(|| format!("{}@{row}", unit.source));
                give(name, row, value(&licences, at), texts.value(at).to_owned());
            }
            row += 1;
        }
    }
    Ok(())
}

/// A column as strings, if it has values that are: numbers make ids too.
fn strings(batch: &RecordBatch, name: &str) -> Option<ArrayRef> {
    let column = batch.column_by_name(name)?;
    let is_nested = column.data_type().is_nested();
    let column = if is_nested { None } else { cast(column, &DataType::Utf8).ok() }?;
    column.as_any().is::<StringArray>().then_some(column)
}
