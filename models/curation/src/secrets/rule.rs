//! A rule for one kind of credential: its text form in TOML, and what is made of it.
//!
//! A rule says what it looks for in one of three ways:
//!
//! * `prefix` and `value`: a token that names itself, such as `ghp_` and 36 letters and digits. The prefix is the keyword, the search is anchored to it, and
//!   neither before the prefix nor after the value may a letter or digit stand.
//! * `near` and `value`: a token without a mark of its own, assigned to a name that has one of the words of `near` in it.
//! * `regex` and `keywords`: anything else. The expression runs on a window round each keyword; its first group, if it has one, is the secret. This is also the
//!   form of Gitleaks' and Betterleaks' rules, whose files can be loaded as they are: of their fields, those that only they have are ignored.
//!
//! Every rule carries examples that it must find and examples that it must not. They are templates, so that no file of ours holds anything that looks like
//! a credential to the scanners of hosting services: `<an36>` stands for 36 letters and digits; `tests/secrets.rs` has the list.

use regex_automata::Anchored;
use regex_automata::Input;
use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use serde::Deserialize;

use super::check::Check;
use crate::error::{CurationError, RuleProblem};

/// A file of rules.
#[derive(Debug, Deserialize)]
pub(super) struct RuleFile {
    #[serde(default)]
    pub(super) rules: Vec<RuleText>,
}

/// A rule as its file has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleText {
    /// Its name, unique among all rules.
    pub id: String,
    /// What it finds, for people.
    #[serde(default)]
    pub description: String,
    /// The start of a token that names itself.
    pub prefix: Option<String>,
    /// Words of the name that the token is assigned to.
    #[serde(default)]
    pub near: Vec<String>,
    /// The expression of what follows the prefix, or of what is assigned.
    pub value: Option<String>,
    /// The expression of a rule that is neither.
    pub regex: Option<String>,
    /// Words one of which every match of `regex` has in it or close by; letter case does not matter.
    #[serde(default)]
    pub keywords: Vec<String>,
    /// The group of `regex` that is the secret; the first if there is one, else the whole.
    pub secret_group: Option<usize>,
    /// The least Shannon entropy of the secret, in bits a character.
    pub entropy: Option<f64>,
    /// Whether the secret must be rare text: it has no dictionary word in it, and few characters to a token.
    #[serde(default)]
    pub rare: bool,
    /// Whether it yields to any other rule that finds a secret at the same place.
    #[serde(default)]
    pub generic: bool,
    /// What can be recomputed from the secret.
    pub check: Option<Check>,
    /// How far after a keyword the expression may match, in bytes.
    pub window: Option<usize>,
    /// How far before a keyword it may start; the start of the keyword's line if absent.
    pub behind: Option<usize>,
    /// Templates of texts in which it must find something.
    #[serde(default)]
    pub positive: Vec<String>,
    /// Templates of texts in which it must find nothing.
    #[serde(default)]
    pub negative: Vec<String>,
}

/// How far an anchored rule looks: longer than any value but a few, which say so.
const WINDOW: usize = 2048;

/// A rule that can run.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) text: RuleText,
    form: Form,
    regex: Regex,
    group: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Prefix,
    Near,
    Window,
}

impl Rule {
    pub(super) fn new(text: RuleText) -> Result<Rule, CurationError> {
        let rule = |problem| CurationError::Rule { rule: text.id.clone(), problem };
        let (form, pattern) = match (&text.prefix, text.near.as_slice(), &text.value, &text.regex) {
            (Some(prefix), [], Some(value), None) => (Form::Prefix, format!("({}{value})", escape(prefix))),
            (None, [_, ..], Some(value), None) => (Form::Near, assigned(&text.near, value)),
            (None, [], None, Some(regex)) => (Form::Window, regex.clone()),
            _ => return Err(rule(RuleProblem::Form)),
        };
        if form == Form::Window && text.keywords.iter().all(String::is_empty) {
            return Err(rule(RuleProblem::NoKeyword));
        }
        // Credentials are ASCII, and so are `\w` and `\b` in the rules for them; it keeps the automata small.
        let syntax = syntax::Config::new().unicode(false).utf8(false);
        let config = Regex::config().utf8_empty(false).nfa_size_limit(Some(16 << 20));
        let regex = Regex::builder().syntax(syntax).configure(config).build(&pattern);
        let regex = regex.map_err(|error| rule(RuleProblem::Regex(Box::new(error))))?;
        let groups = regex.group_info().group_len(regex_automata::PatternID::ZERO);
        let group = text.secret_group.filter(|&group| group != 0).unwrap_or(if 1 < groups { 1 } else { 0 });
        if groups <= group {
            return Err(rule(RuleProblem::NoGroup(group)));
        }
        Ok(Rule { form, regex, group, text })
    }

