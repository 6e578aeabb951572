//! How many bytes of each argument a call may touch: what a reader of plans checks before it trusts one.

use ir::DType;
use ir::op::matmul::Form;
use ir::packing::RowFormat;

use crate::desc::{Family, KernelDesc};
use crate::{MAX_GROUPS, MAX_HEAD_DIM, MAX_K};

/// Bytes from the pointer of an argument to the end of what a call with these dims may read or write there; `None` beyond 2^64, for a dim below
/// zero, or for a name that is no argument of the kernel. `sequences` is how many a cache holds, where that is no dim.
pub fn arg_bytes(desc: &KernelDesc, name: &str, dim: &dyn Fn(&str) -> i64, sequences: u64) -> Option<u64> {
    let size = |name: &str| u64::try_from(dim(name)).ok();
    let product = |sizes: &[Option<u64>]| sizes.iter().try_fold(1_u64, |product, size| product.checked_mul((*size)?));
    let input = |position: usize| desc.inputs.get(position).copied();
    let row = |dtype: Option<DType>, k: Option<u64>| row_bytes(dtype?, k?);
    match (desc.family, name) {
        (Family::TernaryMatmul | Family::DenseMatmul, "x") => product(&[size("n"), row(input(0), size("k"))]),
        (Family::TernaryMatmul | Family::DenseMatmul, "out") => product(&[Some(4), size("n"), size("m")]),
        (Family::TernaryMatmulTransposed, "x") => product(&[Some(4), size("n"), size("m")]),
        (Family::TernaryMatmulTransposed, "out") => product(&[Some(4), size("n"), size("k")]),
        (Family::TernaryMatmul | Family::TernaryMatmulTransposed, "scale") => product(&[Some(4), size("m")]),
        (Family::TernaryMatmul | Family::TernaryMatmulTransposed | Family::Unpack, "w") => {
            let rows = if desc.family == Family::Unpack { "n" } else { "m" };
            let (m, k, layout) = (size(rows)?, size("k")?, desc.layout?);
            // Padding included; and no product of the layout's formula may wrap.
            m.checked_add(16)?.checked_mul(k.checked_add(20)?)?;
            Some(layout.bytes(m, k))
        }
        (Family::Unpack, "out") => product(&[Some(2), size("n"), size("k")]),
        (Family::DenseMatmul, "w") if input(1) == Some(DType::Q4) => {
            let groups = size("k")?.checked_div(size("group")?)?;
            product(&[size("m"), Some(groups), row(input(1), size("group"))])
        }
        (Family::DenseMatmul, "w") => product(&[size("m"), row(input(1), size("k"))]),
        (Family::Gemm, "x") => product(&[Some(2), size("n"), size("k")]),
        (Family::Gemm, "w") => product(&[Some(2), size("k"), size("m")]),
        (Family::Gemm, "out") => product(&[size("n"), row(Some(desc.output), size("m"))]),
        (Family::Attention, "q" | "out") => product(&[Some(4), size("n"), size("heads"), size("hd")]),
        (Family::Attention, "k") => {
            product(&[Some(sequences), size("ctx"), size("kv_heads"), row(input(1), size("hd"))])
        }
        (Family::Attention, "v") => {
            let dtype = input(2).or(input(1));
            product(&[Some(sequences), size("ctx"), size("kv_heads"), row(dtype, size("hd"))])
        }
        (Family::Attention | Family::KvAppend, "seq" | "pos") => product(&[Some(4), size("n")]),
        (Family::Attention, "span") => product(&[Some(8), size("n")]),
        (Family::KvAppend, "x") => {
            // The last token's row need not be followed by the rest of a stride.
            let before = product(&[size("n")?.checked_sub(1), size("x_stride")]).unwrap_or(0);
            let last = product(&[size("kv_heads"), size("hd")])?;
            if size("n")? == 0 { Some(0) } else { before.checked_add(last)?.checked_mul(4) }
        }
        (Family::KvAppend, "cache") => {
            product(&[size("seqs"), size("ctx"), size("kv_heads"), row(Some(desc.output), size("hd"))])
        }
        (Family::AttentionLse | Family::QueryGradient | Family::CacheGradient, "q" | "dy") => {
            product(&[size("n"), size("heads"), row(input(0), size("hd"))])
        }
        (Family::AttentionLse | Family::QueryGradient | Family::CacheGradient, "k" | "v") => {
            product(&[size("seqs"), size("ctx"), size("kv_heads"), row(input(1), size("hd"))])
        }
        (Family::AttentionLse | Family::QueryGradient | Family::CacheGradient, "seq" | "pos") => {
            product(&[Some(4), size("n")])
        }
        (Family::AttentionLse | Family::QueryGradient | Family::CacheGradient, "span") => {
            product(&[Some(8), size("n")])
        }
        (Family::AttentionLse, "out") | (Family::QueryGradient | Family::CacheGradient, "lse" | "delta") => {
            product(&[Some(4), size("n"), size("heads")])
        }
        (Family::QueryGradient, "out") => product(&[Some(4), size("n"), size("heads"), size("hd")]),
        (Family::CacheGradient, "out") => product(&[Some(8), size("seqs"), size("ctx"), size("kv_heads"), size("hd")]),
        (Family::ScatterAdd, "x") => product(&[Some(4), size("n"), size("width")]),
        (Family::ScatterAdd, "ids") => product(&[Some(4), size("n")]),
        (Family::ScatterAdd, "out") => product(&[Some(4), size("rows"), size("width")]),
        (Family::MeanAbs, "w") => product(&[size("n"), row(input(0), size("k"))]),
        (Family::MeanAbs, "out") => product(&[Some(4), size("n")]),
        (Family::Sample, "logits") => product(&[Some(4), size("n"), size("v")]),
        (Family::Sample, "settings") => product(&[Some(16), size("n")]),
        (Family::Sample, "draws") => product(&[Some(8), size("n")]),
        (Family::Sample, "out") => product(&[Some(4), size("n")]),
        _ => None,
    }
}

