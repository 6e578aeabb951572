//! One step of a recipe: from choices to one op whose operands fit.

use ir::graph::Update;
use ir::op::attention::{Attention, KvAppend, KvRows, Rope};
use ir::op::elementwise::*;
use ir::op::gather::Gather;
use ir::op::loss::{CrossEntropy, CrossEntropyGradient};
use ir::op::matmul::{Matmul, QuantizedMatmul};
use ir::op::movement::{Broadcast, Concat, Permute, Reshape, Slice};
use ir::op::norm::{AddLayerNorm, AddRmsNorm, LayerNorm, RmsNorm, RmsNormQuantize};
use ir::op::reduce::{Argmax, Max, Mean, Softmax, Sum, SumTo};
use ir::op::sample::Sample;
use ir::op::ternary::{
    Dequantize, Quantize, QuantizeGroups, RowThreshold, Ternarise, TernaryMatmul, TernaryMatmulBase3, TernaryRule,
    TernaryScale, Unpack,
};
use ir::op::{Op, Real};
use ir::{DType, Dim, Shape, TensorType, ValueId};

use super::{CONTEXT, Maker, SEQUENCES, Step, tokens};

/// Sizes that new dimensions take: edges of nothing, and one beyond a vector's lanes.
const SIZES: [u64; 7] = [4, 1, 2, 3, 8, 6, 17];

/// How many kinds of steps there are: one for each op but `repeat`, which recipes place themselves, and those that only gradients are made of; and
/// constants and states.
const N_KINDS: u8 = 53;

fn is_f32(ty: &TensorType) -> bool {
    ty.dtype == DType::F32
}

/// An f32 tensor whose rows have a known, not empty size.
fn has_rows(ty: &TensorType) -> bool {
    is_f32(ty) && ty.shape.last_const().is_some_and(|width| 0 < width)
}

fn vector(width: &Dim) -> TensorType {
    TensorType::new(DType::F32, Shape::new([width.clone()]))
}

impl Maker {
    /// Makes what a step says.
    pub(super) fn step(&mut self, step: &Step) {
        let [c0, c1, c2, c3, c4, _] = step.choices;
        match step.op % N_KINDS {
            0 => self.binary(step, Add {}),
            1 => self.binary(step, Sub {}),
            2 => self.binary(step, Mul {}),
            3 => self.binary(step, Div {}),
            4 => self.binary(step, Minimum {}),
            5 => self.binary(step, Maximum {}),
            6 => self.binary(step, Less {}),
            7 => self.binary(step, Relu2Mul {}),
            8 => self.select(step),
            9 => self.unary(step, Neg {}),
            10 => self.unary(step, Abs {}),
            11 => self.unary(step, Exp {}),
            12 => self.unary(step, Log {}),
            13 => self.unary(step, Sqrt {}),
            14 => self.unary(step, Rsqrt {}),
            15 => self.unary(step, Sin {}),
            16 => self.unary(step, Cos {}),
            17 => self.unary(step, Round {}),
            18 => self.unary(step, Relu {}),
            19 => self.unary(step, Relu2 {}),
            20 => self.unary(step, Sigmoid {}),
            21 => self.unary(step, Silu {}),
            22 => self.cast(step),
            23 => self.rows(step, Sum {}),
            24 => self.rows(step, Mean {}),
            25 => self.rows(step, Max {}),
            26 => self.rows(step, Argmax {}),
            27 => self.rows(step, Softmax {}),
            28 => self.reshape(step),
            29 => self.permute(step),
            30 => self.slice(step),
            31 => self.concat(step),
            32 => self.broadcast(step),
            33 => self.matmul(step),
            34 => self.ternary_matmul(step),
            35 => self.ternarise(step),
            36 => self.rows(step, Quantize {}),
            37 => {
                let x = self.quantized(c0, c1);
                self.op(step, Dequantize {}, &[x]);
            }
            38 => {
                let w = self.ternary(c0, Dim::Const(size(c1)), Dim::Const(size(c2)));
                self.op(step, Unpack {}, &[w]);
            }
            39 => self.norm(step),
            40 => self.rope(step),
            41 => self.attend(step),
            42 => {
                let floats = [DType::F32, DType::BF16, DType::F16];
                let ty = TensorType::new(floats[c0 as usize % 3], Shape::of(&[size(c1), size(c2)]));
                let table = self.of_type(c3, ty);
                let ids = self.of_type(c4, TensorType::new(DType::I32, Shape::new([tokens()])));
                self.op(step, Gather {}, &[table, ids]);
            }
            43 => self.constant(step),
            44 => self.state(step),
            45 => {
                let x = self.some(c0, &has_rows);
                let width = self.builder.ty(x).shape.last_const().unwrap_or(1);
                let group = if c1.is_multiple_of(2) || !width.is_multiple_of(2) { width } else { width / 2 };
                self.op(step, QuantizeGroups { group }, &[x]);
            }
            46 => self.quantized_matmul(step),
            47 => self.sample(step),
            48 => self.sum_to(step),
            49 => {
                let (logits, targets) = self.predicted(step);
                self.op(step, CrossEntropy {}, &[logits, targets]);
            }
            50 => {
                let (logits, targets) = self.predicted(step);
                let dy = self.of_type(c3, TensorType::new(DType::F32, Shape::new([tokens()])));
                self.op(step, CrossEntropyGradient {}, &[logits, targets, dy]);
            }
            51 => {
                let (seq, pos, _) = self.places();
                let formats = [DType::F32, DType::Q8, DType::Q4, DType::BF16];
                let dims = [SEQUENCES, 1 + u64::from(c0 % 2), CONTEXT, size(c1)];
                let cache = self.new_state(TensorType::new(formats[c2 as usize % 4], Shape::of(&dims)));
                self.op(step, KvRows {}, &[cache, seq, pos]);
            }
            _ => {
                let matrix = TensorType::new(DType::F32, Shape::of(&[size(c0), size(c1)]));
                let w = self.of_type(c2, matrix);
                self.op(step, TernaryScale {}, &[w]);
                self.op(step, RowThreshold {}, &[w]);
            }
        }
    }

