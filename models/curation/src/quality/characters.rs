//! Which characters are punctuation and which end a sentence, in the sets of the published filters; words and lines as those filters take them.

/// What ends a sentence: Unicode's `Sentence_Terminal` and three signs of Khmer, as ranges.
const TERMINAL: &[(u32, u32)] = &[
    (0x21, 0x21),
    (0x2e, 0x2e),
    (0x3f, 0x3f),
    (0x589, 0x589),
    (0x61d, 0x61f),
    (0x6d4, 0x6d4),
    (0x700, 0x702),
    (0x7f9, 0x7f9),
    (0x837, 0x837),
    (0x839, 0x839),
    (0x83d, 0x83e),
    (0x964, 0x965),
    (0x104a, 0x104b),
    (0x1362, 0x1362),
    (0x1367, 0x1368),
    (0x166e, 0x166e),
    (0x1735, 0x1736),
    (0x17d4, 0x17d6),
    (0x17d9, 0x17da),
    (0x1803, 0x1803),
    (0x1809, 0x1809),
    (0x1944, 0x1945),
    (0x1aa8, 0x1aab),
    (0x1b5a, 0x1b5b),
    (0x1b5e, 0x1b5f),
    (0x1b7d, 0x1b7e),
    (0x1c3b, 0x1c3c),
    (0x1c7e, 0x1c7f),
    (0x203c, 0x203d),
    (0x2047, 0x2049),
    (0x2e2e, 0x2e2e),
    (0x2e3c, 0x2e3c),
    (0x2e53, 0x2e54),
    (0x3002, 0x3002),
    (0xa4ff, 0xa4ff),
    (0xa60e, 0xa60f),
    (0xa6f3, 0xa6f3),
    (0xa6f7, 0xa6f7),
    (0xa876, 0xa877),
    (0xa8ce, 0xa8cf),
    (0xa92f, 0xa92f),
    (0xa9c8, 0xa9c9),
    (0xaa5d, 0xaa5f),
    (0xaaf0, 0xaaf1),
    (0xabeb, 0xabeb),
    (0xfe52, 0xfe52),
    (0xfe56, 0xfe57),
    (0xff01, 0xff01),
    (0xff0e, 0xff0e),
    (0xff1f, 0xff1f),
    (0xff61, 0xff61),
    (0x10a56, 0x10a57),
    (0x10f55, 0x10f59),
    (0x10f86, 0x10f89),
    (0x11047, 0x11048),
    (0x110be, 0x110c1),
    (0x11141, 0x11143),
    (0x111c5, 0x111c6),
    (0x111cd, 0x111cd),
    (0x111de, 0x111df),
    (0x11238, 0x11239),
    (0x1123b, 0x1123c),
    (0x112a9, 0x112a9),
    (0x1144b, 0x1144c),
    (0x115c2, 0x115c3),
    (0x115c9, 0x115d7),
    (0x11641, 0x11642),
    (0x1173c, 0x1173e),
    (0x11944, 0x11944),
    (0x11946, 0x11946),
    (0x11a42, 0x11a43),
    (0x11a9b, 0x11a9c),
    (0x11c41, 0x11c42),
    (0x11ef7, 0x11ef8),
    (0x11f43, 0x11f44),
    (0x16a6e, 0x16a6f),
    (0x16af5, 0x16af5),
    (0x16b37, 0x16b38),
    (0x16b44, 0x16b44),
    (0x16e98, 0x16e98),
    (0x1bc9f, 0x1bc9f),
    (0x1da88, 0x1da88),
];

/// Punctuation, signs and controls that make no word, besides those that end a sentence.
const SYMBOL: &[(u32, u32)] = &[
    (0x0, 0x8),
    (0xb, 0x1f),
    (0x22, 0x2d),
    (0x2f, 0x2f),
    (0x3a, 0x3e),
    (0x40, 0x40),
    (0x5b, 0x60),
    (0x7b, 0x9f),
    (0xab, 0xab),
    (0xb4, 0xb4),
    (0xbb, 0xbb),
    (0x2013, 0x2014),
    (0x2019, 0x2019),
    (0x201c, 0x201e),
    (0x2026, 0x2026),
    (0x2236, 0x2236),
    (0x2501, 0x2501),
    (0x25ba, 0x25ba),
    (0x3001, 0x3001),
    (0x3008, 0x300d),
    (0x3010, 0x3011),
    (0xff05, 0xff05),
    (0xff08, 0xff09),
    (0xff0c, 0xff0c),
    (0xff11, 0xff11),
    (0xff1a, 0xff1b),
    (0xff5e, 0xff5e),
];

fn is_in(ranges: &[(u32, u32)], c: char) -> bool {
    let next = ranges.partition_point(|(_, last)| *last < u32::from(c));
    ranges.get(next).is_some_and(|(first, _)| *first <= u32::from(c))
}

/// Whether a character ends a sentence.
pub(super) fn is_terminal(c: char) -> bool {
    is_in(TERMINAL, c)
}

/// Whether a word of nothing but such characters is no word.
pub(super) fn is_punctuation(c: char) -> bool {
    is_in(TERMINAL, c) || is_in(SYMBOL, c)
}

/// White space: Unicode's, and the four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The words of a text: what stands between white space, each sign of ASCII but `_` a word of its own.
pub fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::with_capacity(text.len() / 4);
    let mut start = None;
    for (at, c) in text.char_indices() {
        let is_sign = c.is_ascii_punctuation() && c != '_';
        if is_sign || is_space(c) {
            if let Some(start) = start.take() {
                words.push(&text[start..at]);
            }
            if is_sign {
                words.push(&text[at..=at]);
            }
        } else {
            start.get_or_insert(at);
        }
    }
    words.extend(start.map(|start| &text[start..]));
    words
}

/// How many sentences a line has: pieces that end where `.`, `?` or `!` stands before white space.
pub fn n_sentences(line: &str) -> usize {
    let mut n = 0;
    let mut has_text = false;
    let mut after_end = false;
    for c in line.chars() {
        let space = is_space(c);
        if space && after_end {
            n += 1;
            has_text = false;
        }
        has_text |= !space;
        after_end = matches!(c, '.' | '?' | '!');
    }
    n + usize::from(has_text)
}

/// The lines of a text at every separator that Unicode and ASCII have, without the separators.
pub(super) fn lines(text: &str) -> Vec<&str> {
    let is_end =
        |c| matches!(c, '\n' | '\u{b}' | '\u{c}' | '\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut from = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if is_end(c) {
            lines.push(&text[from..at]);
            from = at + c.len_utf8();
            if c == '\r' && chars.next_if(|(_, next)| *next == '\n').is_some() {
                from += 1;
            }
        }
    }
    if from < text.len() {
        lines.push(&text[from..]);
    }
    lines
}
