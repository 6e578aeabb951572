//! The public vocabularies of tiktoken, from the tables that tiktoken-rs carries.

use std::collections::BTreeMap;

use tiktoken_rs::CoreBPE;

use crate::bpe::{Bpe, Special};
use crate::error::TokenizerError;
use crate::{Kind, Tokenizer, words};

/// A public vocabulary of tiktoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// `r50k_base`: GPT-2 and GPT-3.
    R50k,
    /// `cl100k_base`: GPT-3.5 and GPT-4.
    Cl100k,
    /// `o200k_base`: GPT-4o and later.
    O200k,
}

impl Vocabulary {
    /// All of them, the smallest first.
    pub const ALL: [Self; 3] = [Self::R50k, Self::Cl100k, Self::O200k];

    /// tiktoken's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::R50k => "r50k_base",
            Self::Cl100k => "cl100k_base",
            Self::O200k => "o200k_base",
        }
    }

    /// The vocabulary of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|vocabulary| vocabulary.name() == name)
    }

    /// How many tokens merges make, whose ids are the first ones; and the special tokens.
    fn ids(self) -> (u32, &'static [(&'static str, u32)]) {
        match self {
            Self::R50k => (50_256, &[(END_OF_TEXT, 50_256)]),
            Self::Cl100k => (
                100_256,
                &[
                    (END_OF_TEXT, 100_257),
                    ("<|fim_prefix|>", 100_258),
                    ("<|fim_middle|>", 100_259),
                    ("<|fim_suffix|>", 100_260),
                    ("<|endofprompt|>", 100_276),
                ],
            ),
            Self::O200k => (199_998, &[(END_OF_TEXT, 199_999), ("<|endofprompt|>", 200_018)]),
        }
    }
}

const END_OF_TEXT: &str = "<|endoftext|>";

impl Tokenizer {
    /// A public vocabulary of tiktoken. Any text gets the ids that tiktoken gives it; bytes that are no text get ids as well.
    ///
    /// # Errors
    ///
    /// If tiktoken-rs carries other tables than those of this version.
    pub fn tiktoken(vocabulary: Vocabulary) -> Result<Self, TokenizerError> {
        let wrong = |error: String| TokenizerError::Table { vocabulary: vocabulary.name(), error };
        let (make, pattern): (fn() -> _, _) = match vocabulary {
            Vocabulary::R50k => (tiktoken_rs::r50k_base, words::R50K),
            Vocabulary::Cl100k => (tiktoken_rs::cl100k_base, words::CL100K),
            Vocabulary::O200k => (tiktoken_rs::o200k_base, words::O200K),
        };
        let table: CoreBPE = make().map_err(|error| wrong(error.to_string()))?;
        let (n_ordinary, special) = vocabulary.ids();
        let bytes = |id| table.decode_bytes(&[id]).map(|bytes| (bytes, id)).map_err(|error| wrong(error.to_string()));
        let ordinary = (0..n_ordinary).map(bytes).collect::<Result<Vec<_>, _>>()?;
        let special: BTreeMap<String, Special> =
            special.iter().map(|(text, id)| ((*text).to_owned(), Special { id: *id, is_hidden: true })).collect();
        let eos = special[END_OF_TEXT].id;
        let bpe = Bpe::new(ordinary, special, pattern).map_err(TokenizerError::Refused)?;
        Ok(Self { kind: Kind::Bpe(Box::new(bpe)), bos: None, eos: vec![eos], layout: None })
    }
}
