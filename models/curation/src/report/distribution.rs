//! How the measures of a corpus's documents are distributed: how many documents of each label fall between fixed bounds.

use serde_json::{Value, json};

use crate::judge::{EDUCATIONAL_COMMENTS, EDUCATIONAL_COMPLEXITY, Label, NEGATIVE_COMPLEXITY};
use crate::quality::code::Measures;

/// A measure, the bounds between which its values are counted, and the counts by label.
#[derive(Debug)]
pub(super) struct Distribution {
    name: &'static str,
    of: fn(&Measures) -> f64,
    /// The lower bound of each bar but the first, which starts at 0.
    bounds: &'static [f64],
    /// Where a rule draws its line, in words.
    thresholds: String,
    counts: Vec<[usize; Label::ALL.len()]>,
}

const SHARES: &[f64] = &[0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
const LENGTHS: &[f64] = &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 200.0];
const COUNTS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0];
const LINES: &[f64] = &[10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 100_000.0];
const LONGEST: &[f64] = &[40.0, 60.0, 80.0, 100.0, 120.0, 160.0, 250.0, 500.0, 1000.0];

impl Distribution {
    /// Those that a report shows.
    pub(super) fn all() -> Vec<Distribution> {
        let new = |name, bounds: &'static [f64], thresholds: String, of| Distribution {
            name,
            of,
            bounds,
            thresholds,
            counts: vec![[0; Label::ALL.len()]; bounds.len() + 1],
        };
        let comments = format!(
            "below 0.01 and above 0.80 a finding; {:.2} to {:.2} educational",
            EDUCATIONAL_COMMENTS.start(),
            EDUCATIONAL_COMMENTS.end()
        );
        let complexity = format!("up to {EDUCATIONAL_COMPLEXITY} educational; above {NEGATIVE_COMPLEXITY} negative");
        vec![
            new("comments, share of characters", SHARES, comments, |measures| measures.comments),
            new("mean complexity of functions", COUNTS, complexity, |measures| measures.complexity_per_function()),
            new("lines", LINES, "above 100,000 rejected".to_owned(), |measures| measures.n_lines as f64),
            new("characters to a line", LENGTHS, "above 100 rejected".to_owned(), |measures| measures.mean_line),
            new("longest line", LONGEST, "above 1,000 rejected".to_owned(), |measures| measures.max_line as f64),
            new("letters and digits, share", SHARES, "below 0.25 rejected".to_owned(), |measures| {
                measures.alphanumeric
            }),
            new("copied lines, share", SHARES, "measured only".to_owned(), |measures| measures.duplicate_lines),
        ]
    }

    pub(super) fn add(&mut self, measures: &Measures, label: Label) {
        let value = (self.of)(measures);
        let bar = self.bounds.partition_point(|bound| *bound <= value);
        let at = Label::ALL.iter().position(|other| *other == label).unwrap_or(0);
        self.counts[bar][at] += 1;
    }

    /// Bars of parts in percent of the highest.
    pub(super) fn figure(&self) -> Value {
        let sums: Vec<usize> = self.counts.iter().map(|counts| counts.iter().sum()).collect();
        let most = sums.iter().copied().max().unwrap_or(0).max(1);
        let bound = |at: usize| self.bounds.get(at).map(|bound| short(*bound));
        let bars: Vec<Value> = self
            .counts
            .iter()
            .enumerate()
            .map(|(bar, counts)| {
                let from = bar.checked_sub(1).and_then(bound).unwrap_or_else(|| "0".to_owned());
                let range = bound(bar).map_or_else(|| format!("{from} and more"), |to| format!("{from} to {to}"));
                let parts: Vec<Value> = Label::ALL
                    .iter()
                    .zip(counts)
                    .filter(|(_, n)| 0 < **n)
                    .map(|(label, n)| json!({ "label": label.name(), "n": n, "height": format!("{:.2}", *n as f64 * 100.0 / most as f64) }))
                    .collect();
                json!({ "from": from, "range": range, "n": sums[bar], "parts": parts })
            })
            .collect();
        json!({ "name": self.name, "thresholds": self.thresholds, "bars": bars })
    }
}

/// A bound as people write it.
fn short(bound: f64) -> String {
    if 1000.0 <= bound { format!("{}k", bound / 1000.0) } else { format!("{bound}") }
}
