//! Matmuls: scales leave them, narrow weights enter them, and several over the same activations become one sweep.

use std::collections::BTreeMap;

use egg::Id;
use ir::{DType, Dim, Shape};

use super::movement::row;
use super::rule::{Match, Rule, require};
use crate::egraph::ENode;

/// The rules about one matmul.
pub fn rules() -> Vec<Rule> {
    let mut rules = vec![
        // widen-in-matmul: a matmul widens f16 and bf16 weights as it reads them, exactly.
        //   matmul(x, cast(w, f32))  =  matmul(x, w)
        Rule::new(
            "widen-in-matmul",
            "A matmul reads narrow weights itself.",
            "(matmul ?x (cast ?w f32))",
            "(matmul ?x ?w)",
        )
        .when(is_float_weight)
        .example("?x f32[n,k]; ?w param bf16[m,k]")
        .example("?x f32[n,k]; ?w param f16[m,k]"),
        // widen-in-gather: as for a matmul.
        //   gather(cast(w, f32), ids)  =  gather(w, ids)
        Rule::new(
            "widen-in-gather",
            "A gather reads narrow tables itself.",
            "(gather (cast ?w f32) ?ids)",
            "(gather ?w ?ids)",
        )
        .when(is_float_weight)
        .example("?w param bf16[k,d]; ?ids i32[n]"),
    ];
    rules.extend(quantised());
    for op in ["mul", "div"] {
        rules.extend(hoist(op));
    }
    rules
}

/// Both operands are read as codes, and scales are applied to sums.
fn quantised() -> Vec<Rule> {
    vec![
        // matmul-quantized-rows: int8 codes on both sides are multiplied as integers, whose sum is exact.
        //   matmul(dequantize(x), dequantize(w))  =  quantized_matmul(x, w)      x and w in q8
        Rule::new(
            "matmul-quantized-rows",
            "A matmul of int8 activations with int8 weights adds up their codes.",
            "(matmul (dequantize ?x) (dequantize ?w))",
            "(quantized_matmul ?x ?w)",
        )
        .rounding()
        .when(are_codes)
        .example("?x q8[n,k]; ?w q8[m,k]"),
        // matmul-quantized-groups: the same with 4-bit codes, whose scale and minimum belong to a group of columns.
        //   matmul(dequantize(x), reshape(dequantize(w), [m, k]))  =  quantized_matmul(x, w)      x in q8, w in q4
        Rule::new(
            "matmul-quantized-groups",
            "A matmul of int8 activations with groups of 4-bit weights adds up their codes.",
            "(matmul (dequantize ?x) (reshape (dequantize ?w) ?shape))",
            "(quantized_matmul ?x ?w)",
        )
        .rounding()
        .when(are_grouped_codes)
        .example("?x q8[n,4]; ?w q4[m,2,2]; ?shape [m,4]"),
    ]
}

fn are_codes(m: &mut Match<'_>) -> Option<()> {
    require(m.ty("?x")?.dtype == DType::Q8 && m.ty("?w")?.dtype == DType::Q8)
}

fn are_grouped_codes(m: &mut Match<'_>) -> Option<()> {
    require(m.ty("?x")?.dtype == DType::Q8 && m.ty("?w")?.dtype == DType::Q4)
}

fn is_float_weight(m: &mut Match<'_>) -> Option<()> {
    require(m.ty("?w")?.dtype.is_float())
}

// hoist-scale, hoist-divisor: a factor that is constant along the contracted axis commutes with the contraction, so do it once, after.
//   matmul(x, w * s)  =  matmul(x, w) * s                    s of one element
//   matmul(x, w * s)  =  matmul(x, w) * reshape(s, [m])      s[m, 1]
fn hoist(op: &'static str) -> Vec<Rule> {
    let name = if op == "mul" { "scale" } else { "divisor" };
    let one = Rule::new(
        format!("hoist-{name}"),
        format!("A {name} of all weights commutes with the contraction, so it is applied once, after."),
        &format!("(matmul ?x ({op} ?w ?s))"),
        &format!("({op} (matmul ?x ?w) ?s)"),
    );
    let rows = Rule::new(
        format!("hoist-row-{name}"),
        format!("A {name} of each row of the weights commutes with the contraction, so it is applied once, after."),
        &format!("(matmul ?x ({op} ?w ?s))"),
        &format!("({op} (matmul ?x ?w) (reshape ?s ?shape))"),
    );
    let mirror = |rule: Rule| if op == "mul" { rule.mirrored("(matmul ?x (mul ?s ?w))") } else { rule };
    vec![
        mirror(one)
            .rounding()
            .when(is_one_element)
            .example("?x f32[n,k]; ?w param f32[m,k]; ?s param f32[1]")
            .example("?x f32[n,k]; ?w param f32[m,k]; ?s param f32[]"),
        mirror(rows)
            .rounding()
            .when(is_one_per_row)
            .example("?x f32[n,k]; ?w param f32[m,k]; ?s param f32[m,1]")
            .example("?x f32[a,n,k]; ?w param f32[m,k]; ?s param f32[1,1]"),
    ]
}

