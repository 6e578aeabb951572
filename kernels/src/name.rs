//! The grammar of kernel names, `<op>_<operands>_<out>__<isa>__<tile>`, as a parser.

use std::fmt;
use std::str::FromStr;

use ir::DType;
use ir::packing::TernaryLayout;

use crate::desc::Isa;
use crate::error::KernelError;

/// The parts of a kernel name; printing gives the name back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelName {
    /// The operation, in snake case.
    pub op: String,
    /// The dtypes of each operand; a pair (K and V) has two.
    pub operands: Vec<Vec<DType>>,
    /// How ternary operands are packed: `t2` is [`TernaryLayout::Tile16`], `t2b3` [`TernaryLayout::Tile16Base3`].
    pub layout: Option<TernaryLayout>,
    /// The dtype of what is written.
    pub output: DType,
    /// The CPU features.
    pub isa: Isa,
    /// What one inner step covers: letters with their counts.
    pub tile: Vec<(char, u32)>,
}

impl KernelName {
    /// The dtypes of all operands, one after the other.
    pub fn dtypes(&self) -> Vec<DType> {
        self.operands.concat()
    }
}

impl FromStr for KernelName {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        let bad = |problem: String| KernelError::BadName { name: name.to_owned(), problem };
        let parts: Vec<&str> = name.split("__").collect();
        let [head, isa, tile] = parts[..] else {
            return Err(bad(format!("{} parts joined by `__`, not 3", parts.len())));
        };
        let mut words = head.rsplitn(3, '_');
        let (Some(output), Some(operands), Some(op)) = (words.next(), words.next(), words.next()) else {
            return Err(bad(format!("`{head}` lacks an op, operands or output")));
        };
        let is_word = |word: &str| {
            word.starts_with(|first: char| first.is_ascii_lowercase())
                && word.chars().all(|each| each.is_ascii_lowercase() || each.is_ascii_digit())
        };
        if !op.split('_').all(is_word) {
            return Err(bad(format!("the op `{op}` is not in snake case")));
        }
        let mut layout = None;
        let mut parse = |text: &str| match text {
            BASE_3 => {
                layout = Some(TernaryLayout::Tile16Base3);
                Some(vec![DType::T2])
            }
            _ => parse_dtypes(text),
        };
        let operands: Option<Vec<_>> = operands.split('x').map(&mut parse).collect();
        let operands = operands.ok_or_else(|| bad("an operand is no dtype".to_owned()))?;
        if layout.is_none() && operands.concat().contains(&DType::T2) {
            layout = Some(TernaryLayout::Tile16);
        }
        let output = output.parse().map_err(|()| bad(format!("the output `{output}` is no dtype")))?;
        let isa = isa.parse().map_err(|()| bad(format!("`{isa}` is no ISA")))?;
        let tile = parse_tile(tile).ok_or_else(|| bad(format!("`{tile}` is no tile, such as r16 or r4t8")))?;
        Ok(Self { op: op.to_owned(), operands, layout, output, isa, tile })
    }
}

impl fmt::Display for KernelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |dtype: &DType| match (dtype, self.layout) {
            (DType::T2, Some(TernaryLayout::Tile16Base3)) => BASE_3,
            (dtype, _) => dtype.name(),
        };
        let operands: Vec<String> = self.operands.iter().map(|dtypes| dtypes.iter().map(word).collect()).collect();
        write!(f, "{}_{}_{}__{}__", self.op, operands.join("x"), self.output, self.isa)?;
        self.tile.iter().try_for_each(|(letter, count)| write!(f, "{letter}{count}"))
    }
}

/// The operand of ternary weights with five codes a byte.
const BASE_3: &str = "t2b3";

/// One or more dtypes without anything between them. No dtype's name starts with that of another.
fn parse_dtypes(text: &str) -> Option<Vec<DType>> {
    let mut dtypes = Vec::new();
    let mut rest = text;
    while let Some(dtype) = DType::ALL.into_iter().find(|dtype| rest.starts_with(dtype.name())) {
        dtypes.push(dtype);
        rest = &rest[dtype.name().len()..];
    }
    (rest.is_empty() && !dtypes.is_empty()).then_some(dtypes)
}

/// One or more letters, each followed by a number without leading zeros.
fn parse_tile(text: &str) -> Option<Vec<(char, u32)>> {
    let mut tile = Vec::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next().filter(char::is_ascii_lowercase) {
        let digits = &rest[1..];
        let end = digits.find(|each: char| !each.is_ascii_digit()).unwrap_or(digits.len());
        let count: u32 = digits[..end].parse().ok()?;
        if count == 0 || digits.starts_with('0') {
            return None;
        }
        tile.push((letter, count));
        rest = &digits[end..];
    }
    (rest.is_empty() && !tile.is_empty()).then_some(tile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_apart() {
        let name: KernelName = "attention_f32xq8q4_f32__avx512vnni__t64".parse().unwrap();
        assert_eq!(name.op, "attention");
        assert_eq!(name.operands, [vec![DType::F32], vec![DType::Q8, DType::Q4]]);
        assert_eq!((name.output, name.isa, name.tile.as_slice()), (DType::F32, Isa::Avx512Vnni, &[('t', 64)][..]));
        assert_eq!(name.to_string(), "attention_f32xq8q4_f32__avx512vnni__t64");
    }

    #[test]
    fn packings_have_names_of_their_own() {
        for (text, layout) in [("t2", TernaryLayout::Tile16), ("t2b3", TernaryLayout::Tile16Base3)] {
            let name: KernelName = format!("ternary_gemv_q8x{text}_f32__neon__r16").parse().unwrap();
            assert_eq!((name.layout, name.dtypes().as_slice()), (Some(layout), &[DType::Q8, DType::T2][..]));
            assert_eq!(name.to_string(), format!("ternary_gemv_q8x{text}_f32__neon__r16"));
        }
    }

    #[test]
    fn what_breaks_the_grammar_is_refused() {
        for name in [
            "",
            "ternary_gemv_q8xt2_f32",
            "ternary_gemv_q8xt2_f32__avx2",
            "q8xt2_f32__avx2__r16",
            "_q8xt2_f32__avx2__r16",
            "Gemv_q8xt2_f32__avx2__r16",
            "gemv_q9xt2_f32__avx2__r16",
            "gemv_q8x_f32__avx2__r16",
            "gemv_q8xt2b4_f32__avx2__r16",
            "gemv_q8xq8b3_f32__avx2__r16",
            "gemv_q8xt2_f33__avx2__r16",
            "gemv_q8xt2_f32__sse9__r16",
            "gemv_q8xt2_f32__avx2__16",
            "gemv_q8xt2_f32__avx2__r",
            "gemv_q8xt2_f32__avx2__r0",
            "gemv_q8xt2_f32__avx2__r016",
            "gemv_q8xt2_f32__avx2__r16__",
        ] {
            assert!(matches!(name.parse::<KernelName>(), Err(KernelError::BadName { .. })), "{name}");
        }
    }
}
