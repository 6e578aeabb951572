//! The stages as functions of a query engine. A row is a partition until it is judged: it goes in as a description and comes out as the rows of its
//! documents, so that a plan moves descriptions between machines, and texts only where two of them are compared.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use curation::Secrets;
use curation::duplicates::MAX_GROUP;
use curation::judge::Criteria;
use datafusion::arrow::array::builder::{ListBuilder, UInt64Builder};
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, ListArray, StringArray, StructArray, UInt64Array,
};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::datatypes::{DataType, Fields, Schema, UInt64Type};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use serde::Serialize;

use crate::error::EngineError;
use crate::evaluations::Sets;
use crate::keep;
use crate::read::Document;
use crate::share::Share;
use crate::shingles::{Place, Shingles, content};
use crate::verdict::{self, Verdict, columns, field, item_field, list};

/// A function over columns.
#[derive(Debug)]
struct Function {
    name: &'static str,
    signature: Signature,
    result: DataType,
    body: fn(&[ArrayRef]) -> Result<ArrayRef, EngineError>,
}

/// Every function, for whatever plans, schedules or executes.
pub fn all() -> Vec<Arc<ScalarUDF>> {
    let text = || DataType::Utf8;
    // What reads or writes files is volatile: it is run once for each row, where the plan has it.
    let files = Volatility::Volatile;
    let pure = Volatility::Immutable;
    let new = |name, arguments: Vec<DataType>, volatility, result, body| {
        let signature = Signature::exact(arguments, volatility);
        Arc::new(ScalarUDF::new_from_impl(Function { name, signature, result, body }))
    };
    let rows = |fields: Fields| list(DataType::Struct(fields));
    let documents = rows(document());
    let verdicts = rows(verdict::schema().fields().clone());
    vec![
        new("projects", vec![text()], files, rows(project()), projects),
        new("fingerprint", vec![text()], files, text(), fingerprint),
        new("is_missing", vec![text(), text()], files, DataType::Boolean, is_missing),
        new("documents", vec![text(), text()], files, documents.clone(), documents_of),
        new("judge", vec![text(), documents], pure, verdicts.clone(), judge),
        new("keep", vec![text(), text(), verdicts], files, DataType::UInt64, keep_verdicts),
        new("blocks", vec![DataType::UInt64], pure, list(DataType::UInt64), blocks),
        new("pairs", vec![list(text())], pure, rows(pair()), pairs),
        new("similarity", vec![text(), text(), text(), text()], files, DataType::Float64, similarity),
    ]
}

/// The columns of what a folder of a source says of licences.
fn project() -> Fields {
    ["source", "folder", "said", "licence"].map(|name| field(name, DataType::Utf8)).to_vec().into()
}

/// The columns of two contents, by their hashes.
fn pair() -> Fields {
    ["l", "r"].map(|name| field(name, DataType::Utf8)).to_vec().into()
}

