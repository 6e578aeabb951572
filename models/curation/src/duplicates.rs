//! Finds exact and near-duplicates: BLAKE3 of the whole, MinHash over shingles of five words, bands, connected components, and which copy stays.
//!
//! The stages are apart, so that each can run on its own share of a corpus: [`signature`] looks at one document; [`band_keys`] gives the keys by which an engine
//! groups documents; [`pairs`] looks at one group; [`clusters`] needs the pairs only, 8 bytes each.
//!
//! Signatures are of one permutation: a shingle's hash chooses one of the slots, and the slot keeps the least hash. Slots that stay empty, in short documents,
//! take the value of the slot that a fixed sequence of hashes leads them to (optimal densification, Shrivastava 2017). A document so costs one hash for
//! each shingle, whatever the number of slots, and the share of equal slots still estimates the Jaccard similarity.

use std::collections::{BTreeMap, HashMap};

use petgraph::unionfind::UnionFind;

use crate::hash::{is_word, mix, with_byte};

/// How many words make a shingle.
pub const SHINGLE: usize = 5;

/// How signatures are cut into bands: two documents are compared if all rows of one band are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bands {
    /// How many bands.
    pub n: usize,
    /// How many slots each has.
    pub rows: usize,
}

impl Bands {
    /// 32 bands of 8: 42 of 100 pairs at 0.6 become candidates, and 99.7 of 100 at 0.8.
    pub const DEFAULT: Bands = Bands { n: 32, rows: 8 };
    /// FineWeb's and datatrove's.
    pub const FINEWEB: Bands = Bands { n: 14, rows: 8 };
    /// RefineCode's (arXiv 2411.04905).
    pub const REFINE_CODE: Bands = Bands { n: 16, rows: 128 };

    /// The number of slots of a signature.
    pub fn slots(self) -> usize {
        self.n * self.rows
    }

    /// How likely two documents of this Jaccard similarity become candidates.
    pub fn probability(self, similarity: f64) -> f64 {
        1.0 - (1.0 - similarity.powi(self.rows as i32)).powi(self.n as i32)
    }

    /// The probability at every twentieth.
    pub fn points(self) -> impl Iterator<Item = (f64, f64)> {
        let similarities = (6..=20).map(|step: u32| f64::from(step) / 20.0);
        similarities.map(move |similarity| (similarity, self.probability(similarity)))
    }

    /// The same, one a line, for people to choose by.
    pub fn curve(self) -> String {
        let line = |(similarity, probability): (f64, f64)| {
            let bar = "#".repeat((probability * 50.0).round() as usize);
            format!("{similarity:.2}  {probability:.4}  {bar}\n")
        };
        self.points().map(line).collect()
    }
}

