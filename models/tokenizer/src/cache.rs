//! The ids of words that were met before: most words of a text are.
//!
//! A place in a cache belongs to all words of one hash, and the last one stays. What is found is compared whole, so a cache changes no result. It
//! belongs to one thread at a time, which borrows it from the encoding and gives it back.

use std::sync::{Mutex, PoisonError};

use crate::key::{Key, MAX_KEY_LEN};
use crate::merge::Merges;
use crate::words::Words;

/// Lines of places for words with a key, as a power of two: two megabytes. More and fewer made no difference that could be measured.
const SHORT_BITS: u32 = 15;
/// Places for longer words, as a power of two.
const LONG_BITS: u32 = 12;
/// Longer words are merged anew: hardly one comes twice.
const MAX_LONG_LEN: usize = 128;
/// The most ids that fit into a place.
const MAX_SHORT_IDS: usize = 4;
/// Where the number of ids stands in the first one: ids have fewer bits.
const COUNT_SHIFT: u32 = 25;
const ID_MASK: u32 = (1 << COUNT_SHIFT) - 1;
/// How many words are looked up together.
const BATCH: usize = 64;

/// A word of at most fifteen bytes.
#[derive(Clone, Copy, Default)]
struct Short {
    key: Key,
    /// The ids, with their number above the first one.
    ids: [u32; MAX_SHORT_IDS],
}

/// Words that are looked up together.
struct Batch {
    keys: [Key; BATCH],
    places: [(usize, usize); BATCH],
    len: usize,
}

/// Two words of one hash, the later one first: a line of the processor's cache.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line([Short; 2]);

#[derive(Clone, Default)]
struct Long {
    word: Vec<u8>,
    ids: Vec<u32>,
}

/// The ids of words that were met before.
pub(crate) struct Cache {
    short: Vec<Line>,
    long: Vec<Long>,
    /// Reused from word to word.
    merged: Vec<u32>,
}

impl Cache {
    fn new() -> Self {
        Self {
            short: vec![Line::default(); 1 << SHORT_BITS],
            long: vec![Long::default(); 1 << LONG_BITS],
            merged: Vec::new(),
        }
    }

    /// Appends the ids of a text.
    ///
    /// Words are first cut and then looked up, some at a time: where a word ends is hard to foresee for a processor, and each time that it errs
    /// would also throw away the look-ups that it has begun.
    #[inline(always)]
    pub(crate) fn encode(&mut self, merges: &Merges, words: &Words, text: &str, ids: &mut Vec<u32>) {
        let mut batch = Batch { keys: [Key::default(); BATCH], places: [(0, 0); BATCH], len: 0 };
        let bytes = text.as_bytes();
        words.cut(text, |word| {
            // Long words have no key, and are found by their places.
            let key = Key::of(bytes, word.start, word.end - word.start).unwrap_or_default();
            batch.keys[batch.len % BATCH] = key;
            batch.places[batch.len % BATCH] = (word.start, word.end);
            batch.len += 1;
            if batch.len == BATCH {
                self.encode_batch(merges, bytes, &batch, ids);
                batch.len = 0;
            }
        });
        self.encode_batch(merges, bytes, &batch, ids);
    }

    #[inline(never)]
    fn encode_batch(&mut self, merges: &Merges, text: &[u8], batch: &Batch, ids: &mut Vec<u32>) {
        // What is found is written here with whatever stands behind it, because how many ids a word has is hard to foresee as well.
        let mut found = [0; (BATCH + 1) * MAX_SHORT_IDS];
        let mut n_found = 0;
        for (key, (start, end)) in batch.keys.iter().zip(&batch.places).take(batch.len) {
            let Line([first, second]) = &self.short[key.hash(SHORT_BITS)];
            let short = if first.key == *key { first } else { second };
            if short.key != *key || key.is_empty() {
                ids.extend_from_slice(&found[..n_found]);
                n_found = 0;
                if key.is_empty() {
                    self.encode_long(merges, &text[*start..*end], ids);
                } else {
                    self.encode_new(merges, *key, ids);
                }
                continue;
            }
            if let Some(place) = found.get_mut(n_found..).and_then(<[u32]>::first_chunk_mut::<MAX_SHORT_IDS>) {
                *place = short.ids.map(|id| id & ID_MASK);
            }
            n_found += (short.ids[0] >> COUNT_SHIFT) as usize;
        }
        ids.extend_from_slice(&found[..n_found]);
    }

    #[cold]
    #[inline(never)]
    fn encode_new(&mut self, merges: &Merges, key: Key, ids: &mut Vec<u32>) {
        let n_before = ids.len();
        merges.encode_key(key, ids);
        let new = &ids[n_before..];
        if new.len() <= MAX_SHORT_IDS {
            let mut short = Short { key, ids: [0; MAX_SHORT_IDS] };
            short.ids[..new.len()].copy_from_slice(new);
            short.ids[0] |= (new.len() as u32) << COUNT_SHIFT;
            let Line([first, second]) = &mut self.short[key.hash(SHORT_BITS)];
            *second = std::mem::replace(first, short);
        }
    }

    #[inline(never)]
    fn encode_long(&mut self, merges: &Merges, word: &[u8], ids: &mut Vec<u32>) {
        if MAX_LONG_LEN < word.len() {
            return merges.encode(word, ids);
        }
        let place = &mut self.long[hash(word)];
        if place.word != word {
            self.merged.clear();
            merges.encode(word, &mut self.merged);
            place.word.clear();
            place.word.extend_from_slice(word);
            place.ids.clone_from(&self.merged);
        }
        ids.extend_from_slice(&place.ids);
    }
}

/// A hash of a word of more than fifteen bytes.
fn hash(word: &[u8]) -> usize {
    debug_assert!(MAX_KEY_LEN < word.len(), "shorter words have a key");
    let mut hash = word.len() as u64;
    let (chunks, rest) = word.as_chunks::<8>();
    let last = rest.iter().fold(0, |last, &byte| last << 8 | u64::from(byte));
    for chunk in chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).chain([last]) {
        hash = (hash.rotate_left(23) ^ chunk).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    }
    (hash >> (64 - LONG_BITS)) as usize
}

/// Caches that no thread uses just now. A copy of it starts without any.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Cache>>);

impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Pool {
    /// Lends a cache for some work.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Cache) -> T) -> T {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cache = lock().pop().unwrap_or_else(Cache::new);
        let result = work(&mut cache);
        lock().push(cache);
        result
    }
}
