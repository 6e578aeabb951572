//! Normalisation with its neighbours: what comes before and after a norm is done while the row is at hand.

use ir::{Dim, Shape};

use super::arithmetic::real;
use super::rule::{Match, Rule, require};

/// The rules of this family.
pub fn rules() -> Vec<Rule> {
    vec![
        // rms-norm-quantize: the normalised row is quantised before it reaches memory.
        //   quantize(rms_norm(x, w, eps))  =  rms_norm_quantize(x, w, eps)
        Rule::new(
            "rms-norm-quantize",
            "A norm that is quantised next is one op.",
            "(quantize (rms_norm ?x ?w ?eps))",
            "(rms_norm_quantize ?x ?w ?eps)",
        )
        .example("?x f32[n,k]; ?w param f32[k]; ?eps 1e-5")
        .example("?x f32[n,a,k]; ?w param f32[k]; ?eps 0.0"),
        // add-rms-norm: the sum is formed while the norm reads it.
        //   rms_norm(x + r, w, eps)  =  add_rms_norm(x, r, w, eps)
        Rule::new(
            "add-rms-norm",
            "A sum that is normalised next is one op.",
            "(rms_norm (add ?x ?r) ?w ?eps)",
            "(add_rms_norm ?x ?r ?w ?eps)",
        )
        .example("?x f32[n,k]; ?r f32[n,k]; ?w param f32[k]; ?eps 1e-5"),
        // add-layer-norm: as add-rms-norm.
        //   layer_norm(x + r, w, b, eps)  =  add_layer_norm(x, r, w, b, eps)
        Rule::new(
            "add-layer-norm",
            "A sum that is normalised next is one op.",
            "(layer_norm (add ?x ?r) ?w ?b ?eps)",
            "(add_layer_norm ?x ?r ?w ?b ?eps)",
        )
        .example("?x f32[n,k]; ?r f32[n,k]; ?w param f32[k]; ?b param f32[k]; ?eps 1e-5"),
        // recognise-rms-norm: the norm, written out.
        //   x * rsqrt(mean(x * x) + eps) * w  =  rms_norm(x, w, eps)
        Rule::new(
            "recognise-rms-norm",
            "A root mean square norm that is written out is one op.",
            "(mul (mul ?x (rsqrt (add (mean (mul ?x ?x)) ?e))) ?w)",
            "(rms_norm ?x ?w ?eps)",
        )
        .mirrored("(mul ?w (mul ?x (rsqrt (add (mean (mul ?x ?x)) ?e))))")
        .when(epsilon_from_constant)
        .example("?x f32[n,k]; ?w param f32[k]; ?e const f32[1] 0.0009765625"),
        // scale-into-rms-norm: a scale of the columns joins the weights of the norm.
        //   rms_norm(x, w, eps) * s  =  rms_norm(x, w * s, eps)      s[k] or of one element
        Rule::new(
            "scale-into-rms-norm",
            "A scale after a norm joins its weights.",
            "(mul (rms_norm ?x ?w ?eps) ?s)",
            "(rms_norm ?x (mul ?w ?s) ?eps)",
        )
        .rounding()
        .when(weights_and_scale)
        .example("?x f32[n,k]; ?w param f32[k]; ?eps 1e-5; ?s param f32[k]")
        .example("?x f32[n,k]; ?w param f32[k]; ?eps 1e-5; ?s param f32[1]"),
        // scale-into-layer-norm: a scale of the columns joins weights and bias of the norm.
        //   layer_norm(x, w, b, eps) * s  =  layer_norm(x, w * s, b * s, eps)      s[k] or of one element
        Rule::new(
            "scale-into-layer-norm",
            "A scale after a norm joins its weights and its bias.",
            "(mul (layer_norm ?x ?w ?b ?eps) ?s)",
            "(layer_norm ?x (mul ?w ?s) (mul ?b ?s) ?eps)",
        )
        .rounding()
        .when(weights_and_scale)
        .example("?x f32[n,k]; ?w param f32[k]; ?b param f32[k]; ?eps 1e-5; ?s param f32[k]"),
        // bias-into-layer-norm: a bias of the columns joins that of the norm.
        //   layer_norm(x, w, b, eps) + c  =  layer_norm(x, w, b + c, eps)      c[k] or of one element
        Rule::new(
            "bias-into-layer-norm",
            "A bias after a norm joins its own.",
            "(add (layer_norm ?x ?w ?b ?eps) ?s)",
            "(layer_norm ?x ?w (add ?b ?s) ?eps)",
        )
        .rounding()
        .when(weights_and_scale)
        .example("?x f32[n,k]; ?w param f32[k]; ?b param f32[k]; ?eps 1e-5; ?s param f32[k]"),
    ]
}

fn epsilon_from_constant(m: &mut Match<'_>) -> Option<()> {
    let epsilon = m.uniform("?e")?;
    require(m.ty("?e")?.shape.elements() == Some(1))?;
    // The weights are those of the innermost axis, and not of another that happens to have its size.
    let width = m.ty("?x")?.shape.last()?.clone();
    require(m.ty("?w")?.shape == Shape::new([width]))?;
    m.set("?eps", real(epsilon));
    Some(())
}

fn weights_and_scale(m: &mut Match<'_>) -> Option<()> {
    let width = m.ty("?x")?.shape.last()?.clone();
    let shape = &m.ty("?s")?.shape;
    let is_row = matches!(shape.dims(), [] | [Dim::Const(1)]) || *shape == Shape::new([width]);
    require(m.weight_time("?w") && m.weight_time("?s") && is_row)
}