/// The limit of a row's family that these dims break, in words.
pub fn broken_limit(family: Family, inputs: &[DType], dim: &dyn Fn(&str) -> i64) -> Option<String> {
    let above = |name: &str, limit: usize| {
        (i64::try_from(limit).unwrap_or(i64::MAX) < dim(name))
            .then(|| format!("{name} is {}, the limit is {limit}", dim(name)))
    };
    match (family, inputs) {
        (Family::Attention, _) => above("hd", MAX_HEAD_DIM).or_else(|| {
            let (heads, kv_heads) = (dim("heads"), dim("kv_heads"));
            (kv_heads < 1 || heads % kv_heads != 0)
                .then(|| format!("{heads} heads do not share {kv_heads} key-value heads"))
        }),
        (Family::DenseMatmul, [_, DType::Q4]) => {
            let (k, group) = (dim("k"), dim("group"));
            if group < 1 || group % 64 != 0 || k % group != 0 {
                return Some(format!(
                    "{k} columns in groups of {group}; groups are multiples of 64 and divide the columns"
                ));
            }
            (MAX_GROUPS as i64 <= k / group && k / group != MAX_GROUPS as i64)
                .then(|| format!("{} groups in a row, the limit is {MAX_GROUPS}", k / group))
        }
        (Family::TernaryMatmul | Family::DenseMatmul, [DType::Q8, ..]) => above("k", MAX_K),
        (Family::Gemm, _) => {
            let form = dim("form");
            let is_known = usize::try_from(form).is_ok_and(|form| form < Form::ALL.len());
            (!is_known).then(|| format!("{form} is no form of a product, of which there are {}", Form::ALL.len()))
        }
        _ => None,
    }
}

fn row_bytes(dtype: DType, k: u64) -> Option<u64> {
    match (dtype.bytes(), k < 1 << 40) {
        (Some(bytes), _) => k.checked_mul(bytes),
        (None, true) => RowFormat::new(dtype, k as usize).map(|format| format.stride() as u64),
        (None, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TABLE;

    #[test]
    fn every_argument_of_every_row_has_an_extent() {
        for desc in TABLE {
            let dim = |name: &str| if name == "group" || name == "hd" || name == "k" { 64 } else { 3 };
            for arg in desc.signature.args {
                let bytes = arg_bytes(desc, arg.name, &dim, 2);
                assert!(bytes.is_some_and(|bytes| 0 < bytes), "{} `{}`: {bytes:?}", desc.name, arg.name);
                let huge = arg_bytes(desc, arg.name, &|_| i64::MAX, u64::MAX);
                assert!(huge.is_none(), "{} `{}`: {huge:?}", desc.name, arg.name);
            }
        }
    }
}
