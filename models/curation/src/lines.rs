//! Where the lines of a text start, so that an offset becomes a line and a column in logarithmic time.

/// The starts of all lines of one text.
#[derive(Debug)]
pub struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    /// Finds every line of `text`.
    pub fn of(text: &[u8]) -> Lines {
        let mut starts = vec![0];
        starts.extend(memchr::memchr_iter(b'\n', text).map(|at| at + 1));
        Lines { starts }
    }

    /// The line and column, both from 1, of a byte; columns count bytes.
    pub fn place(&self, byte: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|&start| start <= byte);
        (line, byte - self.starts[line - 1] + 1)
    }
}
