//! Scanners for the known expressions: where does the word end that starts here?
//!
//! Alternatives are tried in the order of the expression, but chosen by the class of the first character or two. Texts are mostly ASCII, so runs of
//! ASCII are gone over by eight bytes at once, and only what is not goes by characters.

use super::block;
use super::class::{ASCII, Class, class_at};

/// An expression for words.
pub(super) trait Rules {
    /// Where the word ends that starts at `start`, which is inside of `text`. The text is UTF-8.
    fn word_end(text: &[u8], start: usize) -> usize;

    /// Where words start in the block that begins at `start`, if that can be told: see [`block::starts`].
    #[inline(always)]
    fn block_starts(_text: &[u8], _start: usize) -> Option<u64> {
        None
    }
}

/// GPT-2's expression, and tiktoken's of r50k_base.
pub(super) struct Gpt2;

/// The family of cl100k_base: how many digits are one word, and whether white space that ends the text is.
pub(super) struct Digits<const MAX_DIGITS: usize, const KEEPS_END: bool>;

pub(super) type Cl100k = Digits<3, true>;
pub(super) type Llama3 = Digits<3, false>;
pub(super) type Qwen2 = Digits<1, false>;

/// The expression of o200k_base.
pub(super) struct O200k;

impl Rules for Gpt2 {
    #[inline(always)]
    fn word_end(text: &[u8], start: usize) -> usize {
        let Some((first, first_len)) = class_at(text, start) else { return text.len() };
        if let Some(end) = contraction_end(text, start, |byte| byte) {
            return end;
        }
        let mut at = start;
        let mut class = first;
        if text[start] == b' ' {
            match class_at(text, start + 1) {
                Some((next, _)) if !next.is_space() => (at, class) = (start + 1, next),
                _ => return space_end(text, start, first_len, false, false),
            }
        }
        if class.is_letter() {
            letters_end(text, at)
        } else if class == Class::Number {
            run_end(text, at, |class| class == Class::Number)
        } else if class.is_space() {
            space_end(text, start, first_len, false, false)
        } else {
            signs_end(text, at)
        }
    }
}

impl<const MAX_DIGITS: usize, const KEEPS_END: bool> Rules for Digits<MAX_DIGITS, KEEPS_END> {
    #[inline(always)]
    fn word_end(text: &[u8], start: usize) -> usize {
        let Some((first, first_len)) = class_at(text, start) else { return text.len() };
        if first.is_letter() {
            return letters_end(text, start + first_len);
        }
        if first == Class::Number {
            return digits_end(text, start, MAX_DIGITS);
        }
        if let Some(end) = contraction_end(text, start, |byte| byte.to_ascii_lowercase()) {
            return end;
        }
        let second = class_at(text, start + first_len);
        match second.filter(|(class, _)| class.is_letter()) {
            Some((_, len)) if first != Class::Newline => return letters_end(text, start + first_len + len),
            _ => {}
        }
        if first.is_sign() {
            return tail_end(text, signs_end(text, start + first_len), false);
        }
        if text[start] == b' ' && second.is_some_and(|(class, _)| class.is_sign()) {
            return tail_end(text, signs_end(text, start + 1), false);
        }
        space_end(text, start, first_len, true, KEEPS_END)
    }

    #[inline(always)]
    fn block_starts(text: &[u8], start: usize) -> Option<u64> {
        block::starts(text, start, MAX_DIGITS)
    }
}

impl Rules for O200k {
    #[inline(always)]
    fn word_end(text: &[u8], start: usize) -> usize {
        let Some((first, first_len)) = class_at(text, start) else { return text.len() };
        // With the optional character before the letters, which the expression tries first.
        let cased = match first {
            Class::Newline | Class::Number => None,
            _ if first.is_prefix() => cased_end(text, start + first_len, first == Class::Mark),
            _ => cased_end(text, start, false),
        };
        if let Some(end) = cased {
            return suffix_end(text, end);
        }
        if first == Class::Mark {
            // A mark is a letter here, so without a character before the letters it may be the first of them.
            return suffix_end(text, start + first_len);
        }
        if first == Class::Number {
            return digits_end(text, start, 3);
        }
        if first.is_sign() {
            return tail_end(text, signs_end(text, start + first_len), true);
        }
        if text[start] == b' ' && class_at(text, start + 1).is_some_and(|(class, _)| class.is_sign()) {
            return tail_end(text, signs_end(text, start + 1), true);
        }
        space_end(text, start, first_len, true, false)
    }
}

/// Where `H*T+`, or else `H+T*`, ends that starts here, with `H` capitals and letters without case, `T` small letters and letters without case.
///
/// After a run of `H` that no small letter follows, the first of the two ends with its last letter without case. Only if it has none, it is
/// capitals alone, which is the second; unless a mark stood before them: then the first matches that mark and nothing else, so it is `None`.
#[inline(always)]
fn cased_end(text: &[u8], start: usize, is_after_mark: bool) -> Option<usize> {
    let mut at = start;
    let mut uncased_end = None;
    while let Some((class, len)) = class_at(text, at).filter(|(class, _)| class.is_head()) {
        at += len;
        if class != Class::Upper {
            uncased_end = Some(at);
        }
    }
    match class_at(text, at) {
        Some((Class::Lower, len)) => Some(tails_end(text, at + len)),
        _ if uncased_end.is_some() => uncased_end,
        _ if start < at && !is_after_mark => Some(at),
        _ => None,
    }
}

