//! A disk that fails when it is told to.

use std::cell::Cell;
use std::io::{ErrorKind, Result, Write};
use std::path::Path;
use std::rc::Rc;

use runtime::training::storage::{Files, Sink, Storage};

/// Real files, without the waiting for the disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// Operations that are left until it fails for good, as if the process were killed there.
    operations: Rc<Cell<u64>>,
    /// Bytes that have room.
    room: Rc<Cell<u64>>,
}

impl Disk {
    /// One that never fails.
    pub(crate) fn new() -> Self {
        Self { operations: Rc::new(Cell::new(u64::MAX)), room: Rc::new(Cell::new(u64::MAX)) }
    }

    /// One that does nothing any more after so many operations.
    pub(crate) fn dying(operations: u64) -> Self {
        let disk = Self::new();
        disk.operations.set(operations);
        disk
    }

    /// One that has room for so many bytes, and never gets any back.
    pub(crate) fn with_room(bytes: u64) -> Self {
        let disk = Self::new();
        disk.room.set(bytes);
        disk
    }

    /// How many operations there were, of one that never failed.
    pub(crate) fn operations(&self) -> u64 {
        u64::MAX - self.operations.get()
    }

    /// How many bytes were written, of one that never failed.
    pub(crate) fn bytes(&self) -> u64 {
        u64::MAX - self.room.get()
    }

    fn count(&self) -> Result<()> {
        match self.operations.get().checked_sub(1) {
            Some(left) => {
                self.operations.set(left);
                Ok(())
            }
            None => Err(ErrorKind::Other.into()),
        }
    }
}

/// Not buffered: every write is one.
struct File {
    file: std::fs::File,
    disk: Disk,
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if self.disk.count().is_err() {
            // Killed in the middle of it.
            let _ = self.file.write(&bytes[..bytes.len() / 2]);
            return Err(ErrorKind::Other.into());
        }
        let left = self.disk.room.get();
        let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if count == 0 && !bytes.is_empty() {
            return Err(ErrorKind::StorageFull.into());
        }
        self.disk.room.set(left - count as u64);
        self.file.write_all(&bytes[..count]).map(|()| count)
    }

    fn flush(&mut self) -> Result<()> {
        self.disk.count()
    }
}

impl Sink for File {
    fn sync(&mut self) -> Result<()> {
        self.flush()
    }
}

impl Storage for Disk {
    fn create_dir(&mut self, path: &Path) -> Result<()> {
        self.count()?;
        Files.create_dir(path)
    }

    fn create(&mut self, path: &Path) -> Result<Box<dyn Sink>> {
        self.count()?;
        Ok(Box::new(File { file: std::fs::File::create(path)?, disk: self.clone() }))
    }

    fn append(&mut self, path: &Path) -> Result<Box<dyn Sink>> {
        self.count()?;
        let file = std::fs::File::options().create(true).append(true).open(path)?;
        Ok(Box::new(File { file, disk: self.clone() }))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.count()?;
        std::fs::rename(from, to)
    }

    fn remove_dir(&mut self, path: &Path) -> Result<()> {
        // Files go one by one, so a directory can be left with some of them.
        if path.is_dir() {
            for entry in std::fs::read_dir(path)? {
                self.count()?;
                std::fs::remove_file(entry?.path())?;
            }
        }
        self.count()?;
        Files.remove_dir(path)
    }

    fn remove(&mut self, path: &Path) -> Result<()> {
        self.count()?;
        Files.remove(path)
    }
}