/// The hashes of a document's shingles, sorted, each once: what its exact similarity to another is computed from. Documents of fewer words than a shingle
/// are one shingle; empty ones have none.
pub fn shingles(text: &str) -> Vec<u64> {
    let mut shingles = Vec::with_capacity(text.len() / 5);
    each_shingle(text, |hash| shingles.push(hash));
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

/// The Jaccard similarity of two sets as [`shingles`] gives them; 1 for two empty ones.
pub fn jaccard(lhs: &[u64], rhs: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0_usize);
    while i < lhs.len() && j < rhs.len() {
        let (l, r) = (lhs[i], rhs[j]);
        both += usize::from(l == r);
        i += usize::from(l <= r);
        j += usize::from(r <= l);
    }
    let either = lhs.len() + rhs.len() - both;
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

/// The MinHash signature of a document; `None` if it has no word.
pub fn signature(text: &str, bands: Bands) -> Option<Vec<u32>> {
    let n = bands.slots() as u64;
    let mut slots = vec![u32::MAX; bands.slots()];
    let mut any = false;
    each_shingle(text, |hash| {
        // The upper half chooses the slot, the lower half is the value; the last value stands for an empty slot.
        let slot = (((hash >> 32) * n) >> 32) as usize;
        let value = (hash as u32).min(u32::MAX - 1);
        slots[slot] = slots[slot].min(value);
        any = true;
    });
    any.then(|| densified(&slots))
}

/// Fills every empty slot from a full one. Which one depends on the slot and the attempt alone, so that two documents with the same full slots agree.
fn densified(slots: &[u32]) -> Vec<u32> {
    let n = slots.len() as u64;
    // With probability 1 an attempt finds a full slot; should 64 of each slot's all fail, the first full one ends the search.
    let first = slots.iter().copied().find(|value| *value != u32::MAX).unwrap_or(u32::MAX);
    let fill = |slot: usize| {
        let attempts = (1..=64 * n).map(|attempt| mix(((slot as u64) << 40) | attempt));
        let mut values = attempts.map(|hash| slots[(((hash >> 32) * n) >> 32) as usize]);
        values.find(|value| *value != u32::MAX).unwrap_or(first)
    };
    slots.iter().enumerate().map(|(slot, value)| if *value == u32::MAX { fill(slot) } else { *value }).collect()
}

/// The key of each band: documents that share one are candidates. The band's number is part of it.
pub fn band_keys(signature: &[u32], bands: Bands) -> impl Iterator<Item = u64> {
    signature
        .chunks_exact(bands.rows)
        .enumerate()
        .map(|(band, rows)| rows.iter().fold(mix(band as u64), |key, row| mix(key ^ u64::from(*row))))
}

/// A group of more documents than this is cut into blocks, so that no group costs its square.
pub const MAX_GROUP: usize = 256;

/// The candidate pairs of one group: documents that share a band's key, in ascending order. Of a large group each is compared with those of its block, and the
/// first of the next block with all of this one: the chain connects them.
pub fn pairs(group: &[u32]) -> impl Iterator<Item = (u32, u32)> {
    let blocks = (0..group.len()).step_by(MAX_GROUP);
    blocks.flat_map(|start| {
        let block = &group[start..group.len().min(start + MAX_GROUP + 1)];
        block.iter().enumerate().flat_map(move |(at, rhs)| block[..at].iter().map(|lhs| (*lhs, *rhs)))
    })
}

/// The share of equal slots: an estimate of the Jaccard similarity, with a standard deviation of `sqrt(s * (1 - s) / slots)`.
pub fn similarity(lhs: &[u32], rhs: &[u32]) -> f64 {
    let equal = lhs.iter().zip(rhs).filter(|(lhs, rhs)| lhs == rhs).count();
    equal as f64 / lhs.len() as f64
}

/// For each document the cluster that it is in, by the number of the cluster's first document.
pub fn clusters(n_documents: usize, edges: impl IntoIterator<Item = (u32, u32)>) -> Vec<u32> {
    let mut sets: UnionFind<u32> = UnionFind::new(n_documents);
    for (lhs, rhs) in edges {
        sets.union(lhs, rhs);
    }
    let mut first: HashMap<u32, u32> = HashMap::new();
    let documents = 0..n_documents as u32;
    documents.map(|document| *first.entry(sets.find(document)).or_insert(document)).collect()
}

/// Which document of a cluster stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The first one of the corpus.
    First,
    /// The longest; the first of those.
    Longest,
}

/// What a corpus has twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicates {
    /// For each document the one that stays in its place; itself if it stays.
    pub kept: Vec<u32>,
    /// How many documents are byte for byte another one that comes before them.
    pub n_exact: usize,
    /// How many others went.
    pub n_near: usize,
}

/// The first document of each content: for every document the one that it is a copy of, itself if of none before it.
pub fn originals(texts: &[&str]) -> Vec<u32> {
    let mut by_hash: HashMap<blake3::Hash, u32> = HashMap::new();
    let documents = (0_u32..).zip(texts);
    documents.map(|(document, text)| *by_hash.entry(blake3::hash(text.as_bytes())).or_insert(document)).collect()
}

