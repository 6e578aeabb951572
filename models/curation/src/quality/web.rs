//! The rule sets for text of the web: Gopher's two, C4's and FineWeb's, in the order in which datatrove runs their rules, which decides the reason.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::characters::{is_punctuation, is_space, is_terminal, lines, n_sentences};
use super::{Reason, Rejection, Verdict, at_least, at_most};

const STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];

/// The rules of [`gopher_quality`] and of [`gopher_repetition`] in their order, with what they say.
pub const GOPHER: &[(Reason, &str)] = &[
    ("gopher_short_doc", "fewer than 50 words"),
    ("gopher_long_doc", "more than 100,000 words"),
    ("gopher_below_avg_threshold", "words of fewer than 3 characters in the mean"),
    ("gopher_above_avg_threshold", "words of more than 10 characters in the mean"),
    ("gopher_too_many_hashes", "more than one `#` to 10 words"),
    ("gopher_too_many_ellipsis", "more than one ellipsis to 10 words"),
    ("gopher_too_many_bullets", "more than 90 % of its lines start with a bullet"),
    ("gopher_too_many_end_ellipsis", "more than 30 % of its lines end with an ellipsis"),
    ("gopher_below_alpha_threshold", "fewer than 80 % of its words have a letter"),
    ("gopher_enough_stop_words", "fewer than two of eight common English words"),
    ("empty", "no text"),
    ("dup_para_frac", "more than 30 % of its paragraphs are copies of others in it"),
    ("dup_para_char_frac", "more than 20 % of it is copies of its paragraphs"),
    ("dup_line_frac", "more than 30 % of its lines are copies of others in it"),
    ("dup_line_char_frac", "more than 20 % of it is copies of its lines"),
    ("top_2_gram", "more than 20 % of it is the commonest two words in a row"),
    ("top_3_gram", "more than 18 % of it is the commonest three words in a row"),
    ("top_4_gram", "more than 16 % of it is the commonest four words in a row"),
    ("duplicated_5_n_grams", "more than 15 % of it is five words in a row that stand in it before"),
    ("duplicated_6_n_grams", "more than 14 % of it is six words in a row that stand in it before"),
    ("duplicated_7_n_grams", "more than 13 % of it is seven words in a row that stand in it before"),
    ("duplicated_8_n_grams", "more than 12 % of it is eight words in a row that stand in it before"),
    ("duplicated_9_n_grams", "more than 11 % of it is nine words in a row that stand in it before"),
    ("duplicated_10_n_grams", "more than 10 % of it is ten words in a row that stand in it before"),
];

/// The rules of [`c4`], with what they say.
pub const C4: &[(Reason, &str)] = &[
    ("lorem_ipsum", "has `lorem ipsum`"),
    ("curly_bracket", "has a curly bracket"),
    ("too_few_sentences", "fewer than five sentences in lines that end as sentences do"),
];

/// The rules of [`fineweb`] in their order, with what they say.
pub const FINEWEB: &[(Reason, &str)] = &[
    ("empty", "no text"),
    ("line_punct_ratio", "fewer than 12 % of its lines end with a punctuation mark"),
    ("short_line_ratio", "more than 67 % of its lines have 30 characters or fewer"),
    ("char_dup_ratio", "more than 1 % of it is copies of its lines"),
    ("list_ratio", "more than three line breaks to 10 words"),
];

/// Gopher's quality rules (arXiv 2112.11446, A.1.1); `words` are the document's.
///
/// # Errors
///
/// The first rule that rejects it.
pub fn gopher_quality(text: &str, words: &[&str]) -> Verdict {
    let n_words = words.len();
    let real = || words.iter().filter(|word| !word.chars().all(is_punctuation));
    let n_real = real().count();
    at_least("gopher_short_doc", n_real as f64, 50.0)?;
    at_most("gopher_long_doc", n_real as f64, 100_000.0)?;
    let n_chars: usize = real().map(|word| word.chars().count()).sum();
    let mean = ratio(n_chars, n_real);
    at_least("gopher_below_avg_threshold", mean, 3.0)?;
    at_most("gopher_above_avg_threshold", mean, 10.0)?;
    at_most("gopher_too_many_hashes", ratio(text.matches('#').count(), n_words), 0.1)?;
    let n_ellipses = text.matches("...").count() + text.matches('…').count();
    at_most("gopher_too_many_ellipsis", ratio(n_ellipses, n_words), 0.1)?;
    let lines = lines(text);
    let share = |is: fn(&str) -> bool| ratio(lines.iter().filter(|line| is(line)).count(), lines.len());
    let bullets = share(|line| line.trim_start_matches(is_space).starts_with(['•', '-']));
    at_most("gopher_too_many_bullets", bullets, 0.9)?;
    let ends_open = |line: &str| {
        let line = line.trim_end_matches(is_space);
        line.ends_with("...") || line.ends_with('…')
    };
    at_most("gopher_too_many_end_ellipsis", share(ends_open), 0.3)?;
    let n_alphabetic = words.iter().filter(|word| word.chars().any(char::is_alphabetic)).count();
    at_least("gopher_below_alpha_threshold", ratio(n_alphabetic, n_words), 0.8)?;
    let n_stop_words = STOP_WORDS.iter().filter(|word| words.contains(word)).count();
    at_least("gopher_enough_stop_words", n_stop_words as f64, 2.0)
}

