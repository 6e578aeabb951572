//! Generated code and the interpreter agree bit for bit, on random nests and at the edges of loops.

#[path = "nest_support/qemu.rs"]
mod qemu;
#[path = "nest_support/mod.rs"]
mod support;

use kernels::Arch;
use support::{Random, all_targets, assert_same, check, check_over, f32_bytes, i32_bytes, interpret};
use tritter_compiler::emit::assemble;
use tritter_compiler::nest::{BinaryOp, Elem, ExprId, Extent, Index, NestBuilder, ReduceOp, UnaryOp, Verified, Write};

/// Numbers of columns around the edges of vectors and lanes.
const LENS: [u64; 13] = [0, 1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 64, 100];

/// Rows of the table that is gathered from.
const TABLE: usize = 5;

/// A random nest and what it runs on.
struct Case {
    nest: Verified,
    buffers: Vec<Vec<u8>>,
    dims: Vec<i64>,
}

/// Writes a random nest over rows `[n, h]` of `len` columns.
struct Generator<'a> {
    b: NestBuilder,
    random: &'a mut Random,
    /// Rows and columns.
    n: usize,
    h: usize,
    len: usize,
    columns: Extent,
    buffers: Vec<Vec<u8>>,
    /// Scalars set so far.
    f32_scalars: Vec<ExprId>,
    i32_scalars: Vec<ExprId>,
    tame: bool,
}

