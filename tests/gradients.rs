//! Gradients against finite differences in f64, and walks that keep more or less against each other, over random programs.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use compiler::autodiff::{Differentiated, Keep};
use ir::graph::Def;
use ir::reference::{Evaluator, Tensor};
use ir::{DType, Op, Program, Symbol, Verified, verify};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, RngSeed, TestRng, TestRunner};
use tritter_tests::gradient::{all_gradients, inputs_to_parameters, with_loss};
use tritter_tests::random::{self, Numbers, Recipe, recipes};

/// How many random programs are looked at.
const CASES: u32 = 12_000;

/// The largest loss or gradient that is compared.
const STEEP: f64 = 1e4;

/// Ops whose derivatives are not those of what they compute: they are rounded, and training goes straight through. What it takes for their
/// derivatives is held to its definition by `filetests/autodiff`.
fn is_rounded(op: &Op, ty: DType) -> bool {
    match op {
        Op::Ternarise(_) | Op::TernaryScale(_) | Op::RowThreshold(_) | Op::Quantize(_) | Op::QuantizeGroups(_) => true,
        Op::RmsNormQuantize(_) => true,
        Op::Cast(_) | Op::KvAppend(_) => ty != DType::F32 && ty.is_float(),
        _ => false,
    }
}

/// Whether something that is no number may be passed over, as if it had never been: then the gradient goes its way all the same.
fn may_pass_over(program: &Program) -> bool {
    let has = |is: fn(&Op) -> bool| ops(program).any(|(op, _)| is(op));
    has(|op| matches!(op, Op::Log(_) | Op::Sqrt(_) | Op::Rsqrt(_) | Op::Div(_)))
        && has(|op| matches!(op, Op::Minimum(_) | Op::Maximum(_) | Op::Max(_)))
}

fn ops(program: &Program) -> impl Iterator<Item = (&Op, DType)> {
    program.graphs.iter().flat_map(|graph| graph.values.values()).filter_map(|value| match &value.def {
        Def::Op { op, .. } => Some((op, value.ty.dtype)),
        _ => None,
    })
}

/// A program with a loss, for calls of one size, and numbers for it.
struct Case {
    program: Verified<Program>,
    inputs: Vec<Tensor>,
    parameters: HashMap<String, Tensor>,
}

impl Case {
    fn new(recipe: &Recipe, n: usize, seed: u64) -> Option<Self> {
        let program = recipe.program();
        let mut parameters = random::parameters(&program, seed);
        let mut bound = program.bind(&[(Symbol::new("n"), n as u64)]);
        let mut inputs = Vec::new();
        for (key, tensor) in inputs_to_parameters(&mut bound).into_iter().zip(random::inputs(&program, n, seed)) {
            match key {
                Some(key) => drop(parameters.insert(key, tensor)),
                None => inputs.push(tensor),
            }
        }
        let bound = verify(bound).unwrap_or_else(|errors| panic!("{errors}"));
        Some(Self { program: with_loss(&bound)?, inputs, parameters })
    }

    fn loss(&self, parameters: &HashMap<String, Tensor>) -> f64 {
        Evaluator::new(&self.program, parameters).run(&self.inputs).expect("inputs and parameters fit")[0].data[0]
    }

    fn run(&self, differentiated: &Differentiated) -> Vec<Tensor> {
        let mut evaluator = Evaluator::new(&differentiated.program, &self.parameters);
        evaluator.run(&self.inputs).expect("the program has the same inputs and parameters")
    }

    /// The parameters, each moved along its direction by so much.
    fn moved(&self, directions: &HashMap<String, Vec<f64>>, by: f64) -> HashMap<String, Tensor> {
        let mut parameters = self.parameters.clone();
        for (key, direction) in directions {
            let tensor = parameters.get_mut(key).expect("directions are those of parameters");
            tensor.data.iter_mut().zip(direction).for_each(|(value, step)| *value += by * step);
        }
        parameters
    }
}

/// What became of a case.
enum Verdict {
    /// There is no derivative here, or nothing depends on any parameter.
    Skipped,
    Checked,
    Wrong(String),
}

