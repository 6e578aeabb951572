//! Measures source code, and judges it by StarCoder's and StarCoder 2's rules.

use std::collections::HashSet;

use super::{Reason, Verdict, at_least, at_most, below};

/// What the measures need to know of a language: how comments and strings are written, which words branch, which start a function.
#[derive(Debug, PartialEq, Eq)]
pub struct Language {
    /// Its name in the output.
    pub name: &'static str,
    endings: &'static [&'static str],
    line_comments: &'static [&'static str],
    block_comments: &'static [(&'static str, &'static str)],
    quotes: &'static [u8],
    branches: &'static [&'static str],
    functions: &'static [&'static str],
    /// Whether long lines are usual in it, because it is data or prose.
    is_data: bool,
}

const C_BLOCK: &[(&str, &str)] = &[("/*", "*/")];
const C_BRANCHES: &[&str] = &["if", "for", "while", "case", "catch", "&&", "||", "?"];

const fn c_like(name: &'static str, endings: &'static [&'static str], functions: &'static [&'static str]) -> Language {
    Language {
        name,
        endings,
        line_comments: &["//"],
        block_comments: C_BLOCK,
        quotes: b"\"'",
        branches: C_BRANCHES,
        functions,
        is_data: false,
    }
}

const fn data(
    name: &'static str,
    endings: &'static [&'static str],
    line_comments: &'static [&'static str],
) -> Language {
    Language {
        name,
        endings,
        line_comments,
        block_comments: &[],
        quotes: b"",
        branches: &[],
        functions: &[],
        is_data: true,
    }
}

/// The languages that are told apart, by the endings of file names.
pub const LANGUAGES: &[Language] = &[
    Language {
        name: "python",
        endings: &["py", "pyi", "pyx"],
        line_comments: &["#"],
        block_comments: &[("\"\"\"", "\"\"\""), ("'''", "'''")],
        quotes: b"\"'",
        branches: &["if", "elif", "for", "while", "except", "case", "and", "or"],
        functions: &["def", "lambda"],
        is_data: false,
    },
    Language {
        name: "rust",
        endings: &["rs"],
        line_comments: &["//"],
        block_comments: C_BLOCK,
        // A single quote starts lifetimes too.
        quotes: b"\"",
        branches: &["if", "for", "while", "loop", "=>", "&&", "||"],
        functions: &["fn"],
        is_data: false,
    },
    c_like("c", &["c", "h"], &[]),
    c_like("cpp", &["cc", "cpp", "cxx", "hh", "hpp", "hxx"], &[]),
    c_like("cuda", &["cu", "cuh"], &["__global__", "__device__"]),
    c_like("java", &["java"], &[]),
    c_like("javascript", &["js", "mjs", "cjs", "jsx"], &["function", "=>"]),
    c_like("typescript", &["ts", "tsx"], &["function", "=>"]),
    c_like("go", &["go"], &["func"]),
    c_like("swift", &["swift"], &["func"]),
    c_like("kotlin", &["kt", "kts"], &["fun"]),
    c_like("c#", &["cs"], &[]),
    Language {
        name: "shell",
        endings: &["sh", "bash"],
        line_comments: &["#"],
        block_comments: &[],
        quotes: b"\"'",
        branches: &["if", "elif", "for", "while", "until", "&&", "||"],
        functions: &["function"],
        is_data: false,
    },
    data("markdown", &["md", "markdown"], &[]),
    data("text", &["txt", "rst"], &[]),
    data("json", &["json", "jsonl"], &[]),
    data("yaml", &["yml", "yaml"], &["#"]),
    data("toml", &["toml"], &["#"]),
    data("html", &["html", "htm"], &[]),
    data("csv", &["csv", "tsv"], &[]),
];

impl Language {
    /// The language of a path, by its ending.
    pub fn of(path: &str) -> Option<&'static Language> {
        let (_, ending) = path.rsplit_once('.')?;
        LANGUAGES.iter().find(|language| language.endings.iter().any(|known| known.eq_ignore_ascii_case(ending)))
    }
}

/// What can be counted in a source file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measures {
    /// Its lines.
    pub n_lines: usize,
    /// Its longest line, in characters.
    pub max_line: usize,
    /// The mean of its lines, in characters.
    pub mean_line: f64,
    /// The share of characters that are letters or digits.
    pub alphanumeric: f64,
    /// The share of characters in comments and documentation; 0 without a known language.
    pub comments: f64,
    /// The share of lines that are a copy of another one, among those of eight characters and more.
    pub duplicate_lines: f64,
    /// One and the number of branches: McCabe's number, summed over the file.
    pub complexity: usize,
    /// The words that start a function.
    pub n_functions: usize,
    /// The longest run of encoded data: base64, hexadecimal, escapes.
    pub longest_encoded: usize,
    /// The share of characters in runs of encoded data of 64 and more.
    pub encoded: f64,
    /// The line that says that the file is generated.
    pub generated: Option<usize>,
}