/// Where a run of small letters and letters without case ends.
#[inline(always)]
fn tails_end(text: &[u8], start: usize) -> usize {
    let at = ascii_run_end(text, start, small_letters, |byte| byte.is_ascii_lowercase());
    match text.get(at) {
        Some(0x80..) => run_end(text, at, Class::is_tail),
        _ => at,
    }
}

/// After letters of o200k_base, a contraction belongs to the word.
#[inline(always)]
fn suffix_end(text: &[u8], end: usize) -> usize {
    contraction_end(text, end, |byte| byte.to_ascii_lowercase()).unwrap_or(end)
}

/// Where `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` ends that starts here. Without case, the long s is an s.
#[inline(always)]
pub(super) fn contraction_end(text: &[u8], start: usize, fold: impl Fn(u8) -> u8) -> Option<usize> {
    if text.get(start) != Some(&b'\'') {
        return None;
    }
    let at = |n: usize| text.get(start + n).copied().map(&fold);
    match (at(1)?, at(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(start + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(start + 3),
        // U+017F, where case does not count: where `S` is folded.
        (0xC5, Some(0xBF)) if fold(b'S') == b's' => Some(start + 3),
        _ => None,
    }
}

#[inline(always)]
fn digits_end(text: &[u8], start: usize, max: usize) -> usize {
    let mut at = start;
    for _ in 0..max {
        match class_at(text, at) {
            Some((Class::Number, len)) => at += len,
            _ => break,
        }
    }
    at
}

/// Where `\s*[\r\n]+|\s+(?!\S)|\s+` ends, the first alternative only with `is_line_kept`: with the last line break; else before the last
/// blank, which belongs to what follows; else with the text. With `is_end_kept`, `\s+$` comes first.
#[inline(always)]
fn space_end(text: &[u8], start: usize, first_len: usize, is_line_kept: bool, is_end_kept: bool) -> usize {
    let mut at = start;
    let (mut last, mut line_end) = (start, None);
    while let Some((class, len)) = class_at(text, at).filter(|(class, _)| class.is_space()) {
        last = at;
        at += len;
        if class == Class::Newline {
            line_end = Some(at);
        }
    }
    let is_end = at == text.len();
    match line_end {
        _ if is_end && is_end_kept => at,
        Some(end) if is_line_kept => end,
        _ if is_end => at,
        _ if start < last => last,
        _ => start + first_len,
    }
}

/// Where `[\r\n]*` ends, with slashes too where they belong to it.
#[inline(always)]
fn tail_end(text: &[u8], start: usize, takes_slashes: bool) -> usize {
    let mut at = start;
    while let Some(b'\r' | b'\n' | b'/') = text.get(at) {
        if text[at] == b'/' && !takes_slashes {
            break;
        }
        at += 1;
    }
    at
}

/// Where `[^\s\p{L}\p{N}]*` ends.
#[inline(always)]
fn signs_end(text: &[u8], start: usize) -> usize {
    let mut at = start;
    loop {
        match text.get(at) {
            Some(&byte) if byte < 0x80 => match ASCII[usize::from(byte)] {
                Class::Other => at += 1,
                _ => return at,
            },
            Some(_) => match class_at(text, at) {
                Some((class, len)) if class.is_sign() => at += len,
                _ => return at,
            },
            None => return at,
        }
    }
}

/// Where `\p{L}*` ends.
#[inline(always)]
fn letters_end(text: &[u8], start: usize) -> usize {
    let at = ascii_run_end(text, start, letters, |byte| byte.is_ascii_alphabetic());
    match text.get(at) {
        Some(0x80..) => run_end(text, at, Class::is_letter),
        _ => at,
    }
}

/// Where a run of characters of some classes ends.
fn run_end(text: &[u8], start: usize, is_in: impl Fn(Class) -> bool) -> usize {
    let mut at = start;
    while let Some((_, len)) = class_at(text, at).filter(|(class, _)| is_in(*class)) {
        at += len;
    }
    at
}

pub(super) const ONES: u64 = u64::MAX / 255;
pub(super) const HIGHS: u64 = ONES << 7;

/// Where a run of ASCII ends: by eight bytes while there are so many, each of which `find` gives as the high bits of those that belong to the run.
#[inline(always)]
fn ascii_run_end(text: &[u8], start: usize, find: impl Fn(u64) -> u64, is_in: impl Fn(u8) -> bool) -> usize {
    let mut at = start;
    while let Some(chunk) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let outside = find(u64::from_le_bytes(*chunk)) ^ HIGHS;
        if outside != 0 {
            return at + (outside.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while text.get(at).is_some_and(|&byte| is_in(byte)) {
        at += 1;
    }
    at
}

/// The high bit of each byte that is an ASCII letter.
#[inline(always)]
pub(super) fn letters(bytes: u64) -> u64 {
    small_letters(bytes | (ONES * 0x20)) & !bytes
}

/// The high bit of each byte that is a small ASCII letter. Sums of seven bits do not carry into the next byte.
#[inline(always)]
fn small_letters(bytes: u64) -> u64 {
    let low = bytes & !HIGHS;
    let from_a = low + ONES * (0x80 - b'a' as u64);
    let after_z = low + ONES * (0x80 - b'z' as u64 - 1);
    from_a & !after_z & !bytes & HIGHS
}
