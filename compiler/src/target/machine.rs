//! How fast a machine is taken to be: guessed for an instruction set, or read from a tuning file.
//!
//! The cost model weighs bytes against operations with it, and the plan carries it so that predicted times stand beside measured ones. It steers
//! choices between equal programs, never what they compute.

use std::fmt;

use ir::DType;
use ir::packing::TernaryLayout;
use ir::plan::{Rate, Tuning};
use kernels::{Family, Isa, KernelDesc, TABLE};

use super::{Hardware, Target};

/// What the cost model knows of a machine. Every number is a rate that can be measured and put in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Gigabytes a second that all threads together read from memory.
    pub read_gb_per_s: f64,
    /// Gigabytes a second that are copied to the device: over the link to a GPU, from the disk to a CPU's memory.
    pub link_gb_per_s: f64,
    /// How fast products and attention are, for each kind that rows of the kernel table exist for.
    pub products: Vec<ProductRate>,
    /// 10^9 plain elementwise operations on f32 a second and thread.
    pub f32_gflop_per_s: f64,
    /// Microseconds of a copy to the device beside its bytes.
    pub copy_us: f64,
    /// The same where it is a parcel, which waits for nothing but a place.
    pub parcel_us: f64,
    /// Microseconds to start one step on all threads, and until all have met after it.
    pub step_us: f64,
    /// Microseconds by which a step is longer where steps are not queued as one graph.
    pub queued_us: f64,
    /// Microseconds of attention beside its step and its keys: trips to memory that wait for each other.
    pub attention_us: f64,
    /// By how much these are more where keys are codes.
    pub codes_us: f64,
    /// Gigabytes a second that one block goes through by itself; without bound where any thread takes any part of the work.
    pub block_gb_per_s: f64,
    /// Microseconds of a call beside its steps.
    pub call_us: f64,
    /// Threads that work.
    pub threads: u32,
    /// Where the numbers come from.
    pub source: Source,
}

/// Where a machine's numbers come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// They are guessed.
    Guess,
    /// They follow from the data sheet of a card of this name, and from what kernels reach of it.
    Card(&'static str),
    /// They are of a tuning file with this BLAKE3 hash of its rates, in hexadecimal.
    Tuning(String),
}

/// How fast one kind of product is: 10^9 multiply-accumulates a second and thread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProductRate {
    /// What computes it.
    pub family: Family,
    /// The activations; the queries of attention.
    pub activations: DType,
    /// The weights; the keys of attention.
    pub weights: DType,
    /// How ternary weights are packed.
    pub layout: Option<TernaryLayout>,
    /// With one token, and weights from memory where it was measured.
    pub one: f64,
    /// With many tokens, from cache.
    pub many: f64,
}

impl ProductRate {
    /// What it is the rate of.
    fn kind(&self) -> (Family, DType, DType, Option<TernaryLayout>) {
        (self.family, self.activations, self.weights, self.layout)
    }

    /// Seconds of one thread for `macs` in a call of `tokens` tokens: weights are unpacked once, so the first token takes the time of one alone
    /// and each further one that of one among many.
    pub fn seconds(&self, macs: u64, tokens: u64) -> f64 {
        let (macs, tokens) = (macs as f64, tokens.max(1) as f64);
        (macs / tokens / self.one + (tokens - 1.0) * macs / tokens / self.many) / 1e9
    }
}

/// A tuning file that is not for a target. Every disagreement is listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tuning file does not fit: {}", problems.join("; "))]
pub struct TuningMismatch {
    /// What does not fit.
    pub problems: Vec<String>,
}