/// Gopher's repetition rules (the same, table A1); `words` are the document's.
///
/// # Errors
///
/// The first rule that rejects it.
pub fn gopher_repetition(text: &str, words: &[&str]) -> Verdict {
    let n_chars = text.chars().count();
    at_least("empty", n_chars as f64, 1.0)?;
    let paragraphs = duplicates(split_at_newlines(text.trim_matches(is_space), 2));
    at_most("dup_para_frac", ratio(paragraphs.n, paragraphs.of), 0.3)?;
    at_most("dup_para_char_frac", ratio(paragraphs.n_chars, n_chars), 0.2)?;
    let lines = duplicates(split_at_newlines(text, 1));
    at_most("dup_line_frac", ratio(lines.n, lines.of), 0.3)?;
    at_most("dup_line_char_frac", ratio(lines.n_chars, n_chars), 0.2)?;
    const TOP: [(usize, f64, Reason); 3] = [(2, 0.20, "top_2_gram"), (3, 0.18, "top_3_gram"), (4, 0.16, "top_4_gram")];
    for (n, bound, reason) in TOP {
        at_most(reason, ratio(top_n_gram_chars(words, n), n_chars), bound)?;
    }
    const ALL: [(usize, f64, Reason); 6] = [
        (5, 0.15, "duplicated_5_n_grams"),
        (6, 0.14, "duplicated_6_n_grams"),
        (7, 0.13, "duplicated_7_n_grams"),
        (8, 0.12, "duplicated_8_n_grams"),
        (9, 0.11, "duplicated_9_n_grams"),
        (10, 0.10, "duplicated_10_n_grams"),
    ];
    let joined = Joined::of(words);
    for (n, bound, reason) in ALL {
        at_most(reason, ratio(duplicate_n_gram_chars(&joined, n), n_chars), bound)?;
    }
    Ok(())
}

/// FineWeb's rules (arXiv 2406.17557, 3.6); `words` are the document's.
///
/// # Errors
///
/// The first rule that rejects it.
pub fn fineweb(text: &str, words: &[&str]) -> Verdict {
    let lines: Vec<&str> = text.split('\n').filter(|line| !line.chars().all(is_space)).collect();
    at_least("empty", lines.len() as f64, 1.0)?;
    let share = |n: usize| ratio(n, lines.len());
    let n_ended = lines.iter().filter(|line| line.ends_with(is_terminal)).count();
    at_least("line_punct_ratio", share(n_ended), 0.12)?;
    let n_short = lines.iter().filter(|line| line.chars().count() <= 30).count();
    at_most("short_line_ratio", share(n_short), 0.67)?;
    let n_newlines = text.matches('\n').count();
    let n_chars = text.chars().count() - n_newlines;
    at_most("char_dup_ratio", ratio(duplicates(lines.into_iter()).n_chars, n_chars), 0.01)?;
    at_most("list_ratio", ratio(n_newlines, words.len()), 0.3)
}

