//! Writes files so that nobody sees half of one: beside their place, and there once they are whole.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::file::properties::WriterProperties;
use tempfile::NamedTempFile;

use crate::error::EngineError;

/// A file of Parquet that is written batch by batch.
pub struct Writer {
    path: PathBuf,
    writer: ArrowWriter<NamedTempFile>,
}

impl Writer {
    /// Begins one.
    pub fn new(path: &Path, schema: &SchemaRef) -> Result<Writer, EngineError> {
        let compression = Compression::ZSTD(ZstdLevel::default());
        let properties = WriterProperties::builder().set_compression(compression).build();
        let writer = ArrowWriter::try_new(beside(path)?, schema.clone(), Some(properties));
        Ok(Writer { path: path.to_owned(), writer: writer.map_err(EngineError::of_parquet(path))? })
    }

    /// Adds a batch.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<(), EngineError> {
        self.writer.write(batch).map_err(EngineError::of_parquet(&self.path))
    }

    /// Puts it in its place.
    pub fn finish(self) -> Result<(), EngineError> {
        let file = self.writer.into_inner().map_err(EngineError::of_parquet(&self.path))?;
        move_to(file, &self.path)
    }
}

/// Writes batches of one schema, of which there is one at least, as Parquet.
pub fn write(path: &Path, batches: &[RecordBatch]) -> Result<(), EngineError> {
    let [first, ..] = batches else { return Ok(()) };
    let mut writer = Writer::new(path, &first.schema())?;
    for batch in batches {
        writer.add(batch)?;
    }
    writer.finish()
}

/// A file that is written piece by piece.
pub struct Lines {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl Lines {
    /// Begins one.
    pub fn new(path: &Path) -> Result<Lines, EngineError> {
        Ok(Lines { path: path.to_owned(), file: BufWriter::new(beside(path)?) })
    }

    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        self.file.write_all(bytes).map_err(EngineError::at(&self.path))
    }

    /// Puts it in its place.
    pub fn finish(self) -> Result<(), EngineError> {
        let file = self.file.into_inner().map_err(|error| EngineError::at(&self.path)(error.into_error()))?;
        move_to(file, &self.path)
    }
}

/// Writes bytes.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    let mut file = beside(path)?;
    file.write_all(bytes).map_err(EngineError::at(path))?;
    move_to(file, path)
}

/// A file of no name of its own yet, which is gone if anything fails.
fn beside(path: &Path) -> Result<NamedTempFile, EngineError> {
    let mut builder = tempfile::Builder::new();
    // As readable as what the user makes otherwise.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let folder = path.parent().unwrap_or(Path::new("."));
    builder.tempfile_in(folder).map_err(EngineError::at(folder))
}

fn move_to(file: NamedTempFile, path: &Path) -> Result<(), EngineError> {
    file.persist(path).map_err(|error| EngineError::at(path)(error.error)).map(drop)
}
