//! A nest as CUDA C: a function that computes one unit by a warp or by a block whose threads share the columns, and a kernel that calls it.
//!
//! The results are those of [`crate::nest::eval`], bit for bit. A sum has its 32 lanes in the threads of a warp; where a unit has a whole block, the
//! first warp adds what all threads have computed and left in shared memory, in the same order. What several stages use is computed once and kept
//! in registers. Elementary functions are printed from [`crate::nest::math`], the definition that the other back ends follow, and the source is
//! compiled without fused multiply-adds.
//!
//! ```text
//! template <int WIDTH, class Wait> void <nest>_unit(buffers..., i64 dims..., i64 unit, u32 *scratch, Wait wait)
//! extern "C" __global__ void <nest>(buffers..., int dims...)      [`units`]
//! ```
//!
//! Until it calls `wait`, a unit reads weights only, which are there before the kernels ahead of it are done.
//! Base pointers are aligned to their elements; records of q8 to 8 bytes, of q4 to 4.

mod functions;
pub mod fused;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use self::functions::Function;
use super::writer::Writer;
use crate::nest::{
    Axis, BinaryOp, Buffer, Elem, Expr, ExprId, Extent, Index, ReduceOp, Stage, Type, UnaryOp, Verified, Write,
};

/// Columns whose values a reduction keeps in shared memory at once: 44 KiB of the 48 that every device gives without being asked, a multiple of the
/// lanes. Wider rows are taken in chunks, each of which waits for the one before.
const CHUNK: u64 = 11_264;

/// Registers of a multiprocessor.
const REGISTERS: u64 = 65_536;

/// Units from which on a nest fills a device with a warp for each: four times as many warps as an H100 has at once.
const MANY_UNITS: u64 = 4 * 132 * 64;

/// Columns of a warp's unit: more than 48 of a thread have no room in its registers.
const WARP_COLUMNS: u64 = 48 * 32;

/// Units that lie side by side in memory and are folded together: what a trip to memory brings of one row, in bf16.
const SIDE_BY_SIDE: u64 = 16;

/// How the units of a nest are given to threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// Threads of a block.
    pub threads: u32,
    /// Units of a block.
    pub of_block: u64,
    /// Whether neighbouring threads have neighbouring units, and the lanes of a unit are [`SIDE_BY_SIDE`] threads apart; else each unit has
    /// threads that follow each other.
    pub is_across: bool,
}

impl Units {
    /// Threads of a unit.
    fn width(self) -> u32 {
        self.threads / self.of_block as u32
    }
}

/// A warp for each unit of few columns, or where there are very many units; else a block: more threads than one for each 10 columns or so have more to
/// tell each other than they save. Sums down the columns of a matrix are taken side by side.
pub fn units(nest: &Verified) -> Units {
    let of = |threads, of_block| Units { threads, of_block, is_across: false };
    if is_across(nest) {
        return Units { threads: 32 * SIDE_BY_SIDE as u32, of_block: SIDE_BY_SIDE, is_across: true };
    }
    let is_many = MANY_UNITS <= nest.outer.iter().map(constant).fold(1, u64::saturating_mul);
    match widest(nest) {
        8192.. => of(1024, 1),
        4096.. => of(512, 1),
        columns if columns <= 256 || (is_many && columns <= WARP_COLUMNS) => of(256, 8),
        _ => of(256, 1),
    }
}

/// A size, or 0 where it is known only at a call.
fn constant(extent: &Extent) -> u64 {
    match extent {
        Extent::Const(size) => *size,
        Extent::Dim(_) => 0,
    }
}

