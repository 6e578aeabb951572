//! The text form at its edges: names, numbers, positions, and every message under its line.

extern crate tritter_ir as ir;

use ir::graph::{Def, Update, Value};
use ir::op::elementwise::{Add, Neg};
use ir::op::movement::Slice;
use ir::text::{parse, parse_with_positions, print, print_annotated, print_with_positions, show_verify_errors};
use ir::{Builder, DType, Dim, Graph, Op, Program, Shape, TensorType, ValueId, verify};

fn vector(size: u64) -> TensorType {
    TensorType::new(DType::F32, Shape::of(&[size]))
}

fn program(graph: Graph) -> Program {
    Program { name: "p".to_owned(), symbols: Vec::new(), graphs: vec![graph] }
}

#[track_caller]
fn round_trips(program: &Program) -> String {
    let text = print(program);
    let parsed = parse(&text).unwrap_or_else(|errors| panic!("{}", errors.show(&text)));
    assert_eq!(parsed, *program, "{text}");
    assert_eq!(print(&parsed), text);
    text
}

#[test]
fn names_of_any_kind_round_trip() {
    let mut builder = Builder::new("odd name\u{7f}\u{e9}");
    let names =
        ["x", "x", "v3", "return", "v3", "a b", "", "0", "x#2", "\"\\\n", "a-b", "a--b", "v", "vv1", "layer.0.x"];
    let values: Vec<ValueId> = names.iter().map(|name| builder.input(name, vector(2))).collect();
    let sum = builder.op(Add {}, &[values[0], values[1]]).unwrap();
    let program = program(builder.finish(&[sum, values[14], sum]));
    let text = round_trips(&program);
    assert!(text.contains("v15 = add x, x#1\n"), "{text}");
    assert!(text.contains("\"v3\"#4: f32[2], \"a b\": f32[2], \"\": f32[2]"), "{text}");
}

#[test]
fn inputs_after_other_values_and_several_outputs_round_trip() {
    let mut builder = Builder::new("g");
    let x = builder.input("x", vector(2));
    let w = builder.param("w", "a \"key\"\n", vector(2));
    let late = builder.input("late", TensorType::new(DType::I32, Shape::new([Dim::sym("odd symbol")])));
    let state = builder.state("s", "s", vector(2));
    let sum = builder.op(Add {}, &[x, w]).unwrap();
    builder.update(state, sum);
    let text = round_trips(&program(builder.finish(&[late, sum])));
    assert!(text.contains("graph @g(x: f32[2]) -> (i32[\"odd symbol\"], f32[2]) {"), "{text}");
    assert!(text.contains("  input late: i32[\"odd symbol\"]\n"), "{text}");
}

#[test]
fn programs_that_no_verifier_accepts_round_trip() {
    let mut graph = Graph::new("g");
    let x = graph.values.push(Value { name: None, ty: vector(3), def: Def::Input });
    graph.inputs.push(x);
    let wrong_type = Def::Op { op: Op::from(Neg {}), inputs: [x].into_iter().collect() };
    let y = graph.values.push(Value { name: None, ty: vector(4), def: wrong_type });
    let no_type = Def::Op { op: Op::from(Slice { axis: 7, start: 2, end: 1 }), inputs: [x, y].into_iter().collect() };
    graph.values.push(Value { name: None, ty: vector(5), def: no_type });
    graph.updates.push(Update { state: x, value: y });
    let mut program = program(graph);
    let text = round_trips(&program);
    assert!(text.contains("v1: f32[4] = neg v0\n  v2: f32[5] = slice v0, v1, axis=7, start=2, end=1\n"), "{text}");
    let errors = verify(program.clone()).unwrap_err();
    assert_eq!(errors.0.len(), 5, "{errors}");
    program.graphs.clear();
    round_trips(&program);
}

#[test]
fn long_constants_are_broken_into_lines() {
    let mut builder = Builder::new("g");
    let long = builder.constant(Some("long"), vector(33), (0..33).map(f64::from));
    let empty = builder.constant(None, vector(0), []);
    let text = round_trips(&program(builder.finish(&[long, empty])));
    assert!(text.contains("15.0,\n    16.0, 17.0"), "{text}");
    assert!(text.contains("    32.0\n  ]\n  const v1: f32[0] = []\n"), "{text}");
}

