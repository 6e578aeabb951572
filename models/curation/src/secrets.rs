//! Finds credentials in text: keyword, expression, measures of randomness, allow-lists, checksum; and takes them out.
//!
//! One automaton over the keywords of all rules reads the text once. A keyword starts its rules, which run an expression at it or on a window round it; what
//! that finds must be random enough, be no placeholder, and pass the rule's checksum if its issuer puts one in.

mod check;
mod rule;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use regex_automata::meta::Regex;
use serde::Deserialize;

pub use check::Check;
pub use rule::RuleText;

use crate::error::{CurationError, RuleProblem};
use crate::lines::Lines;
use rule::{Rule, RuleFile};

/// The rules that come with this crate, by file name.
pub const RULES: &[(&str, &str)] = &[
    ("ai.toml", include_str!("../rules/secrets/ai.toml")),
    ("cloud.toml", include_str!("../rules/secrets/cloud.toml")),
    ("code.toml", include_str!("../rules/secrets/code.toml")),
    ("messages.toml", include_str!("../rules/secrets/messages.toml")),
    ("payment.toml", include_str!("../rules/secrets/payment.toml")),
    ("operations.toml", include_str!("../rules/secrets/operations.toml")),
    ("data.toml", include_str!("../rules/secrets/data.toml")),
    ("office.toml", include_str!("../rules/secrets/office.toml")),
    // Last: where a rule of a provider finds the same, that one names it.
    ("keys.toml", include_str!("../rules/secrets/keys.toml")),
];

/// The allow-list that comes with this crate.
pub const ALLOW: &str = include_str!("../rules/allow.toml");

/// The least entropy of a secret whose rule has no bound of its own, in bits a character: 16 random hexadecimal digits have 2.5 or more in 99 of 100 cases.
const MIN_ENTROPY: f64 = 2.5;

/// The most characters to a token of cl100k that rare text has. Random letters and digits have 1.1 to 1.8, random hexadecimal digits 1.4 to 2.2, and names
/// made of words 2.5 and more.
const MAX_CHARS_PER_TOKEN: f64 = 2.3;

/// Counts the tokens of a text, in the vocabulary of the model that will be trained on it.
pub type CountTokens<'a> = &'a (dyn Fn(&str) -> usize + Sync);

/// All rules, ready to run.
#[derive(Debug)]
pub struct Secrets {
    rules: Vec<Rule>,
    keywords: AhoCorasick,
    /// For each keyword, the rules that it starts.
    starts: Vec<Vec<u16>>,
    allow: Allow,
}

/// A credential that was found.
#[derive(Debug, Clone)]
pub struct Secret<'a> {
    /// The rule that found it.
    pub rule: &'a RuleText,
    /// Where it is, in bytes.
    pub span: Range<usize>,
    /// Its line, from 1.
    pub line: usize,
    /// Its column, in bytes from 1.
    pub column: usize,
    /// Its Shannon entropy in bits a character.
    pub entropy: f64,
    /// The start of its BLAKE3 hash, which stays the same when the secret moves to another line or file.
    pub fingerprint: String,
}

/// What is no secret, as its file has it.
#[derive(Debug, Deserialize)]
struct AllowText {
    placeholders: Vec<String>,
    patterns: Vec<String>,
    words: Vec<String>,
}

#[derive(Debug)]
struct Allow {
    placeholders: AhoCorasick,
    patterns: Regex,
    words: AhoCorasick,
}

impl Secrets {
    /// The rules and the allow-list that come with this crate.
    ///
    /// # Errors
    ///
    /// If they are not well formed, which this crate's tests exclude.
    pub fn built_in() -> Result<Secrets, CurationError> {
        let mut rules = Vec::new();
        for (file, text) in RULES {
            rules.extend(Secrets::read_rules(file, text)?);
        }
        Secrets::new(rules, ALLOW)
    }

