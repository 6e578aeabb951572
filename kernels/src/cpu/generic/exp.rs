//! `exp` of 32 lanes, the same operations as [`crate::math::exp_f32`].

use crate::cpu::lanes::Lanes;
use crate::math::{EXP_COEFFICIENTS, EXP_HIGH, EXP_LOW, LN2_HIGH, LN2_LOW, LOG2_E};

/// # Safety
///
/// The running CPU has the features of `L`.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L::Block) -> L::Block {
    // SAFETY: the CPU has the features, as the caller promises.
    unsafe {
        // The operand order lets NaN through: it is always the second one.
        let y = L::min(L::splat(EXP_HIGH), L::max(L::splat(EXP_LOW), x));
        let n = L::round(L::mul(y, L::splat(LOG2_E)));
        let r = L::mul_add(n, L::splat(-LN2_LOW), L::mul_add(n, L::splat(-LN2_HIGH), y));
        let mut p = L::splat(EXP_COEFFICIENTS[0]);
        for coefficient in &EXP_COEFFICIENTS[1..] {
            p = L::mul_add(p, r, L::splat(*coefficient));
        }
        L::mul_pow2(p, n)
    }
}
