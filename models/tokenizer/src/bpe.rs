//! Byte-level byte-pair encoding: text is cut into words, and the bytes of each word are merged.

use std::collections::{BTreeMap, HashSet};

use crate::cache::Pool;
use crate::error::Refusal;
use crate::merge::Merges;
use crate::words::Words;

/// A special token: one that no text is merged to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Special {
    pub(crate) id: u32,
    /// Whether it is left out of decoded text.
    pub(crate) is_hidden: bool,
}

/// A byte-pair encoding whose ids are the ranks of its merges.
#[derive(Clone)]
pub(crate) struct Bpe {
    merges: Merges,
    /// What cuts a text into words, which are merged each by itself.
    words: Words,
    caches: Pool,
    /// The bytes of each id; empty for ids without a meaning and for hidden special tokens.
    tokens: Vec<Box<[u8]>>,
    special: BTreeMap<String, Special>,
    /// The tokens that merges make, by id.
    ordinary: BTreeMap<u32, Box<[u8]>>,
}

/// Ids beyond this are damage: no vocabulary is so large, and the table of tokens would not fit in memory.
const MAX_ID: u32 = 1 << 24;

impl Bpe {
    /// An encoding of these tokens.
    ///
    /// # Errors
    ///
    /// Ids that are too large or given twice, bytes without an id, a pattern that is none.
    pub(crate) fn new(
        ordinary: Vec<(Vec<u8>, u32)>,
        special: BTreeMap<String, Special>,
        pattern: &str,
    ) -> Result<Self, Vec<Refusal>> {
        let mut refusals = Vec::new();
        let mut by_id: BTreeMap<u32, Box<[u8]>> = BTreeMap::new();
        let mut byte_ids = [None; 256];
        for (bytes, id) in &ordinary {
            if MAX_ID < *id {
                refusals.push(Refusal::IdTooLarge(*id));
            } else if by_id.insert(*id, bytes.as_slice().into()).is_some() {
                refusals.push(Refusal::DuplicateId(*id));
            }
            if let [byte] = bytes[..] {
                byte_ids[usize::from(byte)] = Some(*id);
            }
        }
        let missing = (0..=255_u8).filter(|&byte| byte_ids[usize::from(byte)].is_none());
        refusals.extend(missing.map(Refusal::MissingByte));
        let mut special_ids = HashSet::new();
        for Special { id, .. } in special.values() {
            if MAX_ID < *id {
                refusals.push(Refusal::IdTooLarge(*id));
            } else if by_id.contains_key(id) || !special_ids.insert(*id) {
                refusals.push(Refusal::DuplicateId(*id));
            }
        }
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let byte_ids = byte_ids.map(|id| id.expect("a byte without an id was refused"));
        let vocab_len = by_id.keys().chain(special.values().map(|special| &special.id)).max().map_or(0, |id| id + 1);
        let mut tokens: Vec<Box<[u8]>> = vec![Box::from([]); vocab_len as usize];
        for (id, bytes) in &by_id {
            tokens[*id as usize].clone_from(bytes);
        }
        for (text, special) in &special {
            if !special.is_hidden {
                tokens[special.id as usize] = text.as_bytes().into();
            }
        }
        let words = Words::new(pattern).map_err(|error| vec![Refusal::Pattern(error)])?;
        let merges = Merges::new(byte_ids, by_id.iter().map(|(id, bytes)| (*id, &**bytes)));
        Ok(Self { merges, words, caches: Pool::default(), tokens, special, ordinary: by_id })
    }

    pub(crate) fn vocab_len(&self) -> u32 {
        u32::try_from(self.tokens.len()).expect("ids are smaller than 2^24")
    }

    pub(crate) fn pattern(&self) -> &str {
        self.words.pattern()
    }

    pub(crate) fn special(&self) -> &BTreeMap<String, Special> {
        &self.special
    }

    /// The tokens that merges make, by id.
    pub(crate) fn ordinary(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.ordinary.iter().map(|(id, bytes)| (*id, &**bytes))
    }

    /// The bytes of one id.
    pub(crate) fn bytes_of(&self, id: u32) -> &[u8] {
        self.tokens.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// Whether an id has a meaning.
    pub(crate) fn has(&self, id: u32) -> bool {
        !self.bytes_of(id).is_empty() || self.special.values().any(|special| special.id == id)
    }

    /// The ids of bytes: text is cut into words and merged, what is no text is taken byte by byte.
    pub(crate) fn encode(&self, bytes: &[u8]) -> Vec<u32> {
        // Few texts have more ids than half their bytes; what is not needed is never touched.
        let mut ids = Vec::with_capacity(bytes.len() / 2);
        if let Ok(text) = std::str::from_utf8(bytes) {
            self.encode_text(text, &mut ids);
            return ids;
        }
        for chunk in bytes.utf8_chunks() {
            self.encode_text(chunk.valid(), &mut ids);
            ids.extend(chunk.invalid().iter().map(|&byte| self.merges.byte_id(byte)));
        }
        ids
    }

    /// As [`Bpe::encode`], with special tokens where they are spelt out; of several that start in one place the longest.
    pub(crate) fn encode_with_special(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let (mut start, mut at) = (0, 0);
        while at < text.len() {
            let spelt = self.special.iter().filter(|(special, _)| text[at..].starts_with(special.as_str()));
            match spelt.max_by_key(|(special, _)| special.len()).filter(|(special, _)| !special.is_empty()) {
                Some((special, Special { id, .. })) => {
                    self.encode_text(&text[start..at], &mut ids);
                    ids.push(*id);
                    at += special.len();
                    start = at;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        self.encode_text(&text[start..], &mut ids);
        ids
    }

    fn encode_text(&self, text: &str, ids: &mut Vec<u32>) {
        self.caches.with(|cache| cache.encode(&self.merges, &self.words, text, ids));
    }
}

/// The characters that GPT-2 writes bytes as: printable ones of Latin 1 as themselves, the 68 others from U+0100 on, in order.
pub(crate) fn byte_chars() -> [char; 256] {
    let mut chars = ['\0'; 256];
    let mut next = 0x100;
    for byte in 0..=255_u8 {
        let is_printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        chars[usize::from(byte)] = if is_printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("U+0100 to U+0143 are characters")
        };
    }
    chars
}
