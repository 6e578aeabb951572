//! What a stage prints: a JSON object a line as it finds them, and a sentence at the end; or, with `--json`, one object of all.

use std::time::Instant;

use serde_json::{Map, Value, json};

/// The output of one command.
pub(crate) struct Report {
    is_json: bool,
    rows: Vec<Value>,
    summary: Map<String, Value>,
}

impl Report {
    pub(crate) fn new(is_json: bool) -> Report {
        Report { is_json, rows: Vec::new(), summary: Map::new() }
    }

    /// Adds an object.
    pub(crate) fn row(&mut self, row: Value) -> anyhow::Result<()> {
        if self.is_json {
            self.rows.push(row);
        } else {
            crate::say(&row)?;
        }
        Ok(())
    }

    /// Adds the fields of an object to what is said at the end; `text` says the same to people, at once.
    pub(crate) fn add(&mut self, fields: Value, text: &str) {
        if let (true, Value::Object(fields)) = (self.is_json, fields) {
            self.summary.extend(fields);
        } else {
            eprintln!("{}", text.trim_end());
        }
    }

    /// Ends the output: what rows are called, how many documents there were, and how fast they were.
    pub(crate) fn end(mut self, rows: &str, speed: Speed, fields: Value, text: &str) -> anyhow::Result<()> {
        let Speed { n_documents, n_bytes, seconds } = speed;
        self.add(
            json!({ "documents": n_documents, "bytes": n_bytes, "seconds": seconds }),
            &format!("{text}; {}", speed.text()),
        );
        if self.is_json {
            if let Value::Object(fields) = fields {
                self.summary.extend(fields);
            }
            self.summary.insert(rows.to_owned(), Value::Array(self.rows));
            crate::say(&format!("{:#}", Value::Object(self.summary)))?;
        }
        Ok(())
    }
}

/// What a stage looked at, and how long it took.
#[derive(Clone, Copy, Default)]
pub(crate) struct Speed {
    pub(crate) n_documents: usize,
    pub(crate) n_bytes: usize,
    pub(crate) seconds: f64,
}

impl Speed {
    /// Runs a stage on a text, and counts its bytes and the time.
    pub(crate) fn of<T>(&mut self, text: &str, stage: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = stage();
        self.seconds += start.elapsed().as_secs_f64();
        self.n_documents += 1;
        self.n_bytes += text.len();
        result
    }

    /// Bytes, the time that they took, and the rate, of which nothing has none.
    pub(crate) fn text(self) -> String {
        let megabytes = self.n_bytes as f64 / 1e6;
        let seconds = self.seconds;
        let rate = if seconds == 0.0 { 0.0 } else { megabytes / seconds };
        format!("{megabytes:.1} MB in {seconds:.2} s, {rate:.1} MB/s")
    }
}
