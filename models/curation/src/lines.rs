//! Where the lines of a text start, so that an offset becomes a line and a column in logarithmic time.

use std::ops::Range;

/// The starts of all lines of one text.
#[derive(Debug)]
pub struct Lines {
    starts: Vec<usize>,
    end: usize,
}

impl Lines {
    /// Finds every line of `text`.
    pub fn of(text: &[u8]) -> Lines {
        let mut starts = vec![0];
        starts.extend(memchr::memchr_iter(b'\n', text).map(|at| at + 1));
        Lines { starts, end: text.len() }
    }

    /// The line and column, both from 1, of a byte; columns count bytes.
    pub fn place(&self, byte: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|&start| start <= byte);
        (line, byte - self.starts[line - 1] + 1)
    }

    /// The bytes of a line, from 1, without its line break; empty if there is none.
    pub fn span(&self, line: usize) -> Range<usize> {
        let Some(start) = line.checked_sub(1).and_then(|index| self.starts.get(index)) else { return 0..0 };
        *start..self.starts.get(line).map_or(self.end, |next| next - 1)
    }
}
