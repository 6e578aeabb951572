//! Movement that cancels, that is one step instead of two, and that sinks below arithmetic, where it may cancel.

use ir::op::Attr;
use ir::{Dim, Shape};

use super::rule::{Match, Rule, require};

/// The rules of this family.
pub fn rules() -> Vec<Rule> {
    let mut rules = reshapes();
    rules.extend(permutes());
    rules.extend(slices());
    rules.extend(broadcasts());
    rules.extend(UNARY.iter().flat_map(|op| sink_below_unary(op)));
    rules.extend(BINARY.iter().flat_map(|op| sink_below_binary(op)));
    rules
}

fn reshapes() -> Vec<Rule> {
    vec![
        // reshape-same: nothing moves.
        //   reshape(x, shape(x))  =  x
        Rule::new("reshape-same", "A reshape to the same shape changes nothing.", "(reshape ?x ?shape)", "?x")
            .example("?x f32[n,k]; ?shape [n,k]"),
        // reshape-reshape: the order of elements is that of x, whatever the shape between.
        //   reshape(reshape(x, a), b)  =  reshape(x, b)
        Rule::new(
            "reshape-reshape",
            "Of two reshapes the last counts.",
            "(reshape (reshape ?x ?a) ?b)",
            "(reshape ?x ?b)",
        )
        .example("?x f32[n,a,k]; ?a [a,n,k]; ?b [k,n,a]")
        .example("?x i32[n]; ?a [n,1]; ?b [1,n]"),
    ]
}

fn permutes() -> Vec<Rule> {
    vec![
        // permute-same: each axis stays.
        //   permute(x, <0,1,..>)  =  x
        Rule::new("permute-same", "A permutation that leaves each axis changes nothing.", "(permute ?x ?axes)", "?x")
            .when(|m| require(m.axes("?axes")?.iter().zip(0..).all(|(axis, position)| *axis == position)))
            .example("?x f32[n,a,k]; ?axes <0,1,2>"),
        // permute-permute: permutations compose.
        //   permute(permute(x, a), b)  =  permute(x, c),  c[i] = a[b[i]]
        Rule::new("permute-permute", "Two permutations are one.", "(permute (permute ?x ?a) ?b)", "(permute ?x ?c)")
            .when(compose_permutations)
            .example("?x f32[n,a,k]; ?a <1,2,0>; ?b <2,0,1>")
            .example("?x f32[n,a,k]; ?a <1,0,2>; ?b <0,2,1>"),
        // permute-as-reshape: if only axes of size 1 pass each other, the elements keep their order.
        //   permute(x, axes)  =  reshape(x, shape)
        Rule::new(
            "permute-as-reshape",
            "A permutation that only moves axes of size one keeps the order of elements.",
            "(permute ?x ?axes)",
            "(reshape ?x ?shape)",
        )
        .when(moves_only_ones)
        .example("?x f32[n,1,k]; ?axes <1,0,2>"),
    ]
}

fn compose_permutations(m: &mut Match<'_>) -> Option<()> {
    let (first, second) = (m.axes("?a")?, m.axes("?b")?);
    let both = second.iter().map(|axis| first.get(*axis as usize).copied()).collect::<Option<_>>()?;
    m.set("?c", Attr::Axes(both));
    Some(())
}

fn moves_only_ones(m: &mut Match<'_>) -> Option<()> {
    let dims = m.ty("?x")?.shape.dims();
    let kept: Vec<u32> =
        m.axes("?axes")?.iter().copied().filter(|axis| dims[*axis as usize] != Dim::Const(1)).collect();
    require(kept.is_sorted())?;
    let shape = m.root_ty()?.shape.clone();
    m.set_shape("?shape", shape);
    Some(())
}