/// Whether a nest does nothing but fold columns that lie far apart, of units that lie side by side.
fn is_across(nest: &Verified) -> bool {
    let Some((last, &Extent::Const(units))) = nest.outer.iter().enumerate().next_back() else { return false };
    let is_known = |extent: &Extent| matches!(extent, Extent::Const(_));
    let is_fold = |stage: &Stage| match stage {
        Stage::Reduce { op, len: Extent::Const(len), .. } => !matches!(op, ReduceOp::ArgMax) && 64 <= *len,
        Stage::Store { len, .. } => *len == Extent::Const(1),
        Stage::Scalar { .. } => true,
        Stage::Reduce { .. } | Stage::StoreRow { .. } => false,
    };
    let is_far = |expr: &Expr| match expr {
        Expr::Load { index, .. } => {
            let by_unit = index.terms.iter().filter(|term| term.axis == Axis::Outer(last)).map(|term| term.stride);
            SIDE_BY_SIDE as i64 <= index.column_stride() && by_unit.sum::<i64>() == 1
        }
        _ => false,
    };
    SIDE_BY_SIDE <= units
        && nest.outer.iter().all(is_known)
        && nest.stages.iter().all(is_fold)
        && nest.exprs.values().any(is_far)
}

/// Columns of the widest stage.
fn widest(nest: &Verified) -> u64 {
    let columns = |extent: &Extent| match extent {
        Extent::Const(size) => *size,
        Extent::Dim(_) => 256,
    };
    let lens = nest.stages.iter().map(|stage| match stage {
        Stage::Reduce { len, .. } | Stage::Store { len, .. } => columns(len),
        Stage::StoreRow { buffer, .. } => record_len(nest.buffers[*buffer].elem),
        Stage::Scalar { .. } => 1,
    });
    lens.max().unwrap_or(1)
}

/// The kernel itself, without what it calls.
pub fn kernel(nest: &Verified) -> String {
    let mut body = Body::new(nest);
    let mut kernel = Writer::new();
    body.unit(&mut kernel);
    body.kernel(&mut kernel);
    kernel.finish()
}

/// The source of a nest.
pub fn source(nest: &Verified) -> String {
    let mut source = Source::default();
    let body = source.add(nest, Body::new(nest), |body, w| {
        body.unit(w);
        body.kernel(w);
    });
    source.finish(body.chunk)
}

/// A source with the parts of several nests.
#[derive(Default)]
struct Source {
    /// The nests, as comments.
    head: String,
    functions: BTreeSet<Function>,
    code: String,
}

impl Source {
    fn add<'a>(
        &mut self,
        nest: &Verified,
        mut body: Body<'a>,
        write: impl FnOnce(&mut Body<'a>, &mut Writer),
    ) -> Body<'a> {
        for line in nest.to_string().trim_end().lines() {
            let _ = writeln!(self.head, "// {line}");
        }
        let mut code = Writer::new();
        write(&mut body, &mut code);
        self.functions.append(&mut body.functions);
        self.code += &code.finish();
        body
    }

    /// The text; `chunk` is how many words of shared memory the units have.
    fn finish(self, chunk: u64) -> String {
        let functions: String = self.functions.iter().map(|function| function.text()).collect();
        let Self { head, code, .. } = self;
        kernels::cuda::expand(&format!(
            "{head}constexpr int CHUNK = {chunk};\n\n{}{functions}\n{code}",
            functions::PRELUDE
        ))
    }
}

/// What folds of the prelude are called.
fn op_name(op: ReduceOp) -> &'static str {
    match op {
        ReduceOp::Sum => "Sum",
        ReduceOp::Max => "Max",
        ReduceOp::Min => "Min",
        ReduceOp::ArgMax => unreachable!("it is no fold of values alone"),
    }
}

fn record_len(elem: Elem) -> u64 {
    match elem {
        Elem::Q8 { k } | Elem::Q4 { k } => k,
        _ => 0,
    }
}

fn c_type(ty: Type) -> &'static str {
    match ty {
        Type::F32 => "float",
        Type::I32 => "int",
        Type::Bool => "bool",
    }
}

fn elem_type(elem: Elem) -> &'static str {
    match elem {
        Elem::F32 => "float",
        Elem::F16 | Elem::BF16 => "u16",
        Elem::I8 => "i8",
        Elem::I32 => "int",
        Elem::Q8 { .. } | Elem::Q4 { .. } => "u8",
    }
}

/// Columns of a stage where they are a constant that an index can count, else 0.
fn constant_len(extent: Extent) -> u64 {
    match extent {
        Extent::Const(size) if size <= CHUNK => size,
        _ => 0,
    }
}

