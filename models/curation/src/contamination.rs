//! Finds what of an evaluation set stands in a document: runs of words that both have, with their place in the document and in the set.
//!
//! Words are taken as GPT-3's authors did (arXiv 2005.14165, appendix C): runs of letters, digits and `_` without letter case, so that neither white space nor
//! punctuation hides a copy. A document and an item overlap if they share [`Evaluations::DEFAULT_RUN`] words in a row; an item of fewer words must stand
//! whole in the document, and one of fewer than [`Evaluations::MIN_RUN`] is too short to say anything. datatrove's `n_grams.py` takes 12 words, and finds what
//! this finds and runs of exactly 12.
//!
//! The sets' runs are hashed into one sorted table behind a filter of bits, 16 bytes a run and as many at most; a document costs a hash and one bit for each of its words
//! and each length of a run, and what the table has is compared word by word.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::hash::{is_word, mix, with_byte};
use crate::lines::Lines;

/// The items of evaluation sets, ready to be looked for.
#[derive(Debug)]
pub struct Evaluations {
    items: Vec<Item>,
    /// Runs by hash, then by item and place.
    runs: Vec<Run>,
    /// A bit for the low end of each hash.
    filter: Vec<u64>,
    /// Words of a run, and of the items that are shorter.
    lengths: BTreeSet<usize>,
    length: usize,
}

#[derive(Debug)]
struct Item {
    name: String,
    text: String,
    words: Vec<Word>,
    n_runs: usize,
}

/// A word's hash and where it is, in bytes.
#[derive(Debug, Clone, Copy)]
struct Word {
    hash: u64,
    start: u32,
    end: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    hash: u64,
    item: u32,
    /// The item's word at which it starts.
    word: u32,
}

/// Words that a document and an item share in a row, as many as there are.
#[derive(Debug, Clone, PartialEq)]
pub struct Overlap<'e> {
    /// The item.
    pub item: &'e str,
    /// The item's line at which it starts, from 1.
    pub item_line: usize,
    /// Where it stands in the document, in bytes.
    pub span: Range<usize>,
    /// Its line, from 1.
    pub line: usize,
    /// Its column, in bytes from 1.
    pub column: usize,
    /// How many words it has.
    pub n_words: usize,
    /// Whether it is the same byte for byte; otherwise letter case, white space or punctuation differ.
    pub is_exact: bool,
    /// The share of the item's runs that stand in the document, over all overlaps with it.
    pub coverage: f64,
}

impl Evaluations {
    /// GPT-3's longest run.
    pub const DEFAULT_RUN: usize = 13;
    /// GPT-3's shortest.
    pub const MIN_RUN: usize = 8;

    /// Takes the items of all sets, each with its name, and how many words an overlap has.
    pub fn new(items: impl IntoIterator<Item = (String, String)>, length: usize) -> Evaluations {
        let length = length.max(1);
        let mut evaluations =
            Evaluations { items: Vec::new(), runs: Vec::new(), filter: Vec::new(), lengths: BTreeSet::new(), length };
        for (name, text) in items {
            evaluations.add(name, text);
        }
        evaluations.runs.sort_unstable();
        evaluations.runs.dedup();
        // 64 bits a run or more: of other texts one of 64 runs or fewer is looked up for nothing.
        evaluations.filter = vec![0; evaluations.runs.len().next_power_of_two()];
        for run in &evaluations.runs {
            let (word, bit) = place(run.hash, evaluations.filter.len());
            evaluations.filter[word] |= bit;
        }
        evaluations
    }

    fn add(&mut self, name: String, text: String) {
        // Places are of 32 bits; what is longer than that is no item of a set that people wrote.
        let Ok(index) = u32::try_from(self.items.len()) else { return };
        let words = words(&text);
        let length = self.length.min(words.len());
        if length < Self::MIN_RUN.min(self.length) || u32::try_from(text.len()).is_err() {
            return;
        }
        self.lengths.insert(length);
        let mut seen = BTreeSet::new();
        each_run(&words, length, |word, hash| {
            // A run that an item has twice is one.
            if seen.insert(hash) {
                self.runs.push(Run { hash, item: index, word: word as u32 });
            }
        });
        self.items.push(Item { name, text, words, n_runs: seen.len() });
    }

    /// How many items are looked for: those that have enough words.
    pub fn n_items(&self) -> usize {
        self.items.len()
    }

    /// How many different runs are looked for.
    pub fn n_runs(&self) -> usize {
        self.runs.len()
    }

    /// The bytes that they take, but for the items' texts.
    pub fn n_bytes(&self) -> usize {
        let words: usize = self.items.iter().map(|item| item.words.len() * size_of::<Word>()).sum();
        self.runs.len() * size_of::<Run>() + self.filter.len() * size_of::<u64>() + words
    }