    fn unary(&mut self, step: &Step, op: impl Into<Op>) {
        let x = self.some(step.choices[0], &is_f32);
        self.op(step, op, &[x]);
    }

    fn rows(&mut self, step: &Step, op: impl Into<Op>) {
        let x = self.some(step.choices[0], &has_rows);
        self.op(step, op, &[x]);
    }

    fn binary(&mut self, step: &Step, op: impl Into<Op>) {
        let op = op.into();
        let takes_integers = !matches!(op, Op::Div(_) | Op::Relu2Mul(_));
        let lhs = self.some(step.choices[0], &|ty| is_f32(ty) || takes_integers && ty.dtype == DType::I32);
        let ty = self.builder.ty(lhs).clone();
        let rhs = self.some_like(step.choices[1], &ty);
        let operands = if step.choices[2].is_multiple_of(2) { [lhs, rhs] } else { [rhs, lhs] };
        self.op(step, op, &operands);
    }

    /// A value that broadcasts with one of this type.
    fn some_like(&mut self, choice: u8, ty: &TensorType) -> ValueId {
        let fitting = self.fitting(&|found| found.dtype == ty.dtype && found.shape.broadcast(&ty.shape).is_some());
        match fitting.len() {
            n if 0 < n && choice % 4 != 3 => fitting[choice as usize % n],
            _ => self.fresh(ty.clone()),
        }
    }

    fn select(&mut self, step: &Step) {
        let lhs = self.some(step.choices[0], &|ty| is_f32(ty) || ty.dtype == DType::I32);
        let ty = self.builder.ty(lhs).clone();
        let rhs = self.of_type(step.choices[1], ty.clone());
        let condition = self.some_like(step.choices[2], &ty.with_dtype(DType::I32));
        self.op(step, Select {}, &[condition, lhs, rhs]);
    }

    fn cast(&mut self, step: &Step) {
        let x = self.some(step.choices[0], &|ty| ty.dtype.bytes().is_some());
        let types = [DType::F32, DType::I32, DType::F16, DType::BF16, DType::I8];
        self.op(step, Cast { to: types[step.choices[1] as usize % types.len()] }, &[x]);
    }