impl Machine {
    /// What is assumed before anything is measured: all numbers here are **guesses**, for four cores with two channels of memory. The products
    /// of int8 by ternary are those of recent server cores, the others are in proportion. Nothing but the choice between equal programs and
    /// the predicted times hangs on them.
    pub fn guess(hardware: Hardware) -> Self {
        let isa = match hardware {
            Hardware::Cpu { isa, .. } => isa,
            Hardware::Cuda(_) => return Self::guess_gpu(),
        };
        let (rates, f32_gflop_per_s) = match isa {
            Isa::Scalar => {
                ([(4.0, 4.0), (3.0, 4.0), (3.0, 3.0), (2.0, 2.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0)], 1.0)
            }
            Isa::Avx2 => (
                [
                    (28.0, 165.0),
                    (20.0, 110.0),
                    (40.0, 80.0),
                    (25.0, 60.0),
                    (15.0, 15.0),
                    (8.0, 15.0),
                    (8.0, 12.0),
                    (8.0, 12.0),
                ],
                8.0,
            ),
            Isa::Avx512Vnni => (
                [
                    (28.0, 470.0),
                    (26.0, 400.0),
                    (90.0, 250.0),
                    (60.0, 180.0),
                    (30.0, 30.0),
                    (15.0, 30.0),
                    (15.0, 25.0),
                    (15.0, 25.0),
                ],
                10.0,
            ),
            Isa::Neon => (
                [
                    (28.0, 120.0),
                    (20.0, 100.0),
                    (40.0, 80.0),
                    (25.0, 60.0),
                    (12.0, 12.0),
                    (8.0, 12.0),
                    (8.0, 10.0),
                    (8.0, 10.0),
                ],
                6.0,
            ),
        };
        Self {
            read_gb_per_s: 30.0,
            link_gb_per_s: super::cards::disk().disk_gb_per_s,
            products: products(rates),
            f32_gflop_per_s,
            copy_us: super::cards::disk().copy_us,
            parcel_us: super::cards::disk().copy_us,
            step_us: 1.0,
            queued_us: 0.0,
            attention_us: 0.0,
            codes_us: 0.0,
            block_gb_per_s: f64::INFINITY,
            call_us: 0.0,
            threads: 4,
            source: Source::Guess,
        }
    }

    /// The same for a GPU as a whole, in proportion to an H100: 3 TB/s, and rates of plain kernels.
    fn guess_gpu() -> Self {
        let rates = [
            (20_000.0, 200_000.0),
            (15_000.0, 150_000.0),
            (3_000.0, 200_000.0),
            (3_000.0, 100_000.0),
            (3_000.0, 20_000.0),
            (1_000.0, 20_000.0),
            (1_000.0, 100_000.0),
            (1_000.0, 100_000.0),
        ];
        // No row of the CUDA table takes weights of 1.6 bits.
        let is_there = |product: &ProductRate| product.layout != Some(TernaryLayout::Tile16Base3);
        Self {
            read_gb_per_s: 3_000.0,
            link_gb_per_s: 50.0,
            products: products(rates).into_iter().filter(is_there).collect(),
            f32_gflop_per_s: 10_000.0,
            copy_us: 5.0,
            parcel_us: 5.0,
            step_us: 2.0,
            queued_us: 0.0,
            attention_us: 0.0,
            codes_us: 0.0,
            block_gb_per_s: 60.0,
            call_us: 0.0,
            threads: 1,
            source: Source::Guess,
        }
    }

    /// Puts other rates, in the order of [`products`], in the place of those that it has.
    pub(super) fn set_products(&mut self, rates: [(f64, f64); 8]) {
        for product in products(rates) {
            let kind = product.kind();
            if let Some(own) = self.products.iter_mut().find(|own| own.kind() == kind) {
                *own = product;
            }
        }
    }

    /// The machine that a tuning file was measured on; what the file does not hold stays guessed.
    ///
    /// # Errors
    ///
    /// If the file was measured for another target, holds impossible numbers or rows that this version's table lacks.
    pub fn from_tuning(target: &Target, tuning: &Tuning) -> Result<Self, TuningMismatch> {
        let mut problems: Vec<String> = tuning.problems().iter().map(ToString::to_string).collect();
        let name = target.to_string();
        if tuning.target != name {
            problems.push(format!("it was measured for {}, the target is {name}", tuning.target));
        }
        let unknown: Vec<&str> = tuning.kernels.iter().map(|rate| rate.kernel.as_str()).collect();
        let unknown: Vec<&str> = unknown.into_iter().filter(|kernel| kernels::find(kernel).is_none()).collect();
        if !unknown.is_empty() {
            problems.push(format!(
                "this version has no kernels {}; run `tritter tune` of this version",
                unknown.join(", ")
            ));
        }
        let isa = match target.isa() {
            Some(isa) if problems.is_empty() => isa,
            Some(_) => return Err(TuningMismatch { problems }),
            None => {
                problems.push(format!("{name} is no CPU, and only CPUs are measured"));
                return Err(TuningMismatch { problems });
            }
        };
        let mut machine = Self::guess(target.hardware());
        machine.read_gb_per_s = tuning.read_bytes_per_us as f64 / 1e3;
        machine.step_us = tuning.step_ns as f64 / 1e3;
        machine.f32_gflop_per_s = tuning.elementwise_per_us as f64 / 1e3;
        machine.threads = tuning.threads;
        machine.source = Source::Tuning(blake3::hash(tuning.to_ron().as_bytes()).to_hex().to_string());
        for product in &mut machine.products {
            let measured = |tokens: u64| {
                let desc = best_row(product, isa, tokens)?;
                let rate = tuning.kernels.iter().find(|rate| rate.kernel == desc.name)?;
                let many = rate.many_macs_per_us.filter(|_| 1 < tokens);
                Some(many.unwrap_or(rate.one_macs_per_us) as f64 / 1e3)
            };
            let (one, many) = (measured(1), measured(MANY));
            product.one = one.unwrap_or(product.one);
            product.many = many.unwrap_or(product.many);
        }
        Ok(machine)
    }

