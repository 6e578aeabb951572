//! Why curation could not start or go on. What a document holds is never an error.

/// Why a stage could not be built, or a corpus not be read.
#[derive(Debug, thiserror::Error)]
pub enum CurationError {
    /// A file of rules is not TOML, or has a field that no rule has.
    #[error("{file}: {error}")]
    RuleFile {
        /// The file, as the caller names it.
        file: String,
        /// What is wrong, and where.
        error: Box<toml::de::Error>,
    },
    /// A rule of the file is not well formed.
    #[error("rule `{rule}`: {problem}")]
    Rule {
        /// The rule's id.
        rule: String,
        /// What is wrong with it.
        problem: RuleProblem,
    },
    /// Two rules have one id.
    #[error("two rules are named `{0}`")]
    SameRule(String),
    /// Rules are numbered in 16 bits.
    #[error("{0} rules are too many")]
    TooManyRules(usize),
    /// The keywords of all rules do not fit one automaton.
    #[error("the keywords do not make an automaton: {0}")]
    Keywords(#[from] Box<aho_corasick::BuildError>),
}

/// What can be wrong with one rule.
#[derive(Debug, thiserror::Error)]
pub enum RuleProblem {
    /// Exactly one of the three says what a rule looks for.
    #[error("needs exactly one of `prefix`, `near` and `regex`, and `value` with the first two only")]
    Form,
    /// Without a keyword a rule would run on every byte.
    #[error("has no keyword")]
    NoKeyword,
    /// The regular expression does not parse or is too large.
    #[error("{0}")]
    Regex(Box<regex_automata::meta::BuildError>),
    /// The expression has fewer groups than `secretGroup` says.
    #[error("has no group {0}")]
    NoGroup(usize),
}
