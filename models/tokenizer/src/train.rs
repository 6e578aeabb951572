//! Training of byte pairs: the pair of tokens that stands side by side most often becomes a token, again and again, until the vocabulary is full.
//!
//! Pairs are within words. Of pairs that are as frequent the one of the smallest ids is taken, so that the same corpus always gives the same vocabulary.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use rustc_hash::FxBuildHasher;

use crate::bpe::{Bpe, Special};
use crate::error::{Refusal, TokenizerError};
use crate::layout::Layout;
use crate::words::{self, Words};
use crate::{Kind, Tokenizer};

/// A word of the corpus as tokens, and how often it stands there.
struct Word {
    tokens: Vec<u32>,
    count: u64,
}

type Pair = (u32, u32);

/// What is known of a pair.
#[derive(Default)]
struct Uses {
    count: u64,
    /// Words that have it, or had it.
    words: Vec<u32>,
}

impl Tokenizer {
    /// Trains byte pairs for a layout on documents, until every id that it has for them is used. Words are those of o200k_base.
    ///
    /// # Errors
    ///
    /// If the layout has no place for byte pairs, or the documents have too few different ones.
    pub fn train<D: AsRef<[u8]>>(
        layout: Layout,
        documents: impl IntoIterator<Item = D>,
    ) -> Result<Self, TokenizerError> {
        let cutter =
            Words::new(words::O200K).map_err(|error| TokenizerError::Refused(vec![Refusal::Pattern(error)]))?;
        let n_wanted = layout.n_pairs();
        let tokens = learn(counted(&cutter, documents), n_wanted as usize);
        let n_found = tokens.len() - 256;
        if n_found < n_wanted as usize || n_wanted == 0 {
            return Err(TokenizerError::Corpus { n_found, n_wanted });
        }
        let ids =
            (0..=255).map(|byte| layout.byte_id(byte)).chain((0..n_wanted).filter_map(|merge| layout.pair_id(merge)));
        let ordinary = tokens.into_iter().zip(ids).collect();
        let special: BTreeMap<String, Special> =
            layout.controls().map(|(id, name)| (name.to_owned(), Special { id, is_hidden: true })).collect();
        let bpe = Bpe::new(ordinary, special, words::O200K).map_err(TokenizerError::Refused)?;
        let (bos, eos) = (layout.bos_id(), layout.eos_ids());
        Ok(Self { kind: Kind::Bpe(Box::new(bpe)), bos, eos, layout: Some(layout) })
    }
}

/// The words of documents that are longer than a byte, in the order of their bytes. What is no text trains nothing.
fn counted<D: AsRef<[u8]>>(cutter: &Words, documents: impl IntoIterator<Item = D>) -> Vec<Word> {
    let mut counts: HashMap<Box<[u8]>, u64, FxBuildHasher> = HashMap::default();
    for document in documents {
        for chunk in document.as_ref().utf8_chunks() {
            let text = chunk.valid();
            cutter.cut(text, |range| {
                let word = &text.as_bytes()[range];
                match counts.get_mut(word) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(word.into(), 1)),
                }
            });
        }
    }
    let mut counts: Vec<(Box<[u8]>, u64)> = counts.into_iter().filter(|(word, _)| 1 < word.len()).collect();
    counts.sort_unstable();
    let word =
        |(word, count): (Box<[u8]>, u64)| Word { tokens: word.iter().map(|&byte| u32::from(byte)).collect(), count };
    counts.into_iter().map(word).collect()
}

/// The bytes of all tokens: single bytes, and what up to `n_merges` merges make, in their order.
fn learn(mut words: Vec<Word>, n_merges: usize) -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut known: HashMap<Vec<u8>, u32, FxBuildHasher> = HashMap::default();
    let mut uses: HashMap<Pair, Uses, FxBuildHasher> = HashMap::default();
    for (index, word) in (0..).zip(&words) {
        for pair in word.tokens.windows(2) {
            let uses = uses.entry((pair[0], pair[1])).or_default();
            uses.count += word.count;
            if uses.words.last() != Some(&index) {
                uses.words.push(index);
            }
        }
    }
    let mut queue: BinaryHeap<(u64, Reverse<Pair>)> =
        uses.iter().map(|(pair, uses)| (uses.count, Reverse(*pair))).collect();
    while tokens.len() < 256 + n_merges {
        let Some((count, Reverse(pair))) = queue.pop() else { break };
        let now = uses.get(&pair).map_or(0, |uses| uses.count);
        if now != count {
            // Merges have changed how often it is there since it was queued.
            if 0 < now && now < count {
                queue.push((now, Reverse(pair)));
            }
            continue;
        }
        let bytes = [&tokens[pair.0 as usize][..], &tokens[pair.1 as usize]].concat();
        // Two pairs may spell the same bytes, which are one token.
        let token = *known.entry(bytes).or_insert_with_key(|bytes| {
            tokens.push(bytes.clone());
            tokens.len() as u32 - 1
        });
        let mut places = uses.remove(&pair).map(|uses| uses.words).unwrap_or_default();
        places.sort_unstable();
        places.dedup();
        let mut grown = BTreeSet::new();
        for index in places {
            let word = &mut words[index as usize];
            for pair in word.tokens.windows(2) {
                if let Some(uses) = uses.get_mut(&(pair[0], pair[1])) {
                    uses.count -= word.count;
                }
            }
            merge(&mut word.tokens, pair, token);
            for pair in word.tokens.windows(2).map(|pair| (pair[0], pair[1])) {
                let uses = uses.entry(pair).or_default();
                uses.count += word.count;
                if pair.0 == token || pair.1 == token {
                    grown.insert(pair);
                    uses.words.push(index);
                }
            }
        }
        queue.extend(grown.into_iter().map(|pair| (uses[&pair].count, Reverse(pair))));
    }
    tokens
}

/// Puts a token in the place of each pair, from the left.
fn merge(tokens: &mut Vec<u32>, pair: Pair, token: u32) {
    let (mut read, mut write) = (0, 0);
    while read < tokens.len() {
        let is_pair = tokens[read] == pair.0 && tokens.get(read + 1) == Some(&pair.1);
        tokens[write] = if is_pair { token } else { tokens[read] };
        read += if is_pair { 2 } else { 1 };
        write += 1;
    }
    tokens.truncate(write);
}
