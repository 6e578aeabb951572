//! The other way through ternary weights: `out[t, c] = sum over r of (x[t, r] * scale[r]) * w[r, c]`, in ascending order of `r`, from 0 on.
//!
//! `x` is f32 `[n, m]`, `w` is `Tile16` `[m, k]`, `scale` f32 `[m]`, `out` f32 `[n, k]`; a unit of the grid is 16 columns of `w`, the width of its tiles.
//! What a product with -1, 0 or 1 gives is exact, so a step may be fused or not.

use crate::cpu::generic::args::Args;

/// Rows and columns of a tile.
const BLOCK: usize = 16;
/// Bytes of a tile.
const TILE_BYTES: usize = 64;
/// Tokens that share a decoded tile.
const TOKENS: usize = 8;

/// The values of a tile: byte `4 r + j` holds those of row `r` in the columns `c % 4 == j`, the first in the low bits.
fn decode(tile: &[u8; TILE_BYTES]) -> [[f32; BLOCK]; BLOCK] {
    let mut values = [[0.0; BLOCK]; BLOCK];
    for (bytes, values) in tile.as_chunks::<4>().0.iter().zip(&mut values) {
        for (c, value) in values.iter_mut().enumerate() {
            *value = f32::from((bytes[c % 4] >> (2 * (c / 4))) & 3) - 1.0;
        }
    }
    values
}

/// Signature `x, w, scale, out` and `n, k, m`.
///
/// # Safety
///
/// The contract of the crate.
pub(crate) unsafe fn matmul(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    let (x, w, scale, out, n, k, m) = unsafe {
        let args = Args::new(args, dims);
        let (x, scale, out): (*mut f32, *mut f32, *mut f32) = (args.pointer(0), args.pointer(2), args.pointer(3));
        (x, args.pointer::<u8>(1), scale, out, args.size(0), args.size(1), args.size(2))
    };
    let tiles = k.div_ceil(BLOCK);
    for unit in begin as usize..end as usize {
        let columns = BLOCK.min(k - unit * BLOCK);
        for first in (0..n).step_by(TOKENS) {
            let tokens = TOKENS.min(n - first);
            let mut sums = [[0.0_f32; BLOCK]; TOKENS];
            for block in 0..m.div_ceil(BLOCK) {
                // SAFETY: there is a tile for each block of rows and of columns; they are bytes.
                let tile =
                    unsafe { decode(&w.add((block * tiles + unit) * TILE_BYTES).cast::<[u8; TILE_BYTES]>().read()) };
                for (at, values) in tile.iter().enumerate().take(m - block * BLOCK) {
                    let row = block * BLOCK + at;
                    for (token, sums) in sums.iter_mut().enumerate().take(tokens) {
                        // SAFETY: the token and the row exist.
                        let scaled = unsafe { *x.add((first + token) * m + row) * *scale.add(row) };
                        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += scaled * value);
                    }
                }
            }
            for (token, sums) in sums.iter().enumerate().take(tokens) {
                // SAFETY: the token exists, and the columns of the unit are its own.
                unsafe { out.add((first + token) * k + unit * BLOCK).copy_from_nonoverlapping(sums.as_ptr(), columns) };
            }
        }
    }
}