impl Generator<'_> {
    fn content(&mut self, elem: Elem, count: usize) -> Vec<u8> {
        let tame = self.tame;
        let value = |random: &mut Random| if tame { random.plain() } else { random.wild() };
        match elem {
            Elem::F32 => f32_bytes((0..count).map(|_| value(self.random))),
            Elem::BF16 => (0..count).flat_map(|_| half::bf16::from_f32(value(self.random)).to_le_bytes()).collect(),
            Elem::F16 => (0..count).flat_map(|_| half::f16::from_f32(value(self.random)).to_le_bytes()).collect(),
            Elem::I32 => i32_bytes((0..count).map(|_| {
                if self.random.chance(10) { self.random.next() as i32 } else { self.random.below(20) as i32 - 8 }
            })),
            Elem::I8 => (0..count).map(|_| self.random.next() as u8).collect(),
            Elem::Q8 { k } | Elem::Q4 { k } => {
                let format = elem.row_format().unwrap();
                let mut bytes = vec![0; format.stride() * count];
                for record in bytes.chunks_exact_mut(format.stride()) {
                    let row: Vec<_> = (0..k).map(|_| value(self.random)).collect();
                    format.encode(&row, record);
                }
                bytes
            }
        }
    }

    fn input(&mut self, elem: Elem, count: usize) -> usize {
        let content = self.content(elem, count);
        self.buffers.push(content);
        let name = format!("b{}", self.buffers.len());
        self.b.input(&name, elem)
    }

    fn output(&mut self, elem: Elem, count: usize) -> usize {
        let content = self.content(elem, count);
        self.buffers.push(content);
        let name = format!("b{}", self.buffers.len());
        self.b.output(&name, elem)
    }

    /// Places of whole rows, one element a column, with a gap now and then.
    fn dense(&mut self) -> (Index, usize) {
        let width = self.len + self.random.pick(&[0, 0, 3]);
        let offset = self.random.pick(&[0, 0, 7]);
        let index = Index::at(offset).outer(0, (self.h * width) as i64).outer(1, width as i64).column(1);
        (index, offset as usize + self.n * self.h * width)
    }

    /// A load of a value of the type of `elem`, in one of the shapes that loads have.
    fn load(&mut self, elem: Elem, columnar: bool) -> ExprId {
        let (h, len) = (self.h as i64, self.len as i64);
        let rows = self.n * self.h;
        let shapes: &[usize] = if columnar { &[0, 0, 0, 1, 2, 3, 4, 5, 6] } else { &[2, 7] };
        let (index, count) = match self.random.pick(shapes) {
            0 => self.dense(),
            1 => (Index::at(0).column(1), self.len),
            2 => (Index::at(0).outer(0, h).outer(1, 1), rows),
            // Strided, and backwards.
            3 => (Index::at(0).outer(1, len * 3).column(3), self.h * self.len * 3),
            4 => (Index::at((len - 1).max(0)).outer(0, len).column(-1), self.n * self.len + 1),
            5 => {
                let ids = self.input(Elem::I32, self.n);
                let id = self.b.load(ids, Index::at(0).outer(0, 1));
                (Index::at(0).gather(id, Extent::Const(TABLE as u64), len).column(1), TABLE * self.len)
            }
            6 => {
                // Each column gathers for itself.
                let id = self.i32(true, 1);
                (Index::at(0).gather(id, Extent::Const(TABLE as u64), 1), TABLE)
            }
            _ => (Index::at(2), 3),
        };
        let buffer = self.input(elem, count);
        self.b.load(buffer, index)
    }

    fn load_record(&mut self, columnar: bool) -> ExprId {
        let k = (self.len as u64).max(1);
        let elem = if self.random.chance(50) { Elem::Q8 { k } } else { Elem::Q4 { k } };
        let h = self.h as i64;
        if columnar && self.random.chance(20) {
            let records = self.input(elem, TABLE);
            let id = self.i32(true, 1);
            let record = Index::at(0).gather(id, Extent::Const(TABLE as u64), 1);
            return self.b.load_row(records, record, Index::at(0).column(1));
        }
        let records = self.input(elem, self.n * self.h);
        let record = Index::at(0).outer(0, h).outer(1, 1);
        let element = match (columnar, self.random.below(4)) {
            (false, _) => Index::at(0),
            (true, 0) => Index::at((self.len as i64 - 1).max(0)).column(-1),
            (true, _) => Index::at(0).column(1),
        };
        self.b.load_row(records, record, element)
    }

    fn f32(&mut self, columnar: bool, depth: usize) -> ExprId {
        if depth == 0 || self.random.chance(15) {
            return match self.random.below(10) {
                0 => {
                    let value = if self.tame { self.random.plain() } else { self.random.wild() };
                    self.b.f32(value)
                }
                1 | 2 if !self.f32_scalars.is_empty() => self.random.pick(&self.f32_scalars.clone()),
                3 => self.load(Elem::BF16, columnar),
                4 => self.load(Elem::F16, columnar),
                5 => self.load_record(columnar),
                _ => self.load(Elem::F32, columnar),
            };
        }
        match self.random.below(10) {
            0..=2 => {
                const OPS: [UnaryOp; 12] = [
                    UnaryOp::Neg,
                    UnaryOp::Abs,
                    UnaryOp::Exp,
                    UnaryOp::Log,
                    UnaryOp::Sqrt,
                    UnaryOp::Rsqrt,
                    UnaryOp::Recip,
                    UnaryOp::Relu,
                    UnaryOp::Round,
                    UnaryOp::Floor,
                    UnaryOp::Sin,
                    UnaryOp::Cos,
                ];
                let op = self.random.pick(&OPS);
                let x = self.f32(columnar, depth - 1);
                self.b.unary(op, x)
            }
            3 => {
                let x = self.i32(columnar, depth - 1);
                self.b.unary(UnaryOp::ToF32, x)
            }
            4 => {
                let condition = self.condition(columnar, depth - 1);
                let (lhs, rhs) = (self.f32(columnar, depth - 1), self.f32(columnar, depth - 1));
                self.b.select(condition, lhs, rhs)
            }
            _ => {
                let op = self.random.pick(&[
                    BinaryOp::Add,
                    BinaryOp::Sub,
                    BinaryOp::Mul,
                    BinaryOp::Mul,
                    BinaryOp::Div,
                    BinaryOp::Min,
                    BinaryOp::Max,
                ]);
                let (lhs, rhs) = (self.f32(columnar, depth - 1), self.f32(columnar, depth - 1));
                self.b.binary(op, lhs, rhs)
            }
        }
    }

    fn i32(&mut self, columnar: bool, depth: usize) -> ExprId {
        if depth == 0 || self.random.chance(20) {
            return match self.random.below(8) {
                0 => self.b.i32(self.random.below(9) as i32 - 4),
                1 | 2 if columnar => self.b.column(),
                3 => self.b.coordinate(0),
                4 => self.b.coordinate(1),
                5 if !self.i32_scalars.is_empty() => self.random.pick(&self.i32_scalars.clone()),
                6 => self.load(Elem::I8, columnar),
                _ => self.load(Elem::I32, columnar),
            };
        }
        match self.random.below(6) {
            0 => {
                let op = self.random.pick(&[UnaryOp::Neg, UnaryOp::Abs]);
                let x = self.i32(columnar, depth - 1);
                self.b.unary(op, x)
            }
            1 => {
                let x = self.f32(columnar, depth - 1);
                self.b.unary(UnaryOp::ToI32, x)
            }
            2 => {
                let condition = self.condition(columnar, depth - 1);
                let (lhs, rhs) = (self.i32(columnar, depth - 1), self.i32(columnar, depth - 1));
                self.b.select(condition, lhs, rhs)
            }
            _ => {
                let op = self.random.pick(&[BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Min, BinaryOp::Max]);
                let (lhs, rhs) = (self.i32(columnar, depth - 1), self.i32(columnar, depth - 1));
                self.b.binary(op, lhs, rhs)
            }
        }
    }

    fn condition(&mut self, columnar: bool, depth: usize) -> ExprId {
        let op = self.random.pick(&[BinaryOp::Less, BinaryOp::LessEqual, BinaryOp::Equal]);
        let (lhs, rhs) = if self.random.chance(60) {
            (self.f32(columnar, depth), self.f32(columnar, depth))
        } else {
            (self.i32(columnar, depth), self.i32(columnar, depth))
        };
        self.b.binary(op, lhs, rhs)
    }

    fn reduce(&mut self) {
        let op = self.random.pick(ReduceOp::ALL);
        if op != ReduceOp::ArgMax && self.random.chance(25) {
            let body = self.i32(true, 2);
            let scalar = self.b.reduce_i32(op, self.columns, body);
            return self.i32_scalars.push(scalar);
        }
        let body = self.f32(true, 3);
        let scalar = self.b.reduce(op, self.columns, body);
        if op == ReduceOp::ArgMax { self.i32_scalars.push(scalar) } else { self.f32_scalars.push(scalar) }
    }

    fn write(&mut self) -> Write {
        let elem = self.random.pick(&[Elem::F32, Elem::F32, Elem::BF16, Elem::F16, Elem::I8, Elem::I32]);
        let (index, count) = if self.random.chance(25) {
            let rows = (self.n * self.h) as i64;
            (Index::at(0).outer(0, self.h as i64).outer(1, 1).column(rows), rows as usize * self.len.max(1))
        } else {
            self.dense()
        };
        let in_place = elem == Elem::F32 && self.random.chance(50);
        let buffer = self.output(elem, count);
        let value = match elem {
            Elem::I8 | Elem::I32 => self.i32(true, 3),
            _ if in_place => {
                let (old, other) = (self.b.load(buffer, index.clone()), self.f32(true, 2));
                self.b.add(old, other)
            }
            _ => self.f32(true, 3),
        };
        Write { buffer, index, value }
    }

    fn store(&mut self) {
        if self.random.chance(35) && 0 < self.len {
            let k = self.len as u64;
            let elem = if self.random.chance(50) { Elem::Q8 { k } } else { Elem::Q4 { k } };
            let buffer = self.output(elem, self.n * self.h);
            let body = self.f32(true, 2);
            let record = Index::at(0).outer(0, self.h as i64).outer(1, 1);
            return self.b.store_row(buffer, record, body);
        }
        let writes = (0..1 + self.random.below(2)).map(|_| self.write()).collect();
        self.b.store_all(self.columns, writes);
    }

    fn generate(mut self) -> Case {
        let n = if self.random.chance(50) { self.b.dim("n") } else { Extent::Const(self.n as u64) };
        self.b.outer(n);
        self.b.outer(Extent::Const(self.h as u64));
        if self.random.chance(40) {
            self.columns = self.b.dim("columns");
        }
        for _ in 0..self.random.below(3) {
            self.reduce();
            if self.random.chance(50) {
                let value = self.f32(false, 2);
                let scalar = self.b.scalar(value);
                self.f32_scalars.push(scalar);
            }
        }
        self.store();
        if self.random.chance(30) {
            self.reduce();
            self.store();
        }
        let nest = self.b.finish().unwrap();
        let sizes = |name: &String| if name == "n" { self.n as i64 } else { self.len as i64 };
        let dims = nest.dims.iter().map(sizes).collect();
        Case { nest, buffers: self.buffers, dims }
    }
}

