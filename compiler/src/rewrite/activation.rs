//! Activations of the feed-forward block.

use super::rule::Rule;

/// The rules of this family.
pub fn rules() -> Vec<Rule> {
    vec![
        // relu2-mul: the gate is applied while the other half is read.
        //   relu2(gate) * up  =  relu2_mul(gate, up)
        Rule::new(
            "relu2-mul",
            "A squared relu that gates another value is one op.",
            "(mul (relu2 ?gate) ?up)",
            "(relu2_mul ?gate ?up)",
        )
        .mirrored("(mul ?up (relu2 ?gate))")
        .example("?gate f32[n,k]; ?up f32[n,k]"),
        // relu-squared: by definition.
        //   relu(x) * relu(x)  =  relu2(x)
        Rule::new("relu-squared", "The square of a relu is one op.", "(mul (relu ?x) (relu ?x))", "(relu2 ?x)")
            .example("?x f32[n,k]"),
        // self-gated-relu: where relu(x) is not zero it is x. Differs for a NaN, which relu makes zero.
        //   x * relu(x)  =  relu2(x)
        Rule::new("self-gated-relu", "A value times its relu is its squared relu.", "(mul ?x (relu ?x))", "(relu2 ?x)")
            .mirrored("(mul (relu ?x) ?x)")
            .rounding()
            .example("?x f32[n,k]"),
        // self-gated-sigmoid: by definition, but for the rounding of the quotient.
        //   x * sigmoid(x)  =  silu(x)
        Rule::new("self-gated-sigmoid", "A value times its sigmoid is its silu.", "(mul ?x (sigmoid ?x))", "(silu ?x)")
            .mirrored("(mul (sigmoid ?x) ?x)")
            .rounding()
            .example("?x f32[n,k]"),
    ]
}
