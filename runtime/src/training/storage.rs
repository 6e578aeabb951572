//! Where runs are kept: the few things that are done to files, so that tests can make each of them fail.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::RuntimeError;

/// What is done to files and directories.
pub trait Storage {
    /// Makes a directory, and those above it.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn create_dir(&mut self, path: &Path) -> std::io::Result<()>;

    /// Makes a file, in place of one that is there.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn create(&mut self, path: &Path) -> std::io::Result<Box<dyn Sink>>;

    /// Opens a file to write at its end; makes it where there is none.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn append(&mut self, path: &Path) -> std::io::Result<Box<dyn Sink>>;

    /// Gives a file or directory another name, in one go; it survives a loss of power then.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn rename(&mut self, from: &Path, to: &Path) -> std::io::Result<()>;

    /// Removes a directory with all that is in it, if it is there.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn remove_dir(&mut self, path: &Path) -> std::io::Result<()>;

    /// Removes a file, if it is there.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn remove(&mut self, path: &Path) -> std::io::Result<()>;
}

/// A file that is being written.
pub trait Sink: Write {
    /// Returns when all of it would survive a loss of power.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn sync(&mut self) -> std::io::Result<()>;
}

/// The files of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files;

impl Storage for Files {
    fn create_dir(&mut self, path: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn create(&mut self, path: &Path) -> std::io::Result<Box<dyn Sink>> {
        Ok(Box::new(BufWriter::with_capacity(1 << 20, File::create(path)?)))
    }

    fn append(&mut self, path: &Path) -> std::io::Result<Box<dyn Sink>> {
        Ok(Box::new(BufWriter::new(File::options().create(true).append(true).open(path)?)))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> std::io::Result<()> {
        if from.is_dir() {
            sync_dir(from)?;
        }
        std::fs::rename(from, to)?;
        match to.parent() {
            Some(parent) if parent != Path::new("") => sync_dir(parent),
            _ => sync_dir(Path::new(".")),
        }
    }

    fn remove_dir(&mut self, path: &Path) -> std::io::Result<()> {
        if_there(std::fs::remove_dir_all(path))
    }

    fn remove(&mut self, path: &Path) -> std::io::Result<()> {
        if_there(std::fs::remove_file(path))
    }
}

impl Sink for BufWriter<File> {
    fn sync(&mut self) -> std::io::Result<()> {
        self.flush()?;
        self.get_ref().sync_all()
    }
}

fn if_there(result: std::io::Result<()>) -> std::io::Result<()> {
    result.or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// A name is part of its directory, which has to reach the disk for itself.
#[cfg(unix)]
fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Directories cannot be opened everywhere.
#[cfg(not(unix))]
fn sync_dir(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Writes a file beside its place and moves it there when it is complete, in place of one that was there.
///
/// # Errors
///
/// If it cannot be written; what was there stays then.
pub fn replace(
    storage: &mut dyn Storage,
    path: &Path,
    write: &mut dyn FnMut(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), RuntimeError> {
    let beside = partial(path);
    let mut write_beside = || {
        let mut file = storage.create(&beside)?;
        write(&mut file)?;
        file.sync()?;
        storage.rename(&beside, path)
    };
    write_beside().map_err(|source| {
        // What is half written is of no use, and the disk may be full. If this fails, too, the first error says more.
        let _ = storage.remove(&beside);
        RuntimeError::Io { action: "write", path: path.to_owned(), source }
    })
}

/// What something is called while it is being written: `.NAME.partial`, in the same directory.
pub(crate) fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}