fn case(seed: u64, len: u64, random: &mut Random) -> Case {
    let (n, h) = (1 + random.below(3), 1 + random.below(3));
    let tame = random.chance(50);
    let generator = Generator {
        b: NestBuilder::new(&format!("random_{seed}")),
        random,
        n,
        h,
        len: len as usize,
        columns: Extent::Const(len),
        buffers: Vec::new(),
        f32_scalars: Vec::new(),
        i32_scalars: Vec::new(),
        tame,
    };
    generator.generate()
}

#[test]
fn random_nests_give_the_bits_of_the_interpreter() {
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let len = random.pick(&LENS);
        let Case { nest, buffers, dims } = case(seed, len, &mut random);
        check(&nest, &buffers, &dims, &mut random);
    }
}

/// Results lie over what they are computed from wherever the nest says that they may.
#[test]
fn results_over_operands_are_the_same() {
    let mut found = 0;
    for seed in 2000..3500 {
        let mut random = Random::new(seed);
        let len = random.pick(&LENS);
        let Case { nest, buffers, dims } = case(seed, len, &mut random);
        let all = 0..nest.buffers.len();
        let pairs = all.clone().flat_map(|written| all.clone().map(move |read| (written, read)));
        for pair in pairs.filter(|&(written, read)| nest.may_lie_on(written, read)) {
            if buffers[pair.0].len() == buffers[pair.1].len() {
                check_over(&nest, &buffers, &dims, &mut random, pair);
                found += 1;
            }
        }
    }
    assert!(100 <= found, "{found} pairs");
}

