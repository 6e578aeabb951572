//! Weights out of a seed, for measuring speed and memory without a checkpoint.

use std::borrow::Cow;

use ir::DType;
use ir::packing::TernaryLayout;
use ir::param::{Init, ParamBinding};

use super::{SourceTensor, WeightError, WeightSource};

/// A source whose every tensor follows from the seed and its key, in whatever order they are asked for.
#[derive(Clone, Debug)]
pub struct RandomWeights {
    /// The seed.
    pub seed: u64,
    /// The parameters.
    pub params: Vec<ParamBinding>,
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Two numbers of a standard normal distribution (Box and Muller, 1958).
    fn normals(&mut self) -> [f64; 2] {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.unit()).sin_cos();
        [radius * cos, radius * sin]
    }
}

impl RandomWeights {
    fn find(&self, key: &str) -> Result<&ParamBinding, WeightError> {
        let matches = |param: &&ParamBinding| match param.key.split_once("{}") {
            Some((before, after)) => key
                .strip_prefix(before)
                .and_then(|rest| rest.strip_suffix(after))
                .is_some_and(|round| round.parse::<u32>().is_ok()),
            None => param.key == key,
        };
        self.params.iter().find(matches).ok_or_else(|| WeightError::Unbound { key: key.to_owned() })
    }
}

impl WeightSource for RandomWeights {
    fn check(&self, key: &str) -> Result<(), WeightError> {
        self.find(key).map(|_| ())
    }

    fn tensor(&self, key: &str) -> Result<SourceTensor<'_>, WeightError> {
        let param = self.find(key)?;
        let hash = blake3::hash(format!("{}/{key}", self.seed).as_bytes());
        let mut seed = [0; 8];
        seed.copy_from_slice(&hash.as_bytes()[..8]);
        let mut random = SplitMix(u64::from_le_bytes(seed));
        let (dims, dtype) = (param.dims(), param.ty.dtype);
        let elements: u64 = dims.iter().product();
        let mut layout = None;
        let bytes = match param.init {
            Init::Ternary => {
                layout = Some(TernaryLayout::Tile16);
                let (rows, cols) = super::as_matrix(&dims);
                random_tiles(&mut random, rows, cols)
            }
            Init::Ones => repeat_bytes(1.0, dtype, elements),
            Init::Zeros => repeat_bytes(0.0, dtype, elements),
            Init::Constant(value) => repeat_bytes(f64::from(value), dtype, elements),
            Init::Normal { std } => normal_bytes(&mut random, f64::from(std), dtype, elements),
        };
        Ok(SourceTensor { dtype, dims, layout, bytes: Cow::Owned(bytes) })
    }
}

/// A matrix in [`TernaryLayout::Tile16`], made directly in its packed form: each byte is one of the 81 that hold four codes.
fn random_tiles(random: &mut SplitMix, rows: u64, cols: u64) -> Vec<u8> {
    let mut codes = [0_u8; 81];
    for (index, byte) in codes.iter_mut().enumerate() {
        *byte = (0..4).map(|digit| ((index / 3_usize.pow(digit) % 3) as u8) << (2 * digit)).sum();
    }
    let mut bytes = vec![0_u8; TernaryLayout::Tile16.bytes(rows, cols) as usize];
    for chunk in bytes.chunks_mut(4) {
        let number = random.next();
        for (position, byte) in chunk.iter_mut().enumerate() {
            // 16 random bits scaled to 0..81: the bias is below one in a thousand.
            *byte = codes[((((number >> (16 * position)) & 0xFFFF) * 81) >> 16) as usize];
        }
    }
    // Padding must be code 1, which is the value 0.
    let tiles = cols.div_ceil(16);
    for row in 0..rows.next_multiple_of(16) {
        let first_col = if row < rows { cols } else { 0 };
        for col in first_col..cols.next_multiple_of(16) {
            let byte = ((row / 16) * tiles + col / 16) * 64 + 4 * (row % 16) + col % 4;
            let shift = 2 * (col % 16 / 4);
            bytes[byte as usize] = (bytes[byte as usize] & !(3 << shift)) | (1 << shift);
        }
    }
    bytes
}

fn repeat_bytes(value: f64, dtype: DType, elements: u64) -> Vec<u8> {
    let one = number_bytes(value, dtype);
    one.repeat(elements as usize)
}

fn number_bytes(value: f64, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::BF16 => half::bf16::from_f64(value).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f64(value).to_le_bytes().to_vec(),
        DType::I32 => (value as i32).to_le_bytes().to_vec(),
        DType::I8 => vec![value as i8 as u8],
        _ => (value as f32).to_le_bytes().to_vec(),
    }
}

fn normal_bytes(random: &mut SplitMix, std: f64, dtype: DType, elements: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((elements * dtype.bytes().unwrap_or(4)) as usize);
    for _ in 0..elements.div_ceil(2) {
        for value in random.normals() {
            match dtype {
                DType::BF16 => bytes.extend(half::bf16::from_f64(value * std).to_le_bytes()),
                DType::F16 => bytes.extend(half::f16::from_f64(value * std).to_le_bytes()),
                _ => bytes.extend(((value * std) as f32).to_le_bytes()),
            }
        }
    }
    bytes.truncate((elements * dtype.bytes().unwrap_or(4)) as usize);
    bytes
}

#[cfg(test)]
mod tests {
    use ir::param::Stored;
    use ir::{Shape, TensorType};

    use super::*;

    #[test]
    fn random_tiles_hold_ternary_values_and_zero_padding() {
        for (rows, cols) in [(16, 16), (17, 33), (3, 5), (32, 64)] {
            let bytes = random_tiles(&mut SplitMix(7), rows, cols);
            let values = TernaryLayout::Tile16.decode(&bytes, rows, cols).unwrap();
            assert_eq!(TernaryLayout::Tile16.encode(&values, rows, cols), bytes, "padding is code 1");
            assert!(rows * cols < 256 || [-1, 0, 1].iter().all(|value| values.contains(value)));
        }
    }

    #[test]
    fn a_tensor_follows_from_seed_and_key_alone() {
        let params = vec![ParamBinding {
            key: "layers.{}.w".to_owned(),
            source: "layers.{}.w".to_owned(),
            rounds: 2,
            ty: TensorType::new(DType::F32, Shape::of(&[3, 5])),
            stored: Stored::Float,
            init: Init::Normal { std: 0.02 },
        }];
        let weights = RandomWeights { seed: 1, params };
        let read = |key: &str| weights.tensor(key).unwrap().bytes.into_owned();
        assert_eq!(read("layers.0.w"), read("layers.0.w"));
        assert_ne!(read("layers.0.w"), read("layers.1.w"));
        assert!(weights.tensor("layers.x.w").is_err());
    }
}
