//! Ternary weights and int8 activations: what models write as dense arithmetic becomes `ternary_matmul`.
//!
//! A model writes a BitNet linear as `matmul(dequantize(quantize(x)), mul(unpack(w), s))`. With the scale hoisted (see
//! [`super::matmul`]), the rules here take the rest of the way: unpacked weights are read as they are packed, the scale becomes the scale of
//! the rows, and the codes of the activations are read as they are.

use ir::graph::Constant;
use ir::{DType, Shape, TensorType};

use super::matmul::one_per_row;
use super::rule::{Match, Rule, require};

/// The rules that choose how ternary weights are packed. They run last: a packing is of the matmuls that are left.
pub fn packings() -> Vec<Rule> {
    vec![
        // pack-base3: five weights in a byte instead of four. Which is faster is a matter of the machine: fewer bytes, more work for each.
        //   ternary_matmul(x, w, s)  =  ternary_matmul_base3(x, w, s)      x in q8
        Rule::new(
            "pack-base3",
            "Ternary weights may be stored five to a byte.",
            "(ternary_matmul ?x ?w ?s)",
            "(ternary_matmul_base3 ?x ?w ?s)",
        )
        .when(|m| require(m.weight_time("?w")))
        .example("?x q8[n,k]; ?w param t2[m,k]; ?s param f32[m]"),
    ]
}

/// The rules of this family.
pub fn rules() -> Vec<Rule> {
    vec![
        // matmul-unpacked: weights that are unpacked only to be multiplied are multiplied packed.
        //   matmul(x, unpack(w))  =  ternary_matmul(x, w, broadcast(1, [m]))
        Rule::new(
            "matmul-unpacked",
            "A matmul with unpacked ternary weights is a ternary matmul with scales of one.",
            "(matmul ?x (unpack ?w))",
            "(ternary_matmul ?x ?w (broadcast ?one ?shape))",
        )
        .rounding()
        .when(scales_of_one)
        .example("?x f32[n,k]; ?w param t2[m,k]")
        .example("?x f32[k]; ?w param t2[m,k]"),
        // absorb-scale: a factor of each column of the result belongs into the scales of the rows, where it costs nothing.
        //   ternary_matmul(x, w, s) * t  =  ternary_matmul(x, w, s * t)      t[m] or of one element
        Rule::new(
            "absorb-scale",
            "A scale after a ternary matmul joins the scales of its rows.",
            "(mul (ternary_matmul ?x ?w ?s) ?t)",
            "(ternary_matmul ?x ?w (mul ?s ?t))",
        )
        .mirrored("(mul ?t (ternary_matmul ?x ?w ?s))")
        .rounding()
        .when(are_weight_time_scales)
        .example("?x q8[n,k]; ?w param t2[m,k]; ?s param f32[m]; ?t param f32[m]")
        .example("?x f32[n,k]; ?w param t2[m,k]; ?s param f32[m]; ?t param f32[1]"),
        // absorb-divisor: as absorb-scale.
        //   ternary_matmul(x, w, s) / t  =  ternary_matmul(x, w, s / t)      t[m] or of one element
        Rule::new(
            "absorb-divisor",
            "A divisor after a ternary matmul joins the scales of its rows.",
            "(div (ternary_matmul ?x ?w ?s) ?t)",
            "(ternary_matmul ?x ?w (div ?s ?t))",
        )
        .rounding()
        .when(are_weight_time_scales)
        .example("?x q8[n,k]; ?w param t2[m,k]; ?s param f32[m]; ?t param f32[m]")
        .example("?x f32[n,k]; ?w param t2[m,k]; ?s param f32[m]; ?t param f32[1]"),
        // dequantized-activations: the scale of a row of codes is applied after the sum instead of before, and the sum is exact.
        //   ternary_matmul(dequantize(q), w, s)  =  ternary_matmul(q, w, s)      q in q8
        Rule::new(
            "dequantized-activations",
            "A ternary matmul reads int8 codes as they are.",
            "(ternary_matmul (dequantize ?q) ?w ?s)",
            "(ternary_matmul ?q ?w ?s)",
        )
        .rounding()
        .when(is_q8)
        .example("?q q8[n,k]; ?w param t2[m,k]; ?s param f32[m]"),
        // quantize-dequantize: quantising what was read from int8 codes gives these codes; their scale is recomputed to one rounding.
        //   quantize(dequantize(q))  =  q      q in q8
        Rule::new(
            "quantize-dequantize",
            "Quantising what was quantised gives the same codes.",
            "(quantize (dequantize ?q))",
            "?q",
        )
        .rounding()
        .when(is_q8)
        .example("?q q8[n,k]"),
        // divide-unpacked: a ternary value divided is -1/s, 0 or 1/s, exactly as multiplied by the inverse.
        //   unpack(w) / s  =  unpack(w) * (1 / s)
        Rule::new(
            "divide-unpacked",
            "Dividing ternary values is multiplying them by the inverse, to the bit.",
            "(div (unpack ?w) ?s)",
            "(mul (unpack ?w) (div ?one ?s))",
        )
        .when(one_for_division)
        .example("?w param t2[m,k]; ?s param f32[m,1]")
        .example("?w param t2[m,k]; ?s param f32[1]"),
    ]
}

fn scalar_one(m: &mut Match<'_>) {
    m.set_constant("?one", TensorType::new(DType::F32, Shape::of(&[1])), Constant::new([1.0]));
}

fn scales_of_one(m: &mut Match<'_>) -> Option<()> {
    let shape = one_per_row(m)?;
    m.set_shape("?shape", shape);
    scalar_one(m);
    Some(())
}

fn one_for_division(m: &mut Match<'_>) -> Option<()> {
    require(m.weight_time("?s"))?;
    scalar_one(m);
    Some(())
}

fn are_weight_time_scales(m: &mut Match<'_>) -> Option<()> {
    require(m.weight_time("?s") && m.weight_time("?t"))
}

fn is_q8(m: &mut Match<'_>) -> Option<()> {
    require(m.ty("?q")?.dtype == DType::Q8)
}
