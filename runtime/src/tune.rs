//! What this machine can do, as the file that the compiler takes its rates from.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use ir::plan::Tuning;

use crate::device::cpu;
use crate::error::RuntimeError;

/// Measures with so many threads, for about `time` and the ten seconds or more that reading memory takes. `progress` is told how many of how many parts are
/// done, and may stop it.
///
/// # Errors
///
/// If memory or threads cannot be had; [`RuntimeError::Cancelled`].
pub fn measure(
    threads: usize,
    time: Duration,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Tuning, RuntimeError> {
    cpu::tune(threads.max(1), time, progress)
}

/// Writes a tuning file: whole, or not at all.
///
/// # Errors
///
/// [`RuntimeError::Io`]; what was there before is there still.
pub fn write(tuning: &Tuning, path: &Path) -> Result<(), RuntimeError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let error = RuntimeError::io("write", path);
    let written = tempfile::Builder::new().prefix(".tuning").tempfile_in(directory).and_then(|mut file| {
        file.write_all(tuning.to_ron().as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|failed| failed.error)?;
        Ok(())
    });
    written.map_err(error)
}