    /// Reads a file of rules: our own form, or Gitleaks' and Betterleaks', whose rules with a path and no expression are left out.
    ///
    /// # Errors
    ///
    /// If it is not TOML or a field has the wrong type.
    pub fn read_rules(file: &str, text: &str) -> Result<Vec<RuleText>, CurationError> {
        let read: Result<RuleFile, toml::de::Error> = toml::from_str(text);
        let read = read.map_err(|error| CurationError::RuleFile { file: file.to_owned(), error: Box::new(error) })?;
        let runs = |rule: &RuleText| rule.prefix.is_some() || !rule.near.is_empty() || rule.regex.is_some();
        Ok(read.rules.into_iter().filter(runs).collect())
    }

    /// Makes rules ready to run, with an allow-list in the form of [`ALLOW`].
    ///
    /// # Errors
    ///
    /// If a rule is not well formed or two have one name.
    pub fn new(rules: Vec<RuleText>, allow: &str) -> Result<Secrets, CurationError> {
        let mut names = BTreeSet::new();
        if let Some(same) = rules.iter().find(|rule| !names.insert(rule.id.as_str())) {
            return Err(CurationError::SameRule(same.id.clone()));
        }
        let rules: Vec<Rule> = rules.into_iter().map(Rule::new).collect::<Result<_, _>>()?;
        let mut by_keyword: BTreeMap<String, Vec<u16>> = BTreeMap::new();
        for (idx, rule) in rules.iter().enumerate() {
            for keyword in rule.keywords() {
                let starts = by_keyword.entry(keyword.to_ascii_lowercase()).or_default();
                let idx = u16::try_from(idx).map_err(|_| CurationError::TooManyRules(rules.len()))?;
                if starts.last() != Some(&idx) {
                    starts.push(idx);
                }
            }
        }
        let keywords = automaton(by_keyword.keys().map(String::as_str))?;
        let starts = by_keyword.into_values().collect();
        let allow = Allow::new(allow)?;
        Ok(Secrets { rules, keywords, starts, allow })
    }

    /// The rules, in the order in which they name what several of them find.
    pub fn rules(&self) -> impl Iterator<Item = &RuleText> {
        self.rules.iter().map(|rule| &rule.text)
    }

    /// Every credential in a text, by place. Where rules find overlapping ones, a specific rule goes before a generic one, and an earlier before a later.
    pub fn find(&self, text: &[u8], count_tokens: CountTokens<'_>) -> Vec<Secret<'_>> {
        let mut found: Vec<(Range<usize>, usize)> = Vec::new();
        let mut done = vec![0; self.rules.len()];
        for keyword in self.keywords.find_overlapping_iter(text) {
            for &idx in &self.starts[keyword.pattern().as_usize()] {
                let idx = usize::from(idx);
                let rule = &self.rules[idx];
                rule.find(text, keyword.start(), keyword.end(), &mut done[idx], |span| {
                    if self.is_secret(&rule.text, &text[span.clone()], count_tokens) {
                        found.push((span, idx));
                    }
                });
            }
        }
        if found.is_empty() {
            return Vec::new();
        }
        found.sort_by_key(|(span, idx)| (self.rules[*idx].text.generic, *idx, span.start, span.end));
        let mut kept: Vec<(Range<usize>, usize)> = Vec::new();
        for (span, idx) in found {
            if kept.iter().all(|(other, _)| span.end <= other.start || other.end <= span.start) {
                kept.push((span, idx));
            }
        }
        kept.sort_by_key(|(span, _)| span.start);
        let lines = Lines::of(text);
        kept.into_iter().map(|(span, idx)| self.secret(text, &lines, span, idx)).collect()
    }

    fn secret(&self, text: &[u8], lines: &Lines, span: Range<usize>, idx: usize) -> Secret<'_> {
        let secret = &text[span.clone()];
        let (line, column) = lines.place(span.start);
        let mut fingerprint = blake3::hash(secret).to_hex().to_string();
        fingerprint.truncate(16);
        Secret { rule: &self.rules[idx].text, span, line, column, entropy: entropy(secret), fingerprint }
    }