fn stage_len(nest: &Verified, stage: &Stage) -> u64 {
    match stage {
        Stage::Reduce { len, .. } | Stage::Store { len, .. } => constant_len(*len),
        Stage::StoreRow { buffer, .. } => record_len(nest.buffers[*buffer].elem),
        Stage::Scalar { .. } => 0,
    }
}

/// How many stages use an expression.
fn stages_of(nest: &Verified, id: ExprId) -> usize {
    nest.stages.iter().filter(|stage| nest.reachable(&stage.roots()).contains(&id)).count()
}

/// The number of columns of the stages that use an expression, if it is one that all have.
fn kept_len(nest: &Verified, id: ExprId) -> Option<u64> {
    let users = nest.stages.iter().filter(|stage| nest.reachable(&stage.roots()).contains(&id));
    let mut lens = users.map(|stage| stage_len(nest, stage));
    let first = lens.next().filter(|len| 0 < *len)?;
    lens.all(|len| len == first).then_some(first)
}

/// What columns need that no stage changes, and that is worth having before the stages begin: values that several stages use, as near to the use as they
/// are shared, and what a stage loads that would else wait for a reduction before it. Records of 4 bits ask for columns of other threads, so nothing is
/// kept where they are written.
fn kept_values(nest: &Verified) -> Vec<ExprId> {
    let is_q4 = |stage: &Stage| matches!(stage, Stage::StoreRow { buffer, .. } if matches!(nest.buffers[*buffer].elem, Elem::Q4 { .. }));
    if nest.stages.iter().any(is_q4) {
        return Vec::new();
    }
    let reached: Vec<Vec<ExprId>> = nest.stages.iter().map(|stage| nest.reachable(&stage.roots())).collect();
    let first_fold = nest.stages.iter().position(|stage| matches!(stage, Stage::Reduce { .. }));
    let waits = |id: ExprId| {
        let is_load = matches!(nest.exprs[id], Expr::Load { .. } | Expr::LoadRow { .. });
        is_load && first_fold.is_some_and(|fold| reached.iter().skip(fold + 1).any(|ids| ids.contains(&id)))
    };
    let may_keep = |id: ExprId| {
        nest.is_columnar(id)
            && nest.type_of(id) != Type::Bool
            && (1 < stages_of(nest, id) || waits(id))
            && kept_len(nest, id).is_some()
            && nest.reads_only(id, |buffer| !buffer.write)
    };
    let kept: Vec<ExprId> = nest.exprs.ids().filter(|&id| may_keep(id)).collect();
    // A value is needed for itself only where something that is not kept uses it, or a stage.
    let is_root = |id: ExprId| nest.stages.iter().any(|stage| stage.roots().contains(&id));
    let is_used = |id: ExprId| {
        nest.exprs.ids().any(|user| {
            !kept.contains(&user) && stages_of(nest, user) != 0 && nest.exprs[user].operands().contains(&id)
        })
    };
    let is_leaf = |id: &ExprId| matches!(nest.exprs[*id], Expr::Column);
    kept.iter().copied().filter(|&id| (is_root(id) || is_used(id)) && !is_leaf(&id)).collect()
}

/// Whether the threads of a unit have to meet between the stages `since` and the next one: it reads what they wrote, or uses the same shared memory.
fn must_meet(nest: &Verified, since: &[Stage], next: &Stage) -> bool {
    let is_q4 = |buffer: &usize| matches!(nest.buffers[*buffer].elem, Elem::Q4 { .. });
    let writes = |stage: &Stage| matches!(stage, Stage::Store { .. } | Stage::StoreRow { .. });
    match next {
        Stage::Scalar { .. } => false,
        Stage::Reduce { .. } => since.iter().any(|stage| writes(stage) || matches!(stage, Stage::Reduce { .. })),
        // Its folds of threads have words of their own.
        Stage::StoreRow { buffer, .. } => is_q4(buffer) || since.iter().any(writes),
        Stage::Store { .. } => since.iter().any(writes),
    }
}

