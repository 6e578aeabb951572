//! The choices for a compute capability: which row of the CUDA table computes an op, and what it is specialised for.

use std::ops::RangeInclusive;

use ir::plan::{Expr, Grid};
use ir::{Graph, ValueId};
use kernels::cuda::{Accuracy, Blocks, PER_CALL};
use kernels::{CUDA_TABLE, CudaKernelDesc, Sm, Specialised, extent};

use crate::lower::cpu::{self, NoKernel, Wanted};
use crate::schedule::Schedule;
use crate::schedule::rope_append::{self, RopeAppend};

/// The kernel of an op for calls of a range of tokens: among those that the target can run and that take its sizes, one that is not plain, made for
/// the fewest tokens, of the highest capability, the one whose tiles take the least time for the most tokens, and rather one whose results are
/// bounded than one whose results are exact.
///
/// # Errors
///
/// If there is none.
pub fn choose(
    graph: &Graph,
    value: ValueId,
    tokens: &RangeInclusive<u64>,
    sm: Sm,
) -> Result<&'static CudaKernelDesc, NoKernel> {
    let wanted = cpu::wanted(graph, value, tokens);
    let size = |name: &str| cpu::dim(graph, value, name, 0).and_then(|expr| expr.as_const()).unwrap_or(0);
    let size = |name: &str| i64::try_from(size(name)).unwrap_or(i64::MAX);
    let best = best(&wanted, sm, &size);
    let Wanted { family, inputs, .. } = wanted;
    let refuse = |reason: String| {
        let closest: Vec<&str> = CUDA_TABLE.iter().filter(|desc| desc.family == family).map(|desc| desc.name).collect();
        cpu::refuse(graph, value, sm.to_string(), reason, &closest)
    };
    let best = best.ok_or_else(|| refuse("no row has these types".to_owned()))?;
    match extent::broken_limit(family, &inputs, &size) {
        Some(limit) => Err(refuse(limit)),
        None => Ok(best),
    }
}

/// The same for what is no one op, if there is a row. `size` gives the sizes by the names of the signature, 0 where only a call knows it.
pub(crate) fn best(wanted: &Wanted, sm: Sm, size: &dyn Fn(&str) -> i64) -> Option<&'static CudaKernelDesc> {
    let tokens = &wanted.tokens;
    CUDA_TABLE.iter().filter(|desc| fits(desc, wanted, sm, size)).min_by_key(|desc| {
        let range = desc.tokens.end() - desc.tokens.start();
        let dim = |name: &str| size(name).unsigned_abs();
        let time = desc.tile.map_or(0, |tile| tile.nanoseconds(*tokens.end(), dim("k"), dim("m")));
        // Rows that need not keep to the one order of the sums are faster.
        let is_exact = desc.accuracy == Accuracy::Exact;
        (desc.is_plain(), range, std::cmp::Reverse(desc.requires), time, is_exact, desc.name)
    })
}

/// Whether a row computes what is wanted on a target, where `size` gives the sizes.
fn fits(desc: &CudaKernelDesc, wanted: &Wanted, sm: Sm, size: &dyn Fn(&str) -> i64) -> bool {
    desc.family == wanted.family
        && desc.inputs == wanted.inputs
        && desc.output == wanted.output
        && desc.layout == wanted.layout
        && desc.requires.compiles_for(sm)
        && desc.tokens.start() <= wanted.tokens.start()
        && wanted.tokens.end() <= desc.tokens.end()
        && (desc.takes)(size)
}