    /// How fast a kind of product is, whatever its packing: ternary weights in 2 bits if nothing else is said. A kind that is not known is taken
    /// to be like f32 by f32.
    pub fn rate(&self, family: Family, activations: DType, weights: DType) -> ProductRate {
        let layout = (weights == DType::T2).then_some(TernaryLayout::Tile16);
        self.rate_of(family, activations, weights, layout)
    }

    /// As [`Machine::rate`], for one packing.
    pub fn rate_of(
        &self,
        family: Family,
        activations: DType,
        weights: DType,
        layout: Option<TernaryLayout>,
    ) -> ProductRate {
        // Weights in half precision are widened when they are packed.
        let weights = if weights == DType::F16 { DType::F32 } else { weights };
        let is_it = |rate: &&ProductRate| {
            (rate.family, rate.activations, rate.weights, rate.layout) == (family, activations, weights, layout)
        };
        let is_like_it = |rate: &&ProductRate| rate.family == family && rate.activations == activations;
        let is_plain = |rate: &&ProductRate| (rate.activations, rate.weights) == (DType::F32, DType::F32);
        let mut find = [self.products.iter().find(is_it), self.products.iter().find(is_like_it)].into_iter().flatten();
        let found = find.next().or_else(|| self.products.iter().find(is_plain));
        let slow = ProductRate { family, activations, weights, layout, one: 1.0, many: 1.0 };
        found.copied().unwrap_or(slow)
    }

    /// Whether a kind of product has a rate of its own.
    pub fn knows(&self, family: Family, activations: DType, weights: DType, layout: Option<TernaryLayout>) -> bool {
        let kind = (family, activations, weights, layout);
        self.products.iter().any(|rate| (rate.family, rate.activations, rate.weights, rate.layout) == kind)
    }

    /// What all threads do in a microsecond when they run a row of the table, as a plan carries it.
    pub fn plan_rate(&self, family: Family, inputs: &[DType], layout: Option<TernaryLayout>) -> Rate {
        match (family, inputs) {
            (Family::TernaryMatmul | Family::DenseMatmul | Family::Attention, [activations, weights, ..]) => {
                let ProductRate { one, many, .. } = self.rate_of(family, *activations, *weights, layout);
                Rate { one: self.per_us(one), many: self.per_us(many) }
            }
            _ => self.plan_elementwise_rate(),
        }
    }

    /// Elementwise operations that all threads do in a microsecond, as a plan carries them.
    pub fn plan_elementwise_rate(&self) -> Rate {
        Rate::flat(self.per_us(self.f32_gflop_per_s))
    }

    /// What a plan carries of the machine itself.
    pub fn plan_machine(&self) -> ir::plan::Machine {
        ir::plan::Machine {
            threads: self.threads,
            read_bytes_per_us: whole(self.read_gb_per_s * 1e3).max(1),
            link_bytes_per_us: whole(self.link_gb_per_s * 1e3).max(1),
            copy_ns: whole(self.copy_us * 1e3),
            step_ns: whole(self.step_us * 1e3),
            call_ns: whole(self.call_us * 1e3),
        }
    }

    /// Nanoseconds of a step that do not shrink with more blocks: its start, and `bytes` that one block goes through.
    pub fn start_ns(&self, bytes: u64) -> u64 {
        whole(self.step_us * 1e3 + bytes as f64 / self.block_gb_per_s)
    }

