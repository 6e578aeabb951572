//! Bytes to token ids and back, without loss.
//!
//! | kind | ids |
//! |---|---|
//! | bytes | byte `b` is id `offset + b`; ids below the offset have special meanings |
//! | byte pairs | byte-level BPE, as Llama 3 and BitNet 2B4T have it; read from a Hugging Face `tokenizer.json` |
//!
//! Either may follow a [`Layout`], which says what ids beside those of text mean: controls, marks of syntax, codes of images and sounds.
//!
//! Any bytes can be encoded, and decoding gives them back. A [`Tokenizer`] is written to and read from one JSON file, which travels with a model.
//! Nothing here reads a file: text comes in, ids go out.
//!
//! | feature | what it adds |
//! |---|---|
//! | `tiktoken` | `Tokenizer::tiktoken`: the public vocabularies r50k_base, cl100k_base and o200k_base |
//! | `chat` | `chat`: messages as one text, by a model's template |
//! | `code` | `code`: token boundaries where the syntax of a source has them |

#![forbid(unsafe_code)]

mod bpe;
mod words;
mod merge;
mod key;
mod cache;
mod error;
mod file;
mod hugging_face;
mod layout;
pub mod marks;
#[cfg(feature = "code")]
pub mod code;
#[cfg(feature = "chat")]
pub mod chat;
mod train;
#[cfg(feature = "tiktoken")]
mod tiktoken;
mod stream;

pub use error::{Refusal, TokenizerError};
pub use layout::{Layout, LayoutFault, Meaning};
pub use stream::{StreamDecoder, Utf8Stream};
#[cfg(feature = "tiktoken")]
pub use tiktoken::Vocabulary;

use bpe::Bpe;

/// Where byte 0 stands in the byte tokenizer of this project's models.
pub const BYTE_OFFSET: u32 = 8;
/// The id that starts a text there.
pub const BYTE_BOS: u32 = 1;
/// The id that ends a text there.
pub const BYTE_EOS: u32 = 2;

/// The file of that tokenizer, as [`Tokenizer::to_json`] writes it.
pub const BYTES_JSON: &str = "{\"kind\":\"bytes\",\"offset\":8,\"bos\":1,\"eos\":[2]}\n";

/// Turns bytes into ids and back.
#[derive(Clone)]
pub struct Tokenizer {
    kind: Kind,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// Which ids have what meaning, where that is not the tokenizer's own affair.
    layout: Option<Layout>,
}

#[derive(Clone)]
enum Kind {
    Bytes { offset: u32 },
    Bpe(Box<Bpe>),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("kind", &self.kind_name())
            .field("vocab_len", &self.vocab_len())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish()
    }
}

impl Tokenizer {
    /// The byte tokenizer of this project's models: byte `b` is `b + 8`, id 1 starts a text, id 2 ends it.
    pub fn bytes() -> Self {
        Self { kind: Kind::Bytes { offset: BYTE_OFFSET }, bos: Some(BYTE_BOS), eos: vec![BYTE_EOS], layout: None }
    }

    /// A byte tokenizer with ids of one's own.
    ///
    /// # Errors
    ///
    /// If the ids of bytes leave the range of ids, or a special id is that of a byte.
    pub fn bytes_with(offset: u32, bos: Option<u32>, eos: &[u32]) -> Result<Self, TokenizerError> {
        let tokenizer = Self { kind: Kind::Bytes { offset }, bos, eos: eos.to_vec(), layout: None };
        let mut refusals = Vec::new();
        if i32::MAX as u32 - 256 < offset {
            refusals.push(Refusal::Offset(offset));
        } else {
            let is_byte = |id: &&u32| (offset..offset + 256).contains(*id);
            refusals.extend(bos.iter().chain(eos).filter(is_byte).map(|&id| Refusal::SpecialIsByte(id)));
        }
        if refusals.is_empty() { Ok(tokenizer) } else { Err(TokenizerError::Refused(refusals)) }
    }

    /// A byte tokenizer for a layout: its byte pairs, if it has any, are not used. [`Tokenizer::train`] makes one that does.
    pub fn bytes_of(layout: Layout) -> Self {
        let kind = Kind::Bytes { offset: layout.byte_id(0) };
        Self { kind, bos: layout.bos_id(), eos: layout.eos_ids(), layout: Some(layout) }
    }

