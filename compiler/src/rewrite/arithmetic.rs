//! Identities of arithmetic that hold bit for bit, and constants computed in advance.
//!
//! What looks true but is not: `x + 0` is `x` only for -0.0, because -0.0 + 0.0 is +0.0; `x * 0` is not 0 for infinities; `x - x` is not 0
//! for them either. Integers have none of these, and are folded by the same rules.

use ir::DType;
use ir::op::Attr;

use super::rule::{Match, Rule, require};
use crate::egraph::analysis::FOLDABLE;

/// The rules of this family.
pub fn rules() -> Vec<Rule> {
    let mut rules = identities();
    rules.extend(signs());
    rules.extend(repeated());
    rules.extend(scales());
    rules.extend(FOLDABLE.iter().map(|op| fold(op)));
    rules
}

/// Operands that change nothing.
fn identities() -> Vec<Rule> {
    vec![
        // mul-one: one is neutral.
        //   x * 1  =  x
        Rule::new("mul-one", "One is neutral in products.", "(mul ?x ?one)", "?x")
            .mirrored("(mul ?one ?x)")
            .when(is_one)
            .example("?x f32[n,k]; ?one const f32[1] 1.0")
            .example("?x i32[n]; ?one const i32[] 1"),
        // mul-one-broadcast: where the one has the larger shape, only the shape is left of it.
        //   x * 1[shape]  =  broadcast(x, shape)
        Rule::new("mul-one-broadcast", "A product with ones only repeats.", "(mul ?x ?one)", "(broadcast ?x ?shape)")
            .mirrored("(mul ?one ?x)")
            .when(is_one_larger)
            .example("?x f32[1]; ?one const f32[3] 1.0,1.0,1.0"),
        // div-one: one is neutral.
        //   x / 1  =  x
        Rule::new("div-one", "Division by one changes nothing.", "(div ?x ?one)", "?x")
            .when(is_one)
            .example("?x f32[n,k]; ?one const f32[1] 1.0"),
        // add-zero: the neutral element of a float sum is minus zero; of an integer sum, zero.
        //   x + -0.0  =  x
        Rule::new("add-zero", "Minus zero, or an integer zero, is neutral in sums.", "(add ?x ?zero)", "?x")
            .mirrored("(add ?zero ?x)")
            .when(is_neutral_zero)
            .example("?x f32[n,k]; ?zero const f32[1] -0.0")
            .example("?x i32[n]; ?zero const i32[1] 0"),
        // sub-zero: what is subtracted has its sign flipped, so plus zero is neutral.
        //   x - 0.0  =  x
        Rule::new("sub-zero", "Plus zero is neutral when subtracted.", "(sub ?x ?zero)", "?x")
            .when(is_plus_zero)
            .example("?x f32[n,k]; ?zero const f32[1] 0.0"),
        // cast-same: a cast to the type that is there.
        //   cast(x, dtype(x))  =  x
        Rule::new("cast-same", "A cast to the same type changes nothing.", "(cast ?x ?to)", "?x")
            .example("?x f32[n,k]; ?to f32")
            .example("?x i32[n]; ?to i32"),
        // cast-back: f16 and bf16 lie within f32, so going there and back changes nothing.
        //   cast(cast(x, f32), dtype(x))  =  x
        Rule::new("cast-back", "A cast to f32 and back changes nothing.", "(cast (cast ?x f32) ?to)", "?x")
            .when(is_small_float)
            .example("?x f16[n,k]; ?to f16")
            .example("?x bf16[n,k]; ?to bf16"),
        // select-same: both branches are one value.
        //   select(c, x, x)  =  x
        Rule::new("select-same", "A choice between a value and itself is that value.", "(select ?c ?x ?x)", "?x")
            .example("?c i32[n,k]; ?x f32[n,k]"),
    ]
}

fn is_one(m: &mut Match<'_>) -> Option<()> {
    require(m.uniform("?one")? == 1.0)
}

fn is_one_larger(m: &mut Match<'_>) -> Option<()> {
    is_one(m)?;
    let shape = m.root_ty()?.shape.clone();
    require(m.ty("?x")?.shape != shape)?;
    m.set_shape("?shape", shape);
    Some(())
}

fn is_neutral_zero(m: &mut Match<'_>) -> Option<()> {
    let zero = m.uniform("?zero")?;
    require(zero == 0.0 && (zero.is_sign_negative() || m.ty("?zero")?.dtype.is_integer()))
}

fn is_plus_zero(m: &mut Match<'_>) -> Option<()> {
    let zero = m.uniform("?zero")?;
    require(zero == 0.0 && zero.is_sign_positive())
}

fn is_small_float(m: &mut Match<'_>) -> Option<()> {
    require(matches!(m.ty("?x")?.dtype, DType::F16 | DType::BF16))
}

