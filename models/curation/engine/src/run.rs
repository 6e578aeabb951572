//! A run: partitions, their verdicts, what is there twice, the output. What an earlier run kept of a partition with the same content and stages is taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use curation::duplicates::Bands;
use curation::quality::RuleSet;
use curation::report::{self, Report};
use datafusion::arrow::array::{AsArray, RecordBatch, StringArray, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef, UInt64Type};
use serde_json::json;

use crate::copies;
use crate::corpus::{Corpus, Piece, Projects, Unit, Wanted};
use crate::error::EngineError;
use crate::evaluations::{Item, Sets};
use crate::keep;
use crate::kernels::{self, Written};
use crate::output::{self, Redactor};
use crate::place::{Cut, Engine, Place, Table};
use crate::share::{Common, STAGES, Settings, Share};
use crate::shingles;
use crate::verdict::field;

/// The least similarity of what counts as a near copy, where nothing else is asked for.
pub const THRESHOLD: f64 = 0.8;

/// What to run, on what, where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folders, files, and `.jsonl` and `.parquet` files.
    pub inputs: Vec<PathBuf>,
    /// Which documents are looked at.
    pub wanted: Wanted,
    /// The licences that are allowed; all, and none at all, if absent.
    pub licences: Option<Vec<String>>,
    /// The rule sets for quality.
    pub rules: Vec<RuleSet>,
    /// How signatures are cut into bands.
    pub bands: Bands,
    /// The least similarity of what counts as a near copy.
    pub threshold: f64,
    /// How many bytes plans in this process sort, group and join in; what they have no room for goes to files in the folder of the output.
    pub memory: usize,
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
    /// The report.
    pub report: Report,
    /// The hash of the output.
    pub hash: String,
    /// The Triton kernels that were written.
    pub kernels: Written,
    /// The partitions.
    pub n_partitions: usize,
    /// Those that were taken from an earlier run.
    pub n_kept: usize,
    /// The bytes of all documents.
    pub n_bytes: u64,
    /// The bytes that plans in this process put into files for want of memory.
    pub n_spilled: usize,
}

/// What folders of documents with paths of their own say of licences.
const PROJECTS: &str = "
    SELECT project['source'] AS source, project['folder'] AS folder, project['said'] AS said, project['licence'] AS licence
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
    let spill = work.join("spill");
    fs::create_dir_all(&spill).map_err(EngineError::at(&spill))?;
    let engine = Engine::new(&options.place, options.memory, &spill)?;
    let root = std::env::current_dir().map_err(EngineError::at(Path::new(".")))?;
    let sets = options.evaluations.as_ref().map(|(items, run)| Sets::write(items, *run, &work));
    let evaluations = sets.transpose()?;
    let common = Common {
        root,
        kept: work.join("verdicts"),
        wanted: options.wanted.clone(),
        settings: Settings {
            licences: options.licences.clone(),
            rules: options.rules.iter().map(|set| set.name().to_owned()).collect(),
            bands: options.bands.n,
            rows: options.bands.rows,
        },
        evaluations,
        stages: STAGES.to_owned(),
    };
    let share = |units: Vec<Unit>| Share { common: common.clone(), units, projects: BTreeMap::new() };
    let mut shares: Vec<Share> = corpus.partitions(options.partition).into_iter().map(share).collect();
    let plans = Plans { engine: &engine, folder: work.join("shares"), n_threads: options.n_threads };
    plans.find_projects(&mut shares).await?;
    let keys = plans.keys(&shares).await?;
    let files: Vec<PathBuf> = shares.iter().zip(&keys).map(|(share, key)| share.kept(key)).collect();
    let missing: Vec<usize> = (0..shares.len()).filter(|at| !files[*at].exists()).collect();
    plans.judge(&shares, &keys, &missing).await?;
    let cut = plans.cut(shares.len());
    let copies =
        copies::find(&engine, cut, &files, &work, options.bands.n, options.threshold, options.n_threads).await?;
    let redactor = Redactor::new()?;
    let settings =
        report::Settings { rules: options.rules.clone(), bands: options.bands, threshold: options.threshold };
    let written = output::write(&files, &copies, settings, &redactor, out, options.n_threads)?;
    let kernels = kernels::write(&engine, cut, &files, out, &redactor).await?;
    keep::write_bytes(&out.join("report.txt"), written.report.text().as_bytes())?;
    let page = written.report.html().map_err(|error| EngineError::Report(error.to_string()))?;
    keep::write_bytes(&out.join("report.html"), page.as_bytes())?;
    let parts = keys
        .iter()
        .zip(&written.parts)
        .map(|(key, (n_documents, n_bytes))| json!({ "key": key, "documents": n_documents, "bytes": n_bytes }));
    let manifest = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "stages": STAGES,
        "inputs": options.inputs.iter().map(|input| redactor.path(&input.to_string_lossy())).collect::<Vec<_>>(),
        "wanted": options.wanted,
        "licences": options.licences,
        "rules": common.settings.rules,
        "evaluations": common.evaluations.as_ref().map(|sets| json!({ "hash": sets.hash, "overlap": sets.run })),
        "bands": options.bands.n,
        "rows": options.bands.rows,
        "similarity": options.threshold,
        "output": written.hash,
        "kernels": { "number": kernels.n, "hash": kernels.hash },
        "parts": parts.collect::<Vec<_>>(),
    });
    keep::write_bytes(&out.join("manifest.json"), format!("{manifest:#}\n").as_bytes())?;
    output::remove_others(&work.join("verdicts"), output::is_hash, &keys.into_iter().collect::<BTreeSet<String>>())?;
    let n_spilled = engine.n_spilled();
    // It takes its own files away with it.
    drop(engine);
    clean(&work)?;
    Ok(Done {
        report: written.report,
        hash: written.hash,
        kernels,
        n_partitions: files.len(),
        n_kept: files.len() - missing.len(),
        n_spilled,
        n_bytes: written.parts.iter().map(|(_, n_bytes)| n_bytes).sum(),
    })
}