#[test]
fn positions_are_the_same_for_printer_and_parser() {
    let mut builder = Builder::new("g");
    let x = builder.input("\u{e9}", vector(2));
    let state = builder.state("s", "s", vector(2));
    let sum = builder.op(Add {}, &[x, state]).unwrap();
    builder.update(state, sum);
    let program = program(builder.finish(&[sum]));
    let (text, printed) = print_with_positions(&program);
    let (_, parsed) = parse_with_positions(&text).unwrap();
    assert_eq!(printed, parsed);
    let position = parsed.value(0, sum).unwrap();
    assert_eq!((position.line, position.column, position.width), (5, 3, 2));
}

#[test]
fn types_can_be_shown_as_comments() {
    let mut builder = Builder::new("g");
    let x = builder.input("x", vector(2));
    let y = builder.op(Neg {}, &[x]).unwrap();
    let program = program(builder.finish(&[y]));
    let text = print_annotated(&program);
    assert!(text.contains("  v1 = neg x  ; f32[2]\n"), "{text}");
    assert_eq!(parse(&text).unwrap(), program);
}

#[test]
fn a_program_without_its_line_is_called_as_its_entry() {
    let program =
        parse("graph @body(x: f32[1]) -> f32[1] { return x }\ngraph @main(\n  x: f32[1],\n) -> f32[1] { return x }\n");
    assert_eq!(program.unwrap().name, "main");
    assert_eq!(parse(""), Ok(Program { name: String::new(), symbols: Vec::new(), graphs: Vec::new() }));
}

