//! How streamed weights travel where they are packed more tightly on their way than where kernels read them.
//!
//! A piece is copied as a *parcel* and unpacked on the device: ternary tensors, four codes of 2 bits a byte, travel as five codes a byte, everything else
//! as it is. A parcel begins with a header of [`HEADER_BYTES`], in words of 32 bits, lowest byte first: the number of its tensors, three zeros, and for
//! each tensor
//!
//! | word | |
//! |---|---|
//! | 0 | 1 if it is ternary, else 0 |
//! | 1 | where it begins in the parcel, in units of 16 bytes |
//! | 2 | where it begins in the piece, in words |
//! | 3 | its words in the piece |
//!
//! 20 bytes of a piece, or 80 codes, are 16 bytes of a parcel: byte `b` of them is `sum_i code(5 b + i) * 3^i`. What is beyond the end of a tensor is 0.

use super::{ALIGNMENT, Buffer, Segment};

/// Bytes of a parcel ahead of its tensors.
pub const HEADER_BYTES: u64 = 1024;
/// Tensors of a parcel at the most.
pub const MOST_TENSORS: usize = HEADER_BYTES as usize / 16 - 1;
/// Bytes that become [`PACKED_BYTES`].
pub const UNIT_BYTES: usize = 20;
/// What these are in a parcel.
pub const PACKED_BYTES: usize = 16;

/// A tensor of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it starts in the piece.
    pub offset: u64,
    /// Its bytes there.
    pub bytes: u64,
    /// Whether its bytes are four codes each, none of them 3.
    pub is_ternary: bool,
}

impl Run {
    /// Bytes of it in a parcel.
    pub fn packed_bytes(&self) -> u64 {
        packed_bytes(self.bytes, self.is_ternary)
    }
}

/// Bytes in a parcel of a tensor that has so many in a piece.
pub fn packed_bytes(bytes: u64, is_ternary: bool) -> u64 {
    match is_ternary {
        true => bytes.div_ceil(UNIT_BYTES as u64).saturating_mul(PACKED_BYTES as u64),
        false => bytes.next_multiple_of(PACKED_BYTES as u64),
    }
}

/// A byte of a tensor that should be ternary and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} of streamed weights holds a code that is none of a ternary weight's")]
pub struct NotTernary {
    /// Where it is in its piece, to [`UNIT_BYTES`].
    pub offset: u64,
}

/// The tensors of a piece, in their order.
pub fn runs(buffers: &[Buffer], piece: &Segment) -> Vec<Run> {
    let end = piece.offset.saturating_add(piece.bytes);
    let weights = buffers.iter().filter(|buffer| buffer.role == super::Role::Weight && 0 < buffer.bytes);
    let mut runs: Vec<Run> = Vec::new();
    for buffer in weights {
        // The rounds that start in the piece.
        let stride = buffer.stride.max(1);
        let first = piece.offset.saturating_sub(buffer.offset).div_ceil(stride);
        let rounds = first..u64::from(buffer.rounds.max(1));
        let starts = rounds.map(|round| buffer.offset.saturating_add(buffer.stride.saturating_mul(round)));
        let here = starts.take_while(|start| *start < end).take(MOST_TENSORS + 1);
        let (bytes, is_ternary) = (buffer.bytes, buffer.is_ternary);
        runs.extend(here.map(|start| Run { offset: start - piece.offset, bytes, is_ternary }));
    }
    runs.sort_by_key(|run| run.offset);
    runs
}

/// Bytes of the parcel of a piece with these tensors.
pub fn parcel_bytes(runs: &[Run]) -> u64 {
    parcel_of(runs.iter().map(Run::packed_bytes))
}

/// Bytes of a parcel of tensors that have so many in it, each as [`packed_bytes`] says.
pub fn parcel_of(packed: impl Iterator<Item = u64>) -> u64 {
    packed.fold(HEADER_BYTES, u64::saturating_add).next_multiple_of(ALIGNMENT)
}

/// Packs a piece into a parcel of [`parcel_bytes`].
///
/// # Errors
///
/// If a ternary tensor has a code 3.
///
/// # Panics
///
/// If a run leaves the piece, or there are more of them than [`MOST_TENSORS`].
pub fn pack(piece: &[u8], runs: &[Run], parcel: &mut [u8]) -> Result<(), NotTernary> {
    assert!(runs.len() <= MOST_TENSORS, "a parcel has room for {MOST_TENSORS} tensors, {} were given", runs.len());
    parcel.fill(0);
    let table = packing_table();
    let mut at = HEADER_BYTES as usize;
    let mut header = vec![[runs.len() as u32, 0, 0, 0]];
    for run in runs {
        let (start, bytes) = (run.offset as usize, run.bytes as usize);
        header.push([u32::from(run.is_ternary), (at / PACKED_BYTES) as u32, (start / 4) as u32, (bytes / 4) as u32]);
        let (from, to) = (&piece[start..start + bytes], &mut parcel[at..at + run.packed_bytes() as usize]);
        match run.is_ternary {
            false => to[..bytes].copy_from_slice(from),
            true => {
                let units = from.chunks(UNIT_BYTES).zip(to.chunks_exact_mut(PACKED_BYTES)).enumerate();
                for (unit, (from, to)) in units {
                    if !pack_unit(from, to, &table) {
                        return Err(NotTernary { offset: run.offset + (unit * UNIT_BYTES) as u64 });
                    }
                }
            }
        }
        at += run.packed_bytes() as usize;
    }
    let words = header.into_iter().flatten().flat_map(u32::to_le_bytes);
    parcel.iter_mut().zip(words).for_each(|(byte, value)| *byte = value);
    Ok(())
}