/// The same for aarch64, emulated where there is an emulator.
#[test]
fn aarch64_code_gives_the_bits_of_the_interpreter() {
    if !qemu::is_available() {
        eprintln!("skipped: no qemu-aarch64");
        return;
    }
    let targets: Vec<_> = all_targets().into_iter().filter(|target| target.arch() == Arch::Aarch64).collect();
    for seed in 5000..5080 {
        let mut random = Random::new(seed);
        let len = random.pick(&LENS);
        let Case { nest, buffers, dims } = case(seed, len, &mut random);
        let expected = interpret(&nest, &buffers, &dims);
        let target = random.pick(&targets);
        assert_same(&nest, target, &expected, &qemu::run_code(&nest, target, &buffers, &dims));
    }
}

#[test]
fn every_target_gives_the_same_code_twice_and_no_relocation() {
    let cases: Vec<_> = (1000..1040).map(|seed| case(seed, 37, &mut Random::new(seed))).collect();
    let nests: Vec<_> = cases.iter().map(|case| &case.nest).collect();
    for target in all_targets() {
        let code = assemble(&nests, target, true).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(code, assemble(&nests, target, true).unwrap(), "{target}");
        assert_eq!(code.symbols.len(), nests.len());
        for (symbol, listing) in code.symbols.iter().zip(&code.listings) {
            assert_eq!(symbol.offset % 64, 0);
            assert!(0 < symbol.len && symbol.offset + symbol.len <= code.bytes.len() as u64);
            assert!(listing.clif.starts_with("function %random_"), "{}", listing.clif);
            assert!(!listing.assembly.is_empty());
        }
    }
}

/// The scalar target runs on every x86_64: its code has no instruction of a later extension.
#[test]
fn the_scalar_target_keeps_to_sse2() {
    const LATER: [&str; 14] = [
        "pshufb", "palignr", "pmovsx", "pmovzx", "pmulld", "round", "insertps", "pextr", "pinsr", "blend", "pminsd",
        "pmaxsd", "pabs", "ptest",
    ];
    let target = all_targets().into_iter().find(|target| target.to_string() == "x86_64:scalar").unwrap();
    for seed in 2000..2100 {
        let case = case(seed, 37, &mut Random::new(seed));
        let code = assemble(&[&case.nest], target, true).unwrap();
        for line in code.listings[0].assembly.lines() {
            let mnemonic = line.split_whitespace().next().unwrap_or("");
            let is_sse2 = mnemonic == "pinsrw" || mnemonic == "pextrw";
            let is_later = mnemonic.starts_with('v') || LATER.iter().any(|later| mnemonic.starts_with(later));
            assert!(is_sse2 || !is_later, "{line}\n{}", *case.nest);
        }
    }
}

