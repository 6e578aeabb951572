//! How far a row may be from the numbers of the scalar row, and why not further.
//!
//! Rows of tensor cores for attention round what they multiply and add in another order than the crate's. What they compute is still bounded, for each
//! number of the result, by what was rounded; [`Rounding`] says what that is, and this is the bound that follows, all of it relative to exact
//! arithmetic on the same inputs.
//!
//! For one query `q` and one head, let `k_j`, `v_j` be the decoded rows of the `n` visible keys, `s_j = scale * q . k_j` and
//! `p_j = exp(s_j) / sum_i exp(s_i)`, so that `o_d = sum_j p_j v_jd`. Let `|k|` of a record with a minimum be `|minimum| + |k - minimum|`, else the
//! absolute value, and likewise `|v|`. With `u = 2^-23`, the most that an addition in f32 loses where tensor cores truncate:
//!
//! * A score is off by at most `e_j = |scale| * (sum_i |k_ji| (queries |q_i| + largest_query max |q| + keys |q_i|) + u (hd + 8) sum_i |q_i| |k_ji|) +
//!   4 u |s_j|`: its operands are rounded, queries relatively or as parts of the largest one; it is a sum of `hd` numbers and some corrections; and it is
//!   scaled.
//! * With `e = max_j e_j`, every weight is off by a factor between `exp(-e)` and `exp(e)`, and so is their sum. Weights and values are rounded,
//!   relatively by `weights` and `values`, and the exponential by less than `2^-20`. What is off by a factor in every term of a sum of `|v|` is off by it in
//!   the sum: `(exp(2 e + weights + values + 2^-20) - 1) * a_d` with `a_d = sum_j p_j |v_jd|`.
//! * The sums over `n` keys lose `u (n + 64)` of `a_d` twice, above and below the line, and once of `raised * sum_j p_j record_j`, if codes of values are
//!   multiplied with so much added to them; `record_j` is the scale of the value's record.
//!
//! For the gradients of attention, whose operands are multiplied as they are, let `e_j` be as above, `w_j = e_j + 4 u (|s_j| + |lse|) + 2^-20` and
//! `a_j = sum_i |dy_i| |v_ji|`.
//!
//! * `lse` is off by at most `max_j e_j + 2^-20 + u (n + 64) + 4 u |lse|`.
//! * A weight `p_j = exp(s_j - lse)`, from the `lse` that is given, is off by a factor between `exp(-w_j)` and `exp(w_j)`, and then rounded relatively by
//!   `weights`; so `|d p_j| = (exp(w_j + weights) - 1) p_j`.
//! * With `d_j = u (hd + 8) a_j + 2 u |delta|`, `t_j = p_j (dy . v_j - delta) * scale` is off by at most
//!   `|d t_j| = (exp(w_j + weights) - 1) |t_j| + exp(w_j + weights) p_j d_j |scale|`.
//! * A sum of `n` products of these loses `u (n + 64)` of the sum of their absolute values, beside what its terms are off by.
//!
//! All of this is for finite numbers. A value that is infinite or no number, and that some token sees, may make results of other tokens of its block no
//! numbers, where the scalar row has some: their weight for it is zero, and the product is none. What no token sees is never multiplied.

/// How the results of a row compare with those of the scalar row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Accuracy {
    /// They are the same, bit for bit.
    Exact,
    /// They are within the bound of this module of exact arithmetic.
    Bounded(Rounding),
}

/// What a row of attention rounds, relatively: the numbers of the bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounding {
    /// Queries.
    pub queries: f64,
    /// Queries, relative to the largest one of the head.
    pub largest_query: f64,
    /// Decoded keys.
    pub keys: f64,
    /// Exponentials, as operands of the product with the values.
    pub weights: f64,
    /// Decoded values.
    pub values: f64,
    /// What is added to codes of values that are not decoded.
    pub raised: f64,
}

/// What is relatively lost where a number becomes the nearest bf16: half of the last of its 8 significant bits, 2^-7 of a number just above 1.
const BF16: f64 = 1.0 / 256.0;

/// Nothing is rounded.
const NONE: Rounding = Rounding { queries: 0.0, largest_query: 0.0, keys: 0.0, weights: 0.0, values: 0.0, raised: 0.0 };

impl Rounding {
    /// Queries and weights are bf16; keys and values are, too, as they lie in the cache.
    pub const BF16_OPERANDS: Rounding = Rounding { queries: BF16, weights: BF16, ..NONE };

    /// Queries and weights are bf16, and so are keys and values once they are decoded.
    pub const BF16_DECODED: Rounding = Rounding { keys: BF16, values: BF16, ..Rounding::BF16_OPERANDS };

    /// Weights, and what they are turned into for gradients, are bf16.
    pub const BF16_WEIGHTS: Rounding = Rounding { weights: BF16, ..NONE };

    /// Queries and weights are sums of two bf16; keys and values are as they lie in the cache.
    pub const TWO_BF16: Rounding = Rounding { queries: BF16 * BF16, weights: BF16 * BF16, ..NONE };

    /// Queries are whole multiples of the largest one's 32512th part, weights sums of two bf16, and codes of values are raised by 128.
    pub const CODES: Rounding = Rounding { largest_query: 0.51 / 32512.0, weights: BF16 * BF16, raised: 128.0, ..NONE };
}
