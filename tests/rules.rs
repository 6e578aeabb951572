//! Soundness of every rewrite rule: both sides are evaluated by definition, over many sizes and values, and must agree.
//!
//! A rule that claims to be exact must give the same bits for all values: zeros of both signs, NaNs, infinities, rows of zeros, the largest
//! activations. One that rounds must agree on finite values up to the rounding of the evaluator, which computes in f64.

use std::collections::{BTreeSet, HashMap};

use compiler::rewrite::example::{Instance, TOKENS};
use compiler::rewrite::{Exactness, Rule, rules};
use ir::graph::Def;
use ir::op::elementwise::Cast;
use ir::op::ternary::Quantize;
use ir::op::{Concrete, OpDef};
use ir::reference::{Evaluator, Tensor, concrete};
use ir::{DType, Graph, Symbol, TensorType};

/// A generator of numbers that are the same in each run (Numerical Recipes' constants).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn unit(&mut self) -> f64 {
        self.below(1 << 24) as f64 / f64::from(1 << 23) - 1.0
    }
}

/// What values a run is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Values {
    Integers,
    Reals,
    Large,
    ZeroRows,
    /// Zeros of both signs, subnormals, the largest and smallest numbers.
    FiniteEdges,
    /// NaNs and infinities among others.
    Special,
}

impl Values {
    fn of(exactness: Exactness) -> &'static [Values] {
        const ALL: &[Values] =
            &[Values::Integers, Values::Reals, Values::Large, Values::ZeroRows, Values::FiniteEdges, Values::Special];
        match exactness {
            Exactness::Exact => ALL,
            Exactness::Rounding => &ALL[..ALL.len() - 1],
        }
    }

    fn real(self, random: &mut Random, row: usize) -> f64 {
        let value = match self {
            Values::Integers => random.below(9) as f64 - 4.0,
            Values::Reals => 2.0 * random.unit(),
            Values::Large => 1e6 * random.unit(),
            Values::ZeroRows if row.is_multiple_of(2) => 0.0,
            Values::ZeroRows => random.unit(),
            Values::FiniteEdges => {
                random.pick(&[0.0, -0.0, 1.0, -1.0, 127.0, -128.0, 0.5, 1.5, -2.5, 1e-40, 1e-5, 65504.0])
            }
            Values::Special => {
                random.pick(&[0.0, -0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 3.4e38, 1e-45])
            }
        };
        f64::from(value as f32)
    }

    fn tensor(self, random: &mut Random, ty: &Concrete) -> Tensor {
        let plain = |dtype| Concrete { dtype, dims: ty.dims.clone() };
        let width = ty.dims.last().copied().unwrap_or(1).max(1);
        let mut index = 0;
        let mut reals = |random: &mut Random| {
            Tensor::from_fn(&plain(DType::F32), |_| {
                index += 1;
                self.real(random, (index - 1) / width)
            })
        };
        match ty.dtype {
            DType::F32 => reals(random),
            DType::F16 | DType::BF16 => Cast { to: ty.dtype }.reference(&[&reals(random)], ty),
            // Rows of codes come from the quantiser: those are all there are.
            DType::Q8 | DType::Q4 => Quantize {}.reference(&[&reals(random)], ty),
            DType::I8 | DType::I32 | DType::T2 => Tensor::from_fn(ty, |_| random.below(3) as f64 - 1.0),
        }
    }
}

/// Evaluates both sides on the same random values.
fn evaluate(instance: &Instance, values: Values, n_tokens: usize, random: &mut Random) -> (Tensor, Tensor) {
    let graph = instance.left.entry();
    let symbols = HashMap::from([(Symbol::new(TOKENS), n_tokens)]);
    let mut tensor = |ty: &TensorType| values.tensor(random, &concrete(ty, &symbols));
    let inputs: Vec<Tensor> = graph.inputs.iter().map(|&input| tensor(graph.ty(input))).collect();
    let parameters: HashMap<String, Tensor> =
        graph.params().map(|(value, key)| (key.to_string(), tensor(graph.ty(value)))).collect();
    let run = |side| Evaluator::new(side, &parameters).run(&inputs).unwrap().remove(0);
    (run(&instance.left), run(&instance.right))
}

