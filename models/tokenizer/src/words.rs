//! How a text is cut into words, each of which is merged by itself.
//!
//! Five expressions cut the texts of almost all models. For those a scanner stands here that goes over the bytes once; any other expression is matched
//! as it is. What lies between two matches is a word too, so nothing is lost.

mod class;
mod scan;
mod block;

use std::ops::Range;

use fancy_regex::{Regex, RegexBuilder};

use block::BLOCK;
use scan::{Cl100k, Gpt2, Llama3, O200k, Qwen2, Rules};

/// How GPT-2 cuts a text into words (Radford et al., 2019): what Hugging Face's `ByteLevel` does unless it is told otherwise.
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The same words, as tiktoken has them for r50k_base.
pub(crate) const R50K: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s";
/// tiktoken's cl100k_base.
pub(crate) const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
/// Llama 3: cl100k_base as it was first published, which differs where a text ends in white space.
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2: Llama 3 with each digit by itself.
pub(crate) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// tiktoken's o200k_base, which also cuts before capitals.
pub(crate) const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How often an expression may try another way before it gives up: a run of so many blanks is more than any text has.
const BACKTRACK_LIMIT: usize = 1 << 24;

/// What cuts a text into words.
#[derive(Clone)]
pub(crate) struct Words {
    pattern: String,
    cutter: Cutter,
}

#[derive(Clone)]
enum Cutter {
    Gpt2,
    Cl100k,
    Llama3,
    Qwen2,
    O200k,
    Expression(Regex),
}

impl Words {
    /// The words of an expression.
    ///
    /// # Errors
    ///
    /// If it is none; why, in words.
    pub(crate) fn new(pattern: &str) -> Result<Self, String> {
        let cutter = match pattern {
            GPT2 | R50K => Cutter::Gpt2,
            CL100K => Cutter::Cl100k,
            LLAMA3 => Cutter::Llama3,
            QWEN2 => Cutter::Qwen2,
            O200K => Cutter::O200k,
            _ => return Self::matched(pattern),
        };
        Ok(Self { pattern: pattern.to_owned(), cutter })
    }

    /// The same by matching the expression, even if there is a scanner for it.
    pub(crate) fn matched(pattern: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(pattern).backtrack_limit(BACKTRACK_LIMIT).build();
        let cutter = Cutter::Expression(regex.map_err(|error| error.to_string())?);
        Ok(Self { pattern: pattern.to_owned(), cutter })
    }

    pub(crate) fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Gives the words of a text in order, as places in it. No word is empty, and together they are the text.
    #[inline(always)]
    pub(crate) fn cut(&self, text: &str, mut word: impl FnMut(Range<usize>)) {
        match &self.cutter {
            Cutter::Gpt2 => scan::<Gpt2>(text, &mut word),
            Cutter::Cl100k => scan::<Cl100k>(text, &mut word),
            Cutter::Llama3 => scan::<Llama3>(text, &mut word),
            Cutter::Qwen2 => scan::<Qwen2>(text, &mut word),
            Cutter::O200k => scan::<O200k>(text, &mut word),
            Cutter::Expression(regex) => {
                let mut ends = Vec::new();
                match_ends(regex, text, 0, &mut ends);
                let mut start = 0;
                for end in ends.into_iter().filter(|&end| end != 0) {
                    if start < end {
                        word(start..end);
                    }
                    start = end;
                }
            }
        }
    }
}

#[inline(always)]
fn scan<R: Rules>(text: &str, word: &mut impl FnMut(Range<usize>)) {
    let bytes = text.as_bytes();
    let mut start = 0;
    // Up to here there are no blocks that could be used.
    let mut singles_end = 0;
    while start < bytes.len() {
        if singles_end <= start {
            let block = start;
            let starts = R::block_starts(bytes, block);
            let mut rest = starts.unwrap_or_default() & !1;
            while rest != 0 {
                let end = block + rest.trailing_zeros() as usize;
                word(start..end);
                start = end;
                rest &= rest - 1;
            }
            if block < start {
                continue;
            }
            if starts.is_none() {
                singles_end = start + BLOCK;
            }
        }
        let end = R::word_end(bytes, start);
        debug_assert!(start < end && text.is_char_boundary(end), "a word is whole characters");
        word(start..end);
        start = end;
    }
}

