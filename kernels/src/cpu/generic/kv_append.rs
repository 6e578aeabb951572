//! KV append: `cache[seq[t], h, pos[t]] = encode(x[t, h])` for every token `t` and KV head `h`.
//!
//! `x` is f32, token `t` at element `t * x_stride`, its heads one after the other; `cache` is `[seqs, kv_heads, ctx, hd]` in f32, in bf16 or
//! as records of a row format. A unit of the grid is a token. The encoding is the one of `ir::packing`, not another copy of it: a token has
//! a few thousand numbers to encode where its matmuls have millions of products, so the one definition is fast enough for every ISA.

use half::bf16;
use ir::DType;
use ir::packing::RowFormat;

use crate::cpu::generic::args::Args;

/// Into an f32 cache.
///
/// # Safety
///
/// The contract of the crate.
pub(crate) unsafe fn append_f32(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    let bytes = |hd: usize| 4 * hd;
    let write = |row: &[f32], record: &mut [u8]| {
        for (value, bytes) in row.iter().zip(record.as_chunks_mut::<4>().0) {
            *bytes = value.to_le_bytes();
        }
    };
    // SAFETY: as the caller promises; a row of the cache has 4 bytes a number.
    unsafe { append(args, dims, begin, end, bytes, write) }
}

/// Into a bf16 cache.
///
/// # Safety
///
/// The contract of the crate.
pub(crate) unsafe fn append_bf16(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    let bytes = |hd: usize| 2 * hd;
    let write = |row: &[f32], record: &mut [u8]| {
        for (value, bytes) in row.iter().zip(record.as_chunks_mut::<2>().0) {
            *bytes = bf16::from_f32(*value).to_le_bytes();
        }
    };
    // SAFETY: as the caller promises; a row of the cache has 2 bytes a number.
    unsafe { append(args, dims, begin, end, bytes, write) }
}

/// Into a cache of q8 records.
///
/// # Safety
///
/// The contract of the crate.
pub(crate) unsafe fn append_q8(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    unsafe { append_records(DType::Q8, args, dims, begin, end) }
}

/// Into a cache of q4 records.
///
/// # Safety
///
/// The contract of the crate.
pub(crate) unsafe fn append_q4(args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    unsafe { append_records(DType::Q4, args, dims, begin, end) }
}

/// # Safety
///
/// The contract of the crate, with a cache of records of `dtype`.
unsafe fn append_records(dtype: DType, args: *const *mut u8, dims: *const i64, begin: i64, end: i64) {
    let format = |hd: usize| RowFormat::new(dtype, hd).expect("only row formats are asked for");
    let write = |row: &[f32], record: &mut [u8]| format(row.len()).encode(row, record);
    // SAFETY: as the caller promises; a row of the cache is one record.
    unsafe { append(args, dims, begin, end, |hd| format(hd).stride(), write) }
}

/// # Safety
///
/// The contract of the crate, for the signature `x, seq, pos, cache` and `n, kv_heads, hd, ctx, x_stride, seqs`, with a cache of rows of
/// `row_bytes(hd)` bytes.
unsafe fn append(
    args: *const *mut u8,
    dims: *const i64,
    begin: i64,
    end: i64,
    row_bytes: impl Fn(usize) -> usize,
    write: impl Fn(&[f32], &mut [u8]),
) {
    // SAFETY: the signature has these arguments and dims.
    let (args, kv_heads, hd, ctx, x_stride, seqs) = unsafe {
        let args = Args::new(args, dims);
        (args, args.size(1), args.size(2), args.size(3), args.size(4), args.size(5))
    };
    let row_bytes = row_bytes(hd);
    for token in begin as usize..end as usize {
        // SAFETY: `seq` and `pos` have a number for every token.
        let (seq, pos) = unsafe { (*args.pointer::<i32>(1).add(token), *args.pointer::<i32>(2).add(token)) };
        // The runtime has refused positions beyond the cache; should one come through, the token is lost rather than memory.
        let (Ok(seq), Ok(pos)) = (usize::try_from(seq), usize::try_from(pos)) else { continue };
        if seqs <= seq || ctx <= pos {
            continue;
        }
        for head in 0..kv_heads {
            // SAFETY: `x` holds `kv_heads * hd` numbers for the token; `seq < seqs` and `pos < ctx`, so the row is inside the cache.
            // No other unit writes it, because tokens of one call have places of their own.
            unsafe {
                let x = args.pointer::<f32>(0).add(token * x_stride + head * hd);
                let row = args.pointer::<u8>(3).add(((seq * kv_heads + head) * ctx + pos) * row_bytes);
                write(std::slice::from_raw_parts(x, hd), std::slice::from_raw_parts_mut(row, row_bytes));
            }
        }
    }
}
