//! The choice of a token from each row of logits: [`crate::sample`] on what the arguments point to. A unit of the grid is a row.

use crate::cpu::generic::args::Args;
use crate::sample::{Settings, choose};

/// # Safety
///
/// The contract of the crate, for the signature `logits, settings, draws, out` and `n, v`.
pub(crate) unsafe fn sample(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: the signature has these arguments and dims.
    let (args, vocab) = unsafe {
        let args = Args::new(args, dims);
        (args, args.size(1))
    };
    for row in begin as usize..end as usize {
        // SAFETY: every row has `v` logits, four settings, two halves of a draw, and a place for its id that no other unit writes.
        unsafe {
            let logits = std::slice::from_raw_parts(args.pointer::<f32>(0).add(row * vocab), vocab);
            let settings = args.pointer::<[f32; 4]>(1).add(row).read();
            let [low, high] = args.pointer::<[u32; 2]>(2).add(row).read();
            let id = choose(logits, &Settings::from_row(settings), u64::from(high) << 32 | u64::from(low));
            args.pointer::<i32>(3).add(row).write(id);
        }
    }
}