struct Body<'a> {
    nest: &'a Verified,
    /// What the source calls beyond the prelude.
    functions: BTreeSet<Function>,
    /// Words of shared memory of a block.
    chunk: u64,
    /// What is computed before the stages and kept, for those that use it.
    kept: Vec<ExprId>,
    /// The buffer that is at hand instead of in memory, and the columns of each of its parts.
    product: Option<(usize, u64)>,
    /// Whether units lie side by side: see [`Units::is_across`].
    is_across: bool,
}

impl<'a> Body<'a> {
    /// A nest by itself.
    fn new(nest: &'a Verified) -> Self {
        let units = units(nest);
        let body = Self::in_block(nest, units.width(), REGISTERS / u64::from(units.threads));
        match units.is_across {
            // Nothing is kept, and the words of shared memory are the lanes of all units.
            true => Self { is_across: true, kept: Vec::new(), chunk: u64::from(units.threads), ..body },
            false => body,
        }
    }

    /// A nest whose units have `width` threads of so many registers.
    fn in_block(nest: &'a Verified, width: u32, registers: u64) -> Self {
        let chunk = widest(nest).next_multiple_of(32).clamp(3 * 32, CHUNK);
        let mut kept = kept_values(nest);
        // Those that several stages use come first, and what does not fit is computed or loaded again.
        let columns = kept.iter().filter_map(|&id| kept_len(nest, id)).max().unwrap_or(1).div_ceil(u64::from(width));
        let mut by_use = kept.clone();
        by_use.sort_by_key(|&id| std::cmp::Reverse(stages_of(nest, id)));
        by_use.truncate(usize::try_from((registers * 15 / 32 - 6).min(96) / columns).unwrap_or(usize::MAX));
        kept.retain(|id| by_use.contains(id));
        Self { nest, functions: BTreeSet::new(), chunk, kept, product: None, is_across: false }
    }

    /// The parameters of a kernel for the buffers.
    fn buffers(&self) -> Vec<String> {
        let parameter = |buffer: &Buffer| {
            let constant = if buffer.write { "" } else { "const " };
            format!("{constant}{} *{}", elem_type(buffer.elem), buffer.name)
        };
        self.nest.buffers.iter().map(parameter).collect()
    }

    /// The parameters for the dims.
    fn dims(&self, ty: &str, suffix: &str) -> Vec<String> {
        self.nest.dims.iter().map(|dim| format!("{ty} {dim}{suffix}")).collect()
    }

    /// The function that computes a unit.
    fn unit(&mut self, w: &mut Writer) {
        let nest = self.nest;
        let rest = ["i64 unit", "u32 *scratch", "Wait wait"].map(str::to_owned);
        let parameters = [self.buffers(), self.dims("i64", ""), rest.to_vec()].concat().join(", ");
        w.line("template <int WIDTH, class Wait>");
        w.block(format!("__device__ __forceinline__ void {}_unit({parameters}) {{", nest.name), "}", |w| {
            self.locate(w);
            self.keep(w);
            let mut met = 0;
            for (position, stage) in nest.stages.iter().enumerate() {
                if must_meet(nest, &nest.stages[met..position], stage) {
                    w.line(if self.is_across { "__syncthreads();" } else { "meet<WIDTH>();" });
                    met = position;
                }
                self.stage(w, stage);
            }
        });
    }

