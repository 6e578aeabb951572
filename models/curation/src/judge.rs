//! Puts the stages together for one document: its label, why, every finding with its place, its measures, and the text without its secrets.

use std::borrow::Cow;

use crate::contamination::{Evaluations, Overlap};
use crate::licence;
use crate::lines::Lines;
use crate::quality::code::{Language, Measures, measure};
use crate::quality::{self, Rejection, RuleSet, Verdict};
use crate::secrets::{CountTokens, Secret, Secrets, redact};
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
    /// All of them.
    pub const ALL: [Label; 4] = [Label::Positive, Label::Educational, Label::Negative, Label::Rejected];

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
    /// A fault where its data come from outside, which the syntax does not show.
    Medium,
    /// A fault.
    High,
    /// A fault that harms as it stands: a credential in its issuer's own format.
    Critical,
}

impl Severity {
    /// All of them, the worst first.
    pub const ALL: [Severity; 4] = [Severity::Critical, Severity::High, Severity::Medium, Severity::Low];

    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Low => "low",
            Severity::Medium => "medium",
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
    /// What is wrong, for people.
    pub message: Cow<'static, str>,
    /// Its line, without secrets and no longer than people read.
    pub excerpt: String,
}

/// What the stages say of one document.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// What training does with it.
    pub label: Label,
    /// What made the label.
    pub reason: Cow<'static, str>,
    /// The language, by its path.
    pub language: Option<&'static str>,
    /// Its licence.
    pub licence: Option<String>,
    /// What was found, by place.
    pub findings: Vec<Finding>,
    /// What was counted.
    pub measures: Measures,
    /// What the rule sets say.
    pub quality: Vec<(RuleSet, Verdict)>,
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
    /// The evaluation sets that nothing may be of.
    pub evaluations: Option<&'a Evaluations>,
    /// The rule sets for quality.
    pub rules: &'a [RuleSet],
}

/// The share of comments and documentation of educational code. Of CPython 3.12's library without its tests a quarter of the files has more than 0.39 and
/// one in twenty more than 0.66, of 1,903 files of 45 much-used crates 0.36 and 0.65: from the upper quarter on, and not where little code is left.
pub const EDUCATIONAL_COMMENTS: std::ops::RangeInclusive<f64> = 0.36..=0.66;

/// The highest mean of McCabe's number over a file's functions in educational code: McCabe's own bound. The median is 2.4 in CPython's library and 1.8 in
/// the crates; above 10 are none of the one and 15 in 1,000 of the others.
pub const EDUCATIONAL_COMPLEXITY: f64 = 10.0;

/// The mean of McCabe's number above which code is an example of what not to do: twice McCabe's bound. Of the crates 4 files in 1,000 are above.
pub const NEGATIVE_COMPLEXITY: f64 = 20.0;

/// A rule that is a finding only: code without comments can be learnt from.
const NOT_REJECTED: &str = "comment_ratio";

/// Every label with all its reasons and what each means, for people: labels and reasons in the order in which they are decided.
pub fn reasons(rules: &[RuleSet]) -> Vec<(Label, &'static str, String)> {
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let (least, most) = (percent(*EDUCATIONAL_COMMENTS.start()), percent(*EDUCATIONAL_COMMENTS.end()));
    let mut reasons = vec![
        (Label::Rejected, "duplicate", "another document, which is the same or near it, stays in its place".to_owned()),
        (Label::Rejected, "licence", "its licence is not of the list, or it has none".to_owned()),
        (Label::Rejected, "contamination", "it has a part of an evaluation set".to_owned()),
    ];
    for set in RuleSet::ALL.into_iter().filter(|set| rules.contains(set)) {
        let rules = set.rules().iter().filter(|(reason, _)| *reason != NOT_REJECTED);
        reasons
            .extend(rules.map(|(reason, meaning)| (Label::Rejected, *reason, format!("{meaning} ({})", set.name()))));
    }
    reasons.extend([
        (Label::Negative, "secrets", "it has a credential, since taken out".to_owned()),
        (Label::Negative, "security", "it has a finding of high severity, or worse, of the rules for security".to_owned()),
        (Label::Negative, "complexity", format!("the mean complexity of its functions is above {NEGATIVE_COMPLEXITY}")),
        (
            Label::Educational,
            "documentation",
            format!(
                "comments and documentation are {least} to {most} of it, and the mean complexity of its functions is up to {EDUCATIONAL_COMPLEXITY}"
            ),
        ),
        (Label::Positive, "no fault", "all others".to_owned()),
    ]);
    reasons
}

