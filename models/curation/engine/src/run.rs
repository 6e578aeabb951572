//! A run: partitions, their verdicts, what is there twice, the output. What an earlier run kept of a partition with the same content and stages is taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{AsArray, RecordBatch, StringArray, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef, UInt64Type};
use serde_json::json;

use crate::copies;
use crate::corpus::{Corpus, Piece, Unit, Wanted};
use crate::error::EngineError;
use crate::evaluations::{Item, Sets};
use crate::keep;
use crate::output;
use crate::place::{Cut, Place, Table};
use crate::share::{Common, STAGES, Share};
use crate::verdict::{BANDS, field};

/// The least similarity of what counts as a near copy.
pub const THRESHOLD: f64 = 0.8;

/// What to run, on what, where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folders, files, and `.jsonl` and `.parquet` files.
    pub inputs: Vec<PathBuf>,
    /// Which documents are looked at.
    pub wanted: Wanted,
    /// Takes documents of any licence, and of none.
    pub any_licence: bool,
    /// Items of evaluation sets that nothing may be of, and how many words in a row count as an overlap.
    pub evaluations: Option<(Vec<Item>, usize)>,
    /// The folder of the output.
    pub out: PathBuf,
    /// Where plans run.
    pub place: Place,
    /// How many threads plans use here, and the output everywhere.
    pub n_threads: usize,
    /// About how many bytes make a partition; by the corpus if absent.
    pub partition: Option<u64>,
}

/// What a run did.
#[derive(Debug)]
pub struct Done {
    /// The report as text.
    pub report: String,
    /// The hash of the output.
    pub hash: String,
    /// The partitions.
    pub n_partitions: usize,
    /// Those that were taken from an earlier run.
    pub n_kept: usize,
    /// The bytes of all documents.
    pub n_bytes: u64,
}

/// Licences of folders that documents with paths of their own name.
const PROJECTS: &str = "
    SELECT project['source'] AS source, project['folder'] AS folder, project['licence'] AS licence
    FROM (SELECT unnest(projects(share)) AS project FROM shares)";

/// The hash of each partition's content and stages.
const KEYS: &str = "SELECT number, fingerprint(share) AS key FROM shares";

/// Judges what is missing. Two runs at once, or a task that is started again after its executor was lost, meet here: what is there is not done twice.
const VERDICTS: &str = "
    SELECT number, keep(share, key, judge(share, documents(share, key))) AS n_documents
    FROM shares WHERE is_missing(share, key)";

/// Runs all stages over a corpus.
pub async fn run(options: &Options) -> Result<Done, EngineError> {
    let out = &options.out;
    let work = out.join("work");
    let kept = work.join("verdicts");
    for folder in [&kept, &work.join("shares")] {
        fs::create_dir_all(folder).map_err(EngineError::at(folder))?;
    }
    let work = fs::canonicalize(&work).map_err(EngineError::at(&work))?;
    // What this writes is no input of it, wherever it lies.
    let corpus = Corpus::list(&options.inputs, &options.wanted, work.parent())?;
    if corpus.units().next().is_none() {
        return Err(EngineError::Empty);
    }
    let root = std::env::current_dir().map_err(EngineError::at(Path::new(".")))?;
    let sets = options.evaluations.as_ref().map(|(items, run)| Sets::write(items, *run, &work));
    let evaluations = sets.transpose()?;
    let common = Common {
        root,
        kept: work.join("verdicts"),
        wanted: options.wanted.clone(),
        any_licence: options.any_licence,
        evaluations,
        stages: STAGES.to_owned(),
    };
    let share = |units: Vec<Unit>| Share { common: common.clone(), units, projects: BTreeMap::new() };
    let mut shares: Vec<Share> = corpus.partitions(options.partition).into_iter().map(share).collect();
    let plans = Plans { place: &options.place, folder: work.join("shares"), n_threads: options.n_threads };
    plans.find_projects(&mut shares).await?;
    let keys = plans.keys(&shares).await?;
    let files: Vec<PathBuf> = shares.iter().zip(&keys).map(|(share, key)| share.kept(key)).collect();
    let missing: Vec<usize> = (0..shares.len()).filter(|at| !files[*at].exists()).collect();
    plans.judge(&shares, &keys, &missing).await?;
    let cut = plans.cut(shares.len());
    let copies = copies::find(&options.place, cut, &files, &work, THRESHOLD).await?;
    let written = output::write(&files, &copies, out, options.n_threads)?;
    let text = written.report.text();
    keep::write_bytes(&out.join("report.txt"), text.as_bytes())?;
    let page = written.report.html().map_err(|error| EngineError::Report(error.to_string()))?;
    keep::write_bytes(&out.join("report.html"), page.as_bytes())?;
    let parts = keys
        .iter()
        .zip(&written.parts)
        .map(|(key, (n_documents, n_bytes))| json!({ "key": key, "documents": n_documents, "bytes": n_bytes }));
    let manifest = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "stages": STAGES,
        "inputs": options.inputs,
        "wanted": options.wanted,
        "any_licence": options.any_licence,
        "evaluations": common.evaluations.as_ref().map(|sets| json!({ "hash": sets.hash, "overlap": sets.run })),
        "bands": BANDS.n,
        "rows": BANDS.rows,
        "similarity": THRESHOLD,
        "output": written.hash,
        "parts": parts.collect::<Vec<_>>(),
    });
    keep::write_bytes(&out.join("manifest.json"), format!("{manifest:#}\n").as_bytes())?;
    output::remove_others(&work.join("verdicts"), output::is_hash, &keys.into_iter().collect::<BTreeSet<String>>())?;
    Ok(Done {
        report: text,
        hash: written.hash,
        n_partitions: files.len(),
        n_kept: files.len() - missing.len(),
        n_bytes: written.parts.iter().map(|(_, n_bytes)| n_bytes).sum(),
    })
}