/// Where the two sides differ more than the rule admits.
fn difference(exactness: Exactness, left: &Tensor, right: &Tensor) -> Option<String> {
    if left.ty != right.ty {
        return Some(format!("the types are {:?} and {:?}", left.ty, right.ty));
    }
    let largest = left
        .data
        .iter()
        .chain(&right.data)
        .filter(|value| value.is_finite())
        .fold(0.0, |max: f64, value| max.max(value.abs()));
    // The evaluator computes in f64 with a handful of roundings for each of at most a few dozen terms. The scales of quantised rows are f32,
    // and so are folded constants: what reads them again is off by a few of its roundings.
    let relative = if left.ty.dtype.is_row_format() { 4.0 * f64::from(f32::EPSILON) } else { 1e-12 };
    let agrees = |left: f64, right: f64| match exactness {
        Exactness::Exact => left.to_bits() == right.to_bits() || left.is_nan() && right.is_nan(),
        Exactness::Rounding if !left.is_finite() && !right.is_finite() => true,
        Exactness::Rounding => left == right || (left - right).abs() <= relative * largest.max(1e-30),
    };
    let position = (0..left.data.len()).find(|&at| !agrees(left.data[at], right.data[at]))?;
    Some(format!("element {position}: {:?} against {:?}", left.data[position], right.data[position]))
}

/// The letters that an example uses as sizes, but for the symbol.
fn letters(example: &str) -> BTreeSet<String> {
    let words = example.split(|c: char| !c.is_ascii_alphanumeric() && c != '?');
    let is_letter = |word: &&str| word.len() == 1 && word.starts_with(|c: char| c.is_ascii_lowercase());
    words.filter(is_letter).filter(|word| *word != TOKENS).map(str::to_owned).collect()
}

/// Checks one left side of a rule on all of its examples. Returns how often there was something to compare, or what is wrong.
fn check(rule: &Rule, variant: usize) -> Result<usize, String> {
    let mut fired = 0;
    for example in &rule.examples {
        let mut random = Random(7);
        let mut fired_here = 0;
        for round in 0..16 {
            let sizes: HashMap<String, u64> = letters(example)
                .into_iter()
                .map(|letter| {
                    // Contracted and normalised axes are never empty.
                    let sizes: &[u64] =
                        if letter == "k" || letter == "d" { &[1, 2, 3, 8, 17] } else { &[0, 1, 2, 3, 5] };
                    let size = if round == 0 { 1 } else { random.pick(sizes) };
                    (letter, size)
                })
                .collect();
            let n_tokens = if round == 0 { 1 } else { random.pick(&[0, 1, 2, 5]) };
            let place = || format!("rule `{}`, left side {variant}, example `{example}` with {sizes:?}", rule.name);
            let instance = match rule.instance(variant, example, &|letter| sizes[letter]) {
                Ok(Some(instance)) => instance,
                Ok(None) => continue,
                Err(error) => return Err(format!("{}: {error}", place())),
            };
            assert_same_interface(instance.left.entry(), instance.right.entry());
            for &values in Values::of(rule.exactness) {
                let (left, right) = evaluate(&instance, values, n_tokens, &mut random);
                if let Some(difference) = difference(rule.exactness, &left, &right) {
                    return Err(format!(
                        "{}, {values:?}: {difference}\n{}\n{}",
                        place(),
                        ir::text::print(&instance.left),
                        ir::text::print(&instance.right)
                    ));
                }
                fired_here += usize::from(!left.data.is_empty());
            }
        }
        if fired_here == 0 {
            return Err(format!("rule `{}`, left side {variant}, does not hold at its example `{example}`", rule.name));
        }
        fired += fired_here;
    }
    Ok(fired)
}

fn assert_same_interface(left: &Graph, right: &Graph) {
    let interface = |graph: &Graph| -> Vec<String> {
        let values = graph.values.values().filter(|value| matches!(value.def, Def::Input | Def::Param { .. }));
        values.map(|value| format!("{:?} {}", value.name, value.ty)).collect()
    };
    assert_eq!(interface(left), interface(right));
    assert_eq!(left.ty(left.outputs[0]), right.ty(right.outputs[0]));
}

#[test]
fn both_sides_of_every_rule_agree() {
    let mut problems = Vec::new();
    for rule in rules() {
        assert!(!rule.examples.is_empty(), "rule `{}` has no example", rule.name);
        for variant in 0..rule.left.len() {
            match check(rule, variant) {
                Ok(compared) => println!("{compared:>5} {}", rule.variant_name(variant)),
                Err(problem) => problems.push(problem),
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_rule_has_a_name_of_its_own_and_a_sentence() {
    let mut names = BTreeSet::new();
    for rule in rules() {
        assert!(names.insert(&rule.name), "two rules are called `{}`", rule.name);
        let is_name = rule.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c));
        assert!(is_name, "`{}` is no name", rule.name);
        assert!(rule.sentence.ends_with('.') && rule.sentence.len() > 10, "`{}`: {}", rule.name, rule.sentence);
    }
    assert!(50 < names.len());
}

#[test]
fn every_ruleset_builds() {
    for rule in rules() {
        assert_eq!(rule.rewrites().unwrap().len(), rule.left.len(), "{}", rule.name);
    }
}
