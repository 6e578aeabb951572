//! Arithmetic over symbols: sizes, offsets and grids that a call resolves.

use std::fmt;
use std::ops::{Add, Mul};

use serde::{Deserialize, Serialize};

use crate::shape::Dim;

/// A sum of products of symbols, or such a sum divided and rounded up. Canonical: terms are sorted and merged, none is zero.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Expr {
    terms: Vec<Term>,
    divisor: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Term {
    /// Sorted; a symbol may stand there twice.
    symbols: Vec<String>,
    factor: u64,
}

impl From<u64> for Expr {
    fn from(value: u64) -> Self {
        Self::from_terms(vec![Term { symbols: Vec::new(), factor: value }], 1)
    }
}

impl From<&Dim> for Expr {
    fn from(dim: &Dim) -> Self {
        match dim {
            Dim::Const(value) => Expr::from(*value),
            Dim::Sym(symbol) => Expr::symbol(symbol.name()),
        }
    }
}

impl Expr {
    /// A symbol.
    pub fn symbol(name: &str) -> Self {
        Self::from_terms(vec![Term { symbols: vec![name.to_owned()], factor: 1 }], 1)
    }

    /// The product of dimensions.
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Self {
        dims.into_iter().fold(Expr::from(1), |product, dim| product * Expr::from(dim))
    }

    /// `self / divisor`, rounded up.
    ///
    /// # Panics
    ///
    /// If `self` is divided already, or the divisor is 0.
    pub fn div_ceil(mut self, divisor: u64) -> Self {
        assert!(self.divisor == 1 && divisor != 0, "an expression is divided once, and not by zero");
        self.divisor = divisor;
        match self.as_const() {
            Some(value) => Expr::from(value),
            None => self,
        }
    }

    /// The value, if no symbol stands in it and it is below 2^64.
    pub fn as_const(&self) -> Option<u64> {
        if self.terms.iter().all(|term| term.symbols.is_empty()) { self.evaluate(&|_| None) } else { None }
    }

    /// All symbols, each once or more.
    pub fn symbols(&self) -> impl Iterator<Item = &str> {
        self.terms.iter().flat_map(|term| term.symbols.iter().map(String::as_str))
    }

    /// The value where `lookup` says what symbols are; `None` if it does not know one, or the value is beyond 2^64.
    pub fn evaluate(&self, lookup: &dyn Fn(&str) -> Option<u64>) -> Option<u64> {
        let mut sum = 0_u64;
        for term in &self.terms {
            let mut product = term.factor;
            for symbol in &term.symbols {
                product = product.checked_mul(lookup(symbol)?)?;
            }
            sum = sum.checked_add(product)?;
        }
        Some(sum.div_ceil(self.divisor))
    }

    fn from_terms(mut terms: Vec<Term>, divisor: u64) -> Self {
        terms.sort();
        let mut merged: Vec<Term> = Vec::new();
        for term in terms {
            match merged.last_mut() {
                Some(last) if last.symbols == term.symbols => last.factor = last.factor.saturating_add(term.factor),
                _ => merged.push(term),
            }
        }
        merged.retain(|term| term.factor != 0);
        Self { terms: merged, divisor }
    }
}

impl Add for Expr {
    type Output = Expr;

    /// # Panics
    ///
    /// If one of them is divided.
    fn add(self, other: Expr) -> Expr {
        assert!(self.divisor == 1 && other.divisor == 1, "a divided expression is not computed with");
        Self::from_terms(self.terms.into_iter().chain(other.terms).collect(), 1)
    }
}

impl Mul for Expr {
    type Output = Expr;

    /// # Panics
    ///
    /// If one of them is divided.
    fn mul(self, other: Expr) -> Expr {
        assert!(self.divisor == 1 && other.divisor == 1, "a divided expression is not computed with");
        let mut terms = Vec::new();
        for left in &self.terms {
            for right in &other.terms {
                let mut symbols: Vec<String> = left.symbols.iter().chain(&right.symbols).cloned().collect();
                symbols.sort();
                terms.push(Term { symbols, factor: left.factor.saturating_mul(right.factor) });
            }
        }
        Self::from_terms(terms, 1)
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.divisor != 1 {
            f.write_str("ceil((")?;
        }
        for (position, term) in self.terms.iter().enumerate() {
            if position > 0 {
                f.write_str(" + ")?;
            }
            f.write_str(&term.symbols.join("*"))?;
            match (term.symbols.is_empty(), term.factor) {
                (false, 1) => {}
                (false, factor) => write!(f, "*{factor}")?,
                (true, factor) => write!(f, "{factor}")?,
            }
        }
        if self.terms.is_empty() {
            f.write_str("0")?;
        }
        if self.divisor != 1 {
            write!(f, ") / {})", self.divisor)?;
        }
        Ok(())
    }
}

impl From<Expr> for String {
    fn from(expr: Expr) -> String {
        expr.to_string()
    }
}

impl TryFrom<String> for Expr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let malformed = || format!("`{text}` is not an expression like `n*4 + 64` or `ceil((n) / 16)`");
        let trimmed = text.trim();
        let (sum, divisor) = match trimmed.strip_prefix("ceil((") {
            Some(rest) => {
                let (sum, divisor) =
                    rest.strip_suffix(')').and_then(|rest| rest.split_once(") / ")).ok_or_else(malformed)?;
                (sum, divisor.parse::<u64>().ok().filter(|divisor| *divisor != 0).ok_or_else(malformed)?)
            }
            None => (trimmed, 1),
        };
        let mut terms = Vec::new();
        for term in sum.split('+') {
            let mut symbols = Vec::new();
            let mut product = 1_u64;
            for factor in term.split('*').map(str::trim) {
                if let Ok(value) = factor.parse::<u64>() {
                    product = product.checked_mul(value).ok_or_else(malformed)?;
                } else if is_symbol(factor) {
                    symbols.push(factor.to_owned());
                } else {
                    return Err(malformed());
                }
            }
            symbols.sort();
            terms.push(Term { symbols, factor: product });
        }
        Ok(Self::from_terms(terms, divisor))
    }
}

fn is_symbol(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_print_and_parse_back() {
        let n = || Expr::symbol("n");
        for expr in [
            Expr::from(0),
            Expr::from(7),
            n(),
            n() * Expr::from(4) + Expr::from(64),
            (n() * Expr::symbol("m") * n() * Expr::from(3)).div_ceil(16),
        ] {
            assert_eq!(Expr::try_from(expr.to_string()).as_ref(), Ok(&expr), "{expr}");
        }
        assert_eq!((n() * Expr::from(2) + n()).to_string(), "n*3");
        assert_eq!((n() + Expr::from(1)).div_ceil(16).to_string(), "ceil((1 + n) / 16)");
    }

    #[test]
    fn values_beyond_64_bits_are_none() {
        let huge = Expr::symbol("n") * Expr::from(u64::MAX);
        assert_eq!(huge.evaluate(&|_| Some(2)), None);
        assert_eq!(huge.evaluate(&|_| Some(1)), Some(u64::MAX));
    }
}
