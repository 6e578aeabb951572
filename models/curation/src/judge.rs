//! Puts the stages together for one document: its label, why, every finding with its place, its measures, and the text without its secrets.

use crate::licence;
use crate::quality::code::{Language, Measures, measure, starcoder};
use crate::secrets::{CountTokens, Secrets, redact};
use crate::security::find_dangers;

/// What training does with a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// An example to follow.
    Positive,
    /// Code that works and has a fault that the findings name: an example of what not to do.
    Negative,
    /// Code that explains itself well above the usual.
    Educational,
    /// Nothing to learn from, or no right to.
    Rejected,
}

impl Label {
    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Label::Positive => "positive",
            Label::Negative => "negative",
            Label::Educational => "educational",
            Label::Rejected => "rejected",
        }
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A matter of style, or for a person to look at.
    Low,
    /// A fault.
    High,
    /// A fault that harms as it stands: a credential in its issuer's own format.
    Critical,
}

impl Severity {
    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Low => "low",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

/// One thing that a stage found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The stage, a slash, and the rule.
    pub rule: String,
    /// The line in the input, from 1.
    pub line: usize,
    /// The column, in bytes from 1.
    pub column: usize,
    /// How bad it is.
    pub severity: Severity,
}

/// What the stages say of one document.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// What training does with it.
    pub label: Label,
    /// What made the label.
    pub reason: &'static str,
    /// The language, by its path.
    pub language: Option<&'static str>,
    /// Its licence.
    pub licence: Option<String>,
    /// What was found, by place.
    pub findings: Vec<Finding>,
    /// What was counted.
    pub measures: Measures,
    /// The text without its secrets; `None` if it has none.
    pub redacted: Option<String>,
}

/// What a document is judged by.
#[derive(Clone, Copy)]
pub struct Criteria<'a> {
    /// The rules for credentials.
    pub secrets: &'a Secrets,
    /// Counts tokens.
    pub count_tokens: CountTokens<'a>,
    /// The licences that are allowed; all, and none at all, if absent.
    pub licences: Option<&'a [&'a str]>,
}

/// The share of comments from which code counts as educational: the mean of CPython's own library is about a quarter, and above two thirds little code is left.
const EDUCATIONAL_COMMENTS: std::ops::RangeInclusive<f64> = 0.30..=0.67;

/// The most branches to a function of educational code: McCabe's own bound.
const EDUCATIONAL_COMPLEXITY: usize = 10;

/// The branches to a function above which code is an example of what not to do; McCabe's bound, five times.
const NEGATIVE_COMPLEXITY: usize = 50;

/// Judges one document. `project` is the licence of the project that it is in, which holds where the document has no tag of its own.
pub fn judge(path: &str, text: &str, project: Option<&str>, criteria: Criteria<'_>) -> Judgement {
    let language = Language::of(path);
    let measures = measure(text, language);
    let secrets = criteria.secrets.find(text.as_bytes(), criteria.count_tokens);
    let mut findings: Vec<Finding> = secrets
        .iter()
        .map(|secret| Finding {
            rule: format!("secrets/{}", secret.rule.id),
            line: secret.line,
            column: secret.column,
            severity: if secret.rule.generic { Severity::High } else { Severity::Critical },
        })
        .collect();
    let quality = starcoder(&measures, language).err();
    if let Some(reason) = quality {
        let line = measures.generated.unwrap_or(1);
        findings.push(Finding { rule: format!("starcoder/{reason}"), line, column: 1, severity: Severity::Low });
    }
    let dangers =
        if language.is_some_and(|language| language.name == "python") { find_dangers(text) } else { Vec::new() };
    findings.extend(dangers.iter().map(|danger| Finding {
        rule: format!("security/{}", danger.rule.id),
        line: danger.line,
        column: danger.column,
        severity: danger.rule.severity,
    }));
    findings.sort_by_key(|finding| (finding.line, finding.column));
    let licence = licence::of_tag(text).or(project).map(str::to_owned);
    let is_allowed = criteria
        .licences
        .is_none_or(|allowed| licence.as_deref().is_some_and(|licence| licence::is_allowed(licence, allowed)));
    let complexity = measures.complexity / measures.n_functions.max(1);
    let (label, reason) = if !is_allowed {
        (Label::Rejected, "licence")
    } else if let Some(reason) = quality.filter(|reason| *reason != "comment_ratio") {
        (Label::Rejected, reason)
    } else if !secrets.is_empty() {
        (Label::Negative, "secrets")
    } else if dangers.iter().any(|danger| Severity::High <= danger.rule.severity) {
        (Label::Negative, "security")
    } else if 0 < measures.n_functions && NEGATIVE_COMPLEXITY < complexity {
        (Label::Negative, "complexity")
    } else if 0 < measures.n_functions
        && EDUCATIONAL_COMMENTS.contains(&measures.comments)
        && complexity <= EDUCATIONAL_COMPLEXITY
    {
        (Label::Educational, "documentation")
    } else {
        (Label::Positive, "no fault")
    };
    let redacted =
        (!secrets.is_empty()).then(|| String::from_utf8_lossy(&redact(text.as_bytes(), &secrets)).into_owned());
    Judgement { label, reason, language: language.map(|language| language.name), licence, findings, measures, redacted }
}