/// The plans over partitions.
struct Plans<'a> {
    place: &'a Place,
    /// Where the descriptions of partitions are put for plans to read.
    folder: PathBuf,
    n_threads: usize,
}

impl Plans<'_> {
    /// How plans over documents are cut: on a cluster as finely as its input, so that a few executors more find work.
    fn cut(&self, n_partitions: usize) -> Cut {
        let n_tasks = match self.place {
            Place::Here => self.n_threads,
            Place::Cluster(_) => n_partitions.clamp(1, 64),
        };
        Cut { n_tasks, n_rows: 8192 }
    }

    /// Puts the licences of projects into the partitions whose documents have paths of their own.
    async fn find_projects(&self, shares: &mut [Share]) -> Result<(), EngineError> {
        let mixed: Vec<Share> = shares
            .iter()
            .filter(|share| share.units.iter().any(|unit| unit.piece != Piece::File))
            .cloned()
            .map(|mut share| {
                share.units.retain(|unit| unit.piece != Piece::File);
                share
            })
            .collect();
        let rows: Vec<Row<'_>> = mixed.iter().enumerate().map(|(at, share)| (at, share, "")).collect();
        let mut projects: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut found: Vec<[String; 3]> = Vec::new();
        for batch in self.query(&rows, PROJECTS).await? {
            let text = |column: usize, row: usize| batch.column(column).as_string::<i32>().value(row).to_owned();
            found.extend((0..batch.num_rows()).map(|row| [text(0, row), text(1, row), text(2, row)]));
        }
        // Of two pieces that name a licence for one folder, the same one whatever came first.
        found.sort();
        for [source, folder, licence] in found {
            projects.entry(source).or_default().entry(folder).or_insert(licence);
        }
        for share in shares {
            let sources: BTreeSet<&str> = share.units.iter().map(|unit| unit.source.as_str()).collect();
            let of_share = projects.iter().filter(|(source, _)| sources.contains(source.as_str()));
            share.projects = of_share.map(|(source, folders)| (source.clone(), folders.clone())).collect();
        }
        Ok(())
    }

    /// The key of each partition.
    async fn keys(&self, shares: &[Share]) -> Result<Vec<String>, EngineError> {
        let rows: Vec<Row<'_>> = shares.iter().enumerate().map(|(at, share)| (at, share, "")).collect();
        let mut keys = vec![String::new(); shares.len()];
        for batch in self.query(&rows, KEYS).await? {
            let numbers = batch.column(0).as_primitive::<UInt64Type>();
            let found = batch.column(1).as_string::<i32>();
            for row in 0..batch.num_rows() {
                found.value(row).clone_into(&mut keys[numbers.value(row) as usize]);
            }
        }
        Ok(keys)
    }

    /// Judges partitions, each of which is kept as soon as it is done.
    async fn judge(&self, shares: &[Share], keys: &[String], missing: &[usize]) -> Result<(), EngineError> {
        let rows: Vec<Row<'_>> = missing.iter().map(|at| (*at, &shares[*at], keys[*at].as_str())).collect();
        self.query(&rows, VERDICTS).await.map(drop)
    }

    /// Runs a query over descriptions of partitions. Each is a file, so that each can be another task, and is worked on alone: one partition for each thread is
    /// in memory.
    async fn query(&self, rows: &[Row<'_>], query: &str) -> Result<Vec<RecordBatch>, EngineError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let schema = share_schema();
        let mut files = Vec::new();
        for (number, share, key) in rows {
            let path = self.folder.join(format!("{number:05}.parquet"));
            let number = UInt64Array::from(vec![*number as u64]);
            let (key, share) = (StringArray::from(vec![*key]), StringArray::from(vec![share.text()]));
            let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(number), Arc::new(key), Arc::new(share)])?;
            keep::write(&path, &[batch])?;
            files.push(path);
        }
        let cut = Cut { n_tasks: rows.len(), n_rows: 1 };
        self.place.query(cut, &[Table { name: "shares", files: &files, schema: &schema }], query).await
    }
}

/// A partition's number, its description and its key.
type Row<'a> = (usize, &'a Share, &'a str);

fn share_schema() -> SchemaRef {
    let columns = vec![field("number", DataType::UInt64), field("key", DataType::Utf8), field("share", DataType::Utf8)];
    Arc::new(Schema::new(columns))
}