#[test]
fn every_error_is_reported_under_its_line() {
    let text = r#"program @p
symbol n <= -1
graph @g(x: f32[n, 4], y: f64[4]) -> f32[4] {
  a = ad x, x
  b = add x, a, c
  d = add x
  x = neg x
  e = rms_norm x, d, epsilon=1e-5
  f = slice x, axis=1.0, start=0, end=2
  k = slice x, axis=0, axis=0, start=0, end=2
  param w: f32[4] = weights
  const c1: f32[2] = [1.0 2.0]
  const c2: f32[2] = [1.0, two]
  h: = neg x
  i = cast x, to=f64
  const s: f32[1, 1, 1, 1, 1, 1, 1, 1, 1] = [1.0]
  ?!
  j = "unclosed
  update
  return x
  l = neg x
}
graph @main(x: f32[4]) -> f32[3] {
  return x
}
graph @open(x: f32[4]) -> f32[4] {
  y = neg "\q"
"#;
    let errors = parse(text).unwrap_err();
    let expected = "  1 | program @p
  2 | symbol n <= -1
    |             ^^ `-1` is not a whole number below 2^64
  3 | graph @g(x: f32[n, 4], y: f64[4]) -> f32[4] {
    |                           ^^^ `f64` is not an element type: f32, f16, bf16, i8, i32, t2, q8, q4
  4 |   a = ad x, x
    |       ^^ there is no op `ad`; did you mean `add`?
  5 |   b = add x, a, c
    |                 ^ no value `c` is defined above
  6 |   d = add x
    |       ^^^ `add` of (f32[n, 4]): takes 2 inputs, found 1
  7 |   x = neg x
    |   ^ `x` is defined in line 3 already; write `x#2` for another value of this name
  8 |   e = rms_norm x, d, epsilon=1e-5
    |       ^^^^^^^^ `rms_norm` needs the attribute `eps`
    |                      ^^^^^^^ `rms_norm` has no attribute `epsilon`; its attributes: eps
  9 |   f = slice x, axis=1.0, start=0, end=2
    |                ^^^^ attribute `axis` of `slice` must be a whole number, found 1.0
 10 |   k = slice x, axis=0, axis=0, start=0, end=2
    |                        ^^^^ attribute `axis` is given twice
 11 |   param w: f32[4] = weights
    |                     ^^^^^^^ expected a key in quotes, found `weights`
 12 |   const c1: f32[2] = [1.0 2.0]
    |                           ^^^ expected `,` or `]` after an element, found `2.0`
 13 |   const c2: f32[2] = [1.0, two]
    |                            ^^^ `two` is not a number
 14 |   h: = neg x
    |      ^ expected a type, such as f32[n, 4], found `=`
 15 |   i = cast x, to=f64
    |                  ^^^ `f64` is not a number, an element type, a shape, a list of axes or a `@name`
 16 |   const s: f32[1, 1, 1, 1, 1, 1, 1, 1, 1] = [1.0]
    |               ^ a type has at most 8 dimensions
 17 |   ?!
    |   ^ unexpected `?`
    |    ^ unexpected `!`
 18 |   j = \"unclosed
    |       ^^^^^^^^^ this string is not closed
 19 |   update
    |         ^ expected the name of a value, found the end of the line
 20 |   return x
 21 |   l = neg x
    |   ^ nothing may follow `return` in a graph
 22 | }
 23 | graph @main(x: f32[4]) -> f32[3] {
    |       ^^^^^ the graph is declared to return f32[3], but returns f32[4]
 24 |   return x
 25 | }
 26 | graph @open(x: f32[4]) -> f32[4] {
 27 |   y = neg \"\\q\"
    |           ^^^^ unknown escape in a string; known are \\\" \\\\ \\n \\t \\r \\u{...}
 28 |
    | ^ expected `}` at the end of the graph, found the end of the text
";
    let shown = errors.show(text);
    assert_eq!(shown, expected, "\n{shown}");
}

#[test]
fn the_verifiers_errors_stand_under_their_lines() {
    let text = "\
program @p
symbol n <= 4
symbol n <= 5
symbol m <= 5

graph @g(x: f32[n, 4]) -> f32[k] {
  state s: f32[4] = \"s\"
  y: f32[k] = neg x
  update x = x
  update s = x
  update s = s
  return y
}
";
    let (program, map) = parse_with_positions(text).unwrap();
    let errors = verify(program.clone()).unwrap_err();
    let shown = show_verify_errors(&program, &errors, Some((text, &map)));
    let expected = "  1 | program @p
  2 | symbol n <= 4
  3 | symbol n <= 5
    |        ^ symbol `n` is declared twice
  4 | symbol m <= 5
    |        ^ no input of the entry has the symbol `m`, so nothing gives it a value
  5 |
  6 | graph @g(x: f32[n, 4]) -> f32[k] {
  7 |   state s: f32[4] = \"s\"
  8 |   y: f32[k] = neg x
    |   ^ symbol `k` is not declared
    |   ^ the type is declared as f32[k], but `neg` gives f32[n, 4]
  9 |   update x = x
    |          ^ an update's target must be a state
 10 |   update s = x
    |          ^ the state is f32[4], its update f32[n, 4]
 11 |   update s = s
    |          ^ the state is updated twice
 12 |   return y
 13 | }
";
    assert_eq!(shown, expected, "\n{shown}");
    // Without a source the program is printed, to the same effect.
    assert_eq!(show_verify_errors(&program, &errors, None), expected);
}

#[test]
fn absurd_sizes_are_refused_and_overflow_nothing() {
    let max = u64::MAX;
    let text = format!(
        "symbol n <= {max}\n\
         graph @g(x: f32[n, {max}], y: f32[{max}, {max}], z: f32[2, 3]) -> f32[2, 3] {{\n\
         a = concat y, y, axis=0\nb = reshape y, shape=[{max}, 1, {max}]\n\
         const c: f32[{max}, {max}, 0] = []\nreturn z\n}}\n"
    );
    let errors = verify(parse(&text).unwrap()).unwrap_err();
    let too_large = errors.0.iter().filter(|error| error.to_string().contains("too large")).count();
    assert_eq!(too_large, 5, "{errors}");
}

/// Texts that would take a quadratic parser, or a recursive one, very long or beyond its stack.
#[test]
fn long_texts_take_no_longer_than_their_length() {
    let n = 100_000;
    for piece in [
        "(",
        "[",
        "{",
        "}",
        "? ",
        "\"",
        "x ",
        "graph ",
        "graph\n",
        "graph @g(",
        "@",
        "a, ",
        "-",
        "#",
        "\\",
        "x = add y\n",
    ] {
        for start in [
            "",
            "graph @g() -> f32[] {\n",
            "graph @g() -> f32[] {\nx = add ",
            "graph @g() -> f32[] {\nconst c: f32[1] = [1, ",
        ] {
            let text = format!("{start}{}", piece.repeat(n));
            let errors = parse(&text).expect_err("none of these is a program");
            assert!(!errors.show(&text).is_empty());
        }
    }
    let inputs: String = (0..n).map(|i| format!("v{i}: f32[], ")).collect();
    let text = format!("graph @g({inputs}) -> f32[] {{ return v0 }}");
    round_trips(&parse(&text).unwrap());
}
