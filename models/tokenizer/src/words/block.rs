//! Where words start in 64 bytes of ASCII, found for all of them at once.
//!
//! Word by word, a processor errs about the end of almost every one, and each error costs as much as reading the word. So for the family of
//! cl100k_base the classes of 64 bytes become numbers of 64 bits, and where words start is computed from those. The first byte starts a word; the
//! last start that is found is where the next block is to begin, so nothing is carried from block to block but that place.

use super::scan::{HIGHS, ONES, contraction_end, letters};

/// How many bytes a block has.
pub(super) const BLOCK: usize = 64;

/// The bytes of a block that are of each class, as bits.
struct Classes {
    letters: u64,
    digits: u64,
    blanks: u64,
    /// White space of any kind.
    spaces: u64,
    newlines: u64,
    quotes: u64,
}

/// Where words start in the 64 bytes from `start` on, which is where a word does. `None` if there are not so many, or not all are ASCII.
///
/// The word of the last start may go on after the block. Of white space at the end of the block only the first byte is judged.
#[inline(always)]
pub(super) fn starts(text: &[u8], start: usize, max_digits: usize) -> Option<u64> {
    let block = text.get(start..).and_then(<[u8]>::first_chunk::<BLOCK>)?;
    let Classes { letters, digits, blanks, spaces, newlines, quotes } = classes(block)?;
    let signs = !(letters | digits | spaces);
    let gaps = spaces & !newlines;

    // ` ?[^\s\p{L}\p{N}]+[\r\n]*`: a blank before signs is the start, and line breaks right after them are theirs.
    let sign_starts = signs & !(signs << 1) & !(blanks << 1);
    let first_of_tail = newlines & signs << 1;
    let tails = newlines & !newlines.wrapping_add(first_of_tail);

    // `\s*[\r\n]+|\s+(?!\S)|\s+`: a run starts with its first byte, after its last line break, and with its last byte, which belongs to what follows.
    let runs = spaces & !tails;
    let before_newline = runs_before(gaps, newlines);
    let after_newline = gaps & (newlines & !tails) << 1 & !before_newline;
    let space_starts = runs & !(runs << 1) | after_newline | gaps & !(spaces >> 1);

    // `[^\r\n\p{L}\p{N}]?\p{L}+`: one character that starts a word and is no line break may stand before letters.
    let letter_starts = letters & !(letters << 1) & !(gaps << 1) & !(sign_starts << 1);

    let mut starts = 1 | sign_starts | space_starts | letter_starts | digit_starts(digits, max_digits);
    // A contraction ends within letters, or where a word starts anyway.
    let mut quoted = quotes & sign_starts & letters >> 1;
    while quoted != 0 {
        let at = start + quoted.trailing_zeros() as usize;
        if let Some(end) = contraction_end(text, at, |byte| byte.to_ascii_lowercase()).filter(|end| end - start < BLOCK)
        {
            starts |= 1 << (end - start);
        }
        quoted &= quoted - 1;
    }
    Some(match spaces.leading_ones() {
        0 => starts,
        unknown => starts & u64::MAX >> (unknown - 1),
    })
}

/// `\p{N}{1,max}`: a run starts with its first byte and after each so many.
#[inline(always)]
fn digit_starts(digits: u64, max: usize) -> u64 {
    if max == 1 {
        return digits;
    }
    let mut newest = digits & !(digits << 1);
    let mut starts = newest;
    let within = (1..=max).fold(digits, |within, n| within & digits << n);
    while newest != 0 {
        newest = newest << max & within;
        starts |= newest;
    }
    starts
}

/// Those runs of `bits` that one of `next` follows: a carry runs down through each of them.
#[inline(always)]
fn runs_before(bits: u64, next: u64) -> u64 {
    let (bits, next) = (bits.reverse_bits(), next.reverse_bits());
    (bits & !bits.wrapping_add(bits & next << 1)).reverse_bits()
}

#[inline(always)]
fn classes(block: &[u8; BLOCK]) -> Option<Classes> {
    let (chunks, _) = block.as_chunks::<8>();
    let mut classes = Classes { letters: 0, digits: 0, blanks: 0, spaces: 0, newlines: 0, quotes: 0 };
    if chunks.iter().fold(0, |all, chunk| all | u64::from_le_bytes(*chunk)) & HIGHS != 0 {
        return None;
    }
    for (shift, chunk) in (0..).step_by(8).zip(chunks) {
        let bytes = u64::from_le_bytes(*chunk);
        let blanks = equal(bytes, b' ');
        let newlines = equal(bytes, b'\n') | equal(bytes, b'\r');
        classes.letters |= gather(letters(bytes)) << shift;
        classes.digits |= gather(within(bytes, b'0', b'9')) << shift;
        classes.blanks |= gather(blanks) << shift;
        classes.spaces |= gather(blanks | within(bytes, b'\t', b'\r')) << shift;
        classes.newlines |= gather(newlines) << shift;
        classes.quotes |= gather(equal(bytes, b'\'')) << shift;
    }
    Some(classes)
}

/// The high bits of eight bytes as the low bits of one.
#[inline(always)]
fn gather(highs: u64) -> u64 {
    (highs >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// The high bit of each byte of ASCII that is this one.
#[inline(always)]
fn equal(bytes: u64, byte: u8) -> u64 {
    !((bytes ^ (ONES * u64::from(byte))) + (HIGHS - ONES)) & HIGHS
}

/// The high bit of each byte of ASCII in a range. Sums of seven bits do not carry into the next byte.
#[inline(always)]
fn within(bytes: u64, first: u8, last: u8) -> u64 {
    (bytes + ONES * u64::from(0x80 - first)) & !(bytes + ONES * u64::from(0x7F - last)) & HIGHS
}