    /// The same of a row of the table with these inputs.
    pub fn row_start_ns(&self, family: Family, inputs: &[DType]) -> u64 {
        let more_us = match (family, inputs.get(1)) {
            (Family::Attention | Family::RopeAttention, Some(DType::Q8 | DType::Q4)) => {
                self.attention_us + self.codes_us
            }
            (Family::Attention | Family::RopeAttention, _) => self.attention_us,
            _ => 0.0,
        };
        whole((self.step_us + more_us) * 1e3)
    }

    /// The machine as it runs plans with streamed weights, whose steps are queued one by one.
    pub fn streaming(self, packs_copies: bool) -> Self {
        let copy_us = if packs_copies { self.parcel_us } else { self.copy_us };
        Self { step_us: self.step_us + self.queued_us, copy_us, ..self }
    }

    /// A rate in 10^9 a second and thread, as a whole number a microsecond of all threads.
    fn per_us(&self, giga_per_s: f64) -> u64 {
        whole(giga_per_s * 1e3 * f64::from(self.threads.max(1))).max(1)
    }
}

/// The rates, one token and many of: int8 by ternary in 2 bits, in 1.6 bits, int8 by int8, int8 by 4 bits; then f32 by ternary, f32 by dense,
/// attention over plain caches, and over caches of codes. The weights of one token come from memory. Where 1.6 bits were measured to decode faster, it was by a few percent, and their
/// prefill is slower; so they are not taken to be faster unless a tuning file says so.
fn products(rates: [(f64, f64); 8]) -> Vec<ProductRate> {
    let [two_bit, base3, bytes, nibbles, ternary, dense, attention, codes] = rates;
    let rate = |family, activations, weights, layout, (one, many): (f64, f64)| ProductRate {
        family,
        activations,
        weights,
        layout,
        one,
        many,
    };
    let (tile16, tile16_base3) = (Some(TernaryLayout::Tile16), Some(TernaryLayout::Tile16Base3));
    vec![
        rate(Family::TernaryMatmul, DType::Q8, DType::T2, tile16, two_bit),
        rate(Family::TernaryMatmul, DType::Q8, DType::T2, tile16_base3, base3),
        rate(Family::TernaryMatmul, DType::F32, DType::T2, tile16, ternary),
        rate(Family::DenseMatmul, DType::Q8, DType::Q8, None, bytes),
        rate(Family::DenseMatmul, DType::Q8, DType::Q4, None, nibbles),
        rate(Family::DenseMatmul, DType::F32, DType::F32, None, dense),
        rate(Family::DenseMatmul, DType::F32, DType::BF16, None, dense),
        rate(Family::Attention, DType::F32, DType::F32, None, attention),
        rate(Family::Attention, DType::F32, DType::BF16, None, attention),
        rate(Family::Attention, DType::F32, DType::Q8, None, codes),
        rate(Family::Attention, DType::F32, DType::Q4, None, codes),
    ]
}

/// The tokens that stand for many.
const MANY: u64 = 64;

/// The row of the table that computes a product of so many tokens on an instruction set, as `lower::cpu` chooses it.
fn best_row(product: &ProductRate, isa: Isa, tokens: u64) -> Option<&'static KernelDesc> {
    let fits = |desc: &&KernelDesc| {
        desc.family == product.family
            && desc.inputs.get(..2) == Some(&[product.activations, product.weights])
            && desc.layout == product.layout
            && desc.requires.isa.runs_on(isa)
            && desc.tokens.contains(&tokens)
    };
    let candidates = TABLE.iter().filter(fits);
    candidates.max_by_key(|desc| (desc.requires.isa.rank(), std::cmp::Reverse(*desc.tokens.end())))
}

/// The nearest whole number.
fn whole(value: f64) -> u64 {
    value.round() as u64
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { threads, read_gb_per_s, step_us, source, .. } = self;
        let ternary = self.rate(Family::TernaryMatmul, DType::Q8, DType::T2);
        match source {
            Source::Guess => write!(f, "guessed: {threads} threads, ")?,
            Source::Card(name) => write!(f, "{name}, from its data sheet: ")?,
            Source::Tuning(hash) => write!(f, "tuning {}: {threads} threads, ", &hash[..16.min(hash.len())])?,
        }
        write!(f, "{read_gb_per_s:.1} GB/s, {step_us:.2} us a step")?;
        let each = if matches!(source, Source::Card(_)) { "" } else { " a thread" };
        write!(f, ", int8 by ternary {:.0} to {:.0} GMAC/s{each}", ternary.one, ternary.many)
    }
}

