//! Judges the quality of a document by rule sets whose thresholds are published: three for text of the web, one for code; and measures code.
//!
//! Each rule set is a function that gives its first rule that rejects the document, by the name that datatrove gives it where it has the set, with the figure
//! that it rejects for. Measures are kept apart from verdicts: a corpus stores the measures, and filters late.

mod characters;
pub mod code;
pub mod web;

pub use characters::{n_sentences, words};

use code::{Language, Measures};

/// The name of a rule.
pub type Reason = &'static str;

/// One rule set's answer.
pub type Verdict = Result<(), Rejection>;

/// A rule that rejects a document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rejection {
    /// The rule.
    pub reason: Reason,
    /// What the document has.
    pub figure: f64,
    /// The most or the least that the rule takes.
    pub bound: f64,
}

/// Rejects what has more than the bound. A share of nothing is no number, and no reason.
fn at_most(reason: Reason, figure: f64, bound: f64) -> Verdict {
    if bound < figure { Err(Rejection { reason, figure, bound }) } else { Ok(()) }
}

/// Rejects what has the bound or more.
fn below(reason: Reason, figure: f64, bound: f64) -> Verdict {
    if bound <= figure { Err(Rejection { reason, figure, bound }) } else { Ok(()) }
}

/// Rejects what has less than the bound.
fn at_least(reason: Reason, figure: f64, bound: f64) -> Verdict {
    if figure < bound { Err(Rejection { reason, figure, bound }) } else { Ok(()) }
}

/// The rule sets that a corpus can be judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleSet {
    /// StarCoder's and StarCoder 2's, for code.
    StarCoder,
    /// Gopher's two, for text: quality, then repetition.
    Gopher,
    /// C4's, for text.
    C4,
    /// FineWeb's, for text.
    FineWeb,
}

impl RuleSet {
    /// All of them, in the order in which they judge.
    pub const ALL: [RuleSet; 4] = [RuleSet::StarCoder, RuleSet::Gopher, RuleSet::C4, RuleSet::FineWeb];

    /// Its name in options and in the output.
    pub fn name(self) -> &'static str {
        match self {
            RuleSet::StarCoder => "starcoder",
            RuleSet::Gopher => "gopher",
            RuleSet::C4 => "c4",
            RuleSet::FineWeb => "fineweb",
        }
    }

    /// The set of a name.
    pub fn of_name(name: &str) -> Option<RuleSet> {
        RuleSet::ALL.into_iter().find(|set| set.name() == name)
    }

    /// Its rules, with what each says of a document that it rejects.
    pub fn rules(self) -> &'static [(Reason, &'static str)] {
        match self {
            RuleSet::StarCoder => code::STARCODER,
            RuleSet::Gopher => web::GOPHER,
            RuleSet::C4 => web::C4,
            RuleSet::FineWeb => web::FINEWEB,
        }
    }

    /// What a rule says.
    pub fn meaning(self, reason: &str) -> Option<&'static str> {
        self.rules().iter().find(|(rule, _)| *rule == reason).map(|(_, meaning)| *meaning)
    }
}

/// The verdicts of rule sets on a document with these measures, in the order of [`RuleSet::ALL`].
pub fn judge(
    sets: &[RuleSet],
    text: &str,
    measures: &Measures,
    language: Option<&Language>,
) -> Vec<(RuleSet, Verdict)> {
    let needs_words = sets.iter().any(|set| matches!(set, RuleSet::Gopher | RuleSet::FineWeb));
    let words = if needs_words { words(text) } else { Vec::new() };
    let verdict = |set: RuleSet| match set {
        RuleSet::StarCoder => code::starcoder(measures, language),
        RuleSet::Gopher => web::gopher_quality(text, &words).and_then(|()| web::gopher_repetition(text, &words)),
        RuleSet::C4 => web::c4(text).map(drop),
        RuleSet::FineWeb => web::fineweb(text, &words),
    };
    RuleSet::ALL.into_iter().filter(|set| sets.contains(set)).map(|set| (set, verdict(set))).collect()
}