/// The pairs of different documents that share a band's key and have at least this Jaccard similarity, in ascending order. Candidates that signatures place
/// far below it are not compared; the others are, exactly.
pub fn near_pairs(texts: &[&str], originals: &[u32], bands: Bands, threshold: f64) -> Vec<(u32, u32)> {
    let is_original = |document: u32| originals[document as usize] == document;
    let documents = (0_u32..).zip(texts);
    let signatures: Vec<Option<Vec<u32>>> =
        documents.map(|(document, text)| is_original(document).then(|| signature(text, bands)).flatten()).collect();
    let mut groups: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for (document, signature) in (0_u32..).zip(&signatures) {
        for key in signature.iter().flat_map(|signature| band_keys(signature, bands)) {
            groups.entry(key).or_default().push(document);
        }
    }
    let mut candidates: Vec<(u32, u32)> = groups.values().flat_map(|group| pairs(group)).collect();
    candidates.sort_unstable();
    candidates.dedup();
    // Six deviations: what is outside is no error of the estimate.
    let deviation = (threshold * (1.0 - threshold) / bands.slots() as f64).sqrt();
    let bound = threshold - 6.0 * deviation;
    let mut sets: HashMap<u32, Vec<u64>> = HashMap::new();
    candidates.retain(|(lhs, rhs)| {
        let estimate = match (&signatures[*lhs as usize], &signatures[*rhs as usize]) {
            (Some(lhs), Some(rhs)) => similarity(lhs, rhs),
            _ => 0.0,
        };
        if estimate < bound {
            return false;
        }
        for document in [lhs, rhs] {
            sets.entry(*document).or_insert_with(|| shingles(texts[*document as usize]));
        }
        threshold <= jaccard(&sets[lhs], &sets[rhs])
    });
    candidates
}

/// Runs all stages over documents in memory.
pub fn find_duplicates(texts: &[&str], bands: Bands, threshold: f64, keep: Keep) -> Duplicates {
    let originals = originals(texts);
    let copies = (0_u32..).zip(&originals).filter(|(document, original)| document != *original);
    let copies: Vec<(u32, u32)> = copies.map(|(document, original)| (*original, document)).collect();
    let n_exact = copies.len();
    let near = near_pairs(texts, &originals, bands, threshold);
    let clusters = clusters(texts.len(), copies.into_iter().chain(near));
    let mut best: Vec<u32> = (0_u32..).take(texts.len()).collect();
    if keep == Keep::Longest {
        for (document, cluster) in (0_u32..).zip(&clusters) {
            let best = &mut best[*cluster as usize];
            if texts[*best as usize].len() < texts[document as usize].len() {
                *best = document;
            }
        }
    }
    let kept: Vec<u32> = clusters.iter().map(|cluster| best[*cluster as usize]).collect();
    let n_gone = (0_u32..).zip(&kept).filter(|(document, kept)| document != *kept).count();
    Duplicates { kept, n_exact, n_near: n_gone - n_exact }
}

/// The hash of every run of [`SHINGLE`] words. Words are taken without letter case, and what is neither letter, digit nor `_` separates them.
fn each_shingle(text: &str, mut shingle: impl FnMut(u64)) {
    let mut ring = [0_u64; SHINGLE];
    let mut n_words = 0_usize;
    each_word(text, |word| {
        ring[n_words % SHINGLE] = word;
        n_words += 1;
        if SHINGLE <= n_words {
            shingle(hash_ring(&ring, n_words));
        }
    });
    if 0 < n_words && n_words < SHINGLE {
        shingle(hash_ring(&ring, 0));
    }
}

/// Hashes the ring from its oldest word on.
fn hash_ring(ring: &[u64; SHINGLE], n_words: usize) -> u64 {
    let hash = (0..SHINGLE).fold(0_u64, |hash, k| {
        (hash ^ ring[(n_words + k) % SHINGLE]).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(23)
    });
    mix(hash)
}

/// The hash of every word.
fn each_word(text: &str, mut word: impl FnMut(u64)) {
    let (mut hash, mut any) = (0_u64, false);
    for byte in text.bytes() {
        if is_word(byte) {
            hash = with_byte(hash, byte);
            any = true;
        } else if any {
            word(mix(hash));
            (hash, any) = (0, false);
        }
    }
    if any {
        word(mix(hash));
    }
}