    /// The kernel that calls it.
    fn kernel(&mut self, w: &mut Writer) {
        let nest = self.nest;
        let parameters = [self.buffers(), self.dims("int", "_")].concat().join(", ");
        let units = units(nest);
        let width = units.width();
        w.line("");
        w.line(format!("extern \"C\" __global__ void __launch_bounds__({})", units.threads));
        w.block(format!("{}({parameters}) {{", nest.name), "}", |w| {
            w.line("let_next_start();");
            for dim in &nest.dims {
                w.line(format!("const i64 {dim} = max({dim}_, 0);"));
            }
            if units.is_across {
                let all: u64 = nest.outer.iter().map(constant).product();
                w.line("// Threads beyond the last unit compute it once more.");
                let first = format!("{SIDE_BY_SIDE} * (i64)blockIdx.x + threadIdx.x % {SIDE_BY_SIDE}");
                w.line(format!("const i64 unit = min({first}, (i64){});", all - 1));
            } else if 1 < units.of_block {
                let extents: Vec<String> = nest.outer.iter().map(|extent| self.extent(*extent)).collect();
                let all = if extents.is_empty() { "1".to_owned() } else { extents.join(" * ") };
                w.line(format!("const i64 unit = {} * (i64)blockIdx.x + threadIdx.x / {width};", units.of_block));
                w.line(format!("if ({all} <= unit) return;"));
            } else {
                w.line("const i64 unit = blockIdx.x;");
            }
            let is_shared = |stage: &Stage| matches!(stage, Stage::Reduce { .. } | Stage::StoreRow { .. });
            let has_scratch = (width != 32 || units.is_across) && nest.stages.iter().any(is_shared);
            if has_scratch {
                w.line("__shared__ u32 scratch[CHUNK];");
            }
            let arguments = nest.buffers.iter().map(|buffer| &buffer.name).chain(&nest.dims);
            let arguments: Vec<&str> = arguments.map(String::as_str).collect();
            let scratch = if has_scratch { "scratch" } else { "nullptr" };
            let wait = "[] { wait_for_inputs(); }";
            w.line(format!("{}_unit<{width}>({}, unit, {scratch}, {wait});", nest.name, arguments.join(", ")));
        });
    }

    /// The coordinates of the block's unit, the last axis fastest.
    fn locate(&self, w: &mut Writer) {
        let outer = &self.nest.outer;
        for (axis, extent) in outer.iter().enumerate().rev() {
            match (extent, axis) {
                (Extent::Const(size), 1..) => {
                    w.line(format!("const i64 i{axis} = unit % {size};"));
                    w.line(format!("unit /= {size};"));
                }
                _ => w.line(format!("const i64 i{axis} = unit;")),
            }
        }
    }

    fn extent(&self, extent: Extent) -> String {
        match extent {
            Extent::Const(size) => size.to_string(),
            Extent::Dim(dim) => self.nest.dims[dim].clone(),
        }
    }

    /// Computes what is kept: of weights ahead of the wait, the rest behind it.
    fn keep(&mut self, w: &mut Writer) {
        let kept = std::mem::take(&mut self.kept);
        let count = kept.len();
        let (first, rest): (Vec<ExprId>, Vec<ExprId>) =
            kept.into_iter().partition(|&id| self.nest.reads_only(id, |buffer| buffer.is_weight));
        let weights = first.len();
        // Several may follow from the same value of the row.
        let mut defined = BTreeSet::new();
        for (position, id) in first.into_iter().chain(rest).enumerate() {
            if position == weights {
                w.line("wait();");
            }
            let ty = c_type(self.nest.type_of(id));
            let (row, columnar) = self.schedule(&[id]);
            for &id in row.iter().filter(|id| defined.insert(**id)) {
                self.define(w, id);
            }
            self.column_function(w, &format!("compute_{id}"), &columnar, ty, &id.to_string());
            let len = kept_len(self.nest, id).unwrap_or(0);
            w.line(format!("const Kept<{ty}, {len}, WIDTH, decltype(compute_{id})> kept_{id}(compute_{id});"));
            self.kept.push(id);
        }
        if weights == count {
            w.line("wait();");
        }
    }

