//! Why a tokenizer could not be made.

use crate::layout::LayoutFault;

/// Why a tokenizer could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// The file is not the JSON that it should be.
    #[error("the tokenizer's file cannot be read: {0}")]
    Json(String),
    /// The file describes a tokenizer that is not supported; everything that makes it so is listed.
    #[error("the tokenizer is not supported:\n{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Refused(Vec<Refusal>),
    /// A layout's file is not the RON that it should be.
    #[error("the layout cannot be read: {0}")]
    Ron(String),
    /// A layout whose ranges do not fit; everything that is wrong is listed.
    #[error("the layout is not well formed:\n{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Layout(Vec<LayoutFault>),
    /// Documents with too few different byte pairs for a vocabulary.
    #[error("the documents have {n_found} byte pairs, and the layout has ids for {n_wanted}")]
    Corpus {
        /// How many tokens of several bytes can be made.
        n_found: usize,
        /// How many the layout has ids for.
        n_wanted: u32,
    },
    /// A chat template that is not well formed, or what it raised.
    #[error("the chat template failed: {0}")]
    Template(String),
    /// A language's grammar that cannot be used. Always a bug in tritter.
    #[error("the grammar of {language} cannot be used: {error}")]
    Grammar {
        /// The language.
        language: &'static str,
        /// Why not.
        error: String,
    },
    /// A public vocabulary's tables are not those that were expected.
    #[error("the tables of {vocabulary} cannot be read: {error}")]
    Table {
        /// The vocabulary.
        vocabulary: &'static str,
        /// Why not.
        error: String,
    },
}

/// What makes a tokenizer one that is not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another kind of model than byte pairs.
    #[error("its model is `{0}`, only `BPE` is supported")]
    Model(String),
    /// A setting that changes what ids a text gets.
    #[error("`{key}` is {found}, only {supported} is supported")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is supported.
        supported: &'static str,
    },
    /// The expression that cuts a text into words is none.
    #[error("the expression that cuts words cannot be used: {0}")]
    Pattern(String),
    /// An entry of the vocabulary that spells no bytes.
    #[error("`{0}` in the vocabulary does not spell bytes")]
    NotBytes(String),
    /// A byte that no id stands for.
    #[error("no id stands for the byte {0:#04x}")]
    MissingByte(u8),
    /// Two tokens of one id.
    #[error("the id {0} stands for two tokens")]
    DuplicateId(u32),
    /// An id beyond the range of ids.
    #[error("the id {0} is too large")]
    IdTooLarge(u32),
    /// A merge of tokens that are not in the vocabulary, or to one that is not.
    #[error("the merge of `{left}` and `{right}` is not of the vocabulary")]
    UnknownMerge {
        /// The first token.
        left: String,
        /// The second.
        right: String,
    },
    /// A merge whose id is smaller than that of a merge before it: then ids are not ranks.
    #[error("the merge to id {id} comes after the one to id {before}: ids are not the ranks of merges")]
    Rank {
        /// The merge's id.
        id: u32,
        /// The id before.
        before: u32,
    },
    /// A token of several bytes that no merge leads to.
    #[error("no merge leads to `{0}`")]
    Unreachable(String),
    /// A byte's id would be beyond the range of ids.
    #[error("the offset {0} leaves no room for 256 ids")]
    Offset(u32),
    /// Ids that are not where the layout in the same file has them.
    #[error("the ids are not those of the layout")]
    NotLaidOut,
    /// A special id that is the id of a byte.
    #[error("the special id {0} is that of a byte")]
    SpecialIsByte(u32),
}
