//! The ids of words that were met before: most words of a text are.
//!
//! A place in a cache belongs to all words of one hash, and the last one stays. What is found is compared whole, so a cache changes no result. It
//! belongs to one thread at a time, which borrows it from the encoding and gives it back.

use std::sync::{Mutex, PoisonError};

use crate::key::{Key, MAX_KEY_LEN};
use crate::merge::Merges;

/// Places for words with a key, as a power of two: two megabytes. Half as many were slower by an eighth on sources, twice as many not faster.
const SHORT_BITS: u32 = 16;
/// Places for longer words, as a power of two.
const LONG_BITS: u32 = 12;
/// Longer words are merged anew: hardly one comes twice.
const MAX_LONG_LEN: usize = 128;
/// The most ids that fit into a place.
const MAX_SHORT_IDS: usize = 3;

/// A word of at most fifteen bytes: half a line of the processor's cache.
#[derive(Clone, Copy, Default)]
#[repr(align(32))]
struct Short {
    key: Key,
    ids: [u32; MAX_SHORT_IDS],
    n_ids: u32,
}

#[derive(Clone, Default)]
struct Long {
    word: Vec<u8>,
    ids: Vec<u32>,
}

/// The ids of words that were met before.
pub(crate) struct Cache {
    short: Vec<Short>,
    long: Vec<Long>,
    /// Reused from word to word.
    merged: Vec<u32>,
}

impl Cache {
    fn new() -> Self {
        Self { short: vec![Short::default(); 1 << SHORT_BITS], long: vec![Long::default(); 1 << LONG_BITS], merged: Vec::new() }
    }

    /// Appends the ids of the word that `text[start..end]` is. It has at least one byte.
    #[inline(always)]
    pub(crate) fn encode(&mut self, merges: &Merges, text: &[u8], start: usize, end: usize, ids: &mut Vec<u32>) {
        let Some(key) = Key::of(text, start, end - start) else {
            return self.encode_long(merges, &text[start..end], ids);
        };
        let place = &self.short[key.hash(SHORT_BITS)];
        if place.key == key {
            ids.push(place.ids[0]);
            if 1 < place.n_ids {
                ids.extend_from_slice(&place.ids[1..place.n_ids as usize]);
            }
            return;
        }
        self.encode_new(merges, key, ids);
    }

    #[cold]
    #[inline(never)]
    fn encode_new(&mut self, merges: &Merges, key: Key, ids: &mut Vec<u32>) {
        let n_before = ids.len();
        merges.encode_key(key, ids);
        let new = &ids[n_before..];
        if new.len() <= MAX_SHORT_IDS {
            let mut place = Short { key, n_ids: new.len() as u32, ids: [0; MAX_SHORT_IDS] };
            place.ids[..new.len()].copy_from_slice(new);
            self.short[key.hash(SHORT_BITS)] = place;
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