/// The columns of a document as it comes in.
fn document() -> Fields {
    let text = |name| field(name, DataType::Utf8);
    let position = field("position", DataType::UInt64);
    vec![text("path"), text("source"), position, text("input"), text("licence"), text("text")].into()
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Function {}

impl std::hash::Hash for Function {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType, DataFusionError> {
        Ok(self.result.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue, DataFusionError> {
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        Ok(ColumnarValue::Array((self.body)(&columns)?))
    }
}

/// `projects(share)`: what the folders of its documents with paths of their own say of licences.
fn projects(arguments: &[ArrayRef]) -> Result<ArrayRef, EngineError> {
    #[derive(Serialize)]
    struct Row {
        source: String,
        folder: String,
        said: String,
        licence: String,
    }
    let rows = each_share(&arguments[0], |share, _| {
        let rows = share.projects()?.into_iter();
        Ok(rows.map(|[source, folder, said, licence]| Row { source, folder, said, licence }).collect())
    })?;
    lists(rows, project())
}

/// `fingerprint(share)`: the hash of all that its verdicts depend on.
fn fingerprint(arguments: &[ArrayRef]) -> Result<ArrayRef, EngineError> {
    let keys = each_share(&arguments[0], |share, _| Ok(share.key(&share.documents()?)))?;
    Ok(Arc::new(StringArray::from(keys)))
}

/// `is_missing(share, key)`: whether nothing is kept of it.
fn is_missing(arguments: &[ArrayRef]) -> Result<ArrayRef, EngineError> {
    let keys = arguments[1].as_string::<i32>();
    let missing = each_share(&arguments[0], |share, row| Ok(!share.kept(keys.value(row)).exists()))?;
    Ok(Arc::new(BooleanArray::from(missing)))
}

/// `documents(share, key)`: all its documents, if they are still the ones of the key.
fn documents_of(arguments: &[ArrayRef]) -> Result<ArrayRef, EngineError> {
    let keys = arguments[1].as_string::<i32>();
    let documents = each_share(&arguments[0], |share, row| {
        let documents = share.documents()?;
        if share.key(&documents) == keys.value(row) { Ok(documents) } else { Err(EngineError::Changed) }
    })?;
    lists(documents, document())
}

/// The rules for credentials, which are built once for a process, whatever it runs.
pub(crate) fn secrets() -> Result<&'static Secrets, EngineError> {
    static SECRETS: OnceLock<Secrets> = OnceLock::new();
    match SECRETS.get() {
        Some(secrets) => Ok(secrets),
        None => {
            let built = Secrets::built_in()?;
            Ok(SECRETS.get_or_init(|| built))
        }
    }
}

/// The tokens by which texts are told from random characters.
pub(crate) fn count_tokens(text: &str) -> usize {
    tiktoken_rs::cl100k_base_singleton().encode_ordinary(text).len()
}

/// `judge(share, documents)`: the verdict on each.
fn judge(arguments: &[ArrayRef]) -> Result<ArrayRef, EngineError> {
    let secrets = secrets()?;
    let documents = arguments[1].as_list::<i32>();
    let verdicts = each_share(&arguments[0], |share, row| {
        let settings = &share.common.settings;
        let licences: Option<Vec<&str>> =
            settings.licences.as_ref().map(|licences| licences.iter().map(String::as_str).collect());
        let evaluations = share.common.evaluations.as_ref().map(Sets::built).transpose()?;
        let criteria = Criteria {
            secrets,
            count_tokens: &count_tokens,
            licences: licences.as_deref(),
            evaluations: evaluations.as_deref(),
            rules: &settings.rule_sets(),
        };
        let documents = rows_of(documents.value(row).as_struct());
        Ok(documents.iter().map(|document| Verdict::of(document, criteria, settings.bands())).collect::<Vec<_>>())
    })?;
    lists(verdicts, verdict::schema().fields().clone())
}

/// `keep(share, key, verdicts)`: writes them to their file, and says how many there are.
fn keep_verdicts(arguments: &[ArrayRef]) -> Result<ArrayRef, EngineError> {
    let keys = arguments[1].as_string::<i32>();
    let verdicts = arguments[2].as_list::<i32>();
    let counts = each_share(&arguments[0], |share, row| {
        let verdicts = verdicts.value(row);
        keep::write(&share.kept(keys.value(row)), &[verdicts.as_struct().into()])?;
        Ok(verdicts.len() as u64)
    })?;
    Ok(Arc::new(UInt64Array::from(counts)))
}

/// `blocks(n)`: the blocks that the content of this number of a group, from 1, goes to. The first one of a block links it to the one before, as
/// [`curation::duplicates::pairs`] has it.
fn blocks(arguments: &[ArrayRef]) -> Result<ArrayRef, EngineError> {
    let size = MAX_GROUP as u64;
    let mut lists = ListBuilder::new(UInt64Builder::new());
    for number in arguments[0].as_primitive::<UInt64Type>().values() {
        let index = number.saturating_sub(1);
        let block = index / size;
        if index % size == 0 && 0 < block {
            lists.values().append_value(block - 1);
        }
        lists.values().append_value(block);
        lists.append(true);
    }
    Ok(Arc::new(lists.finish()))
}

/// `pairs(contents)`: the candidates of a group. The group is put in order first: engines gather it in any.
fn pairs(arguments: &[ArrayRef]) -> Result<ArrayRef, EngineError> {
    #[derive(Serialize)]
    struct Row<'g> {
        l: &'g str,
        r: &'g str,
    }
    let groups = arguments[0].as_list::<i32>();
    let groups: Vec<ArrayRef> = groups.iter().flatten().collect();
    let rows = groups.iter().map(|group| {
        let mut contents: Vec<&str> = group.as_string::<i32>().iter().flatten().collect();
        contents.sort_unstable();
        let numbers: Vec<u32> = (0_u32..).take(contents.len()).collect();
        let pairs = curation::duplicates::pairs(&numbers);
        pairs.map(|(l, r)| Row { l: contents[l as usize], r: contents[r as usize] }).collect()
    });
    lists(rows.collect(), pair())
}

/// `similarity(folder, hash, l, r)`: of two contents, by their shingles in that folder.
fn similarity(arguments: &[ArrayRef]) -> Result<ArrayRef, EngineError> {
    let [folder, hash, l, r] = [0, 1, 2, 3].map(|at| arguments[at].as_string::<i32>());
    if l.is_empty() {
        return Ok(Arc::new(Float64Array::from(Vec::<f64>::new())));
    }
    let place = Place { folder: PathBuf::from(folder.value(0)), hash: hash.value(0).to_owned() };
    let pairs = (0..l.len()).map(|row| Ok((content(l.value(row))?, content(r.value(row))?)));
    let pairs = pairs.collect::<Result<Vec<_>, EngineError>>()?;
    Ok(Arc::new(Float64Array::from(Shingles::open(&place)?.compare(pairs.into_iter())?)))
}

/// Runs a function on each description of a column, with its row.
fn each_share<T>(
    descriptions: &ArrayRef,
    mut each: impl FnMut(&Share, usize) -> Result<T, EngineError>,
) -> Result<Vec<T>, EngineError> {
    let descriptions = descriptions.as_string::<i32>();
    (0..descriptions.len()).map(|row| each(&Share::parse(descriptions.value(row))?, row)).collect()
}

/// A list of rows with these columns for each row.
fn lists<T: Serialize>(rows: Vec<Vec<T>>, fields: Fields) -> Result<ArrayRef, EngineError> {
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(Vec::len));
    let rows: Vec<T> = rows.into_iter().flatten().collect();
    let values = columns(&rows, &Arc::new(Schema::new(fields.clone())))?;
    Ok(Arc::new(ListArray::try_new(item_field(DataType::Struct(fields)), offsets, Arc::new(values), None)?))
}

/// The documents of columns as [`document`] has them.
fn rows_of(columns: &StructArray) -> Vec<Document> {
    let text = |at: usize| columns.column(at).as_string::<i32>();
    let (paths, sources, inputs, licences, texts) = (text(0), text(1), text(3), text(4), text(5));
    let positions = columns.column(2).as_primitive::<UInt64Type>();
    let row = |at: usize| Document {
        path: paths.value(at).to_owned(),
        source: sources.value(at).to_owned(),
        position: positions.value(at),
        input: inputs.value(at).to_owned(),
        licence: licences.is_valid(at).then(|| licences.value(at).to_owned()),
        text: texts.value(at).to_owned(),
    };
    (0..columns.len()).map(row).collect()
}
