//! Ternary values as bf16: `out[r, c] = w[r, c]`, exactly.
//!
//! `w` is `Tile16` `[n, k]`, `out` bf16 `[n, k]`; a unit of the grid is a block of 16 rows.

use half::bf16;

use crate::cpu::generic::args::Args;

/// Rows and columns of a tile.
const BLOCK: usize = 16;
/// Bytes of a tile.
const TILE_BYTES: usize = 64;
/// What the codes 0, 1 and 2 mean; a fourth is none.
const VALUES: [bf16; 4] = [bf16::NEG_ONE, bf16::ZERO, bf16::ONE, bf16::ZERO];

/// Signature `w, out` and `n, k`.
///
/// # Safety
///
/// The contract of the crate.
pub(crate) unsafe fn unpack(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    let (w, out, n, k) = unsafe {
        let args = Args::new(args, dims);
        (args.pointer::<u8>(0), args.pointer::<bf16>(1), args.size(0), args.size(1))
    };
    let tiles = k.div_ceil(BLOCK);
    for block in begin as usize..end as usize {
        for tile in 0..tiles {
            // SAFETY: there is a tile for each block of rows and of columns; they are bytes.
            let bytes = unsafe { w.add((block * tiles + tile) * TILE_BYTES).cast::<[u8; TILE_BYTES]>().read() };
            for (at, row) in bytes.as_chunks::<4>().0.iter().enumerate().take(n - block * BLOCK) {
                let columns = BLOCK.min(k - tile * BLOCK);
                for c in 0..columns {
                    let code = (row[c % 4] >> (2 * (c / 4))) & 3;
                    let element = (block * BLOCK + at) * k + tile * BLOCK + c;
                    // SAFETY: the row and the column exist, and the rows of the unit are its own.
                    unsafe { *out.add(element) = VALUES[usize::from(code)] };
                }
            }
        }
    }
}