/// Compares the change of the loss along a random direction of all parameters with what the gradients say.
fn check(case: &Case, seed: u64) -> Verdict {
    let Some(kept) = all_gradients(&case.program, Keep::Values) else { return Verdict::Skipped };
    let Some(again) = all_gradients(&case.program, Keep::Inputs) else { return Verdict::Skipped };
    let outputs = case.run(&kept);
    let bits = |tensors: &[Tensor]| -> Vec<u64> {
        tensors.iter().flat_map(|tensor| tensor.data.iter().map(|value| value.to_bits())).collect()
    };
    let is_number = outputs.iter().all(|tensor| tensor.data.iter().all(|value| value.is_finite()));
    if is_number && bits(&outputs) != bits(&case.run(&again)) {
        return Verdict::Wrong("computing rounds again gives other bits".to_owned());
    }
    // Where a value is no number, or is so large that f64 has no digits left for its change, nothing can be compared.
    let is_steep = outputs.iter().any(|tensor| tensor.data.iter().any(|value| STEEP < value.abs()));
    if !is_number || is_steep || may_pass_over(&case.program) || ops(&case.program).any(|(op, ty)| is_rounded(op, ty)) {
        return Verdict::Skipped;
    }

    let mut numbers = Numbers::new(seed);
    let mut directions: HashMap<String, Vec<f64>> = HashMap::new();
    let mut expected = 0.0;
    for (gradient, tensor) in kept.gradients.iter().zip(&outputs[1..]) {
        let rounds = gradient.rounds.unwrap_or(1);
        let size = tensor.data.len().checked_div(rounds as usize).unwrap_or(0);
        for round in 0..rounds {
            let key = gradient.key.replace("{}", &round.to_string());
            let direction: Vec<f64> = (0..size).map(|_| numbers.below(2000) as f64 / 1000.0 - 1.0).collect();
            let part = &tensor.data[round as usize * size..][..size];
            expected += part.iter().zip(&direction).map(|(gradient, step)| gradient * step).sum::<f64>();
            directions.insert(key, direction);
        }
    }
    let loss = |by: f64| case.loss(&case.moved(&directions, by));
    let slopes = |step: f64| {
        let (left, here, right) = (loss(-step), loss(0.0), loss(step));
        [(right - left) / (2.0 * step), (right - here) / step, (here - left) / step]
    };
    let (coarse, fine) = (slopes(1e-5), slopes(1e-6));
    let scale = fine.iter().chain(&coarse).fold(1.0_f64, |scale, slope| scale.max(slope.abs())).max(loss(0.0).abs());
    // At an edge the derivatives of both sides differ; where a function bends by too much, those of two steps do.
    let is_smooth = coarse.iter().chain(&fine).all(|slope| (slope - fine[0]).abs() <= 1e-4 * scale);
    if !is_smooth || !scale.is_finite() || STEEP < scale {
        return Verdict::Skipped;
    }
    // Differences of f64 leave about six digits; bounds of norms are rounded to f32.
    if (expected - fine[0]).abs() <= 2e-4 * scale {
        return Verdict::Checked;
    }
    Verdict::Wrong(format!("the gradients say {expected}, differences {fine:?}"))
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let config = ProptestConfig {
        cases: CASES,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        max_global_rejects: CASES * 4,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[1; 32]));
    let reached: RefCell<BTreeSet<&str>> = RefCell::default();
    let checked = RefCell::new(0_u32);
    let strategy = (recipes(8, false), 1..=random::MAX_TOKENS as usize, any::<u64>());
    let result = runner.run(&strategy, |(recipe, n, seed)| {
        let Some(case) = Case::new(&recipe, n, seed) else { return Ok(()) };
        match check(&case, seed) {
            Verdict::Skipped => {}
            Verdict::Checked => {
                *checked.borrow_mut() += 1;
                reached.borrow_mut().extend(ops(&case.program).map(|(op, _)| op.name()));
            }
            Verdict::Wrong(reason) => {
                return Err(TestCaseError::fail(format!("{reason}\n{}", ir::text::print(&case.program))));
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let checked = checked.into_inner();
    assert!(CASES / 10 <= checked, "only {checked} programs have derivatives");
    // Rounded ops, gradients of gradients, and what only the walk makes are not in programs that are compared. Those of them that have gradients of their
    // own are below, or in `filetests/autodiff`.
    let exempt = [
        "ternarise",
        "ternary_scale",
        "row_threshold",
        "quantize",
        "quantize_groups",
        "dequantize",
        "rms_norm_quantize",
        "quantized_matmul",
        "gemm",
        "ternary_matmul_base3",
        "ternary_matmul_transposed",
        "unpack_in_call",
        "kv_rows",
        "attention_lse",
        "attention_query_gradient",
        "attention_cache_gradient",
        "scatter_add",
        "cross_entropy_gradient",
        "scan",
        "stacked",
    ];
    let reached = reached.into_inner();
    let missing: Vec<&&str> =
        Op::NAMES.iter().filter(|name| !reached.contains(**name) && !exempt.contains(*name)).collect();
    assert!(missing.is_empty(), "no program with these ops has a derivative: {missing:?}");
}

/// The ops that gradients are made of, where random programs do not have them with anything to derive by.
#[test]
fn ops_of_gradients_have_gradients_of_their_own() {
    let programs = [
        "graph @main(ids: i32[3]) -> f32[4, 2] {
           param x: f32[3, 2] = \"x\"
           y = scatter_add x, ids, shape=[4, 2]
           return y
         }",
        "graph @main() -> f32[2, 3] {
           param x: f32[2, 4] = \"x\"
           param w: t2[4, 3] = \"w\"
           param s: f32[4] = \"s\"
           y = ternary_matmul_transposed x, w, s
           return y
         }",
        "graph @main(seq: i32[2], pos: i32[2]) -> f32[2, 1, 2] {
           param cache: f32[2, 1, 3, 2] = \"cache\"
           param x: f32[2, 1, 2] = \"x\"
           after = kv_append cache, x, seq, pos
           sine = sin after
           y = kv_rows sine, seq, pos
           z = kv_rows sine, pos, seq
           sum = add y, z
           return sum
         }",
    ];
    for text in programs {
        let program = ir::text::parse(text).unwrap_or_else(|errors| panic!("{}", errors.show(text)));
        let program = verify(program).unwrap();
        let program = with_loss(&program).unwrap();
        let mut n_checked = 0;
        for seed in 1..20 {
            let parameters = random::parameters(&program, seed);
            let case = Case { inputs: random::inputs(&program, 0, seed), program: program.clone(), parameters };
            match check(&case, seed) {
                Verdict::Checked => n_checked += 1,
                // Two logits are equal, and which is the larger turns with the step.
                Verdict::Skipped => {}
                Verdict::Wrong(reason) => panic!("{reason}\n{text}"),
            }
        }
        assert!(10 <= n_checked, "only {n_checked} cases have a derivative\n{text}");
    }
}