    fn reshape(&mut self, step: &Step) {
        let x = self.some(step.choices[0], &|ty| !ty.dtype.is_row_format());
        let shape = self.builder.ty(x).shape.clone();
        let dims = shape.dims();
        let new: Shape = match (step.choices[1] % 4, dims) {
            // One more dimension of size 1.
            (0, _) if dims.len() < 4 => dims.iter().cloned().chain([Dim::Const(1)]).collect(),
            // The innermost two merged.
            (1, [outer @ .., Dim::Const(left), Dim::Const(right)]) => {
                outer.iter().cloned().chain([Dim::Const(left * right)]).collect()
            }
            // The innermost one split.
            (_, [outer @ .., Dim::Const(even)]) if even % 2 == 0 && dims.len() < 4 => {
                outer.iter().cloned().chain([Dim::Const(even / 2), Dim::Const(2)]).collect()
            }
            _ => shape.clone(),
        };
        self.op(step, Reshape { shape: new }, &[x]);
    }

    fn permute(&mut self, step: &Step) {
        let x = self.some(step.choices[0], &|ty| !ty.dtype.is_row_format());
        let rank = self.builder.ty(x).shape.rank();
        let mut axes: Vec<u32> = (0..rank as u32).collect();
        if 0 < rank {
            axes.rotate_left(step.choices[1] as usize % rank);
            axes.swap(0, step.choices[2] as usize % rank);
        }
        self.op(step, Permute { axes: axes.into_iter().collect() }, &[x]);
    }

    fn slice(&mut self, step: &Step) {
        let [c0, c1, c2, c3, ..] = step.choices;
        let x = self
            .some(c0, &|ty| !ty.dtype.is_row_format() && ty.shape.dims().iter().any(|dim| dim.as_const().is_some()));
        let shape = &self.builder.ty(x).shape;
        let constant: Vec<(u32, u64)> =
            (0..).zip(shape.dims()).filter_map(|(axis, dim)| Some((axis, dim.as_const()?))).collect();
        let (axis, size) = constant[c1 as usize % constant.len()];
        let start = u64::from(c2) % (size + 1);
        // Not empty where it need not be: an empty row has no mean and no largest value.
        let start = if start == size { 0 } else { start };
        let end = (start + 1 + u64::from(c3) % (size - start).max(1)).min(size);
        self.op(step, Slice { axis, start, end }, &[x]);
    }

    fn concat(&mut self, step: &Step) {
        let [c0, c1, c2, ..] = step.choices;
        let x = self
            .some(c0, &|ty| !ty.dtype.is_row_format() && ty.shape.dims().iter().any(|dim| dim.as_const().is_some()));
        let ty = self.builder.ty(x).clone();
        let constant: Vec<usize> =
            (0..ty.shape.rank()).filter(|&axis| ty.shape.dims()[axis].as_const().is_some()).collect();
        let axis = constant[c1 as usize % constant.len()];
        let other = self.of_type(c2, ty);
        self.op(step, Concat { axis: axis as u32 }, &[x, other]);
    }

    fn broadcast(&mut self, step: &Step) {
        let x = self.some(step.choices[0], &|ty| !ty.dtype.is_row_format());
        let shape = self.builder.ty(x).shape.clone();
        let size = size(step.choices[1]);
        let widened = shape.dims().iter().map(|dim| if *dim == Dim::Const(1) { Dim::Const(size) } else { dim.clone() });
        let outer =
            if step.choices[2].is_multiple_of(2) && shape.rank() < 4 { vec![Dim::Const(2)] } else { Vec::new() };
        self.op(step, Broadcast { shape: outer.into_iter().chain(widened).collect() }, &[x]);
    }

    fn matmul(&mut self, step: &Step) {
        let [c0, c1, c2, c3, ..] = step.choices;
        let x = self.some(c0, &has_rows);
        let k = self.width(x);
        let floats = [DType::F32, DType::BF16, DType::F16];
        let ty = TensorType::new(floats[c1 as usize % 3], Shape::new([Dim::Const(size(c2)), k]));
        let w = self.of_type(c3, ty);
        self.op(step, Matmul {}, &[x, w]);
    }

    fn ternary_matmul(&mut self, step: &Step) {
        let [c0, c1, c2, c3, c4, _] = step.choices;
        let x = if c0 % 2 == 0 { self.quantized(c1, c0 / 2) } else { self.some(c1, &has_rows) };
        let k = self.width(x);
        let m = Dim::Const(size(c2));
        let w = self.ternary(c3, m.clone(), k);
        let s = self.of_type(c4, vector(&m));
        if self.builder.ty(x).dtype == DType::Q8 && c4 % 3 == 0 {
            self.op(step, TernaryMatmulBase3 {}, &[x, w, s]);
        } else {
            self.op(step, TernaryMatmul {}, &[x, w, s]);
        }
    }

