//! Writes files so that nobody sees half of one: beside their place, and there once they are whole.

use std::io::Write;
use std::path::Path;

use datafusion::arrow::array::RecordBatch;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::file::properties::WriterProperties;
use tempfile::NamedTempFile;

use crate::error::EngineError;

/// Writes batches of one schema, of which there is one at least, as Parquet.
pub fn write(path: &Path, batches: &[RecordBatch]) -> Result<(), EngineError> {
    let mut file = beside(path)?;
    let parquet = EngineError::of_parquet(path);
    if let [first, ..] = batches {
        let compression = Compression::ZSTD(ZstdLevel::default());
        let properties = WriterProperties::builder().set_compression(compression).build();
        let mut writer = ArrowWriter::try_new(&mut file, first.schema(), Some(properties)).map_err(&parquet)?;
        for batch in batches {
            writer.write(batch).map_err(&parquet)?;
        }
        writer.close().map_err(&parquet)?;
    }
    move_to(file, path)
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