fn is_one_element(m: &mut Match<'_>) -> Option<()> {
    let shape = &m.ty("?s")?.shape;
    require(shape.rank() < 2 && shape.elements() == Some(1))
}

fn is_one_per_row(m: &mut Match<'_>) -> Option<()> {
    let shape = m.ty("?s")?.shape.clone();
    match shape.dims() {
        [rows, Dim::Const(1)] => {
            m.set_shape("?shape", row(rows.clone()));
            Some(())
        }
        _ => None,
    }
}

/// The rules that merge matmuls. They run last: then it is known which matmuls are needed.
pub fn merges() -> Vec<Rule> {
    vec![
        // merge-ternary-matmuls: matmuls over the same activations are one sweep over the rows of all their weights. The result of each is
        // a slice of it. Rows are stacked, and scales joined, when weights are packed.
        //   ternary_matmul(x, w, s)  =  slice(ternary_matmul(x, rows, scales), last axis, start, end)
        //   rows = concat of all w over the same x,  scales = concat of their s,  start..end = where w lies
        Rule::new(
            "merge-ternary-matmuls",
            "Ternary matmuls over the same activations are one sweep over all their rows.",
            "(ternary_matmul ?x ?w ?s)",
            "(slice (ternary_matmul ?x ?rows ?scales) ?axis ?start ?end)",
        )
        .when(stack_ternary)
        .checked_by(is_stacked_ternary)
        .example("?x q8[n,k]; ?w param t2[m,k]; ?s param f32[m]; ?w2 param t2[b,k]; ?s2 param f32[b]; also (ternary_matmul ?x ?w2 ?s2)")
        .example(
            "?x f32[n,k]; ?w param t2[m,k]; ?s param f32[m]; ?w2 param t2[b,k]; ?s2 param f32[b]; also (ternary_matmul ?x ?w2 ?s2); \
             ?w3 param t2[a,k]; ?s3 param f32[a]; also (ternary_matmul ?x ?w3 ?s3)",
        ),
        // merge-matmuls: the same for dense weights of one type.
        //   matmul(x, w)  =  slice(matmul(x, rows), last axis, start, end)
        Rule::new(
            "merge-matmuls",
            "Matmuls over the same activations are one sweep over all their rows.",
            "(matmul ?x ?w)",
            "(slice (matmul ?x ?rows) ?axis ?start ?end)",
        )
        .when(stack_dense)
        .checked_by(is_stacked_dense)
        .example("?x f32[n,k]; ?w param f32[m,k]; ?w2 param f32[b,k]; also (matmul ?x ?w2)")
        .example("?x f32[k]; ?w param bf16[m,k]; ?w2 param bf16[b,k]; also (matmul ?x ?w2)"),
    ]
}

fn stack_ternary(m: &mut Match<'_>) -> Option<()> {
    let members = siblings(m, "ternary_matmul", 2)?;
    let at = position(m, &members)?;
    let (weights, scales): (Vec<Id>, Vec<Id>) = members.iter().map(|member| (member[0], member[1])).unzip();
    bind_slice(m, &weights, at)?;
    let scales = stack(m, &scales)?;
    m.set_class("?scales", scales);
    Some(())
}

fn stack_dense(m: &mut Match<'_>) -> Option<()> {
    let members = siblings(m, "matmul", 1)?;
    let at = position(m, &members)?;
    let weights: Vec<Id> = members.iter().map(|member| member[0]).collect();
    bind_slice(m, &weights, at)
}

