//! A thread that reads pieces of the weights from their file, in a cycle, ahead of their use.
//!
//! Pieces are read in the order in which calls use them, over and over, each into a buffer that is free. Whoever uses them waits for the
//! reading of a number, counted from 0 over all calls, and gives the buffer back. What cannot be read ends the thread, and everybody who waits is
//! told why: a piece that is not whole is never seen.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::error::RuntimeError;

/// Bytes of one reading: large enough for any disk, and small enough to stop soon.
const CHUNK: usize = 8 << 20;

/// Bytes at places, such as a file.
pub(crate) trait ReadAt: Send {
    /// Reads some bytes from a place on, and returns how many; 0 only at the end.
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize>;

    /// Fills `to` from a place on; an error comes with the byte that it is about. Bytes that end too early are one.
    fn fill_at(&self, offset: u64, to: &mut [u8]) -> Result<(), (u64, io::Error)> {
        let mut done = 0;
        while done < to.len() {
            let place = offset + done as u64;
            match self.read_at(place, &mut to[done..]) {
                Ok(0) => return Err((place, io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((place, error)),
            }
        }
        Ok(())
    }
}

impl ReadAt for std::fs::File {
    #[cfg(unix)]
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, to, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(self, to, offset)
    }
}

/// What is read in a cycle.
pub(crate) struct Pieces {
    /// What it is read from, and how people call it.
    pub(crate) file: Box<dyn ReadAt>,
    pub(crate) path: PathBuf,
    /// For each piece its place in the file, and its bytes.
    pub(crate) places: Vec<(u64, usize)>,
}

/// Memory that pieces are read into.
///
/// # Safety
///
/// The bytes that [`Target::buffer`] gives belong to the reader from when the buffer is free until the piece is read, and nobody else reads or
/// writes them meanwhile.
pub(crate) unsafe trait Target: Send + 'static {
    /// The buffer that the reading of this number goes to.
    fn buffer_of(&self, number: u64) -> usize;

    /// The first `bytes` bytes of a buffer that is free.
    ///
    /// # Errors
    ///
    /// If a device that copies from it fails.
    fn buffer(&mut self, buffer: usize, bytes: usize) -> Result<&mut [u8], RuntimeError>;
}

/// The thread.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    is_free: Vec<bool>,
    /// How many readings are done.
    n_read: u64,
    /// Why there will be no more, until somebody takes it; the thread has ended then.
    error: Option<RuntimeError>,
    has_ended: bool,
    stop: bool,
}