    /// The cheap tests first: most candidates end at the entropy.
    fn is_secret(&self, rule: &RuleText, secret: &[u8], count_tokens: CountTokens<'_>) -> bool {
        let Ok(secret) = std::str::from_utf8(secret) else { return false };
        if entropy(secret.as_bytes()) < rule.entropy.unwrap_or(MIN_ENTROPY) {
            return false;
        }
        let marked = rule.prefix.as_deref().and_then(|prefix| secret.strip_prefix(prefix));
        // The armour of a key has words in it; its content is for the checksum.
        if rule.check != Some(Check::Pem) && self.allow.is_placeholder(marked.unwrap_or(secret)) {
            return false;
        }
        if rule.rare && !self.is_rare(secret, count_tokens) || rule.generic && !has_digits_and_letters(secret) {
            return false;
        }
        rule.check.is_none_or(|check| check.passes(secret))
    }

    fn is_rare(&self, secret: &str, count_tokens: CountTokens<'_>) -> bool {
        !self.allow.words.is_match(secret) && secret.len() as f64 <= count_tokens(secret) as f64 * MAX_CHARS_PER_TOKEN
    }
}

impl Secret<'_> {
    /// What may be shown of it: the first four characters, if it is long enough for that to tell nothing.
    pub fn preview(&self, text: &[u8]) -> String {
        let secret = String::from_utf8_lossy(&text[self.span.clone()]);
        let shown: String = secret.chars().take(if 12 < secret.len() { 4 } else { 0 }).collect();
        format!("{shown}***")
    }
}

impl Allow {
    fn new(text: &str) -> Result<Allow, CurationError> {
        let read: Result<AllowText, toml::de::Error> = toml::from_str(text);
        let read =
            read.map_err(|error| CurationError::RuleFile { file: "allow-list".to_owned(), error: Box::new(error) })?;
        let patterns = Regex::new_many(&read.patterns).map_err(|error| CurationError::Rule {
            rule: "allow-list".to_owned(),
            problem: RuleProblem::Regex(Box::new(error)),
        })?;
        Ok(Allow { placeholders: automaton(&read.placeholders)?, patterns, words: automaton(&read.words)? })
    }

    fn is_placeholder(&self, secret: &str) -> bool {
        self.placeholders.is_match(secret) || self.patterns.is_match(secret)
    }
}

fn has_digits_and_letters(secret: &str) -> bool {
    secret.bytes().any(|byte| byte.is_ascii_digit()) && secret.bytes().any(|byte| byte.is_ascii_alphabetic())
}

fn automaton(words: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<AhoCorasick, CurationError> {
    let builder = AhoCorasick::builder().ascii_case_insensitive(true).kind(Some(AhoCorasickKind::DFA)).build(words);
    builder.map_err(|error| CurationError::Keywords(Box::new(error)))
}

/// The Shannon entropy of a text's bytes, in bits a byte.
pub fn entropy(text: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text {
        counts[usize::from(*byte)] += 1;
    }
    let n = text.len() as f64;
    let shares = counts.iter().filter(|count| 0 < **count).map(|count| f64::from(*count) / n);
    -shares.map(|share| share * share.log2()).sum::<f64>()
}

/// The text without its secrets: `[secret:rule-id]` stands in the place of each.
pub fn redact(text: &[u8], secrets: &[Secret<'_>]) -> Vec<u8> {
    let mut redacted = Vec::with_capacity(text.len());
    let mut from = 0;
    for secret in secrets {
        redacted.extend_from_slice(&text[from..secret.span.start]);
        redacted.extend_from_slice(format!("[secret:{}]", secret.rule.id).as_bytes());
        from = secret.span.end;
    }
    redacted.extend_from_slice(&text[from..]);
    redacted
}
