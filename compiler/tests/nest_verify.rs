//! The verifier finds every problem of a nest, and the interpreter every access outside a buffer.

use tritter_compiler::nest::eval::{EvalError, eval};
use tritter_compiler::nest::verify::{NestError, Place};
use tritter_compiler::nest::{
    BinaryOp, Elem, Expr, Extent, Index, Nest, NestBuilder, ReduceOp, Stage, Type, UnaryOp, Verified, Write,
};

/// The problems of a nest that a builder wrote.
fn errors(b: NestBuilder) -> Vec<NestError> {
    b.finish().unwrap_err().errors
}

#[test]
fn all_problems_are_found_at_once() {
    let mut b = NestBuilder::new("9 lives");
    b.input("x", Elem::F32);
    b.input("x", Elem::Q8 { k: 0 });
    b.outer(Extent::Const(0));
    b.outer(Extent::Dim(3));
    let flag = b.expr(Expr::Binary(BinaryOp::Less, ir::entity::Id::new(7), ir::entity::Id::new(8)));
    b.unary(UnaryOp::Exp, flag);
    let found = errors(b);
    let has = |wanted: fn(&NestError) -> bool| assert!(found.iter().any(wanted), "{found:?}");
    has(|error| matches!(error, NestError::BadName { of: "nest", .. }));
    has(|error| matches!(error, NestError::DuplicateName { of: "buffer", .. }));
    has(|error| matches!(error, NestError::RecordSize { k: 0, .. }));
    has(|error| matches!(error, NestError::ExtentRange { at: Place::Outer(0), extent: 0, least: 1 }));
    has(|error| matches!(error, NestError::InnerDim { at: Place::Outer(1) }));
    has(|error| matches!(error, NestError::Unknown { kind: "dim", position: 3, count: 0, .. }));
    has(|error| matches!(error, NestError::Order { .. }));
}

#[test]
fn operands_have_the_types_of_their_op() {
    let mut b = NestBuilder::new("types");
    let (x, q) = (b.input("x", Elem::F32), b.input("q", Elem::Q4 { k: 8 }));
    let (float, int) = (b.f32(1.0), b.i32(1));
    b.binary(BinaryOp::Add, float, int);
    b.binary(BinaryOp::Div, int, int);
    b.unary(UnaryOp::Exp, int);
    b.unary(UnaryOp::ToF32, float);
    b.select(float, float, int);
    b.load(x, Index::at(0).gather(float, Extent::Const(3), 1));
    b.load(x, Index::at(0).gather(int, Extent::Const(0), 1));
    b.load(x, Index::at(0).outer(0, 1));
    b.load(q, Index::at(0));
    b.load_row(x, Index::at(0), Index::at(0));
    let found = errors(b);
    let operands = found.iter().filter(|error| matches!(error, NestError::Operand { .. })).count();
    let kinds = found.iter().filter(|error| matches!(error, NestError::BufferKind { .. })).count();
    assert_eq!((operands, kinds, found.len()), (7, 2, 11), "{found:#?}");
}

#[test]
fn stages_keep_their_rules() {
    let mut b = NestBuilder::new("stages");
    let (x, y) = (b.input("x", Elem::F32), b.output("y", Elem::F32));
    let q = b.output("q", Elem::Q8 { k: 8 });
    b.outer(Extent::Const(4));
    let columns = Extent::Const(8);
    let row = Index::at(0).outer(0, 8).column(1);
    let value = b.load(x, row.clone());
    let old = b.load(y, Index::at(8).outer(0, 8).column(1));
    let column = b.column();
    b.scalar(value); // depends on the column
    b.store(columns, x, row.clone(), value); // an input
    b.store(columns, y, row.clone(), column); // an i32
    b.store(columns, y, Index::at(0).outer(0, 1), value); // one place
    b.store(columns, y, row.clone(), old); // another unit's row
    b.store(columns, q, row, value); // records
    b.store_row(q, Index::at(0).column(1), value); // a record per column
    let of_record = b.load_row(q, Index::at(0), Index::at(0).column(1));
    b.store_row(q, Index::at(0).outer(0, 1), of_record); // from itself
    let flag = b.binary(BinaryOp::Less, value, value);
    b.reduce(ReduceOp::Sum, columns, flag);
    b.reduce(ReduceOp::ArgMax, columns, column);
    let found = errors(b);
    let has = |wanted: fn(&NestError) -> bool| assert!(found.iter().any(wanted), "{found:#?}");
    has(|error| matches!(error, NestError::Column { at: Place::Stage(0), .. }));
    has(|error| matches!(error, NestError::ReadOnly { at: Place::Stage(1), .. }));
    has(|error| matches!(error, NestError::Operand { at: Place::Stage(2), found: Type::I32, .. }));
    has(|error| matches!(error, NestError::Collision { at: Place::Stage(3), .. }));
    has(|error| matches!(error, NestError::InPlace { at: Place::Stage(4), .. }));
    has(|error| matches!(error, NestError::BufferKind { at: Place::Stage(5), .. }));
    has(|error| matches!(error, NestError::Column { at: Place::Stage(6), .. }));
    has(|error| matches!(error, NestError::InPlace { at: Place::Stage(7), .. }));
    has(|error| matches!(error, NestError::Operand { at: Place::Stage(8), found: Type::Bool, .. }));
    has(|error| matches!(error, NestError::Operand { at: Place::Stage(9), found: Type::I32, .. }));
}

#[test]
fn scalars_are_set_once_and_before_use() {
    let mut b = NestBuilder::new("scalars");
    let y = b.output("y", Elem::F32);
    let one = b.f32(1.0);
    let scalar = b.scalar(one);
    b.store(Extent::Const(1), y, Index::at(0), scalar);
    let mut nest: Nest = (*b.finish().unwrap()).clone();
    nest.stages.swap(0, 1);
    let again = nest.stages[1].clone();
    nest.stages.push(again);
    let found = Verified::new(nest.clone()).unwrap_err();
    assert!(matches!(found.errors[..], [NestError::Unset { .. }, NestError::SetAgain { .. }]), "{found}");
    nest.scalars = [Type::I32].into_iter().collect();
    nest.stages.truncate(2);
    nest.stages.swap(0, 1);
    let found = Verified::new(nest).unwrap_err();
    let text = found.to_string();
    assert!(text.starts_with("nest `scalars` is not well formed:\n  stage 0 sets s0, declared i32, to f32"), "{text}");
}

#[test]
fn the_interpreter_stops_at_the_end_of_a_buffer() {
    let mut b = NestBuilder::new("bounds");
    let (x, y) = (b.input("x", Elem::F32), b.output("y", Elem::F32));
    let n = b.dim("n");
    b.outer(n);
    let value = b.load(x, Index::at(0).outer(0, 4).column(1));
    b.store_all(Extent::Const(4), vec![Write { buffer: y, index: Index::at(-4).outer(0, 4).column(1), value }]);
    let nest = b.finish().unwrap();
    assert!(matches!(nest.stages[0], Stage::Store { .. }));
    let (mut x, mut y) = (vec![0; 32], vec![0; 32]);
    let mut run = |units| eval(&nest, &mut [&mut x, &mut y], &[3], units);
    assert_eq!(run(1..2), Ok(()));
    assert!(matches!(run(0..1), Err(EvalError::OutOfBounds { byte: -16, .. })));
    assert!(matches!(run(2..3), Err(EvalError::OutOfBounds { byte: 32, len: 32, .. })));
    assert!(matches!(eval(&nest, &mut [], &[3], 0..1), Err(EvalError::Arguments { expected: 2, found: 0, .. })));
}