    fn stage(&mut self, w: &mut Writer, stage: &Stage) {
        if let Stage::Reduce { dst, .. } | Stage::Scalar { dst, .. } = stage {
            w.line(format!("{} {dst};", c_type(self.nest.scalars[*dst])));
        }
        let (row, columnar) = self.schedule(&stage.roots());
        w.block("{", "}", |w| {
            for &id in &row {
                self.define(w, id);
            }
            match stage {
                Stage::Scalar { dst, value } => w.line(format!("{dst} = {value};")),
                Stage::Reduce { dst, op, len, body } => {
                    let ty = self.nest.type_of(*body);
                    self.column_function(w, "column", &columnar, c_type(ty), &body.to_string());
                    let ty = if ty == Type::I32 { "I32" } else { "F32" };
                    if self.is_across {
                        self.functions.insert(Function::FoldAcross);
                        let (name, len) = (op_name(*op), self.extent(*len));
                        w.line(format!("{dst} = fold_across<{name}{ty}, {len}, {SIDE_BY_SIDE}>(column, scratch);"));
                        return;
                    }
                    let (size, len) = (constant_len(*len), self.extent(*len));
                    match op {
                        ReduceOp::ArgMax => {
                            w.line(format!("{dst} = first_of_largest<{size}, WIDTH>({len}, column, scratch);"))
                        }
                        op => {
                            let name = op_name(*op);
                            w.line(format!("{dst} = fold<{name}{ty}, {size}, WIDTH>({len}, column, scratch);"));
                        }
                    }
                }
                Stage::Store { len, writes } => self.store_columns(w, *len, writes, &columnar),
                Stage::StoreRow { buffer, record, body } => {
                    let (Elem::Q8 { k } | Elem::Q4 { k }) = self.nest.buffers[*buffer].elem else {
                        unreachable!("a verified nest stores rows only to buffers of records");
                    };
                    let name = if matches!(self.nest.buffers[*buffer].elem, Elem::Q8 { .. }) { "q8" } else { "q4" };
                    let place = self.record(*buffer, record);
                    self.column_function(w, "column", &columnar, c_type(self.nest.type_of(*body)), &body.to_string());
                    w.line(format!("store_{name}<{k}, WIDTH>({place}, column, scratch);"));
                }
            }
        });
    }

    /// Writes of a value for each column, all of a column's together.
    fn store_columns(&mut self, w: &mut Writer, len: Extent, writes: &[Write], columnar: &[ExprId]) {
        // What writing needs of the column: the values, and what places are gathered by.
        let used = writes.iter().flat_map(|write| write.index.gathered().chain([write.value]));
        let used: BTreeSet<ExprId> = used.filter(|id| columnar.contains(id)).collect();
        let fields: Vec<String> = used.iter().map(|id| format!("{} {id};", c_type(self.nest.type_of(*id)))).collect();
        let names: Vec<String> = used.iter().map(ToString::to_string).collect();
        w.line(format!("struct Values {{ {} }};", fields.join(" ")));
        self.column_function(w, "column", columnar, "Values", &format!("{{{}}}", names.join(", ")));
        w.block("auto write = [&](i64 j, const Values &values) {", "};", |w| {
            for id in &used {
                w.line(format!("const {} {id} = values.{id};", c_type(self.nest.type_of(*id))));
            }
            for write in writes {
                self.store(w, write);
            }
        });
        match self.is_across {
            true => w.line(format!("if (threadIdx.x < {SIDE_BY_SIDE}) write(0, column(0, 0));")),
            false => w.line(format!("store<{}, WIDTH>({}, column, write);", constant_len(len), self.extent(len))),
        }
    }

    /// The expressions that roots need beyond what is kept, in order: first those that depend on no column, then the others.
    fn schedule(&self, roots: &[ExprId]) -> (Vec<ExprId>, Vec<ExprId>) {
        let mut needed = BTreeSet::new();
        let mut pending = roots.to_vec();
        while let Some(id) = pending.pop() {
            if needed.insert(id) && !self.kept.contains(&id) {
                pending.extend(self.nest.exprs[id].operands());
            }
        }
        needed.into_iter().partition(|id| !self.nest.is_columnar(*id))
    }

    /// Defines a function that gives a value at the `i`-th column of a thread, which is column `j`.
    fn column_function(&mut self, w: &mut Writer, name: &str, columnar: &[ExprId], ty: &str, result: &str) {
        w.block(format!("auto {name} = [&](int i, i64 j) -> {ty} {{"), "};", |w| {
            for &id in columnar {
                self.define(w, id);
            }
            w.line(format!("return {result};"));
        });
    }

    fn define(&mut self, w: &mut Writer, id: ExprId) {
        let value = match self.kept.contains(&id) {
            true => format!("kept_{id}.at(i, j)"),
            false => self.value(id),
        };
        w.line(format!("const {} {id} = {value};", c_type(self.nest.type_of(id))));
    }