impl Reader {
    /// A reader into `buffers` buffers, which are all free.
    ///
    /// # Errors
    ///
    /// If no thread can be started.
    pub(crate) fn new(pieces: Pieces, buffers: usize, target: impl Target) -> Result<Self, RuntimeError> {
        let state = State { is_free: vec![true; buffers], n_read: 0, error: None, has_ended: false, stop: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("tritter-reader".to_owned());
        let thread = thread.spawn(move || own.read_all(&pieces, target));
        let thread = thread.map_err(|source| RuntimeError::Threads { threads: 1, source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// A handle to wait with, for other threads.
    pub(crate) fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }
}

/// How others wait for a reader.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Shared>);

impl Handle {
    /// Returns when the reading of this number is done; false if it never will be.
    pub(crate) fn wait(&self, number: u64) -> bool {
        let mut state = self.0.lock();
        while state.n_read <= number && !state.has_ended {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        number < state.n_read
    }

    /// Gives a buffer back.
    pub(crate) fn free(&self, buffer: usize) {
        self.0.lock().is_free[buffer] = true;
        self.0.changed.notify_all();
    }

    /// Ends the reading: everybody who waits is told, now and later.
    pub(crate) fn end(&self) {
        let mut state = self.0.lock();
        state.stop = true;
        state.has_ended = true;
        self.0.changed.notify_all();
    }

    /// Why the reader has ended; said once.
    pub(crate) fn error(&self) -> RuntimeError {
        let error = self.0.lock().error.take();
        error.unwrap_or(RuntimeError::StreamEnded)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of its own was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_all(&self, pieces: &Pieces, mut target: impl Target) {
        // Whoever waits is told even if this thread panics.
        struct Ending<'a>(&'a Shared);
        impl Drop for Ending<'_> {
            fn drop(&mut self) {
                self.0.lock().has_ended = true;
                self.0.changed.notify_all();
            }
        }
        let ending = Ending(self);
        let is_idle = pieces.places.is_empty();
        for number in (0_u64..).take_while(|_| !is_idle) {
            let buffer = target.buffer_of(number);
            if !self.take(buffer) {
                break;
            }
            let (offset, bytes) = pieces.places[(number % pieces.places.len() as u64) as usize];
            let result = target.buffer(buffer, bytes).and_then(|to| self.read(pieces, offset, to));
            let mut state = self.lock();
            match result {
                Ok(()) => state.n_read += 1,
                Err(error) => {
                    state.error = Some(error);
                    break;
                }
            }
            drop(state);
            self.changed.notify_all();
        }
        drop(ending);
    }

    /// Waits until a buffer is free, and takes it; false if nobody wants more.
    fn take(&self, buffer: usize) -> bool {
        let mut state = self.lock();
        while !state.is_free[buffer] && !state.stop {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_free[buffer] = false;
        !state.stop
    }

    /// Fills `to` from a place on, and looks between whether anybody still wants it.
    fn read(&self, pieces: &Pieces, offset: u64, to: &mut [u8]) -> Result<(), RuntimeError> {
        for (number, part) in to.chunks_mut(CHUNK).enumerate() {
            if self.lock().stop {
                return Err(RuntimeError::StreamEnded);
            }
            let failed = |(offset, source)| RuntimeError::Stream { path: pieces.path.clone(), offset, source };
            pieces.file.fill_at(offset + (number * CHUNK) as u64, part).map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// A file that gives few bytes at a time, is interrupted, and fails at one place if told so.
    struct Faulty {
        bytes: Vec<u8>,
        fails_at: Option<u64>,
        delay: Duration,
    }

    impl ReadAt for Faulty {
        fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize> {
            std::thread::sleep(self.delay);
            if self.fails_at.is_some_and(|at| (offset..offset + to.len() as u64).contains(&at)) {
                return Err(io::Error::other("the disk is broken"));
            }
            let rest = self.bytes.get(offset as usize..).unwrap_or(&[]);
            let count = rest.len().min(to.len()).min(7);
            to[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }
    }

    /// Two buffers in turn; what was read is sent away when the buffer is taken again or dropped.
    struct Buffers {
        memory: [Vec<u8>; 2],
        seen: mpsc::Sender<Vec<u8>>,
    }

    // SAFETY: nobody but the reader has the buffers.
    unsafe impl Target for Buffers {
        fn buffer_of(&self, number: u64) -> usize {
            (number % 2) as usize
        }

        fn buffer(&mut self, buffer: usize, bytes: usize) -> Result<&mut [u8], RuntimeError> {
            let old = std::mem::replace(&mut self.memory[buffer], vec![0; bytes]);
            let _ = self.seen.send(old);
            Ok(&mut self.memory[buffer])
        }
    }

    fn reader(file: Faulty) -> (Reader, mpsc::Receiver<Vec<u8>>) {
        let (seen, receiver) = mpsc::channel();
        let pieces = Pieces { file: Box::new(file), path: "weights".into(), places: vec![(0, 20), (20, 10), (30, 33)] };
        let target = Buffers { memory: [Vec::new(), Vec::new()], seen };
        (Reader::new(pieces, 2, target).unwrap(), receiver)
    }

    fn file(fails_at: Option<u64>, bytes: u8) -> Faulty {
        Faulty { bytes: (0..bytes).collect(), fails_at, delay: Duration::ZERO }
    }

    #[test]
    fn short_readings_are_put_together_and_pieces_come_in_a_cycle() {
        let (reader, seen) = reader(Faulty { delay: Duration::from_micros(50), ..file(None, 63) });
        let handle = reader.handle();
        for number in 0..7 {
            assert!(handle.wait(number));
            handle.free((number % 2) as usize);
        }
        drop(reader);
        let pieces: Vec<Vec<u8>> = seen.iter().filter(|piece| !piece.is_empty()).collect();
        let expected: [Vec<u8>; 3] = [(0..20).collect(), (20..30).collect(), (30..63).collect()];
        for (number, piece) in pieces.iter().enumerate().take(5) {
            assert_eq!(*piece, expected[number % 3], "{number}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_and_never_seen() {
        for (faulty, offset) in [(file(Some(25), 63), 20), (file(None, 40), 40)] {
            let (reader, _seen) = reader(faulty);
            let handle = reader.handle();
            assert!(handle.wait(0));
            if offset == 40 {
                assert!(handle.wait(1));
                handle.free(0);
                assert!(!handle.wait(2));
            } else {
                assert!(!handle.wait(1));
            }
            assert!(!handle.wait(9), "and nothing after it");
            let RuntimeError::Stream { offset: found, path, .. } = handle.error() else { panic!("another error") };
            assert_eq!((found, path), (offset, PathBuf::from("weights")));
        }
    }

    #[test]
    fn a_reader_stops_whatever_it_waits_for() {
        let (reader, _seen) = reader(file(None, 63));
        assert!(reader.handle().wait(1));
        drop(reader);
    }
}