    fn ternarise(&mut self, step: &Step) {
        let [c0, c1, c2, c3, ..] = step.choices;
        let w = self.of_type(c2, TensorType::new(DType::F32, Shape::of(&[size(c0), size(c1)])));
        self.op(step, Ternarise { rule: TernaryRule::ALL[c3 as usize % 2] }, &[w]);
    }

    fn quantized_matmul(&mut self, step: &Step) {
        let [c0, c1, c2, c3, c4, _] = step.choices;
        let x = self.quantized(c0, c1);
        let k = self.builder.ty(x).shape.last_const().unwrap_or(1);
        let w = self.of_type(c2, TensorType::new(DType::F32, Shape::of(&[size(c3), k])));
        let codes = match c4 % 2 {
            0 => self.builder.op(Quantize {}, &[w]),
            _ => self.builder.op(QuantizeGroups { group: k }, &[w]),
        };
        self.op(step, QuantizedMatmul {}, &[x, codes.expect("rows can be quantised")]);
    }

    fn norm(&mut self, step: &Step) {
        let [c0, c1, c2, c3, c4, _] = step.choices;
        let x = self.some(c0, &has_rows);
        let full = self.builder.ty(x).clone();
        let width = self.width(x);
        let eps = Real::new([1e-5, 1e-6, 0.5][c1 as usize % 3]);
        let w = self.of_type(c2, vector(&width));
        match c4 % 5 {
            0 => self.op(step, RmsNorm { eps }, &[x, w]),
            1 => self.op(step, RmsNormQuantize { eps }, &[x, w]),
            2 => {
                let r = self.of_type(c3, full);
                self.op(step, AddRmsNorm { eps }, &[x, r, w])
            }
            3 => {
                let b = self.of_type(c3, vector(&width));
                self.op(step, LayerNorm { eps }, &[x, w, b])
            }
            _ => {
                let r = self.of_type(c3, full);
                let b = self.of_type(c2 / 4, vector(&width));
                self.op(step, AddLayerNorm { eps }, &[x, r, w, b])
            }
        };
    }

    fn rope(&mut self, step: &Step) {
        let [c0, c1, c2, ..] = step.choices;
        let (heads, d) = (1 + u64::from(c0 % 3), 2 * (1 + u64::from(c1 % 4)));
        let x = self.of_type(c2, TensorType::new(DType::F32, Shape::new([tokens(), heads.into(), d.into()])));
        let table = TensorType::new(DType::F32, Shape::new([tokens(), (d / 2).into()]));
        let cos = self.of_type(c0, table.clone());
        let sin = self.of_type(c1, table);
        self.op(step, Rope {}, &[x, cos, sin]);
    }

    /// Two caches, what is appended to them, and attention over what they become.
    fn attend(&mut self, step: &Step) {
        let [c0, c1, c2, c3, c4, c5] = step.choices;
        let (kv_heads, groups, d) = (1 + u64::from(c0 % 2), 1 + u64::from(c1 % 3), size(c2));
        let (seq, pos, span) = self.places();
        let formats = [DType::F32, DType::Q8, DType::Q4, DType::BF16];
        let cache = Shape::of(&[SEQUENCES, kv_heads, CONTEXT, d]);
        let mut after = Vec::new();
        for (choice, format) in [(c3, c4), (c4, c5)] {
            let ty = TensorType::new(formats[format as usize % 4], cache.clone());
            let state = self.new_state(ty);
            let rows = TensorType::new(DType::F32, Shape::new([tokens(), kv_heads.into(), d.into()]));
            let rows = self.of_type(choice, rows);
            let appended = self.op(step, KvAppend {}, &[state, rows, seq, pos]);
            self.builder.update(state, appended);
            after.push(appended);
        }
        let heads = kv_heads * groups;
        let q = self.of_type(c5, TensorType::new(DType::F32, Shape::new([tokens(), heads.into(), d.into()])));
        let scale = Real::new(1.0 / (d as f64).sqrt());
        let attention = Attention { scale, window: u32::from(c4 % 4), sinks: u32::from(c3 % 2) };
        self.op(step, attention, &[q, after[0], after[1], seq, pos, span]);
    }