    fn value(&mut self, id: ExprId) -> String {
        match &self.nest.exprs[id] {
            Expr::F32 { bits } => functions::f32_literal(f32::from_bits(*bits)),
            Expr::I32(value) => functions::i32_literal(*value),
            Expr::Load { buffer, index } => self.load(*buffer, index),
            Expr::LoadRow { buffer, record, element } => {
                let (Elem::Q8 { k } | Elem::Q4 { k }) = self.nest.buffers[*buffer].elem else {
                    unreachable!("a verified nest loads rows only of buffers of records");
                };
                let name = if matches!(self.nest.buffers[*buffer].elem, Elem::Q8 { .. }) { "q8" } else { "q4" };
                format!("load_{name}<{k}>({}, {})", self.record(*buffer, record), self.index(element))
            }
            Expr::Scalar(scalar) => scalar.to_string(),
            Expr::Column => "(int)j".to_owned(),
            Expr::Outer(axis) => format!("(int)i{axis}"),
            Expr::Dim(dim) => format!("(int){}", self.nest.dims[*dim]),
            Expr::Unary(op, x) => self.unary(*op, *x),
            Expr::Binary(op, lhs, rhs) => self.binary(*op, *lhs, *rhs),
            Expr::Select(condition, lhs, rhs) => format!("{condition} ? {lhs} : {rhs}"),
        }
    }

    fn unary(&mut self, op: UnaryOp, x: ExprId) -> String {
        if self.nest.type_of(x) == Type::I32 {
            return match op {
                UnaryOp::Neg => format!("wrap_sub(0, {x})"),
                UnaryOp::Abs => format!("{x} < 0 ? wrap_sub(0, {x}) : {x}"),
                UnaryOp::ToF32 => format!("(float){x}"),
                _ => unreachable!("a verified nest has no {} of integers", op.name()),
            };
        }
        let mut call = |function: Function| {
            self.functions.insert(function);
            format!("{}({x})", function.name())
        };
        match op {
            UnaryOp::Neg => format!("-{x}"),
            UnaryOp::Abs => format!("fabsf({x})"),
            UnaryOp::Exp => call(Function::Exp),
            UnaryOp::Log => call(Function::Log),
            UnaryOp::Sin => call(Function::Sin),
            UnaryOp::Cos => call(Function::Cos),
            UnaryOp::Sqrt => format!("__fsqrt_rn({x})"),
            UnaryOp::Rsqrt => format!("1.0f / __fsqrt_rn({x})"),
            UnaryOp::Recip => format!("1.0f / {x}"),
            UnaryOp::Relu => format!("0.0f < {x} ? {x} : 0.0f"),
            UnaryOp::Round => format!("rintf({x})"),
            UnaryOp::Floor => format!("floorf({x})"),
            UnaryOp::ToI32 => format!("__float2int_rn({x})"),
            UnaryOp::ToF32 => unreachable!("a verified nest converts integers to f32"),
        }
    }

    fn binary(&self, op: BinaryOp, lhs: ExprId, rhs: ExprId) -> String {
        let is_int = self.nest.type_of(lhs) == Type::I32;
        match (op, is_int) {
            (BinaryOp::Add, true) => format!("wrap_add({lhs}, {rhs})"),
            (BinaryOp::Sub, true) => format!("wrap_sub({lhs}, {rhs})"),
            (BinaryOp::Mul, true) => format!("wrap_mul({lhs}, {rhs})"),
            (BinaryOp::Min, true) => format!("min({lhs}, {rhs})"),
            (BinaryOp::Max, true) => format!("max({lhs}, {rhs})"),
            (BinaryOp::Add, false) => format!("{lhs} + {rhs}"),
            (BinaryOp::Sub, false) => format!("{lhs} - {rhs}"),
            (BinaryOp::Mul, false) => format!("{lhs} * {rhs}"),
            (BinaryOp::Div, _) => format!("{lhs} / {rhs}"),
            (BinaryOp::Min, false) => format!("smaller_number({lhs}, {rhs})"),
            (BinaryOp::Max, false) => format!("larger_number({lhs}, {rhs})"),
            (BinaryOp::Less, _) => format!("{lhs} < {rhs}"),
            (BinaryOp::LessEqual, _) => format!("{lhs} <= {rhs}"),
            (BinaryOp::Equal, _) => format!("{lhs} == {rhs}"),
        }
    }