    /// The words that the prefilter looks for.
    pub(super) fn keywords(&self) -> impl Iterator<Item = &str> {
        let prefix = self.text.prefix.as_deref();
        prefix.into_iter().chain(self.text.near.iter().chain(&self.text.keywords).map(String::as_str))
    }

    /// The secrets that belong to the keyword at `start..end`; `done` is where the last search of this rule in this document ended.
    pub(super) fn find(
        &self,
        text: &[u8],
        start: usize,
        end: usize,
        done: &mut usize,
        mut found: impl FnMut(std::ops::Range<usize>),
    ) {
        let window = self.text.window.unwrap_or(WINDOW);
        match self.form {
            Form::Prefix => {
                let prefix = self.text.prefix.as_deref().unwrap_or_default().as_bytes();
                if text[start..end] == *prefix && starts_token(text, start) {
                    self.find_anchored(text, start, end + window, &mut found);
                }
            }
            Form::Near => self.find_anchored(text, start, end + window, &mut found),
            Form::Window => {
                let behind = match self.text.behind {
                    Some(behind) => start.saturating_sub(behind),
                    // Lines of data can be as long as the file.
                    None => {
                        memchr::memrchr(b'\n', &text[..start]).map_or(0, |at| at + 1).max(start.saturating_sub(256))
                    }
                };
                let from = behind.max(*done);
                let to = text.len().min(end + window);
                if from < to {
                    self.find_between(text, from, to, end, done, &mut found);
                }
            }
        }
    }

    fn find_anchored(&self, text: &[u8], from: usize, to: usize, found: &mut impl FnMut(std::ops::Range<usize>)) {
        let input = Input::new(text).span(from..text.len().min(to)).anchored(Anchored::Yes);
        if self.regex.search_half(&input).is_none() {
            return;
        }
        let mut captures = self.regex.create_captures();
        self.regex.search_captures(&input, &mut captures);
        if let Some(span) = captures.get_group(self.group)
            && ends_token(text, span.end)
        {
            found(span.range());
        }
    }

    fn find_between(
        &self,
        text: &[u8],
        from: usize,
        to: usize,
        keyword_end: usize,
        done: &mut usize,
        found: &mut impl FnMut(std::ops::Range<usize>),
    ) {
        let mut from = from;
        while let Some(half) = self.regex.search_half(&Input::new(text).span(from..to)) {
            let mut captures = self.regex.create_captures();
            self.regex.search_captures(&Input::new(text).span(from..half.offset()), &mut captures);
            let Some(whole) = captures.get_match() else { return };
            // A match that starts after the keyword belongs to another one, which has a window of its own.
            if keyword_end < whole.start() {
                return;
            }
            if let Some(span) = captures.get_group(self.group) {
                found(span.range());
            }
            from = whole.end().max(from + 1);
            *done = from;
        }
    }
}

/// Whether a token can start here: what is before is no part of a word, or is an escape such as `\n`.
fn starts_token(text: &[u8], at: usize) -> bool {
    match text[..at] {
        [.., b'\\', b'n' | b't' | b'r'] => true,
        [.., before] => !before.is_ascii_alphanumeric(),
        [] => true,
    }
}

fn ends_token(text: &[u8], at: usize) -> bool {
    text.get(at).is_none_or(|after| !after.is_ascii_alphanumeric() && *after != b'_')
}

/// A name that starts with one of the words, up to 25 further characters of it, something that assigns, and the value.
fn assigned(words: &[String], value: &str) -> String {
    let words: Vec<String> = words.iter().map(|word| escape(word)).collect();
    let words = words.join("|");
    format!(
        r#"(?i:{words})[ \t\w.-]{{0,25}}["'`\]\\]{{0,3}}\s{{0,3}}(?::=|=>|==?|:|,|\(|>)\s{{0,3}}["'`\\=\[\(]{{0,3}}({value})"#
    )
}

/// The expression of exactly this text.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
