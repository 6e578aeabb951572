//! Byte pairs: which adjacent tokens become one, until none do.
//!
//! Ids are ranks: of all adjacent pairs that spell a token, the one of the smallest id is merged first, the leftmost of equals. A word that is a token
//! is that token. Both is what tiktoken does.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use rustc_hash::FxBuildHasher;

use crate::key::{Key, MAX_KEY_LEN};

/// No token.
const NONE: u32 = u32::MAX;

/// Up to this length a word's pairs are searched anew after each merge: that takes the square of the length, but no queue.
const MAX_SEARCHED: usize = 64;

/// The tokens of a vocabulary by their bytes.
#[derive(Clone)]
pub(crate) struct Merges {
    byte_ids: [u32; 256],
    /// The ids of tokens of two bytes, at the number that these are.
    pair_ids: Vec<u32>,
    /// An open table of the tokens that have a key; the ids stand apart because few keys that are asked for are found.
    keys: Vec<Key>,
    ids: Vec<u32>,
    bits: u32,
    /// The longer tokens.
    long: HashMap<Box<[u8]>, u32, FxBuildHasher>,
    max_len: usize,
}

impl Merges {
    /// The tables of some tokens, each byte among them.
    pub(crate) fn new<'a>(byte_ids: [u32; 256], tokens: impl Iterator<Item = (u32, &'a [u8])> + Clone) -> Self {
        let n_short = tokens.clone().filter(|(_, bytes)| bytes.len() <= MAX_KEY_LEN).count();
        let bits = (2 * n_short).max(16).next_power_of_two().trailing_zeros();
        let mut merges = Self {
            byte_ids,
            pair_ids: vec![NONE; 1 << 16],
            keys: vec![Key::default(); 1 << bits],
            ids: vec![NONE; 1 << bits],
            bits,
            long: HashMap::default(),
            max_len: 1,
        };
        for (id, bytes) in tokens {
            merges.max_len = merges.max_len.max(bytes.len());
            if let [first, second] = *bytes {
                merges.pair_ids[usize::from(u16::from_le_bytes([first, second]))] = id;
            }
            match Key::of(bytes, 0, bytes.len()) {
                Some(key) => {
                    let slot = merges.slot(key);
                    merges.keys[slot] = key;
                    merges.ids[slot] = id;
                }
                None => {
                    merges.long.insert(bytes.into(), id);
                }
            }
        }
        merges
    }

    pub(crate) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// Where a key stands, or where it would.
    #[inline(always)]
    fn slot(&self, key: Key) -> usize {
        let mut slot = key.hash(self.bits);
        while self.keys[slot] != key && !self.keys[slot].is_empty() {
            slot = (slot + 1) & (self.keys.len() - 1);
        }
        slot
    }

    #[inline(always)]
    fn find_key(&self, key: Key) -> u32 {
        self.ids[self.slot(key)]
    }

    #[inline(always)]
    fn find(&self, word: &[u8], start: usize, end: usize) -> u32 {
        match Key::of(word, start, end - start) {
            Some(key) => self.find_key(key),
            None if self.max_len < end - start => NONE,
            None => self.long.get(&word[start..end]).copied().unwrap_or(NONE),
        }
    }

    /// Appends the ids of a word of at most fifteen bytes, all of which its key holds.
    pub(crate) fn encode_key(&self, key: Key, ids: &mut Vec<u32>) {
        let whole = self.find_key(key);
        if whole != NONE {
            return ids.push(whole);
        }
        let len = key.len();
        // Where each part starts, and the id of what it makes with the next one.
        let mut starts = [0_u8; 17];
        let mut ranks = [NONE; 16];
        for at in 0..len {
            starts[at] = at as u8;
            ranks[at] = if at + 1 < len { self.pair_ids[key.pair(at)] } else { NONE };
        }
        starts[len] = len as u8;
        let mut n_parts = len;
        while let Some(first) = least(&ranks[..n_parts]) {
            starts.copy_within(first + 2..=n_parts, first + 1);
            ranks.copy_within(first + 2..n_parts, first + 1);
            n_parts -= 1;
            ranks[n_parts] = NONE;
            let rank = |part: usize| {
                if n_parts <= part + 1 {
                    return NONE;
                }
                let (start, end) = (usize::from(starts[part]), usize::from(starts[part + 2]));
                self.find_key(key.part(start, end - start))
            };
            ranks[first] = rank(first);
            if 0 < first {
                ranks[first - 1] = rank(first - 1);
            }
        }
        for part in 0..n_parts {
            let (start, end) = (usize::from(starts[part]), usize::from(starts[part + 1]));
            ids.push(self.find_key(key.part(start, end - start)));
        }
    }

    /// Appends the ids of a word, which has at least one byte.
    pub(crate) fn encode(&self, word: &[u8], ids: &mut Vec<u32>) {
        let whole = self.find(word, 0, word.len());
        if whole != NONE {
            ids.push(whole);
        } else if word.len() <= MAX_SEARCHED {
            self.encode_searched(word, ids);
        } else {
            self.encode_queued(word, ids);
        }
    }

    fn encode_searched(&self, word: &[u8], ids: &mut Vec<u32>) {
        let len = word.len();
        let mut starts = [0_u8; MAX_SEARCHED + 1];
        let mut ranks = [NONE; MAX_SEARCHED];
        for at in 0..len {
            starts[at] = at as u8;
            ranks[at] = if at + 1 < len { self.pair(word, at) } else { NONE };
        }
        starts[len] = len as u8;
        let mut n_parts = len;
        while let Some(first) = least(&ranks[..n_parts]) {
            starts.copy_within(first + 2..=n_parts, first + 1);
            ranks.copy_within(first + 2..n_parts, first + 1);
            n_parts -= 1;
            ranks[n_parts] = NONE;
            let rank = |part: usize| match n_parts <= part + 1 {
                true => NONE,
                false => self.find(word, usize::from(starts[part]), usize::from(starts[part + 2])),
            };
            ranks[first] = rank(first);
            if 0 < first {
                ranks[first - 1] = rank(first - 1);
            }
        }
        let parts = starts[..=n_parts].windows(2);
        ids.extend(parts.map(|part| self.find(word, usize::from(part[0]), usize::from(part[1]))));
    }

    #[inline(always)]
    fn pair(&self, word: &[u8], at: usize) -> u32 {
        self.pair_ids[usize::from(u16::from_le_bytes([word[at], word[at + 1]]))]
    }

    /// For long words: pairs wait in a queue by their rank, and parts are a list, so the time grows hardly faster than the word.
    fn encode_queued(&self, word: &[u8], ids: &mut Vec<u32>) {
        let len = word.len();
        // By the place where a part starts: where it ends, where the one before starts, the rank of the pair that it starts.
        let mut ends: Vec<usize> = (1..=len).collect();
        let mut before: Vec<usize> = (0..len).map(|at| at.saturating_sub(1)).collect();
        let mut ranks: Vec<u32> =
            (0..len).map(|at| if at + 1 < len { self.pair(word, at) } else { NONE }).collect();
        let waiting = ranks.iter().enumerate().filter(|(_, rank)| **rank != NONE);
        let mut queue: BinaryHeap<Reverse<(u32, usize)>> = waiting.map(|(at, rank)| Reverse((*rank, at))).collect();
        while let Some(Reverse((rank, left))) = queue.pop() {
            if ranks[left] != rank {
                // It waited under a rank that it has no more.
                continue;
            }
            let right = ends[left];
            let end = ends[right];
            ends[left] = end;
            ranks[right] = NONE;
            if end < len {
                before[end] = left;
            }
            // The pairs that the new part is in: with the part after it, and with the one before it.
            ranks[left] = ends.get(end).map_or(NONE, |&next_end| self.find(word, left, next_end));
            if ranks[left] != NONE {
                queue.push(Reverse((ranks[left], left)));
            }
            if 0 < left {
                let start = before[left];
                ranks[start] = self.find(word, start, end);
                if ranks[start] != NONE {
                    queue.push(Reverse((ranks[start], start)));
                }
            }
        }
        let mut start = 0;
        while start < len {
            ids.push(self.find(word, start, ends[start]));
            start = ends[start];
        }
    }
}

/// The first of the smallest ranks, unless there are no pairs.
#[inline(always)]
fn least(ranks: &[u32]) -> Option<usize> {
    let mut best = (NONE, 0);
    for (at, &rank) in ranks.iter().enumerate() {
        if rank < best.0 {
            best = (rank, at);
        }
    }
    (best.0 != NONE).then_some(best.1)
}
