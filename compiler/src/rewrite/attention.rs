//! Attention and its neighbours: constant factors of queries end up in the scale of the scores.

use super::arithmetic::real;
use super::rule::{Match, Rule, require};

/// The rules of this family.
pub fn rules() -> Vec<Rule> {
    vec![
        // scale-into-attention: the scores are linear in the queries.
        //   attention(q * c, k, v, .., scale)  =  attention(q, k, v, .., scale * c)      c one known number
        Rule::new(
            "scale-into-attention",
            "A constant factor of the queries joins the scale of the scores.",
            "(attention (mul ?q ?c) ?k ?v ?seq ?pos ?span ?scale ?window ?sinks)",
            "(attention ?q ?k ?v ?seq ?pos ?span ?product ?window ?sinks)",
        )
        .rounding()
        .when(multiply_scale)
        .example(
            "?q f32[n,4,d]; ?c const f32[1] 0.5; ?k f32[2,2,8,d]; ?v f32[2,2,8,d]; ?seq i32[n]; ?pos i32[n]; ?span i32[n,2]; \
             ?scale 0.25; ?window 0; ?sinks 0",
        ),
        // rope-scaled: a rotation is linear.
        //   rope(x * c, cos, sin)  =  rope(x, cos, sin) * c      c one known number
        Rule::new(
            "rope-scaled",
            "A constant factor passes through a rotation.",
            "(rope (mul ?x ?c) ?cos ?sin)",
            "(mul (rope ?x ?cos ?sin) ?c)",
        )
        .rounding()
        .when(|m| require(m.uniform("?c").is_some()))
        .example("?x f32[n,a,6]; ?c const f32[1] 0.5; ?cos f32[n,3]; ?sin f32[n,3]"),
    ]
}

fn multiply_scale(m: &mut Match<'_>) -> Option<()> {
    let product = m.real("?scale")? * m.uniform("?c")?;
    require(product.is_finite())?;
    m.set("?product", real(product));
    Some(())
}