/// Signs move through sums and products without rounding.
fn signs() -> Vec<Rule> {
    vec![
        // neg-neg: two signs cancel.
        //   -(-x)  =  x
        Rule::new("neg-neg", "Two signs cancel.", "(neg (neg ?x))", "?x").example("?x f32[n,k]"),
        // add-neg: adding the negative is subtracting.
        //   x + -y  =  x - y
        Rule::new("add-neg", "Adding a negative is subtracting.", "(add ?x (neg ?y))", "(sub ?x ?y)")
            .mirrored("(add (neg ?y) ?x)")
            .example("?x f32[n,k]; ?y f32[1,k]"),
        // sub-neg: subtracting the negative is adding.
        //   x - -y  =  x + y
        Rule::new("sub-neg", "Subtracting a negative is adding.", "(sub ?x (neg ?y))", "(add ?x ?y)")
            .example("?x f32[n,k]; ?y f32[k]"),
        // mul-minus-one: minus one only flips the sign.
        //   x * -1  =  -x
        Rule::new("mul-minus-one", "A product with minus one flips the sign.", "(mul ?x ?minus)", "(neg ?x)")
            .mirrored("(mul ?minus ?x)")
            .when(|m| require(m.uniform("?minus")? == -1.0))
            .example("?x f32[n,k]; ?minus const f32[1] -1.0"),
        // mul-neg-neg: two signs cancel in a product.
        //   -x * -y  =  x * y
        Rule::new("mul-neg-neg", "Two signs cancel in a product.", "(mul (neg ?x) (neg ?y))", "(mul ?x ?y)")
            .example("?x f32[n,k]; ?y f32[n,k]"),
        // abs-neg: a magnitude has no sign.
        //   |-x|  =  |x|
        Rule::new("abs-neg", "A magnitude has no sign.", "(abs (neg ?x))", "(abs ?x)").example("?x f32[n,k]"),
    ]
}

/// Functions that change nothing the second time.
fn repeated() -> Vec<Rule> {
    let twice = |op: &str| {
        Rule::new(
            format!("{op}-twice"),
            format!("Applied twice, {op} is applied once."),
            &format!("({op} ({op} ?x))"),
            &format!("({op} ?x)"),
        )
        .example("?x f32[n,k]")
    };
    vec![
        // abs-twice, relu-twice, round-twice: each maps to values that it leaves alone.
        //   f(f(x))  =  f(x)
        twice("abs"),
        twice("relu"),
        twice("round"),
        // rsqrt: by definition.
        //   1 / sqrt(x)  =  rsqrt(x)
        Rule::new("rsqrt", "The inverse of a square root is one op.", "(div ?one (sqrt ?x))", "(rsqrt ?x)")
            .when(is_one)
            .example("?x f32[n,k]; ?one const f32[1] 1.0"),
    ]
}

/// Scales that depend on weights only come together, so that one product is left at run time.
fn scales() -> Vec<Rule> {
    vec![
        // join-scales: two scales known at weight time are one.
        //   (x * s) * t  =  x * (s * t)
        Rule::new(
            "join-scales",
            "Two scales that depend on weights only are one.",
            "(mul (mul ?x ?s) ?t)",
            "(mul ?x (mul ?s ?t))",
        )
        .rounding()
        .when(are_weight_time_scales)
        .example("?x f32[n,k]; ?s param f32[k]; ?t param f32[1]"),
        // join-divisors: as join-scales.
        //   (x / s) / t  =  x / (s * t)
        Rule::new(
            "join-divisors",
            "Two divisors that depend on weights only are one.",
            "(div (div ?x ?s) ?t)",
            "(div ?x (mul ?s ?t))",
        )
        .rounding()
        .when(are_weight_time_scales)
        .example("?x f32[n,k]; ?s param f32[k]; ?t param f32[1]"),
    ]
}

fn are_weight_time_scales(m: &mut Match<'_>) -> Option<()> {
    require(m.weight_time("?s") && m.weight_time("?t") && !m.weight_time("?x"))
}

// fold-<op>: an op of constants is a constant. The value is that of the reference, rounded once, which is what targets compute.
//   f(c)  =  c'
fn fold(op: &'static str) -> Rule {
    let (inputs, attrs) = ir::Op::signature(op).expect("foldable ops exist");
    let variables: Vec<String> = inputs.iter().chain(attrs).map(|name| format!("?{name}")).collect();
    let left = format!("({op} {})", variables.join(" "));
    let rule =
        Rule::new(format!("fold-{op}"), format!("{op} of constants is a constant."), &left, "?value").when(is_constant);
    rule.example(match op {
        "add" | "sub" | "mul" | "div" | "minimum" | "maximum" | "less" => {
            "?lhs const f32[2] 1.5,-2.0; ?rhs const f32[1] 4.0"
        }
        "select" => "?condition const i32[2] 0,1; ?lhs const f32[1] 3.0; ?rhs const f32[2] 1.5,-2.0",
        "sqrt" => "?x const f32[2] 4.0,0.25",
        "neg" | "abs" | "round" | "relu" | "relu2" => "?x const f32[3] 1.5,-2.0,3.0",
        "cast" => "?x const f32[2] 1.5,-2.0; ?to i32",
        "reshape" => "?x const f32[2] 1.5,-2.0; ?shape [2,1]",
        "permute" => "?x const f32[2,1] 1.5,-2.0; ?axes <1,0>",
        "slice" => "?x const f32[3] 1.5,-2.0,4.0; ?axis 0; ?start 1; ?end 3",
        "concat" => "?lhs const f32[2] 1.5,-2.0; ?rhs const f32[1] 4.0; ?axis 0",
        "broadcast" => "?x const f32[1] 1.5; ?shape [2,3]",
        _ => unreachable!("every foldable op has an example"),
    })
}

fn is_constant(m: &mut Match<'_>) -> Option<()> {
    let (ty, constant) = (m.root_ty()?.clone(), m.root_constant()?.clone());
    m.set_constant("?value", ty, constant);
    Some(())
}

/// An attribute that holds a real number.
pub(super) fn real(value: f64) -> Attr {
    Attr::Real(ir::op::Real::new(value))
}