    /// An index in elements, or in records.
    fn index(&self, index: &Index) -> String {
        let mut terms = Vec::new();
        for term in &index.terms {
            let value = match term.axis {
                Axis::Outer(axis) => format!("i{axis}"),
                Axis::Column => "j".to_owned(),
                Axis::Gather { value, limit } => format!("clamp_row({value}, {})", self.extent(limit)),
            };
            match term.stride {
                0 => {}
                1 => terms.push(value),
                stride => terms.push(format!("{stride} * {value}")),
            }
        }
        if index.offset != 0 || terms.is_empty() {
            terms.push(index.offset.to_string());
        }
        terms.join(" + ")
    }

    fn record(&self, buffer: usize, record: &Index) -> String {
        let Self { nest, .. } = self;
        let stride = nest.buffers[buffer].elem.stride();
        format!("{} + {stride} * ({})", nest.buffers[buffer].name, self.index(record))
    }

    fn load(&mut self, buffer: usize, index: &Index) -> String {
        if let Some((product, columns)) = self.product
            && product == buffer
        {
            return format!("product[{}]", index.offset as u64 / columns);
        }
        let element = format!("{}[{}]", self.nest.buffers[buffer].name, self.index(index));
        match self.nest.buffers[buffer].elem {
            Elem::F32 | Elem::I32 => element,
            Elem::I8 => format!("(int){element}"),
            Elem::BF16 => format!("__uint_as_float((u32){element} << 16)"),
            Elem::F16 => {
                self.functions.insert(Function::F16ToF32);
                format!("{}((int){element})", Function::F16ToF32.name())
            }
            Elem::Q8 { .. } | Elem::Q4 { .. } => unreachable!("a verified nest loads records by LoadRow"),
        }
    }

    fn store(&mut self, w: &mut Writer, write: &Write) {
        let element = format!("{}[{}]", self.nest.buffers[write.buffer].name, self.index(&write.index));
        let value = write.value;
        let mut narrow = |function: Function| {
            self.functions.insert(function);
            format!("(u16){}({value})", function.name())
        };
        let stored = match self.nest.buffers[write.buffer].elem {
            Elem::F32 | Elem::I32 => value.to_string(),
            Elem::I8 => format!("(i8)min(max({value}, -128), 127)"),
            Elem::BF16 => narrow(Function::F32ToBf16),
            Elem::F16 => narrow(Function::F32ToF16),
            Elem::Q8 { .. } | Elem::Q4 { .. } => unreachable!("a verified nest stores records by StoreRow"),
        };
        w.line(format!("{element} = {stored};"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nest::NestBuilder;

    #[test]
    fn a_nest_is_printed_with_its_names() {
        let mut nest = NestBuilder::new("rms");
        nest.outer(Extent::Const(4));
        let x = nest.input("x", Elem::F32);
        let y = nest.output("y", Elem::Q8 { k: 96 });
        let value = nest.load(x, Index::at(0).outer(0, 96).column(1));
        let square = nest.mul(value, value);
        let sum = nest.reduce(ReduceOp::Sum, Extent::Const(96), square);
        let root = nest.unary(UnaryOp::Exp, sum);
        let scaled = nest.mul(value, root);
        nest.store_row(y, Index::at(0).outer(0, 1), scaled);
        let nest = nest.finish().unwrap();
        let source = source(&nest);
        for part in [
            "void rms_unit(const float *x, u8 *y, i64 unit, u32 *scratch, Wait wait) {",
            "const Kept<float, 96, WIDTH, decltype(compute_e0)> kept_e0(compute_e0);",
            "s0 = fold<SumF32, 96, WIDTH>(96, column, scratch);",
            "store_q8<96, WIDTH>(y + 104 * (i0), column, scratch);",
            "__device__ float exp_f32(float v0) {",
            "x[96 * i0 + j]",
            "rms(const float *x, u8 *y) {",
            "rms_unit<32>(x, y, unit, nullptr, [] { wait_for_inputs(); });",
        ] {
            assert!(source.contains(part), "no `{part}` in\n{}", source);
        }
        assert_eq!(units(&nest), Units { threads: 256, of_block: 8, is_across: false });
    }
}