fn slices() -> Vec<Rule> {
    vec![
        // slice-all: everything is kept.
        //   slice(x, axis, 0, size)  =  x
        Rule::new("slice-all", "A slice of everything changes nothing.", "(slice ?x ?axis 0 ?end)", "?x")
            .example("?x f32[n,a,k]; ?axis 1; ?end a"),
        // slice-slice: offsets along one axis add up.
        //   slice(slice(x, axis, a, b), axis, c, d)  =  slice(x, axis, a + c, a + d)
        Rule::new(
            "slice-slice",
            "Two slices along one axis are one.",
            "(slice (slice ?x ?axis ?a ?b) ?axis ?c ?d)",
            "(slice ?x ?axis ?start ?end)",
        )
        .when(add_offsets)
        .example("?x f32[n,8]; ?axis 1; ?a 2; ?b 7; ?c 1; ?d 3")
        .example("?x f32[8,k]; ?axis 0; ?a 2; ?b 7; ?c 1; ?d 5"),
        // slice-concat-left: only the first part is touched.
        //   slice(concat(x, y, axis), axis, a, b)  =  slice(x, axis, a, b)      if b <= size of x
        Rule::new(
            "slice-concat-left",
            "A slice within the first part of a concatenation is a slice of that part.",
            "(slice (concat ?x ?y ?axis) ?axis ?a ?b)",
            "(slice ?x ?axis ?a ?b)",
        )
        .when(|m| require(m.int("?b")? <= m.size("?x", m.int("?axis")?)?))
        .example("?x f32[n,5]; ?y f32[n,a]; ?axis 1; ?a 1; ?b 5")
        .example("?x t2[a,k]; ?y t2[b,k]; ?axis 0; ?a 0; ?b a"),
        // slice-concat-right: only the second part is touched.
        //   slice(concat(x, y, axis), axis, a, b)  =  slice(y, axis, a - m, b - m)      if m = size of x <= a
        Rule::new(
            "slice-concat-right",
            "A slice within the second part of a concatenation is a slice of that part.",
            "(slice (concat ?x ?y ?axis) ?axis ?a ?b)",
            "(slice ?y ?axis ?start ?end)",
        )
        .when(within_second)
        .example("?x f32[n,2]; ?y f32[n,5]; ?axis 1; ?a 3; ?b 6")
        .example("?x t2[a,k]; ?y t2[b,k]; ?axis 0; ?a a; ?b a+b"),
        // concat-slices: two neighbouring slices are one.
        //   concat(slice(x, axis, a, b), slice(x, axis, b, c), axis)  =  slice(x, axis, a, c)
        Rule::new(
            "concat-slices",
            "Two neighbouring slices, joined, are one.",
            "(concat (slice ?x ?axis ?a ?b) (slice ?x ?axis ?b ?c) ?axis)",
            "(slice ?x ?axis ?a ?c)",
        )
        .example("?x f32[n,8]; ?axis 1; ?a 1; ?b 4; ?c 8"),
    ]
}

fn add_offsets(m: &mut Match<'_>) -> Option<()> {
    let offset = m.int("?a")?;
    let (start, end) = (m.int("?c")?, m.int("?d")?);
    m.set_int("?start", offset + start)?;
    m.set_int("?end", offset + end)
}

fn within_second(m: &mut Match<'_>) -> Option<()> {
    let first = m.size("?x", m.int("?axis")?)?;
    let (start, end) = (m.int("?a")?.checked_sub(first)?, m.int("?b")?.checked_sub(first)?);
    m.set_int("?start", start)?;
    m.set_int("?end", end)
}