/// The operands after `x` of all matmuls over the same `x` whose operands are known at weight time and of one element type: for each result
/// one, ordered by its weights. A product that is already merged takes no part.
fn siblings(m: &Match<'_>, op: &str, n_weights: usize) -> Option<Vec<Vec<Id>>> {
    let x = m.class("?x");
    require(!m.weight_time("?x") && m.weight_time("?w"))?;
    let dtype = m.ty("?w")?.dtype;
    let egraph = &*m.egraph;
    let is_member = |node: &ENode| match node.parts() {
        Some((name, inputs, _)) if name == op => {
            let weights = &inputs[1..=n_weights];
            egraph.find(inputs[0]) == x
                && weights.iter().all(|weight| egraph[*weight].data.tensor().is_some_and(|fact| fact.weight_time))
                && egraph[weights[0]].data.tensor().is_some_and(|fact| fact.ty.dtype == dtype)
                && m.nodes(egraph.find(weights[0]), "concat").next().is_none()
        }
        _ => false,
    };
    let weights_of = |node: &ENode| -> Vec<Id> {
        let inputs = node.parts().map(|(_, inputs, _)| inputs).unwrap_or_default();
        inputs[1..=n_weights].iter().map(|weight| egraph.find(*weight)).collect()
    };
    let mut members: BTreeMap<Id, Vec<Id>> = BTreeMap::new();
    let mut add = |class: Id, node: &ENode| {
        if is_member(node) {
            let weights = weights_of(node);
            let known = members.entry(egraph.find(class)).or_insert_with(|| weights.clone());
            if weights < *known {
                *known = weights;
            }
        }
    };
    if egraph.analysis.chosen.is_empty() {
        egraph.classes().for_each(|class| class.nodes.iter().for_each(|node| add(class.id, node)));
    } else {
        egraph.analysis.chosen.iter().for_each(|(class, node)| add(*class, node));
    }
    let mut members: Vec<Vec<Id>> = members.into_values().collect();
    members.sort_unstable();
    (1 < members.len()).then_some(members)
}

/// Where the match itself stands among the siblings.
fn position(m: &Match<'_>, members: &[Vec<Id>]) -> Option<usize> {
    let w = m.class("?w");
    members.iter().position(|member| member[0] == w && member.get(1).is_none_or(|scale| *scale == m.class("?s")))
}

fn bind_slice(m: &mut Match<'_>, weights: &[Id], at: usize) -> Option<()> {
    let sizes: Option<Vec<u64>> = weights.iter().map(|weight| rows_of(m, *weight)).collect();
    let sizes = sizes?;
    let start: u64 = sizes[..at].iter().sum();
    m.set_int("?axis", m.root_ty()?.shape.rank() as u64 - 1)?;
    m.set_int("?start", start)?;
    m.set_int("?end", start + sizes[at])?;
    let rows = stack(m, weights)?;
    m.set_class("?rows", rows);
    Some(())
}

/// The size of the outermost axis.
fn rows_of(m: &Match<'_>, class: Id) -> Option<u64> {
    m.egraph[class].data.tensor()?.ty.shape.dims().first()?.as_const()
}

/// The concatenation of tensors along the outermost axis, first to last.
fn stack(m: &mut Match<'_>, parts: &[Id]) -> Option<Id> {
    let (first, rest) = parts.split_first()?;
    let axis = m.egraph.add(ENode::Attr(ir::op::Attr::Int(0)));
    rest.iter().try_fold(*first, |stacked, part| Some(m.egraph.add(ENode::op("concat", [stacked, *part, axis])?)))
}

fn is_stacked_ternary(m: &Match<'_>) -> Option<()> {
    is_stacked(m, "?w", "?rows")?;
    is_stacked(m, "?s", "?scales")
}

fn is_stacked_dense(m: &Match<'_>) -> Option<()> {
    is_stacked(m, "?w", "?rows")
}

/// Whether the slice at `?start..?end` of the outermost axis of `whole` is `part`.
fn is_stacked(m: &Match<'_>, part: &str, whole: &str) -> Option<()> {
    let last = m.root_ty()?.shape.rank().checked_sub(1)?;
    require(m.int("?axis")? == last as u64)?;
    let (start, end) = (m.int("?start")?, m.int("?end")?);
    require(lies_at(m, m.class(whole), m.class(part), start, end))
}

/// Whether the elements `start..end` of the outermost axis of `whole` are `part`, seen through concatenations only.
fn lies_at(m: &Match<'_>, whole: Id, part: Id, start: u64, end: u64) -> bool {
    if whole == part && start == 0 && rows_of(m, whole) == Some(end) {
        return true;
    }
    m.nodes(whole, "concat").any(|children| {
        let is_outermost = m.egraph[children[2]].data.attr() == Some(&ir::op::Attr::Int(0));
        let Some(first) = rows_of(m, children[0]).filter(|_| is_outermost) else { return false };
        if end <= first && lies_at(m, children[0], part, start, end) {
            return true;
        }
        first <= start && lies_at(m, children[1], part, start - first, end - first)
    })
}

/// The shape `[m]` of one number for each row of the weights `?w`.
pub(super) fn one_per_row(m: &Match<'_>) -> Option<Shape> {
    Some(row(m.ty("?w")?.shape.dims().first()?.clone()))
}