/// What a kernel that unpacks parcels computes: the reference of it.
///
/// # Panics
///
/// If the parcel is none of [`pack`]'s, or the piece too small.
pub fn unpack(parcel: &[u8], piece: &mut [u8]) {
    let word = |at: usize| u32::from_le_bytes(parcel[4 * at..4 * at + 4].try_into().expect("four bytes")) as usize;
    for tensor in 1..=word(0) {
        let [is_ternary, from, to, words] = [0, 1, 2, 3].map(|field| word(4 * tensor + field));
        let (from, to) = (&parcel[from * PACKED_BYTES..], &mut piece[4 * to..4 * (to + words)]);
        if is_ternary == 0 {
            to.copy_from_slice(&from[..to.len()]);
            continue;
        }
        for (unit, to) in to.chunks_mut(UNIT_BYTES).enumerate() {
            let mut bits = [0_u8; UNIT_BYTES];
            for (byte, &packed) in from[unit * PACKED_BYTES..][..PACKED_BYTES].iter().enumerate() {
                let mut rest = packed;
                for position in (10 * byte..10 * byte + 10).step_by(2) {
                    bits[position / 8] |= (rest % 3) << (position % 8);
                    rest /= 3;
                }
            }
            to.copy_from_slice(&bits[..to.len()]);
        }
    }
}

/// For ten bits, five codes, their byte; [`NONE`] where a code is 3.
fn packing_table() -> [u8; 1024] {
    let mut table = [NONE; 1024];
    for (bits, byte) in table.iter_mut().enumerate() {
        let codes = [0, 2, 4, 6, 8].map(|shift| (bits >> shift) & 3);
        if codes.iter().all(|code| *code < 3) {
            *byte = codes.iter().rev().fold(0, |sum, code| sum * 3 + *code as u8);
        }
    }
    table
}

/// No byte of five codes: those are below 3^5.
const NONE: u8 = 255;

/// Packs up to [`UNIT_BYTES`]; whether all codes are ternary.
fn pack_unit(from: &[u8], to: &mut [u8], table: &[u8; 1024]) -> bool {
    let mut unit = [0_u8; UNIT_BYTES + 4];
    unit[..from.len()].copy_from_slice(from);
    let mut worst = 0;
    for (byte, to) in to.iter_mut().enumerate() {
        // Ten bits from bit 10 * byte on.
        let (first, shift) = (10 * byte / 8, 10 * byte % 8);
        let two = u16::from_le_bytes([unit[first], unit[first + 1]]);
        *to = table[usize::from(two >> shift) & 1023];
        worst = worst.max(*to);
    }
    worst != NONE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_comes_back() {
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize
        };
        for tensors in 1..40 {
            let (mut piece, mut runs) = (Vec::new(), Vec::new());
            for _ in 0..tensors {
                let (words, is_ternary) = (1 + random() % 40, random() % 2 == 0);
                runs.push(Run { offset: piece.len() as u64, bytes: 4 * words as u64, is_ternary });
                for _ in 0..4 * words {
                    let codes = (0..4).fold(0, |byte, _| byte << 2 | (random() % 3) as u8);
                    piece.push(if is_ternary { codes } else { random() as u8 });
                }
            }
            let mut parcel = vec![7; parcel_bytes(&runs) as usize];
            assert_eq!(pack(&piece, &runs, &mut parcel), Ok(()));
            let mut back = vec![9; piece.len()];
            unpack(&parcel, &mut back);
            assert_eq!(back, piece);
        }
    }

    #[test]
    fn a_code_that_is_not_ternary_is_found() {
        let mut piece = vec![0b0101_0110; 64];
        let runs = [Run { offset: 0, bytes: 64, is_ternary: true }];
        let mut parcel = vec![0; parcel_bytes(&runs) as usize];
        assert_eq!(pack(&piece, &runs, &mut parcel), Ok(()));
        piece[41] = 0b0011_0000;
        assert_eq!(pack(&piece, &runs, &mut parcel), Err(NotTernary { offset: 40 }));
    }

    #[test]
    fn a_parcel_has_four_fifths_of_ternary_bytes() {
        assert_eq!(packed_bytes(1 << 20, true), 838_864);
        assert_eq!(packed_bytes(1 << 20, false), 1 << 20);
    }
}