/// C4's rules (JMLR 21/140): the lines that stay, if the document does.
///
/// # Errors
///
/// The first rule that rejects it.
pub fn c4(text: &str) -> Result<String, Rejection> {
    const POLICY: [&str; 6] =
        ["terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"];
    let mut kept: Vec<Cow<'_, str>> = Vec::new();
    let mut sentences = 0;
    for line in lines(text) {
        let line = line.trim_matches(is_space);
        let words = || line.split(is_space).filter(|word| !word.is_empty());
        if words().any(|word| 1000 < word.chars().count()) {
            continue;
        }
        // Words are counted before citations go.
        let n_words = words().count();
        let line = without_citations(line);
        if !line.ends_with(['.', '?', '!', '"', '\'']) || line.ends_with("...") || n_words < 3 {
            continue;
        }
        let lower = line.to_lowercase();
        at_most("lorem_ipsum", lower.matches("lorem ipsum").count() as f64, 0.0)?;
        if lower.contains("javascript") {
            continue;
        }
        at_most("curly_bracket", line.matches('{').count() as f64, 0.0)?;
        if POLICY.iter().any(|phrase| lower.contains(phrase)) {
            continue;
        }
        sentences += n_sentences(&line);
        kept.push(line);
    }
    at_least("too_few_sentences", sentences as f64, 5.0)?;
    Ok(kept.join("\n").trim_matches(is_space).to_owned())
}

/// Takes out `[12]`, `[]`, `[edit]` and `[citation needed]`.
fn without_citations(line: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(line);
    let mut from = 0;
    while let Some(open) = text[from..].find('[').map(|at| from + at) {
        let inside = &text[open + 1..];
        let close = inside.find(']');
        let is_citation = close.is_some_and(|close| {
            let inside = &inside[..close];
            inside.chars().all(char::is_numeric) || inside == "edit" || inside == "citation needed"
        });
        from = open + 1;
        if let Some(close) = close.filter(|_| is_citation) {
            text.to_mut().replace_range(open..open + close + 2, "");
            from = open;
        }
    }
    text
}

fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

struct Duplicates {
    of: usize,
    n: usize,
    n_chars: usize,
}

fn duplicates<'t>(parts: impl Iterator<Item = &'t str>) -> Duplicates {
    let mut seen = HashSet::new();
    let mut found = Duplicates { of: 0, n: 0, n_chars: 0 };
    for part in parts {
        found.of += 1;
        if !seen.insert(part) {
            found.n += 1;
            found.n_chars += part.chars().count();
        }
    }
    found
}

/// The parts between runs of at least so many newlines; a run at an end leaves an empty part there.
fn split_at_newlines(text: &str, at_least: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let bytes = text.as_bytes();
        let mut from = 0;
        while let Some(at) = memchr::memchr(b'\n', &bytes[from..]).map(|at| from + at) {
            let length = bytes[at..].iter().take_while(|byte| **byte == b'\n').count();
            if at_least <= length {
                rest = Some(&text[at + length..]);
                return Some(&text[..at]);
            }
            from = at + length;
        }
        rest = None;
        Some(text)
    })
}

/// The characters, spaces between words included, of all occurrences of the commonest n-gram; of the first one if several are as common.
fn top_n_gram_chars(words: &[&str], n: usize) -> usize {
    let mut counts: HashMap<&[&str], (usize, usize)> = HashMap::new();
    for (at, n_gram) in words.windows(n).enumerate() {
        counts.entry(n_gram).or_insert((0, at)).0 += 1;
    }
    let top = counts.into_iter().max_by_key(|(_, (count, at))| (*count, usize::MAX - at));
    top.map_or(0, |(n_gram, (count, _))| {
        let n_chars: usize = n_gram.iter().map(|word| word.chars().count()).sum();
        count * (n_chars + n - 1)
    })
}

/// The characters of n-grams that occurred before, none counted twice. Those are equal whose words together are the same text.
fn duplicate_n_gram_chars(joined: &Joined, n: usize) -> usize {
    let mut seen: HashSet<&str> = HashSet::new();
    let (mut at, mut n_chars) = (0, 0);
    while at + n < joined.starts.len() {
        let n_gram = &joined.text[joined.starts[at]..joined.starts[at + n]];
        if seen.insert(n_gram) {
            at += 1;
        } else {
            n_chars += n_gram.chars().count();
            at += n;
        }
    }
    n_chars
}

/// All words without anything between them, and where each starts, and the end.
struct Joined {
    text: String,
    starts: Vec<usize>,
}

impl Joined {
    fn of(words: &[&str]) -> Joined {
        let mut joined = Joined { text: String::new(), starts: vec![0] };
        for word in words {
            joined.text.push_str(word);
            joined.starts.push(joined.text.len());
        }
        joined
    }
}