    /// The tokenizer of a Hugging Face `tokenizer.json`, if it is byte-level BPE whose ids are the ranks of its merges.
    ///
    /// `bos` is the id that starts a text; where it is not given, it is what the file's template puts first. `eos` are the ids that end a text,
    /// which that file does not say: config.json and generation_config.json do.
    ///
    /// # Errors
    ///
    /// Everything that makes it another kind of tokenizer.
    pub fn from_hugging_face(json: &str, bos: Option<u32>, eos: &[u32]) -> Result<Self, TokenizerError> {
        let (bpe, template_bos) = hugging_face::read(json)?;
        Ok(Self { kind: Kind::Bpe(Box::new(bpe)), bos: bos.or(template_bos), eos: eos.to_vec(), layout: None })
    }

    /// Reads what [`Tokenizer::to_json`] wrote; or a Hugging Face `tokenizer.json` as it is, which knows no ids that end a text.
    ///
    /// # Errors
    ///
    /// If it is something else.
    pub fn from_json(json: &str) -> Result<Self, TokenizerError> {
        file::read(json)
    }

    /// The tokenizer as one file, the same for the same tokenizer.
    pub fn to_json(&self) -> String {
        file::write(self)
    }

    /// `bytes` or `bpe`.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Bytes { .. } => "bytes",
            Kind::Bpe(_) => "bpe",
        }
    }

    /// The id that starts a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The ids that end a text.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Which ids have what meaning, if that is laid down.
    pub fn layout(&self) -> Option<&Layout> {
        self.layout.as_ref()
    }

    /// One more than the largest id that has a meaning. A model may have more.
    pub fn vocab_len(&self) -> u32 {
        if let Some(layout) = &self.layout {
            return layout.size();
        }
        let special = self.bos.iter().chain(&self.eos).max().map_or(0, |id| id + 1);
        match &self.kind {
            Kind::Bytes { offset } => (offset + 256).max(special),
            Kind::Bpe(bpe) => bpe.vocab_len().max(special),
        }
    }

    /// The ids of bytes, which need not be a text. Special tokens that are spelt out in it are bytes like any other; none is added.
    pub fn encode(&self, bytes: impl AsRef<[u8]>) -> Vec<u32> {
        match &self.kind {
            Kind::Bytes { offset } => bytes.as_ref().iter().map(|&byte| offset + u32::from(byte)).collect(),
            Kind::Bpe(bpe) => bpe.encode(bytes.as_ref()),
        }
    }

    /// As [`Tokenizer::encode`], but special tokens that are spelt out become their ids. For prompts that a program wrote, not its users.
    pub fn encode_with_special(&self, text: &str) -> Vec<u32> {
        match &self.kind {
            Kind::Bytes { .. } => self.encode(text),
            Kind::Bpe(bpe) => bpe.encode_with_special(text),
        }
    }

    /// The ids of documents that zero bytes separate, or rather start: each zero byte becomes the id that starts a text.
    ///
    /// Without such an id zero bytes are bytes like any other.
    pub fn encode_documents(&self, bytes: impl AsRef<[u8]>) -> Vec<u32> {
        let Some(bos) = self.bos else { return self.encode(bytes) };
        let mut ids = Vec::new();
        for (position, document) in bytes.as_ref().split(|&byte| byte == 0).enumerate() {
            if 0 < position {
                ids.push(bos);
            }
            ids.extend(self.encode(document));
        }
        ids
    }

    /// The bytes that ids stand for. Special ids and ids without a meaning stand for none.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ids.len());
        for &id in ids {
            self.append_bytes(id, &mut bytes);
        }
        bytes
    }

    /// The text that ids stand for, with U+FFFD for bytes that are no text.
    pub fn decode_text(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode(ids)).into_owned()
    }

    /// Whether an id is one of the vocabulary: it stands for bytes, or for a control that no bytes are of.
    pub fn has(&self, id: u32) -> bool {
        if let Some(layout) = &self.layout {
            return id < layout.size() && layout.meaning(id) != Meaning::Nothing;
        }
        match &self.kind {
            Kind::Bytes { .. } => id < self.vocab_len(),
            Kind::Bpe(bpe) => bpe.has(id) || self.bos == Some(id) || self.eos.contains(&id),
        }
    }

    /// A decoder for ids that come one after another.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// Appends the bytes of one id.
    pub(crate) fn append_bytes(&self, id: u32, bytes: &mut Vec<u8>) {
        if let Some(Meaning::Mark(mark)) = self.layout.as_ref().map(|layout| layout.meaning(id)) {
            return bytes.extend_from_slice(marks::text(mark).as_bytes());
        }
        match &self.kind {
            Kind::Bytes { offset } => bytes.extend(id.checked_sub(*offset).and_then(|byte| u8::try_from(byte).ok())),
            Kind::Bpe(bpe) => bytes.extend_from_slice(bpe.bytes_of(id)),
        }
    }
}
