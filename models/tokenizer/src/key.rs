//! Short strings as one number: what the tables of tokens and words are looked up by.

/// The longest string that is a key: the sixteenth byte holds the length.
pub(crate) const MAX_KEY_LEN: usize = 15;

/// Up to fifteen bytes and their length; different strings have different keys, and none is 0 but the empty one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Key(u128);

/// Which bytes belong to a string of so many.
const MASKS: [u128; 16] = {
    let mut masks = [0; 16];
    let mut len = 1;
    while len < 16 {
        masks[len] = (1 << (8 * len)) - 1;
        len += 1;
    }
    masks
};

impl Key {
    /// The key of `text[start..start + len]`, if it is not too long. The bytes after it are read with it where there are any.
    #[inline(always)]
    pub(crate) fn of(text: &[u8], start: usize, len: usize) -> Option<Self> {
        if MAX_KEY_LEN < len {
            return None;
        }
        let bytes = match text.get(start..).and_then(<[u8]>::first_chunk::<16>) {
            Some(chunk) => u128::from_le_bytes(*chunk),
            None => near_the_end(text, start, len),
        };
        Some(Self(bytes & MASKS[len] | (len as u128) << 120))
    }

    /// The key of a part of the string; parts are not longer than what they are of.
    #[inline(always)]
    pub(crate) fn part(self, start: usize, len: usize) -> Self {
        Self(self.0 >> (8 * start) & MASKS[len & 15] | (len as u128) << 120)
    }

    /// The byte that stands at `start`.
    #[inline(always)]
    pub(crate) fn byte(self, start: usize) -> usize {
        (self.0 >> (8 * start)) as usize & 0xFF
    }

    /// The two bytes that stand at `start`.
    #[inline(always)]
    pub(crate) fn pair(self, start: usize) -> usize {
        (self.0 >> (8 * start)) as usize & 0xFFFF
    }

    #[inline(always)]
    pub(crate) fn len(self) -> usize {
        (self.0 >> 120) as usize
    }

    #[inline(always)]
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// A hash of `bits` bits. Multiplication carries what differs in any bit up to the top ones, which are taken.
    #[inline(always)]
    pub(crate) fn hash(self, bits: u32) -> usize {
        let mixed = self.0 as u64 ^ ((self.0 >> 64) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> (64 - bits)) as usize
    }
}

#[cold]
fn near_the_end(text: &[u8], start: usize, len: usize) -> u128 {
    let mut bytes = [0; 16];
    bytes[..len].copy_from_slice(&text[start..start + len]);
    u128::from_le_bytes(bytes)
}