/// The row for a product that other computations may join, where these take so many equal parts of its columns together; and whether its activations may
/// be among them.
pub fn choose_fused(
    graph: &Graph,
    value: ValueId,
    parts: u64,
    tokens: &RangeInclusive<u64>,
    sm: Sm,
) -> Option<(&'static CudaKernelDesc, bool)> {
    let wanted = cpu::wanted(graph, value, tokens);
    let size = |name: &str| cpu::dim(graph, value, name, 0).and_then(|expr| expr.as_const()).unwrap_or(0);
    let dim = |name: &str| i64::try_from(size(name)).unwrap_or(i64::MAX);
    // Tiles of 16 rows do not straddle two parts.
    let is_whole = parts == 1 || size("m") % (16 * parts) == 0;
    let is_within = extent::broken_limit(wanted.family, &wanted.inputs, &dim).is_none();
    let rows = CUDA_TABLE.iter().filter(|desc| fits(desc, &wanted, sm, &dim));
    let rows = rows.filter_map(|desc| Some((desc, desc.fuses.as_ref()?)));
    let rows = rows.filter(|(_, fuses)| parts <= fuses.parts && fuses.columns.contains(&size("k")));
    let best = rows.min_by_key(|(desc, fuses)| {
        (desc.tokens.end() - desc.tokens.start(), std::cmp::Reverse(desc.requires), fuses.parts, desc.name)
    });
    let (desc, fuses) = best.filter(|_| is_whole && is_within)?;
    let blocks = desc.launch.grid[0].count(dim).unsigned_abs();
    let takes_activations = fuses.activations.is_some_and(|most| blocks <= most.blocks && size("k") <= most.columns);
    Some((desc, takes_activations))
}

/// The groups of a graph for calls of a range of tokens.
pub fn fuse<'a>(schedule: Schedule<'a>, tokens: &RangeInclusive<u64>, sm: Sm) -> Schedule<'a> {
    let takes = |schedule: &Schedule<'_>, product, parts| {
        choose_fused(schedule.graph, product, parts, tokens, sm).map(|(_, takes_activations)| takes_activations)
    };
    let takes_attention =
        |schedule: &Schedule<'_>, group: &RopeAppend| group.row(schedule.graph, &schedule.views, tokens, sm).is_some();
    rope_append::take_attention(crate::schedule::fuse::fuse(schedule, &takes), &takes_attention)
}

/// A row with the sizes of an op, and the blocks and the arguments of its calls.
#[derive(Debug)]
pub struct Launch {
    /// The kernel.
    pub special: Specialised,
    /// Its blocks.
    pub grid: Grid,
    /// The sizes it is given at a call.
    pub dims: Vec<Expr>,
    /// Bytes of its dynamic shared memory.
    pub shared_bytes: u32,
}

/// The launch of a row for an op. `dim` gives the op's sizes by the names of the signature.
///
/// # Errors
///
/// If a size that the row is compiled for is known only at a call.
pub fn launch(
    desc: &'static CudaKernelDesc,
    graph: &Graph,
    value: ValueId,
    dim: &dyn Fn(&str) -> Expr,
) -> Result<Launch, NoKernel> {
    let refuse = |reason: String| cpu::refuse(graph, value, "CUDA".to_owned(), reason, &[desc.name]);
    let constant = |name: &str| i64::try_from(dim(name).as_const()?).ok();
    let special = Specialised::new(desc, constant);
    if let Some(unknown) = special.parameters().find(|name| !PER_CALL.contains(name)) {
        return Err(refuse(format!("`{unknown}` is known only at a call")));
    }
    let axis = |blocks: Blocks| match blocks {
        Blocks::Count(count) => Expr::from(count),
        Blocks::Dim(name) => dim(name),
        Blocks::CeilDiv(name, size) => dim(name).div_ceil(size),
        Blocks::Product(left, right) => dim(left) * dim(right),
    };
    let mut axes: Vec<Expr> = desc.launch.grid.into_iter().map(axis).collect();
    while 1 < axes.len() && axes.last() == Some(&Expr::from(1)) {
        axes.pop();
    }
    let dims = special.parameters().map(dim).collect();
    let shared_bytes = special.shared_bytes().and_then(|bytes| u32::try_from(bytes).ok());
    let shared_bytes = shared_bytes.ok_or_else(|| refuse("its shared memory has no size".to_owned()))?;
    Ok(Launch { special, grid: Grid(axes), dims, shared_bytes })
}
