//! What kind of character each one is: the classes that known expressions for words tell apart.

use std::sync::LazyLock;

use regex_syntax::hir::{Class as HirClass, HirKind};

/// What the expressions ask of a character. Every character is of exactly one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Class {
    /// None of the others: punctuation, symbols, controls.
    Other,
    /// `\p{Lu}` and `\p{Lt}`.
    Upper,
    /// `\p{Ll}`.
    Lower,
    /// `\p{Lm}` and `\p{Lo}`: letters without case.
    Letter,
    /// `\p{M}`.
    Mark,
    /// `\p{N}`.
    Number,
    /// `\s` but for carriage return and line feed.
    Space,
    /// Carriage return and line feed.
    Newline,
}

impl Class {
    /// `\p{L}`.
    #[inline(always)]
    pub(super) fn is_letter(self) -> bool {
        matches!(self, Class::Upper | Class::Lower | Class::Letter)
    }

    /// `\s`.
    #[inline(always)]
    pub(super) fn is_space(self) -> bool {
        matches!(self, Class::Space | Class::Newline)
    }

    /// `[^\s\p{L}\p{N}]`.
    #[inline(always)]
    pub(super) fn is_sign(self) -> bool {
        matches!(self, Class::Other | Class::Mark)
    }

    /// `[^\r\n\p{L}\p{N}]`.
    #[inline(always)]
    pub(super) fn is_prefix(self) -> bool {
        matches!(self, Class::Other | Class::Mark | Class::Space)
    }

    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`.
    #[inline(always)]
    pub(super) fn is_head(self) -> bool {
        matches!(self, Class::Upper | Class::Letter | Class::Mark)
    }

    /// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`.
    #[inline(always)]
    pub(super) fn is_tail(self) -> bool {
        matches!(self, Class::Lower | Class::Letter | Class::Mark)
    }
}

/// The classes of ASCII; of bytes that start or continue a longer character, nothing is said.
pub(super) const ASCII: [Class; 256] = {
    let mut classes = [Class::Other; 256];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'A'..=b'Z' => Class::Upper,
            b'a'..=b'z' => Class::Lower,
            b'0'..=b'9' => Class::Number,
            b'\r' | b'\n' => Class::Newline,
            b' ' | b'\t' | 0x0B | 0x0C => Class::Space,
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
};

/// The class of a character and its length in bytes. `text` is UTF-8 and a character starts at `at`.
#[inline(always)]
pub(super) fn class_at(text: &[u8], at: usize) -> Option<(Class, usize)> {
    let byte = *text.get(at)?;
    if byte < 0x80 {
        return Some((ASCII[usize::from(byte)], 1));
    }
    Some(long_class(text, at, byte))
}

fn long_class(text: &[u8], at: usize, first: u8) -> (Class, usize) {
    let next = |n: usize| u32::from(text.get(at + n).copied().unwrap_or(0) & 0x3F);
    let first = u32::from(first);
    let (char, len) = match first {
        0xF0.. => ((first & 7) << 18 | next(1) << 12 | next(2) << 6 | next(3), 4),
        0xE0.. => ((first & 0xF) << 12 | next(1) << 6 | next(2), 3),
        _ => ((first & 0x1F) << 6 | next(1), 2),
    };
    (TABLE.class(char), len)
}

/// All of Unicode in two steps: equal blocks of 256 characters are kept once.
struct Table {
    block_of: Vec<u8>,
    blocks: Vec<[Class; 256]>,
}

impl Table {
    fn class(&self, char: u32) -> Class {
        let block = self.block_of.get((char >> 8) as usize).map_or(0, |&block| usize::from(block));
        self.blocks[block][(char & 0xFF) as usize]
    }
}

/// From the tables of the crate that matches expressions, so that both always mean the same version of Unicode.
static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut classes = vec![Class::Other; 0x11_0000];
    let families = [
        (r"[\p{Lu}\p{Lt}]", Class::Upper),
        (r"\p{Ll}", Class::Lower),
        (r"[\p{Lm}\p{Lo}]", Class::Letter),
        (r"\p{M}", Class::Mark),
        (r"\p{N}", Class::Number),
        (r"\s", Class::Space),
        (r"[\r\n]", Class::Newline),
    ];
    for (expression, class) in families {
        let parsed = regex_syntax::parse(expression).expect("the expressions are well formed");
        let HirKind::Class(HirClass::Unicode(set)) = parsed.kind() else { unreachable!("classes of characters") };
        for range in set.ranges() {
            classes[range.start() as usize..=range.end() as usize].fill(class);
        }
    }
    let mut table = Table { block_of: Vec::new(), blocks: Vec::new() };
    for block in classes.as_chunks::<256>().0 {
        let known = table.blocks.iter().position(|other| other == block);
        let index = known.unwrap_or_else(|| {
            table.blocks.push(*block);
            table.blocks.len() - 1
        });
        table.block_of.push(u8::try_from(index).expect("Unicode has fewer than 256 different blocks"));
    }
    table
});
