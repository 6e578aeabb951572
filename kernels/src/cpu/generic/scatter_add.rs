//! Sums of rows by id: `out[r] = sum of x[t] over all t with ids[t] = r`, in ascending order of `t`; ids outside are taken as the nearest inside, as
//! [`ir::op::gather::ScatterAdd`] says. A unit of the grid is 64 neighbouring rows of the result, which nobody else writes.

use crate::cpu::generic::args::Args;

/// Rows of a unit.
pub(crate) const ROWS: usize = 64;

/// Signature `x, ids, out` and `n, rows, width`.
///
/// # Safety
///
/// The contract of the crate.
#[inline(always)]
pub(crate) unsafe fn scatter_add(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    let (x, ids, out, n, rows, width) = unsafe {
        let args = Args::new(args, dims);
        let (x, ids, out): (*mut f32, *mut i32, *mut f32) = (args.pointer(0), args.pointer(1), args.pointer(2));
        (x, ids, out, args.size(0), args.size(1), args.size(2))
    };
    for unit in begin as usize..end as usize {
        let first = unit * ROWS;
        let last = (first + ROWS).min(rows);
        // SAFETY: the rows of the unit exist and are its own; so do the tokens.
        unsafe {
            let own = std::slice::from_raw_parts_mut(out.add(first * width), (last - first) * width);
            own.fill(0.0);
            for token in 0..n {
                let row = (*ids.add(token)).max(0) as usize;
                let row = row.min(rows - 1);
                if !(first..last).contains(&row) {
                    continue;
                }
                let from = std::slice::from_raw_parts(x.add(token * width), width);
                let to = &mut own[(row - first) * width..][..width];
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
        }
    }
}
