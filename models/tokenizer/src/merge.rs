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

/// No pair that spells a token: more than any rank and place.
const NO_PAIR: i32 = i32::MAX;
/// Bits for a place below a rank. Ids have at most 24 bits more.
const PLACE_BITS: u32 = 6;
const PLACE_MASK: usize = (1 << PLACE_BITS) - 1;

/// The filter has so many times as many bits as the table has slots, as a power of two.
const FILTER_BITS: u32 = 3;

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
    /// A bit for each hash that a token has. Most parts that are asked for are no token, and this is small enough to stay near the processor.
    filter: Vec<u64>,
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
            filter: vec![0; 1 << (bits + FILTER_BITS - 6)],
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
                    let bit = key.hash(bits + FILTER_BITS);
                    merges.filter[bit / 64] |= 1 << (bit % 64);
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
        let bit = key.hash(self.bits + FILTER_BITS);
        if self.filter[bit / 64] >> (bit % 64) & 1 == 0 {
            return NONE;
        }
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
        let find = |start: usize, end: usize| match end - start {
            1 => self.byte_ids[key.byte(start)],
            2 => self.pair_ids[key.pair(start)],
            len => self.find_key(key.part(start, len)),
        };
        merge_searched::<16>(key.len(), find, ids);
    }

    /// Appends the ids of a word, which has at least one byte.
    pub(crate) fn encode(&self, word: &[u8], ids: &mut Vec<u32>) {
        let whole = self.find(word, 0, word.len());
        if whole != NONE {
            ids.push(whole);
        } else if word.len() <= MAX_SEARCHED {
            merge_searched::<MAX_SEARCHED>(word.len(), |start, end| self.find(word, start, end), ids);
        } else {
            self.encode_queued(word, ids);
        }
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
        let mut ranks: Vec<u32> = (0..len).map(|at| if at + 1 < len { self.pair(word, at) } else { NONE }).collect();
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

/// Merges a word of at most `N` bytes, and `N` is at most 64: `find` gives the id of a part of it.
///
/// Where parts start are the bits of a number. With each goes one number that is compared: the rank of what the part makes with the next one, and below
/// it the place, so that the least is the leftmost of the first to merge.
#[inline(always)]
fn merge_searched<const N: usize>(len: usize, find: impl Fn(usize, usize) -> u32, ids: &mut Vec<u32>) {
    debug_assert!(0 < len && len <= N && N <= 64, "longer words are merged with a queue");
    let place = |id: u32, start: usize| if id == NONE { NO_PAIR } else { (id << PLACE_BITS | start as u32) as i32 };
    let mut pairs = [NO_PAIR; N];
    for (start, pair) in pairs.iter_mut().enumerate().take(len - 1) {
        *pair = place(find(start, start + 2), start);
    }
    let mut starts = u64::MAX >> (64 - len);
    let next = |starts: u64, start: usize| match starts >> start >> 1 {
        0 => len,
        after => start + 1 + after.trailing_zeros() as usize,
    };
    loop {
        let first = pairs[..len].iter().copied().fold(NO_PAIR, i32::min);
        if first == NO_PAIR {
            break;
        }
        let start = first as usize & (N - 1) & PLACE_MASK;
        let gone = next(starts, start);
        starts &= !(1 << gone);
        pairs[gone] = NO_PAIR;
        let end = next(starts, start);
        pairs[start] = if end < len { place(find(start, next(starts, end)), start) } else { NO_PAIR };
        let before = starts & ((1 << start) - 1);
        if before != 0 {
            let before = 63 - before.leading_zeros() as usize;
            pairs[before] = place(find(before, end), before);
        }
    }
    let mut start = 0;
    while start < len {
        let end = next(starts, start);
        ids.push(find(start, end));
        start = end;
    }
}