    /// A choice among few logits. Where the oracle's exponentials are rounded otherwise, a choice among weights may differ; the largest never does.
    fn sample(&mut self, step: &Step) {
        let [c0, c1, c2, c3, ..] = step.choices;
        let logits = self.of_type(c0, TensorType::new(DType::F32, Shape::new([tokens(), size(c1).into()])));
        let zero = self.of_type(c2, TensorType::new(DType::F32, Shape::new([tokens(), 4.into()])));
        let zero = self.builder.op(Sub {}, &[zero, zero]).expect("both have one type");
        let draws = self.of_type(c3, TensorType::new(DType::I32, Shape::new([tokens(), 2.into()])));
        self.op(step, Sample {}, &[logits, zero, draws]);
    }

    /// Rows of logits, and what is to be predicted: ids that may lie outside.
    fn predicted(&mut self, step: &Step) -> (ValueId, ValueId) {
        let [c0, c1, c2, ..] = step.choices;
        let logits = self.of_type(c0, TensorType::new(DType::F32, Shape::new([tokens(), size(c1).into()])));
        (logits, self.of_type(c2, TensorType::new(DType::I32, Shape::new([tokens()]))))
    }

    /// The sum over one axis, which stays with size 1 or, if it is the outermost, goes.
    fn sum_to(&mut self, step: &Step) {
        let [c0, c1, c2, ..] = step.choices;
        let x = self.some(c0, &has_rows);
        let mut shape = self.builder.ty(x).shape.clone();
        let axis = c1 as usize % shape.rank();
        if axis == 0 && c2.is_multiple_of(2) {
            shape.0.remove(0);
        } else {
            shape.0[axis] = Dim::Const(1);
        }
        self.op(step, SumTo { shape }, &[x]);
    }

    fn constant(&mut self, step: &Step) {
        let [c0, c1, c2, c3, ..] = step.choices;
        let dtype = [DType::F32, DType::I32, DType::F16, DType::T2][c0 as usize % 4];
        let shape = if c1 % 4 == 0 { Shape::of(&[]) } else { Shape::of(&[size(c1), 1 + u64::from(c2 % 3)]) };
        let elements = shape.elements().expect("all dimensions are constants");
        let tame = [0.0, 1.0, -1.0];
        let wild = [-0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, f64::from(0.1_f32), f64::from(f32::MIN_POSITIVE)];
        let value = |index: u64| {
            let choice = (u64::from(c3) + index) as usize;
            if self.wild && dtype == DType::F32 { wild[choice % wild.len()] } else { tame[choice % tame.len()] }
        };
        let values: Vec<f64> = (0..elements).map(value).collect();
        let name = step.name.map(|name| format!("c{name}"));
        self.builder.constant(name.as_deref(), TensorType::new(dtype, shape), values);
    }

    /// A state that goes on as its sum with something of its type, or as it is.
    fn state(&mut self, step: &Step) {
        let ty = TensorType::new(DType::F32, Shape::of(&[size(step.choices[0]), size(step.choices[1])]));
        let state = self.new_state(ty.clone());
        let other = self.of_type(step.choices[2], ty);
        let sum = self.op(step, Add {}, &[state, other]);
        let is_updated = |update: &Update| update.state == state;
        if !self.builder.graph().updates.iter().any(is_updated) {
            self.builder.update(state, if step.choices[3].is_multiple_of(4) { state } else { sum });
        }
    }

    fn new_state(&mut self, ty: TensorType) -> ValueId {
        self.n_keys += 1;
        let name = format!("s{}", self.n_keys);
        let key = self.key(&format!("{}.{name}", self.builder.graph().name));
        self.builder.state(&name, &key, ty)
    }

    /// A q8 value: one that is there, or some rows quantised.
    fn quantized(&mut self, choice: u8, row_choice: u8) -> ValueId {
        let fitting = self.fitting(&|ty| ty.dtype == DType::Q8 && ty.shape.rank() < 4);
        match fitting.len() {
            0 => {
                let x = self.some(row_choice, &has_rows);
                self.builder.op(Quantize {}, &[x]).expect("rows can be quantised")
            }
            n => fitting[choice as usize % n],
        }
    }

    fn ternary(&mut self, choice: u8, rows: Dim, cols: Dim) -> ValueId {
        self.of_type(choice, TensorType::new(DType::T2, Shape::new([rows, cols])))
    }

    fn width(&self, x: ValueId) -> Dim {
        self.builder.ty(x).shape.last().expect("what has rows has a last dimension").clone()
    }
}

fn size(choice: u8) -> u64 {
    SIZES[choice as usize % SIZES.len()]
}