/// Removes what went from plan to plan. The next run makes its own.
fn clean(work: &Path) -> Result<(), EngineError> {
    output::remove_others(&work.join("shares"), is_number, &BTreeSet::new())?;
    for file in ["candidates.parquet", "near.parquet"].map(|name| work.join(name)) {
        fs::remove_file(&file).map_err(EngineError::at(&file))?;
    }
    shingles::remove(work)?;
    // What else is in them, the user has put there.
    for folder in ["shares", "spill"].map(|name| work.join(name)) {
        if fs::read_dir(&folder).map_err(EngineError::at(&folder))?.next().is_none() {
            fs::remove_dir(&folder).map_err(EngineError::at(&folder))?;
        }
    }
    Ok(())
}

fn is_number(stem: &str) -> bool {
    5 <= stem.len() && stem.bytes().all(|byte| byte.is_ascii_digit())
}

/// The plans over partitions.
struct Plans<'a> {
    engine: &'a Engine,
    /// Where the descriptions of partitions are put for plans to read.
    folder: PathBuf,
    n_threads: usize,
}

impl Plans<'_> {
    /// How plans over documents are cut: on a cluster as finely as its input, so that a few executors more find work.
    fn cut(&self, n_partitions: usize) -> Cut {
        let n_tasks = match self.engine.place() {
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
        let mut found: Vec<[String; 4]> = Vec::new();
        for batch in self.query(&rows, PROJECTS).await? {
            let text = |column: usize, row: usize| batch.column(column).as_string::<i32>().value(row).to_owned();
            found.extend((0..batch.num_rows()).map(|row| [0, 1, 2, 3].map(|column| text(column, row))));
        }
        // Of two pieces that name a licence for one folder, the same one whatever came first.
        found.sort();
        let mut said: BTreeMap<String, Projects> = BTreeMap::new();
        for [source, folder, how, licence] in found {
            said.entry(source).or_default().add_row(&folder, &how, &licence);
        }
        let folders = |projects: &Projects| {
            let folders = projects.folders();
            folders.filter_map(|(folder, licence)| Some((folder.to_str()?.to_owned(), licence.to_owned()))).collect()
        };
        let projects: BTreeMap<String, BTreeMap<String, String>> =
            said.into_iter().map(|(source, projects)| (source, folders(&projects))).collect();
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
        self.engine
            .query(cut, &[Table { name: "shares", files: &files, schema: &schema }], query, || Ok(Vec::new()))
            .await
    }
}

/// A partition's number, its description and its key.
type Row<'a> = (usize, &'a Share, &'a str);

fn share_schema() -> SchemaRef {
    let columns = vec![field("number", DataType::UInt64), field("key", DataType::Utf8), field("share", DataType::Utf8)];
    Arc::new(Schema::new(columns))
}
