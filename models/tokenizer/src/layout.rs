//! The layout of a vocabulary: which ids are controls, bytes, byte pairs, marks of syntax, and codes of images and sounds.
//!
//! Every range is fixed and no two share an id, so an id means the same to tokenizers, models and tools, whatever text it came from.

use std::collections::HashSet;
use std::ops::Range;

use serde::Deserialize;

use crate::error::TokenizerError;

/// Which ids mean what. Made by [`Layout::from_ron`], which checks it.
///
/// ```
/// let layout = tritter_tokenizer::Layout::of_size(65536).unwrap();
/// assert_eq!(layout.meaning(8 + 97), tritter_tokenizer::Meaning::Byte(b'a'));
/// assert_eq!(layout.audio_id(1, 5), Some(57344 + 1024 + 5));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    size: u32,
    /// Names, from id 0 on.
    control: Vec<String>,
    bos: Option<String>,
    eos: Vec<String>,
    /// The id of byte 0.
    bytes: u32,
    marks: Option<Block>,
    pairs: Option<Block>,
    image: Option<Block>,
    audio: Option<Books>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    first: u32,
    len: u32,
}

/// Codebooks of sounds, one after another.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Books {
    first: u32,
    books: u32,
    codes: u32,
}

/// What an id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// A control, by its name.
    Control(&'a str),
    /// A byte by itself.
    Byte(u8),
    /// A mark of syntax, by its number in [`marks`](crate::marks).
    Mark(u32),
    /// What the merge of this number makes.
    Pair(u32),
    /// A code of an image.
    Image(u32),
    /// A code of a sound.
    Audio {
        /// The codebook.
        book: u32,
        /// The code in it.
        code: u32,
    },
    /// Nothing.
    Nothing,
}

/// What is wrong with a layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutFault {
    /// A range ends after the vocabulary.
    #[error("{name} take the ids {} to {last}, and the vocabulary ends before {size}", range.start)]
    Outside {
        /// What the range is for.
        name: &'static str,
        /// The range; it may be longer than ids are.
        range: Range<u64>,
        /// Its last id.
        last: u64,
        /// Ids in the vocabulary.
        size: u32,
    },
    /// Two ranges share ids.
    #[error("{first} and {second} share the id {id}")]
    Shared {
        /// What one is for.
        first: &'static str,
        /// What the other is for.
        second: &'static str,
        /// The first id that they share.
        id: u64,
    },
    /// A range without ids, which would better not be there.
    #[error("the range of {0} is empty")]
    Empty(&'static str),
    /// Two controls of one name, or one without.
    #[error("the name {0:?} is not that of one control")]
    Name(String),
}

const SHIPPED: [(u32, &str); 3] = [
    (264, include_str!("../layouts/264.ron")),
    (32768, include_str!("../layouts/32768.ron")),
    (65536, include_str!("../layouts/65536.ron")),
];

