//! What rows that rotate and append must write, and those that compute the attention as well. No scalar row rotates, so that is computed here as it is
//! defined; the scalar rows append.

use anyhow::{Context as _, Result};
use ir::DType;
use kernels::cuda::{CudaKernelDesc, Rounding};
use kernels::{CUDA_TABLE, Family, Isa, TABLE};

use crate::bound::{self, Expected};
use crate::case::Case;
use crate::check::{Written, floats, on_cpu};

/// The rotated queries, and the caches.
pub(crate) fn expected(desc: &CudaKernelDesc, case: &Case) -> Result<Vec<Written>> {
    let dim = |name: &str| case.dim(desc, name) as usize;
    let (kv_heads, hd) = (dim("kv_heads"), dim("hd"));
    let [q, k, v, cos, sin] = [0, 1, 2, 3, 4].map(|arg| floats(&case.args[arg].0));
    let rotated = |x: &[f32], stride: usize, heads: usize| -> Vec<f32> {
        let rows = dense(x, stride, heads * hd).into_iter().enumerate();
        rows.flat_map(|(token, row)| {
            let [cos, sin] = [&cos, &sin].map(|table| &table[token * hd / 2..][..hd / 2]);
            row.chunks(hd).flat_map(|head| rotate(head, cos, sin)).collect::<Vec<_>>()
        })
        .collect()
    };
    let keys = rotated(&k, dim("k_stride"), kv_heads);
    let values = dense(&v, dim("v_stride"), kv_heads * hd).concat();
    let queries = rotated(&q, dim("q_stride"), dim("heads"));
    // In the place of the queries another row has the spans.
    let mut written = vec![Written { arg: 7, dtype: DType::F32, bytes: bytes(&queries) }];
    for (arg, input, rows) in [(8, 1, keys), (9, 2, values)] {
        let dtype = desc.inputs[input];
        let is_append = |row: &&kernels::KernelDesc| {
            (row.family, row.output, row.requires.isa) == (Family::KvAppend, dtype, Isa::Scalar)
        };
        let append = TABLE.iter().find(is_append).with_context(|| format!("no scalar row appends to {dtype}"))?;
        let [n, kv_heads, hd, ctx, seqs] = ["n", "kv_heads", "hd", "ctx", "seqs"].map(|name| case.dim(desc, name));
        let call = Case {
            label: case.label,
            dims: vec![n, kv_heads, hd, ctx, kv_heads * hd, seqs],
            args: vec![(bytes(&rows), 4), case.args[5].clone(), case.args[6].clone(), case.args[arg].clone()],
        };
        written.push(Written { arg, dtype, bytes: on_cpu(append, &call) });
    }
    Ok(written)
}

/// The caches, and the attention over them.
pub(crate) fn expected_attention(
    desc: &CudaKernelDesc,
    case: &Case,
    rounding: Rounding,
) -> Result<(Vec<Written>, Vec<Expected>)> {
    let mut written = expected(desc, case)?;
    let queries = written.remove(0).bytes;
    let is_attention = |row: &&CudaKernelDesc| row.family == Family::Attention && row.inputs == desc.inputs;
    let attention = CUDA_TABLE.iter().find(is_attention).context("no row computes the attention alone")?;
    let mut args = vec![(queries, 4)];
    args.extend(written.iter().map(|cache| (cache.bytes.clone(), 16)));
    args.extend(case.args[5..8].iter().cloned());
    let dims = attention.signature.dims.iter().map(|name| case.dim(desc, name)).collect();
    let expected = bound::attention(attention, &Case { label: case.label, dims, args }, rounding)?;
    Ok((written, expected))
}

/// The rows of tokens that lie `stride` numbers apart.
fn dense(x: &[f32], stride: usize, width: usize) -> Vec<&[f32]> {
    x.chunks(stride).map(|row| &row[..width]).collect()
}

fn rotate(head: &[f32], cos: &[f32], sin: &[f32]) -> Vec<f32> {
    let (low, high) = head.split_at(head.len() / 2);
    let low_turned = (0..low.len()).map(|i| low[i] * cos[i] - high[i] * sin[i]);
    let high_turned = (0..low.len()).map(|i| high[i] * cos[i] + low[i] * sin[i]);
    low_turned.chain(high_turned).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
