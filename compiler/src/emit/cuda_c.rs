//! A nest as CUDA C: a kernel whose blocks are the nest's units, and whose threads share the columns.
//!
//! The results are those of [`crate::nest::eval`], bit for bit. A sum has its 32 lanes in the first warp, which adds what all threads have
//! computed and left in shared memory, in the written order. Elementary functions are printed from [`crate::nest::math`], the definition that the
//! other back ends follow, and the source is compiled without fused multiply-adds.
//!
//! ```text
//! extern "C" __global__ void <nest>(buffers..., int dims...)      one block a unit, [`threads`] threads
//! ```
//!
//! Base pointers are aligned to their elements; records of q8 to 8 bytes, of q4 to 4.

mod functions;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use self::functions::Function;
use super::writer::Writer;
use crate::nest::{Axis, BinaryOp, Elem, Expr, ExprId, Extent, Index, ReduceOp, Stage, Type, UnaryOp, Verified, Write};

/// Columns whose values a reduction keeps in shared memory at once: 44 KiB of the 48 that every device gives without being asked, a multiple of the
/// lanes. Wider rows are taken in chunks, each of which waits for the one before.
const CHUNK: u64 = 11_264;

/// Threads for rows of so many columns: one a column as far as that goes, and not so many more that few rows fill the device.
fn threads_for(columns: u64) -> u32 {
    match columns {
        4096.. => 1024,
        1024.. => 512,
        columns => (columns as u32).next_multiple_of(32).clamp(32, 256),
    }
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

/// Threads of a block of a nest's kernel.
pub fn threads(nest: &Verified) -> u32 {
    threads_for(widest(nest))
}

/// The kernel itself, without what it calls.
pub fn kernel(nest: &Verified) -> String {
    let mut kernel = Writer::new();
    Body::new(nest).kernel(&mut kernel);
    kernel.finish()
}

/// The source of a nest.
pub fn source(nest: &Verified) -> String {
    let threads = threads(nest);
    let mut body = Body::new(nest);
    let mut kernel = Writer::new();
    body.kernel(&mut kernel);

    let mut text = String::new();
    for line in nest.to_string().trim_end().lines() {
        let _ = writeln!(text, "// {line}");
    }
    let _ = writeln!(text, "constexpr int THREADS = {threads};\n");
    text += functions::PRELUDE;
    for function in &body.functions {
        text += &function.text();
    }
    text.push('\n');
    text += &kernel.finish();
    text
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

struct Body<'a> {
    nest: &'a Verified,
    /// What the source calls beyond the prelude.
    functions: BTreeSet<Function>,
    /// Words of shared memory.
    chunk: u64,
}

impl<'a> Body<'a> {
    fn new(nest: &'a Verified) -> Self {
        Self { nest, functions: BTreeSet::new(), chunk: widest(nest).next_multiple_of(32).clamp(32, CHUNK) }
    }

    fn kernel(&mut self, w: &mut Writer) {
        let nest = self.nest;
        let buffers = nest.buffers.iter().map(|buffer| {
            let constant = if buffer.write { "" } else { "const " };
            format!("{constant}{} *{}", elem_type(buffer.elem), buffer.name)
        });
        let dims = nest.dims.iter().map(|dim| format!("int {dim}_"));
        let parameters: Vec<String> = buffers.chain(dims).collect();
        let has_reduction =
            nest.stages.iter().any(|stage| matches!(stage, Stage::Reduce { .. } | Stage::StoreRow { .. }));
        w.line("extern \"C\" __global__ void __launch_bounds__(THREADS)");
        w.block(format!("{}({}) {{", nest.name, parameters.join(", ")), "}", |w| {
            w.line("wait_for_previous();");
            if has_reduction {
                w.line(format!("__shared__ u32 scratch[{}];", self.chunk.max(32)));
            }
            for dim in &nest.dims {
                w.line(format!("const i64 {dim} = max({dim}_, 0);"));
            }
            self.locate(w);
            for (position, stage) in nest.stages.iter().enumerate() {
                if 0 < position {
                    w.line("__syncthreads();");
                }
                self.stage(w, stage);
            }
        });
    }

    /// The coordinates of the block's unit, the last axis fastest.
    fn locate(&self, w: &mut Writer) {
        let outer = &self.nest.outer;
        if !outer.is_empty() {
            w.line("i64 unit = blockIdx.x;");
        }
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

    fn stage(&mut self, w: &mut Writer, stage: &Stage) {
        if let Stage::Reduce { dst, .. } | Stage::Scalar { dst, .. } = stage {
            w.line(format!("{} {dst};", c_type(self.nest.scalars[*dst])));
        }
        let (row, columnar) = self.nest.schedule(&stage.roots());
        w.block("{", "}", |w| {
            for &id in &row {
                self.define(w, id);
            }
            match stage {
                Stage::Scalar { dst, value } => w.line(format!("{dst} = {value};")),
                Stage::Reduce { dst, op, len, body } => {
                    let len = self.extent(*len);
                    self.column_function(w, &columnar, *body);
                    let ty = if self.nest.type_of(*body) == Type::I32 { "I32" } else { "F32" };
                    match op {
                        ReduceOp::Sum => w.line(format!("{dst} = fold<Sum{ty}>({len}, column, scratch);")),
                        ReduceOp::Max => w.line(format!("{dst} = fold<Max{ty}>({len}, column, scratch);")),
                        ReduceOp::Min => w.line(format!("{dst} = fold<Min{ty}>({len}, column, scratch);")),
                        ReduceOp::ArgMax => w.line(format!("{dst} = first_of_largest({len}, column, scratch);")),
                    }
                }
                Stage::Store { len, writes } => {
                    let len = self.extent(*len);
                    w.block(format!("for (i64 j = threadIdx.x; j < {len}; j += THREADS) {{"), "}", |w| {
                        for &id in &columnar {
                            self.define(w, id);
                        }
                        for write in writes {
                            self.store(w, write);
                        }
                    });
                }
                Stage::StoreRow { buffer, record, body } => {
                    let (Elem::Q8 { k } | Elem::Q4 { k }) = self.nest.buffers[*buffer].elem else {
                        unreachable!("a verified nest stores rows only to buffers of records");
                    };
                    let name = if matches!(self.nest.buffers[*buffer].elem, Elem::Q8 { .. }) { "q8" } else { "q4" };
                    let place = self.record(*buffer, record);
                    self.column_function(w, &columnar, *body);
                    w.line(format!("store_{name}<{k}>({place}, column, scratch);"));
                }
            }
        });
    }

    /// Defines `column`, which gives the value of an expression at a column.
    fn column_function(&mut self, w: &mut Writer, columnar: &[ExprId], body: ExprId) {
        let ty = c_type(self.nest.type_of(body));
        w.block(format!("auto column = [&](i64 j) -> {ty} {{"), "};", |w| {
            for &id in columnar {
                self.define(w, id);
            }
            w.line(format!("return {body};"));
        });
    }

    fn define(&mut self, w: &mut Writer, id: ExprId) {
        let value = self.value(id);
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
            "rms(const float *x, u8 *y) {",
            "s0 = fold<SumF32>(96, column, scratch);",
            "store_q8<96>(y + 104 * (i0), column, scratch);",
            "__device__ float exp_f32(float v0) {",
            "x[96 * i0 + j]",
        ] {
            assert!(source.contains(part), "no `{part}` in\n{}", source);
        }
        assert_eq!(threads(&nest), 96);
    }
}