impl Layout {
    /// Reads a layout, as the files in `layouts` have it.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn from_ron(text: &str) -> Result<Self, TokenizerError> {
        let layout: Self = ron::from_str(text).map_err(|error| TokenizerError::Ron(error.to_string()))?;
        layout.checked()
    }

    /// The layout that is shipped for a vocabulary of this size.
    pub fn of_size(size: u32) -> Option<Self> {
        let (_, text) = SHIPPED.iter().find(|(shipped, _)| *shipped == size)?;
        Some(Self::from_ron(text).expect("shipped layouts are tested"))
    }

    /// The layout of a vocabulary of text and code of any size: the shipped one if there is one, else its controls, its bytes, its marks of syntax if they
    /// leave as many ids for byte pairs, and byte pairs.
    ///
    /// # Errors
    ///
    /// If the size leaves no id for a byte pair.
    pub fn with_size(size: u32) -> Result<Self, TokenizerError> {
        if let Some(layout) = Self::of_size(size) {
            return Ok(layout);
        }
        let mut layout = Self::of_size(32768).expect("this size is shipped");
        layout.size = size;
        let fits = |marks: &Block| 2 * (marks.first + marks.len) <= size;
        layout.marks = layout.marks.filter(fits);
        let first = layout.marks.as_ref().map_or(layout.bytes + 256, |marks| marks.first + marks.len);
        layout.pairs = Some(Block { first, len: size.saturating_sub(first) });
        layout.checked()
    }

    /// The sizes for which a layout is shipped.
    pub fn sizes() -> impl Iterator<Item = u32> {
        SHIPPED.iter().map(|(size, _)| *size)
    }

    pub(crate) fn checked(self) -> Result<Self, TokenizerError> {
        let mut faults = Vec::new();
        let ranges = self.ranges();
        for (position, (name, range)) in ranges.iter().enumerate() {
            if range.is_empty() {
                faults.push(LayoutFault::Empty(name));
            }
            if u64::from(self.size) < range.end {
                let (range, size) = (range.clone(), self.size);
                faults.push(LayoutFault::Outside { name, last: range.end - 1, range, size });
            }
            for (other, before) in &ranges[..position] {
                let id = range.start.max(before.start);
                if id < range.end.min(before.end) {
                    faults.push(LayoutFault::Shared { first: other, second: name, id });
                }
            }
        }
        let mut names = HashSet::new();
        for name in &self.control {
            if name.is_empty() || !names.insert(name) {
                faults.push(LayoutFault::Name(name.clone()));
            }
        }
        let meant = self.bos.iter().chain(&self.eos).filter(|name| !names.contains(name));
        faults.extend(meant.map(|name| LayoutFault::Name(name.clone())));
        if faults.is_empty() { Ok(self) } else { Err(TokenizerError::Layout(faults)) }
    }

    /// The ranges that there are, in numbers that no sum overflows.
    fn ranges(&self) -> Vec<(&'static str, Range<u64>)> {
        let range = |first: u32, len: u64| u64::from(first)..u64::from(first) + len;
        let block = |block: &Block| range(block.first, u64::from(block.len));
        let control = (!self.control.is_empty()).then(|| range(0, self.control.len() as u64));
        let audio =
            self.audio.as_ref().map(|books| range(books.first, u64::from(books.books) * u64::from(books.codes)));
        [
            ("controls", control),
            ("bytes", Some(range(self.bytes, 256))),
            ("marks", self.marks.as_ref().map(block)),
            ("byte pairs", self.pairs.as_ref().map(block)),
            ("codes of images", self.image.as_ref().map(block)),
            ("codes of sounds", audio),
        ]
        .into_iter()
        .filter_map(|(name, range)| Some((name, range?)))
        .collect()
    }

    /// How many ids there are.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// What an id stands for.
    pub fn meaning(&self, id: u32) -> Meaning<'_> {
        let within = |first: u32, len: u32| id.checked_sub(first).filter(|at| *at < len);
        let in_block = |block: &Option<Block>| block.as_ref().and_then(|block| within(block.first, block.len));
        if let Some(name) = self.control.get(id as usize) {
            Meaning::Control(name)
        } else if let Some(byte) = id.checked_sub(self.bytes).and_then(|byte| u8::try_from(byte).ok()) {
            Meaning::Byte(byte)
        } else if let Some(mark) = in_block(&self.marks) {
            Meaning::Mark(mark)
        } else if let Some(merge) = in_block(&self.pairs) {
            Meaning::Pair(merge)
        } else if let Some(code) = in_block(&self.image) {
            Meaning::Image(code)
        } else {
            let books = self.audio.as_ref();
            let found = books.and_then(|books| Some((within(books.first, books.books * books.codes)?, books.codes)));
            found.map_or(Meaning::Nothing, |(at, codes)| Meaning::Audio { book: at / codes, code: at % codes })
        }
    }

    /// The id of a control.
    pub fn control_id(&self, name: &str) -> Option<u32> {
        self.control.iter().position(|control| control == name).map(|id| id as u32)
    }

    /// The id of a byte by itself.
    pub fn byte_id(&self, byte: u8) -> u32 {
        self.bytes + u32::from(byte)
    }

    /// The id of a mark of syntax.
    pub fn mark_id(&self, mark: u32) -> Option<u32> {
        self.marks.as_ref().filter(|block| mark < block.len).map(|block| block.first + mark)
    }

    /// The id of what a merge makes.
    pub fn pair_id(&self, merge: u32) -> Option<u32> {
        self.pairs.as_ref().filter(|block| merge < block.len).map(|block| block.first + merge)
    }

    /// The id of a code of an image.
    pub fn image_id(&self, code: u32) -> Option<u32> {
        self.image.as_ref().filter(|block| code < block.len).map(|block| block.first + code)
    }

    /// The id of a code of a sound.
    pub fn audio_id(&self, book: u32, code: u32) -> Option<u32> {
        let books = self.audio.as_ref().filter(|books| book < books.books && code < books.codes)?;
        Some(books.first + book * books.codes + code)
    }

    /// How many merges there is room for.
    pub fn n_pairs(&self) -> u32 {
        self.pairs.as_ref().map_or(0, |block| block.len)
    }

    pub(crate) fn bos_id(&self) -> Option<u32> {
        self.bos.as_ref().and_then(|name| self.control_id(name))
    }

    pub(crate) fn eos_ids(&self) -> Vec<u32> {
        self.eos.iter().filter_map(|name| self.control_id(name)).collect()
    }

    pub(crate) fn controls(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..).zip(self.control.iter().map(String::as_str))
    }

    /// As the tokenizer's file has it; [`Layout::deserialize`] reads it.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let block = |block: &Option<Block>| {
            block.as_ref().map(|block| serde_json::json!({"first": block.first, "len": block.len}))
        };
        let audio = self.audio.as_ref();
        serde_json::json!({
            "size": self.size,
            "control": self.control,
            "bos": self.bos,
            "eos": self.eos,
            "bytes": self.bytes,
            "marks": block(&self.marks),
            "pairs": block(&self.pairs),
            "image": block(&self.image),
            "audio": audio.map(|books| serde_json::json!({"first": books.first, "books": books.books, "codes": books.codes})),
        })
    }
}