#[cfg(test)]
mod tests {
    use ir::plan::KernelRate;
    use ir::plan::tuning::TUNING_VERSION;
    use kernels::Arch;

    use super::*;

    const AVX2: Hardware = Hardware::Cpu { arch: Arch::X86_64, isa: Isa::Avx2 };

    fn tuning() -> Tuning {
        let rate = |kernel: &str, one, many| KernelRate {
            kernel: kernel.to_owned(),
            one_macs_per_us: one,
            many_macs_per_us: many,
        };
        Tuning {
            version: TUNING_VERSION,
            target: "x86_64:avx2".to_owned(),
            threads: 3,
            read_bytes_per_us: 12_345,
            step_ns: 700,
            elementwise_per_us: 5_000,
            kernels: vec![
                rate("ternary_gemv_q8xt2_f32__avx2__r16", 77_000, None),
                rate("ternary_gemm_q8xt2_f32__avx2__r16", 66_000, Some(155_000)),
                // Not the best row of the target.
                rate("ternary_gemv_q8xt2_f32__scalar__r16", 3_000, None),
            ],
        }
    }

    #[test]
    fn measured_rates_replace_guesses_where_the_file_has_them() {
        let target: Target = "x86_64:avx2".parse().unwrap();
        let machine = Machine::from_tuning(&target, &tuning()).unwrap();
        let ternary = machine.rate(Family::TernaryMatmul, DType::Q8, DType::T2);
        assert_eq!((ternary.one, ternary.many), (77.0, 155.0));
        assert_eq!((machine.read_gb_per_s, machine.step_us, machine.threads), (12.345, 0.7, 3));
        let dense = |machine: &Machine| machine.rate(Family::DenseMatmul, DType::F32, DType::F32);
        assert_eq!(dense(&machine), dense(&Machine::guess(AVX2)));
        assert!(machine.to_string().starts_with("tuning "), "{machine}");
        let desc = kernels::find("ternary_gemm_q8xt2_f32__avx2__r16").unwrap();
        assert_eq!(machine.plan_rate(desc.family, desc.inputs, desc.layout), Rate { one: 231_000, many: 465_000 });
        assert_eq!(machine.plan_machine().read_bytes_per_us, 12_345);
    }

    #[test]
    fn a_file_for_another_target_or_version_is_refused_with_every_reason() {
        let mut file = tuning();
        file.kernels.push(KernelRate { kernel: "warp".to_owned(), one_macs_per_us: 0, many_macs_per_us: None });
        let target: Target = "x86_64:avx512vnni".parse().unwrap();
        let error = target.with_tuning(&file).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.problems.len(), 3, "{text}");
        assert!(text.contains("measured for x86_64:avx2, the target is x86_64:avx512vnni"), "{text}");
        assert!(text.contains("no kernels warp"), "{text}");
    }

    #[test]
    fn every_kind_of_product_in_the_table_has_a_guess() {
        for isa in Isa::ALL {
            let machine = Machine::guess(Hardware::Cpu { arch: Arch::X86_64, isa });
            let is_product = |family| matches!(family, Family::TernaryMatmul | Family::DenseMatmul | Family::Attention);
            for desc in TABLE.iter().filter(|desc| is_product(desc.family)) {
                let kind = (desc.family, desc.inputs[0], desc.inputs[1], desc.layout);
                let has = |rate: &ProductRate| (rate.family, rate.activations, rate.weights, rate.layout) == kind;
                assert!(machine.products.iter().any(has), "{}", desc.name);
            }
        }
    }

    #[test]
    fn further_tokens_cost_what_tokens_among_many_do() {
        let rate = Machine::guess(AVX2).rate(Family::TernaryMatmul, DType::Q8, DType::T2);
        let one = rate.seconds(1 << 30, 1);
        let eight = rate.seconds(8 << 30, 8);
        assert!((eight - one - 7.0 * (1_u64 << 30) as f64 / rate.many / 1e9).abs() < 1e-9);
    }
}