/// Where the words of a text end, shifted by what comes before it. A text on which the expression gives up is cut in halves: it has the same bytes
/// then, and other words at most where it was cut.
fn match_ends(regex: &Regex, text: &str, shift: usize, ends: &mut Vec<usize>) {
    let n_before = ends.len();
    for found in regex.find_iter(text) {
        let Ok(word) = found else {
            ends.truncate(n_before);
            let mut middle = text.len() / 2;
            while !text.is_char_boundary(middle) {
                middle -= 1;
            }
            if 0 < middle {
                match_ends(regex, &text[..middle], shift, ends);
                match_ends(regex, &text[middle..], shift + middle, ends);
                return;
            }
            break;
        };
        ends.extend([shift + word.start(), shift + word.end()]);
    }
    ends.push(shift + text.len());
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    fn cut(words: &Words, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        words.cut(text, |range| found.push(text[range].to_owned()));
        found
    }

    /// Each known expression scanned and matched.
    static KNOWN: LazyLock<[(Words, Words); 6]> = LazyLock::new(|| {
        [GPT2, R50K, CL100K, LLAMA3, QWEN2, O200K]
            .map(|pattern| (Words::new(pattern).unwrap(), Words::matched(pattern).unwrap()))
    });

    #[track_caller]
    fn same_words(text: &str) {
        for (scanned, matched) in KNOWN.iter() {
            assert!(!matches!(scanned.cutter, Cutter::Expression(_)));
            assert_eq!(cut(scanned, text), cut(matched, text), "{:?} by {}", text, scanned.pattern());
        }
    }

    /// Every character before, between and after letters of every kind, signs, digits and blanks.
    #[test]
    fn every_character_is_of_its_class() {
        let chars: Vec<char> =
            ('\0'..=char::MAX).filter(|char| *char < '\u{32000}' || (*char as u32).is_multiple_of(4099)).collect();
        for chunk in chars.chunks(5000) {
            let mut text = String::new();
            for char in chunk {
                text.extend([*char, 'a', *char, 'A', *char, *char, ' ', *char, '1', *char, '!', *char, '\n']);
            }
            same_words(&text);
        }
    }

    /// Texts of some bytes only are where classes meet in every way, and longer than a block.
    #[test]
    fn blocks_are_cut_as_single_words_are() {
        let mut state = 1_u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % n
        };
        for kinds in ["a 1!\n", "a' sl", "ab  \n\t!", "1a ", " \n\r\t", "'sStTlLrRvVeEmMdD x", "a(b. =_\n  1'é"] {
            let kinds: Vec<char> = kinds.chars().collect();
            for _ in 0..400 {
                let text: String = (0..next(300)).map(|_| kinds[next(kinds.len())]).collect();
                same_words(&text);
            }
        }
    }

    #[test]
    fn contractions_and_runs() {
        for text in [
            "it's IT'S it'ſ 'll 'LL 'lL'Re'vE'x 's's ''s don't'd ABC'S Abc'll'll",
            "a  \n  ",
            "  \n  b",
            "\r\n\r\n",
            " \t \n",
            "   ",
            "   x",
            "   1",
            "   !",
            "\t!",
            "\tx",
            "a\u{3000}\u{3000}b",
            "12345 1234567 ١٢٣٤",
            "!!!\r\n\n//\n x",
            "//\n/",
            " !\n",
            "HTMLParser parseHTML ABCdef DŽungla ǅ ªº",
            "\u{301}ABC \u{301}\u{301}ABC a\u{301}B \u{301} \u{301}!",
            "日本語ABC日本ABC def日本",
            "ABC日DEF日GHIj",
            "ʰABCʰ",
            "",
            "x",
            "'",
            " ",
            "'é",
            "ÀÉ'S",
            "\u{1F600}\u{200D}\u{1F600} x",
        ] {
            same_words(text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn scanners_are_their_expressions(text in "([a-cS-U]{1,3}|[ \t\r\n\u{a0}]{1,3}|['’][a-zA-Zſ]{0,2}|[0-9²]{1,4}|[!/.\\-]{1,3}|[éÉǅʰ日本]{1,3}|[\u{301}\u{e0031}]|\\PC){0,12}") {
            same_words(&text);
        }
    }
}
