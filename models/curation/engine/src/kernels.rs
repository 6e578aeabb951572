//! Writes the Triton kernels of a corpus, each once, with its helpers and launchers: as Parquet and JSONL of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::arrow::json::writer::{LineDelimited, WriterBuilder};

use crate::error::EngineError;
use crate::keep::{self, Writer};
use crate::output::Redactor;
use crate::place::{Cut, Engine, Sink, Table};
use crate::verdict::{self, field, list};

/// Of kernels that differ in no more than their names and comments the first one: in a document that training takes before one that it does not, then by path.
const KERNELS: &str = "
    SELECT path, source, position, blake3, label, licence, kernel['line'] AS line, kernel['name'] AS name,
        kernel['autotuned'] AS autotuned, kernel['has_heuristics'] AS has_heuristics, kernel['helpers'] AS helpers,
        kernel['launchers'] AS launchers, key, copies, kernel['text'] AS text
    FROM (
        SELECT *, count(*) OVER (PARTITION BY key) - 1 AS copies, row_number() OVER (
            PARTITION BY key ORDER BY label = 'rejected', path, source, position, kernel['line']
        ) AS n
        FROM (
            SELECT path, source, position, blake3, label, licence, kernel, kernel['key'] AS key
            FROM (SELECT path, source, position, blake3, label, licence, unnest(kernel_rows) AS kernel FROM verdicts)
        )
    ) WHERE n = 1
    ORDER BY path, source, position, kernel['line']";

/// How many kernels with their texts a sort has in its hands at once.
const N_TEXTS: usize = 64;

/// What was written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Written {
    /// How many kernels.
    pub n: usize,
    /// The hash of the lines of JSONL.
    pub hash: String,
}

/// Writes the kernels of verdicts to `kernels.parquet` and `kernels.jsonl`. Labels are those of documents by themselves: that one is a copy of another is
/// said of documents, and of kernels by their keys.
pub async fn write(
    engine: &Engine,
    cut: Cut,
    verdicts: &[PathBuf],
    out: &Path,
    redactor: &Redactor,
) -> Result<Written, EngineError> {
    let verdict_schema = verdict::schema();
    let table = Table { name: "verdicts", files: verdicts, schema: &verdict_schema };
    let new = || {
        Ok(Kernels {
            redactor,
            schema: schema(),
            parquet: Writer::new(&out.join("kernels.parquet"), &schema())?,
            jsonl: keep::Lines::new(&out.join("kernels.jsonl"))?,
            hasher: blake3::Hasher::new(),
            n: 0,
        })
    };
    let cut = Cut { n_rows: cut.n_rows.min(N_TEXTS), ..cut };
    let kernels = engine.query(cut, &[table], KERNELS, new).await?;
    kernels.parquet.finish()?;
    kernels.jsonl.finish()?;
    Ok(Written { n: kernels.n, hash: kernels.hasher.finalize().to_hex().to_string() })
}

struct Kernels<'a> {
    redactor: &'a Redactor,
    schema: SchemaRef,
    parquet: Writer,
    jsonl: keep::Lines,
    hasher: blake3::Hasher,
    n: usize,
}

impl Sink for Kernels<'_> {
    fn add(&mut self, batch: RecordBatch) -> Result<(), EngineError> {
        let batch = RecordBatch::try_new(self.schema.clone(), batch.columns().to_vec())?;
        let batch = self.redactor.places(&batch)?;
        self.n += batch.num_rows();
        self.parquet.add(&batch)?;
        let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
        writer.write(&batch)?;
        writer.finish()?;
        let lines = writer.into_inner();
        self.hasher.update(&lines);
        self.jsonl.add(&lines)
    }
}

fn schema() -> SchemaRef {
    let text = |name| field(name, DataType::Utf8);
    let number = |name| field(name, DataType::UInt64);
    let flag = |name| field(name, DataType::Boolean);
    Arc::new(Schema::new(vec![
        text("path"),
        text("source"),
        number("position"),
        text("blake3"),
        text("label"),
        text("licence"),
        number("line"),
        text("name"),
        flag("autotuned"),
        flag("has_heuristics"),
        field("helpers", list(DataType::Utf8)),
        number("launchers"),
        text("key"),
        field("copies", DataType::Int64),
        text("text"),
    ]))
}