impl Measures {
    /// The mean of McCabe's number over the functions, each one and its branches; the file's own where it has none.
    pub fn complexity_per_function(&self) -> f64 {
        1.0 + (self.complexity as f64 - 1.0) / self.n_functions.max(1) as f64
    }
}

/// Measures a source file.
pub fn measure(text: &str, language: Option<&Language>) -> Measures {
    let n_chars = text.chars().count();
    let lengths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
    let share = |part: usize| if n_chars == 0 { 0.0 } else { part as f64 / n_chars as f64 };
    let mut measures = Measures {
        n_lines: lengths.len(),
        max_line: lengths.iter().copied().max().unwrap_or(0),
        mean_line: if lengths.is_empty() { 0.0 } else { lengths.iter().sum::<usize>() as f64 / lengths.len() as f64 },
        alphanumeric: share(text.chars().filter(|c| c.is_alphanumeric()).count()),
        duplicate_lines: duplicate_lines(text),
        complexity: 1,
        generated: generated(text),
        ..Measures::default()
    };
    let (longest, sum) = encoded(text);
    measures.longest_encoded = longest;
    measures.encoded = share(sum);
    if let Some(language) = language {
        let (code, comments) = split_comments(text, language);
        measures.comments = share(comments);
        measures.complexity += count_words(&code, language.branches);
        measures.n_functions = count_words(&code, language.functions);
    }
    measures
}

/// The rules of [`starcoder`] in its order, with what they say.
pub const STARCODER: &[(Reason, &str)] = &[
    ("too_many_lines", "more than 100,000 lines"),
    ("generated", "one of the first five lines says that it is generated"),
    ("long_line", "a line of more than 1,000 characters"),
    ("long_mean_line", "more than 100 characters to a line"),
    ("few_alphanumeric", "fewer than a quarter of its characters are letters or digits"),
    ("encoded_data", "1,024 characters of encoded data in a row, or half of it encoded"),
    ("comment_ratio", "less than 1 % or more than 80 % of it is comments"),
];

/// The rules of StarCoder (arXiv 2305.06161, 3.2, and its preprocessing) and StarCoder 2 (arXiv 2402.19173, 2.3).
///
/// # Errors
///
/// The first rule that rejects the file.
pub fn starcoder(measures: &Measures, language: Option<&Language>) -> Verdict {
    let is_code = language.is_some_and(|language| !language.is_data);
    at_most("too_many_lines", measures.n_lines as f64, 100_000.0)?;
    at_most("generated", measures.generated.unwrap_or(0) as f64, 0.0)?;
    if is_code {
        at_most("long_line", measures.max_line as f64, 1000.0)?;
        at_most("long_mean_line", measures.mean_line, 100.0)?;
    }
    at_least("few_alphanumeric", measures.alphanumeric, 0.25)?;
    below("encoded_data", measures.longest_encoded as f64, 1024.0)?;
    below("encoded_data", measures.encoded, 0.5)?;
    if is_code {
        at_least("comment_ratio", measures.comments, 0.01)?;
        at_most("comment_ratio", measures.comments, 0.80)?;
    }
    Ok(())
}

fn duplicate_lines(text: &str) -> f64 {
    let mut seen = HashSet::new();
    let (mut n, mut n_again) = (0_usize, 0_usize);
    for line in text.lines().map(str::trim).filter(|line| 8 <= line.len()) {
        n += 1;
        n_again += usize::from(!seen.insert(line));
    }
    if n == 0 { 0.0 } else { n_again as f64 / n as f64 }
}

/// The first of the first five lines that says what generated files say, from 1.
fn generated(text: &str) -> Option<usize> {
    const PHRASES: [&str; 8] = [
        "auto-generated",
        "autogenerated",
        "automatically generated",
        "generated automatically",
        "this file is generated",
        "code generated by",
        "generated by the protocol buffer compiler",
        "do not edit this file",
    ];
    let says = |line: &str| {
        let line = line.to_ascii_lowercase();
        PHRASES.iter().any(|phrase| line.contains(phrase))
    };
    text.lines().take(5).position(says).map(|index| index + 1)
}

/// The longest run of encoded data, and the characters in all runs of 64 and more: the digits of base64 and of hexadecimal, and escapes, if they are mixed as
/// they are in data.
fn encoded(text: &str) -> (usize, usize) {
    const MIN: usize = 64;
    let (mut longest, mut sum) = (0, 0);
    let mut end = |run: &Run| {
        if MIN <= run.length && run.is_encoded() {
            longest = longest.max(run.length);
            sum += run.length;
        }
    };
    for line in text.lines() {
        let mut run = Run::default();
        for byte in line.bytes() {
            match byte {
                b'A'..=b'Z' => run.n_upper += 1,
                b'a'..=b'z' => run.n_lower += 1,
                b'0'..=b'9' => run.n_digits += 1,
                b'+' | b'/' | b'=' => {}
                b'\\' => run.n_escapes += 1,
                _ => {
                    end(&run);
                    run = Run::default();
                    continue;
                }
            }
            run.length += 1;
        }
        end(&run);
    }
    (longest, sum)
}