fn broadcasts() -> Vec<Rule> {
    let into = |op: &str, name: &str| {
        [
            ("lhs", format!("({op} (broadcast ?x ?shape) ?y)"), format!("({op} ?x ?y)")),
            ("rhs", format!("({op} ?y (broadcast ?x ?shape))"), format!("({op} ?y ?x)")),
        ]
        .map(|(side, left, right)| {
            Rule::new(format!("{name}-{side}"), format!("{op} broadcasts its operands by itself."), &left, &right)
                .example("?x f32[1,k]; ?shape [n,k]; ?y f32[n,k]")
                .example("?x f32[1]; ?shape [a,k]; ?y f32[n,a,k]")
        })
    };
    let mut rules = vec![
        // broadcast-same: nothing is repeated.
        //   broadcast(x, shape(x))  =  x
        Rule::new("broadcast-same", "A broadcast to the same shape changes nothing.", "(broadcast ?x ?shape)", "?x")
            .example("?x f32[n,k]; ?shape [n,k]"),
        // broadcast-broadcast: the last shape counts.
        //   broadcast(broadcast(x, a), b)  =  broadcast(x, b)
        Rule::new(
            "broadcast-broadcast",
            "Of two broadcasts the last counts.",
            "(broadcast (broadcast ?x ?a) ?b)",
            "(broadcast ?x ?b)",
        )
        .example("?x f32[1,k]; ?a [b,k]; ?b [a,b,k]"),
    ];
    // broadcast-into-<op>: elementwise ops repeat what is missing themselves, if the other operand has the whole shape.
    //   broadcast(x, shape) + y  =  x + y
    for op in BINARY {
        rules.extend(into(op, &format!("broadcast-into-{op}")));
    }
    rules
}

/// Ops of one operand that treat each element alone.
const UNARY: &[&str] =
    &["neg", "abs", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "round", "relu", "relu2", "sigmoid", "silu", "cast"];

/// Ops of two operands that treat each pair of elements alone. The smaller and the larger of two are not among them: which of two zeros
/// of different signs they give hangs on the order of the operands, and that may change with what they are.
const BINARY: &[&str] = &["add", "sub", "mul", "div", "relu2_mul"];

// sink-<movement>-below-<op>: what treats each element alone does not care where it stands.
//   f(reshape(x, shape))  =  reshape(f(x), shape)
fn sink_below_unary(op: &'static str) -> Vec<Rule> {
    let (attr, attr_example) = if op == "cast" { (" ?to", "; ?to i32") } else { ("", "") };
    let sink = |movement: &str, by: &str| {
        Rule::new(
            format!("sink-{movement}-below-{op}"),
            format!("{op} treats each element alone, so a {movement} can come after it."),
            &format!("({op} ({movement} ?x {by}){attr})"),
            &format!("({movement} ({op} ?x{attr}) {by})"),
        )
    };
    let example = |rule: Rule, plain: &'static str, cast: &'static str| {
        rule.example(if attr_example.is_empty() { plain } else { cast })
    };
    vec![
        example(sink("reshape", "?shape"), "?x f32[n,a,k]; ?shape [n,k,a]", "?x f32[n,a,k]; ?shape [n,k,a]; ?to i32"),
        example(sink("permute", "?axes"), "?x f32[n,a,k]; ?axes <1,2,0>", "?x f32[n,a,k]; ?axes <1,2,0>; ?to i32"),
    ]
}

// sink-<movement>-below-<op>: as for one operand, if both are moved alike and have one shape.
//   reshape(x, shape) + reshape(y, shape)  =  reshape(x + y, shape)
fn sink_below_binary(op: &'static str) -> Vec<Rule> {
    let sink = |movement: &str, by: &str| {
        Rule::new(
            format!("sink-{movement}-below-{op}"),
            format!("{op} treats each pair of elements alone, so a {movement} of both can come after it."),
            &format!("({op} ({movement} ?x {by}) ({movement} ?y {by}))"),
            &format!("({movement} ({op} ?x ?y) {by})"),
        )
        .when(have_one_shape)
    };
    vec![
        sink("reshape", "?shape").example("?x f32[n,a,k]; ?y f32[n,a,k]; ?shape [n,k,a]"),
        sink("permute", "?axes").example("?x f32[n,a,k]; ?y f32[n,a,k]; ?axes <1,2,0>"),
    ]
}

fn have_one_shape(m: &mut Match<'_>) -> Option<()> {
    require(m.ty("?x")?.shape == m.ty("?y")?.shape)
}

/// The shape `[size]`.
pub(super) fn row(size: Dim) -> Shape {
    Shape::new([size])
}