/// Each reduction over rows of every length, constant and not, of plain and of special values.
#[test]
fn reductions_at_the_edges_of_their_loops() {
    let mut random = Random::new(77);
    for len in LENS {
        for op in ReduceOp::ALL {
            for fixed in [false, true] {
                let mut b = NestBuilder::new("reduce");
                let (x, y) = (b.input("x", Elem::F32), b.output("y", Elem::F32));
                let n = b.dim("n");
                let columns = if fixed { Extent::Const(len) } else { b.dim("columns") };
                b.outer(n);
                let value = b.load(x, Index::at(0).outer(0, len as i64).column(1));
                let mut result = b.reduce(*op, columns, value);
                if *op == ReduceOp::ArgMax {
                    result = b.unary(UnaryOp::ToF32, result);
                }
                b.store(Extent::Const(1), y, Index::at(0).outer(0, 1), result);
                let nest = b.finish().unwrap();
                let rows = 6;
                let values = (0..rows * len).map(|at| match at / len.max(1) {
                    0 => f32::NAN,
                    1 => f32::NEG_INFINITY,
                    2 => random.pick(&[0.0, -0.0]),
                    3 => random.plain(),
                    _ => random.wild(),
                });
                let buffers = [f32_bytes(values), f32_bytes(vec![0.0; rows as usize])];
                let dims = if fixed { vec![rows as i64] } else { vec![rows as i64, len as i64] };
                check(&nest, &buffers, &dims, &mut random);
            }
        }
    }
}

/// Row formats of every size, over plain, special, constant and empty rows.
#[test]
fn quantised_rows_are_those_of_the_row_format() {
    let mut random = Random::new(3);
    for k in [1_u64, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 100] {
        for elem in [Elem::Q8 { k }, Elem::Q4 { k }] {
            let mut b = NestBuilder::new("quantise");
            let (x, y) = (b.input("x", Elem::F32), b.output("y", elem));
            let n = b.dim("n");
            b.outer(n);
            let value = b.load(x, Index::at(0).outer(0, k as i64).column(1));
            b.store_row(y, Index::at(0).outer(0, 1), value);
            let nest = b.finish().unwrap();
            let rows = 40;
            let values = (0..rows * k).map(|at| match at / k {
                0 => 0.0,
                1 => -3.5,
                2 => 1e-30,
                3 => f32::NAN,
                4 => random.below(30) as f32 * 1.4e-45,
                5 => random.below(255) as f32 - 127.0,
                6 => f32::INFINITY,
                row if row < 20 => random.wild(),
                _ => random.plain(),
            });
            let buffers = [f32_bytes(values), vec![0x77; elem.stride() as usize * rows as usize]];
            check(&nest, &buffers, &[rows as i64], &mut random);
        }
    }
}

/// A negative size is no column, and no unit.
#[test]
fn a_negative_size_is_empty() {
    let mut b = NestBuilder::new("negative");
    let (x, y) = (b.input("x", Elem::F32), b.output("y", Elem::F32));
    b.outer(Extent::Const(1));
    let columns = b.dim("columns");
    let value = b.load(x, Index::at(0).column(1));
    let sum = b.reduce(ReduceOp::Sum, columns, value);
    b.store(columns, y, Index::at(0).column(1), value);
    b.store(Extent::Const(1), y, Index::at(0), sum);
    let nest = b.finish().unwrap();
    for size in [-1, -31, -32, -33, i64::MIN] {
        let bytes = check(&nest, &[Vec::new(), f32_bytes([5.0])], &[size], &mut Random::new(1));
        assert_eq!(bytes[1], f32_bytes([0.0]), "{size}");
    }
}