/// Judges one document. `project` is the licence of the project that it is in, which holds where the document has no tag of its own.
pub fn judge(path: &str, text: &str, project: Option<&str>, criteria: Criteria<'_>) -> Judgement {
    let language = Language::of(path);
    let measures = measure(text, language);
    let secrets = criteria.secrets.find(text.as_bytes(), criteria.count_tokens);
    let lines = Lines::of(text.as_bytes());
    let mut findings: Vec<Finding> = Vec::new();
    let mut found = |rule: String, (line, column): (usize, usize), severity, message: Cow<'static, str>| {
        findings.push(Finding {
            rule,
            line,
            column,
            severity,
            message,
            excerpt: excerpt(text, &lines, line, &secrets),
        });
    };
    for secret in &secrets {
        let severity = if secret.rule.generic { Severity::High } else { Severity::Critical };
        let message = Cow::Owned(secret.rule.description.clone());
        found(format!("secrets/{}", secret.rule.id), (secret.line, secret.column), severity, message);
    }
    let quality = quality::judge(criteria.rules, text, &measures, language);
    for (set, verdict) in &quality {
        if let Err(rejection) = verdict {
            let place = (measures.generated.filter(|_| rejection.reason == "generated").unwrap_or(1), 1);
            let rule = format!("{}/{}", set.name(), rejection.reason);
            found(rule, place, Severity::Low, rejected(*set, rejection).into());
        }
    }
    let dangers = language.map_or(Vec::new(), |language| find_dangers(language.name, text));
    for danger in &dangers {
        let rule = format!("security/{}", danger.rule.id);
        found(rule, (danger.line, danger.column), danger.rule.severity, danger.message.clone());
    }
    let overlaps = criteria.evaluations.map_or(Vec::new(), |evaluations| evaluations.find(text));
    let is_contaminated = !overlaps.is_empty();
    for (overlap, n_more) in by_place(overlaps) {
        let kind = if overlap.is_exact { "exact" } else { "normalised" };
        let place = (overlap.line, overlap.column);
        found(format!("contamination/{kind}"), place, Severity::High, contamination(&overlap, n_more).into());
    }
    findings.sort_by_key(|finding| (finding.line, finding.column));
    let licence = licence::of_tag(text).or(project).map(str::to_owned);
    let is_allowed = criteria
        .licences
        .is_none_or(|allowed| licence.as_deref().is_some_and(|licence| licence::is_allowed(licence, allowed)));
    let complexity = measures.complexity_per_function();
    let mut rejections = quality.iter().filter_map(|(_, verdict)| verdict.err());
    let rejection = rejections.find(|rejection| rejection.reason != NOT_REJECTED);
    let (label, reason) = if !is_allowed {
        (Label::Rejected, "licence")
    } else if is_contaminated {
        (Label::Rejected, "contamination")
    } else if let Some(rejection) = rejection {
        (Label::Rejected, rejection.reason)
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
    let language = language.map(|language| language.name);
    Judgement { label, reason: reason.into(), language, licence, findings, measures, quality, redacted }
}

/// What a rule says of a document, with the figure that it rejects for.
fn rejected(set: RuleSet, rejection: &Rejection) -> String {
    let Rejection { reason, figure, bound } = rejection;
    let meaning = set.meaning(reason).unwrap_or(reason);
    // What must not stand anywhere has no bound to be told.
    if *bound == 0.0 {
        return meaning.to_owned();
    }
    // Counts are whole, and shares have a few digits.
    let short = |figure: f64| (figure * 1000.0).round() / 1000.0;
    format!("{meaning}: {}, the bound is {}", short(*figure), short(*bound))
}

/// Of overlaps with several items at one place the one that has most of its item, and how many others there are.
fn by_place(mut overlaps: Vec<Overlap<'_>>) -> Vec<(Overlap<'_>, usize)> {
    overlaps.sort_by(|lhs, rhs| {
        let place = (lhs.span.start, lhs.span.end).cmp(&(rhs.span.start, rhs.span.end));
        place.then(rhs.coverage.total_cmp(&lhs.coverage))
    });
    let groups = overlaps.chunk_by(|lhs, rhs| lhs.span == rhs.span);
    groups.map(|group| (group[0].clone(), group.len() - 1)).collect()
}

fn contamination(overlap: &Overlap<'_>, n_more: usize) -> String {
    let Overlap { item, item_line, n_words, coverage, .. } = overlap;
    let more = if n_more == 0 { String::new() } else { format!(", and of {n_more} more") };
    format!("{n_words} words of {item}, line {item_line}{more}; {:.0} % of it stands here", coverage * 100.0)
}

/// The most characters of a line that is shown.
const MAX_EXCERPT: usize = 160;

/// A line of a text, from 1, with `[secret:rule-id]` in the place of what of it is secret.
fn excerpt(text: &str, lines: &Lines, line: usize, secrets: &[Secret<'_>]) -> String {
    let span = lines.span(line);
    let mut shown = String::new();
    let mut from = span.start;
    for secret in secrets.iter().filter(|secret| secret.span.start < span.end && span.start < secret.span.end) {
        shown.push_str(&String::from_utf8_lossy(&text.as_bytes()[from..secret.span.start.max(from)]));
        shown.push_str(&format!("[secret:{}]", secret.rule.id));
        from = secret.span.end.clamp(from, span.end);
    }
    shown.push_str(&String::from_utf8_lossy(&text.as_bytes()[from..span.end]));
    let shown = shown.trim();
    match shown.char_indices().nth(MAX_EXCERPT) {
        Some((at, _)) => format!("{}…", &shown[..at]),
        None => shown.to_owned(),
    }
}