#[derive(Default)]
struct Run {
    length: usize,
    n_upper: usize,
    n_lower: usize,
    n_digits: usize,
    n_escapes: usize,
}

impl Run {
    /// Encoded data has digits all over it: one of six characters in base64, more in hexadecimal, and names have fewer than one of twenty.
    fn is_encoded(&self) -> bool {
        let has_letters = 0 < self.n_upper || 0 < self.n_lower;
        (self.length <= self.n_digits * 20 && has_letters) || self.length <= self.n_escapes * 5
    }
}

/// The text without comments and strings, and the number of characters in comments.
fn split_comments(text: &str, language: &Language) -> (String, usize) {
    let mut code = String::with_capacity(text.len());
    let mut n_comment = 0;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let comment = comment_at(rest, language);
        if let Some(length) = comment {
            n_comment += rest[..length].chars().count();
            code.push(' ');
            rest = &rest[length..];
        } else if first.is_ascii() && language.quotes.contains(&(first as u8)) {
            code.push(' ');
            rest = &rest[string_length(rest, first)..];
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    (code, n_comment)
}

/// The length of the comment that starts here.
fn comment_at(rest: &str, language: &Language) -> Option<usize> {
    for (open, close) in language.block_comments {
        if let Some(inside) = rest.strip_prefix(open) {
            return Some(inside.find(close).map_or(rest.len(), |at| open.len() + at + close.len()));
        }
    }
    let starts = language.line_comments.iter().any(|marker| rest.starts_with(marker));
    starts.then(|| memchr::memchr(b'\n', rest.as_bytes()).unwrap_or(rest.len()))
}

/// The length of a string literal; one that does not end in its line ends with it.
fn string_length(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\n' => return at,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// How often one of the words stands in code; signs anywhere, words of letters only whole.
fn count_words(code: &str, words: &[&str]) -> usize {
    let (signs, names): (Vec<&str>, Vec<&str>) =
        words.iter().partition(|word| !word.starts_with(|c: char| c.is_alphabetic() || c == '_'));
    let n_signs: usize = signs.iter().map(|sign| code.matches(sign).count()).sum();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    n_signs + code.split(|c| !is_name(c)).filter(|word| names.contains(word)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(text: &str) -> Measures {
        measure(text, Language::of("a.py"))
    }

    #[test]
    fn comments_strings_and_branches_are_told_apart() {
        let text =
            "# if one\ndef f(x):\n    \"\"\"if two\"\"\"\n    s = 'if # three'\n    if x and s:\n        return 1\n";
        let measures = python(text);
        assert_eq!(measures.complexity, 3);
        assert_eq!(measures.n_functions, 1);
        let n_comment = "# if one".len() + "\"\"\"if two\"\"\"".len();
        assert_eq!(measures.comments, n_comment as f64 / text.len() as f64);
    }

    #[test]
    fn every_rule_rejects_for_its_reason() {
        let python = Language::of("x.py");
        let good = "# A comment that says why.\nvalue = compute(other)\n".repeat(3);
        let verdict = |text: &str| starcoder(&measure(text, python), python).map_err(|rejection| rejection.reason);
        assert_eq!(verdict(&good), Ok(()));
        assert_eq!(verdict(&"x\n".repeat(100_001)), Err("too_many_lines"));
        assert_eq!(verdict("# Code generated by a tool.\nx = 1\n"), Err("generated"));
        assert_eq!(verdict(&format!("{good}{}\n", "name ".repeat(300))), Err("long_line"));
        assert_eq!(verdict(&"some words and ".repeat(10)), Err("long_mean_line"));
        assert_eq!(verdict("# ----------------------------\n"), Err("few_alphanumeric"));
        let base64 = "QmFzZTY0IGlzIGFuIGVuY29kaW5nIG9mIGJ5dGVzIGluIGxldHRlcnMgYW5kIGRpZ2l0cw";
        assert_eq!(verdict(&format!("# Data.\nx = \"{base64}\"\n")), Err("encoded_data"));
        assert_eq!(verdict("value = compute(other)\n"), Err("comment_ratio"));
    }

    #[test]
    fn names_and_rules_are_no_encoded_data() {
        assert_eq!(encoded("abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz"), (0, 0));
        assert_eq!(encoded(&"=".repeat(80)), (0, 0));
        assert_eq!(encoded(&"\\x1f".repeat(20)).0, 80);
    }
}