    /// Every overlap of a document, by item and then by place.
    pub fn find(&self, text: &str) -> Vec<Overlap<'_>> {
        if self.runs.is_empty() || u32::try_from(text.len()).is_err() {
            return Vec::new();
        }
        let words = words(text);
        let mut found: Vec<Shared> = Vec::new();
        for &length in &self.lengths {
            each_run(&words, length, |word, hash| {
                let (at, bit) = place(hash, self.filter.len());
                if self.filter[at] & bit != 0 {
                    self.look_up(text, &words[word..word + length], word, hash, &mut found);
                }
            });
        }
        if found.is_empty() {
            return Vec::new();
        }
        found.sort_unstable_by_key(|shared| (shared.item, shared.word, shared.item_word));
        let lines = Lines::of(text.as_bytes());
        let mut overlaps = Vec::new();
        for shared in found.chunk_by(|lhs, rhs| lhs.item == rhs.item) {
            self.join(text, &words, &lines, shared, &mut overlaps);
        }
        overlaps
    }

    /// The items that have a run, as the document has it.
    fn look_up(&self, text: &str, run: &[Word], word: usize, hash: u64, found: &mut Vec<Shared>) {
        let first = self.runs.partition_point(|other| other.hash < hash);
        for other in self.runs[first..].iter().take_while(|other| other.hash == hash) {
            let item = &self.items[other.item as usize];
            let Some(same) = item.words.get(other.word as usize..other.word as usize + run.len()) else { continue };
            let is_same = |(lhs, rhs): (&Word, &Word)| lhs.text(text).eq_ignore_ascii_case(rhs.text(&item.text));
            if run.iter().zip(same).all(is_same) {
                found.push(Shared { item: other.item, word, item_word: other.word as usize, length: run.len() });
            }
        }
    }

    /// Joins the runs of one item that follow each other.
    fn join<'e>(
        &'e self,
        text: &str,
        words: &[Word],
        lines: &Lines,
        shared: &[Shared],
        overlaps: &mut Vec<Overlap<'e>>,
    ) {
        let item = &self.items[shared[0].item as usize];
        let runs: BTreeSet<usize> = shared.iter().map(|shared| shared.item_word).collect();
        let coverage = runs.len() as f64 / item.n_runs as f64;
        let item_lines = Lines::of(item.text.as_bytes());
        let follows = |lhs: &Shared, rhs: &Shared| lhs.word + 1 == rhs.word;
        for chain in shared.chunk_by(follows) {
            let n_words = chain.len() - 1 + chain[0].length;
            let span = range(&words[chain[0].word..chain[0].word + n_words]);
            let item_word = chain[0].item_word;
            // Where a text repeats itself, runs that follow each other in it need not do so in the item.
            let item_span = range(&item.words[item_word..item.words.len().min(item_word + n_words)]);
            let (line, column) = lines.place(span.start);
            overlaps.push(Overlap {
                item: &item.name,
                item_line: item_lines.place(item_span.start).0,
                is_exact: text.as_bytes()[span.clone()] == item.text.as_bytes()[item_span],
                span,
                line,
                column,
                n_words,
                coverage,
            });
        }
    }
}

/// A run that a document and an item share, by the words at which it starts.
struct Shared {
    item: u32,
    word: usize,
    item_word: usize,
    length: usize,
}

impl Word {
    fn text(self, source: &str) -> &[u8] {
        &source.as_bytes()[self.start as usize..self.end as usize]
    }
}

fn range(words: &[Word]) -> Range<usize> {
    let start = words.first().map_or(0, |word| word.start as usize);
    start..words.last().map_or(start, |word| word.end as usize)
}

/// Where the filter has the bit of a hash: a word, and the bit in it.
fn place(hash: u64, n_words: usize) -> (usize, u64) {
    ((hash >> 6) as usize & (n_words - 1), 1 << (hash & 63))
}

/// The words of a text of less than 4 GiB: letters, digits, `_`, and all that is not ASCII.
fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::with_capacity(text.len() / 6);
    let mut start = None;
    let mut hash = 0_u64;
    for (at, byte) in text.bytes().enumerate() {
        if is_word(byte) {
            start.get_or_insert(at as u32);
            hash = with_byte(hash, byte);
        } else if let Some(start) = start.take() {
            words.push(Word { hash: mix(hash), start, end: at as u32 });
            hash = 0;
        }
    }
    if let Some(start) = start {
        words.push(Word { hash: mix(hash), start, end: text.len() as u32 });
    }
    words
}

/// An odd number to whose powers words are weighed in the hash of a run.
const BASE: u64 = 0x9fb2_1c65_1e98_df25;

/// The hash of every run of words, in constant time each: the sum of the words' hashes weighed by powers of [`BASE`].
fn each_run(words: &[Word], length: usize, mut run: impl FnMut(usize, u64)) {
    if words.len() < length || length == 0 {
        return;
    }
    let highest = (1..length).fold(1_u64, |power, _| power.wrapping_mul(BASE));
    let mut hash = words[..length - 1].iter().fold(0_u64, |hash, word| hash.wrapping_mul(BASE).wrapping_add(word.hash));
    for (at, last) in words[length - 1..].iter().enumerate() {
        hash = hash.wrapping_mul(BASE).wrapping_add(last.hash);
        run(at, mix(hash));
        hash = hash.wrapping_sub(words[at].hash.wrapping_mul(highest));
    }
}
