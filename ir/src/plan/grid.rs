//! How many units the work of a call has, along up to three axes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Expr;

/// The units along each axis, the one that runs fastest first. As text: `ceil((n) / 64), 240`.
///
/// Kernels of a CPU have one axis. Blocks of a CUDA kernel may have three.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Grid(pub Vec<Expr>);

/// The most axes.
pub const MAX_AXES: usize = 3;

impl Grid {
    /// The units of all axes; `None` if one has no value or the product is beyond 2^64.
    pub fn units(&self, lookup: &dyn Fn(&str) -> Option<u64>) -> Option<u64> {
        self.0.iter().try_fold(1_u64, |product, axis| product.checked_mul(axis.evaluate(lookup)?))
    }
}

impl From<Expr> for Grid {
    fn from(units: Expr) -> Self {
        Self(vec![units])
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, axis) in self.0.iter().enumerate() {
            if 0 < position {
                f.write_str(", ")?;
            }
            write!(f, "{axis}")?;
        }
        Ok(())
    }
}

impl From<Grid> for String {
    fn from(grid: Grid) -> String {
        grid.to_string()
    }
}

impl TryFrom<String> for Grid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let axes = text.split(',').map(|axis| Expr::try_from(axis.to_owned())).collect::<Result<Vec<_>, _>>()?;
        if axes.len() <= MAX_AXES { Ok(Self(axes)) } else { Err(format!("`{text}` has more than {MAX_AXES} axes")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_print_and_parse_back() {
        for grid in
            [Grid::from(Expr::from(3)), Grid(vec![Expr::symbol("n").div_ceil(64), Expr::from(240), Expr::symbol("m")])]
        {
            assert_eq!(Grid::try_from(grid.to_string()).as_ref(), Ok(&grid), "{grid}");
        }
        assert!(Grid::try_from("1, 2, 3, 4".to_owned()).is_err() && Grid::try_from(String::new()).is_err());
        let grid = Grid(vec![Expr::symbol("n"), Expr::from(4)]);
        assert_eq!((grid.units(&|_| Some(5)), grid.units(&|_| Some(u64::MAX))), (Some(20), None));
    }
}
