//! Compiled programs against the reference evaluator: random ones and whole layers, on every target, with the optimiser and without.
//!
//! A random program becomes a decoder, because that is what the runtime runs: its inputs are gathered from tables by token, and its outputs are
//! laid side by side as logits. How far a result may be from the evaluator's, which computes in f64, is measured: the program is evaluated
//! again with every intermediate value off by a few units of f32's last place, and a result may move some times as far as it does then. So a
//! sum that cancels, or a value that is about to round to another integer, is given the room that it needs, and no other is. Between targets
//! there is no room: for one form of a program all bits are the same.

use std::collections::HashMap;

use compiler::schedule::Residency;
use compiler::{CompileError, Target};
use ir::entity::Id;
use ir::graph::{Def, Graph, SymbolDecl};
use ir::mask::Span;
use ir::op::elementwise::{Abs, Cast, Mul};
use ir::op::gather::Gather;
use ir::op::movement::{Broadcast, Concat, Permute, Reshape};
use ir::op::ternary::{Dequantize, Unpack};
use ir::reference::{Evaluator, Tensor};
use ir::{Builder, DType, Dim, Op, Program, Shape, Symbol, TensorType, ValueId, Verified};
use models::spec::KvFormat;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, RngSeed, TestRng, TestRunner};
use runtime::{Session, Token};
use tritter_tests::compare::{argmax_agreement, bounded, relative_l2};
use tritter_tests::fixture::random_ids;
use tritter_tests::given::Given;
use tritter_tests::random::{self, CONTEXT, MAX_TOKENS, Numbers, Recipe, SEQUENCES, recipes};
use tritter_tests::session::{self, Build, Model, reference_inputs, targets};

/// Tokens of this call.
fn n() -> Dim {
    Dim::sym("n")
}

/// A copy of a graph in a builder, whose inputs are what `input` makes of them. `operand` may put something between an op and what it reads: it
/// is given the op's value, the position of the operand and its copy.
fn copy(
    graph: &Graph,
    builder: &mut Builder,
    input: &mut dyn FnMut(&mut Builder, ValueId) -> Option<ValueId>,
    operand: &mut dyn FnMut(&mut Builder, ValueId, usize, ValueId) -> ValueId,
) -> Option<Vec<ValueId>> {
    let mut copies: Vec<ValueId> = Vec::new();
    for (id, value) in graph.values.iter() {
        let name = value.name.as_deref().unwrap_or("unnamed");
        copies.push(match &value.def {
            Def::Input => input(builder, id)?,
            Def::Param { key } => builder.param(name, key, value.ty.clone()),
            Def::State { key } => builder.state(name, key, value.ty.clone()),
            Def::Const(constant) => builder.constant(None, value.ty.clone(), constant.values()),
            Def::Op { op, inputs } => {
                let inputs = inputs.iter().enumerate();
                let inputs: Vec<ValueId> =
                    inputs.map(|(position, input)| operand(builder, id, position, copies[input.index()])).collect();
                builder.op(op.clone(), &inputs).expect("the types are those of the original")
            }
        });
    }
    for update in &graph.updates {
        builder.update(copies[update.state.index()], copies[update.value.index()]);
    }
    Some(copies)
}

fn elements(dims: &[Dim]) -> u64 {
    dims.iter().filter_map(Dim::as_const).product()
}

/// Columns of logits that are there whatever a program computes, so that there are always some ids.
const PLAIN_COLUMNS: u64 = 16;

/// A program as a decoder, if it can be one: nothing may have two dimensions of tokens.
fn decoder(program: &Program) -> Option<Verified<Program>> {
    let entry = program.entry();
    let is_token = |dim: &Dim| *dim == n();
    let outer = entry.inputs.iter().chain(&entry.outputs).map(|&value| &entry.ty(value).shape);
    let is_possible =
        |shape: &Shape| shape.dims().iter().filter(|dim| is_token(dim)).count() <= 1 && 0 < elements(shape.dims());
    if !outer.into_iter().all(is_possible) {
        return None;
    }
    let widths = entry.outputs.iter().map(|&output| elements(entry.ty(output).shape.dims()));
    let vocab = PLAIN_COLUMNS + widths.sum::<u64>();

    let mut builder = Builder::new("decoder");
    let of_tokens = |dims: &[Dim]| TensorType::new(DType::I32, Shape::new(dims.iter().cloned()));
    let ids = builder.input("ids", of_tokens(&[n()]));
    let places = [
        ("seq", builder.input("seq", of_tokens(&[n()]))),
        ("pos", builder.input("pos", of_tokens(&[n()]))),
        ("span", builder.input("span", of_tokens(&[n(), Dim::Const(2)]))),
    ];
    let rows = builder.input("rows", of_tokens(&[Dim::sym("m")]));

    let mut input = |builder: &mut Builder, id: ValueId| {
        let label = entry.label(id);
        if let Some((_, place)) = places.iter().find(|(name, _)| *name == label) {
            return Some(*place);
        }
        let ty = entry.ty(id);
        let table = TensorType::new(DType::F32, Shape::of(&[vocab, elements(ty.shape.dims())]));
        let table = builder.param(&format!("{label}.table"), &format!("{label}.table"), table);
        let mut value = builder.op(Gather {}, &[table, ids]).ok()?;
        if ty.dtype != DType::F32 {
            // Integers are not negative: they may be indices.
            value = builder.op(Abs {}, &[value]).ok()?;
            value = builder.op(Cast { to: ty.dtype }, &[value]).ok()?;
        }
        let outer = [n()].into_iter().chain(ty.shape.dims().iter().filter(|dim| !is_token(dim)).cloned());
        value = builder.op(Reshape { shape: outer.collect() }, &[value]).ok()?;
        let at = ty.shape.dims().iter().position(is_token)? as u32;
        let axes: Vec<u32> = (1..=at).chain([0]).chain(at + 1..ty.shape.rank() as u32).collect();
        builder.op(Permute { axes: axes.into_iter().collect() }, &[value]).ok()
    };
    let copies = copy(entry, &mut builder, &mut input, &mut |_, _, _, copy| copy)?;

    let plain = TensorType::new(DType::F32, Shape::of(&[vocab, PLAIN_COLUMNS]));
    let plain = builder.param("plain.table", "plain.table", plain);
    let mut logits = builder.op(Gather {}, &[plain, ids]).ok()?;
    for output in &entry.outputs {
        let output = columns(&mut builder, copies[output.index()])?;
        logits = builder.op(Concat { axis: 1 }, &[logits, output]).ok()?;
    }
    let logits = builder.op(Gather {}, &[logits, rows]).ok()?;
    let mut graphs = program.graphs[..program.graphs.len() - 1].to_vec();
    graphs.push(builder.finish(&[logits]));
    let symbols = ["n", "m"].map(|name| SymbolDecl { symbol: Symbol::new(name), max: MAX_TOKENS });
    let program = Program { name: "random".to_owned(), symbols: symbols.to_vec(), graphs };
    Some(ir::verify(program).unwrap_or_else(|errors| panic!("{errors}")))
}

/// Any value as f32 `[n, columns]`.
fn columns(builder: &mut Builder, mut value: ValueId) -> Option<ValueId> {
    value = match builder.ty(value).dtype {
        DType::F32 => value,
        DType::Q8 | DType::Q4 => builder.op(Dequantize {}, &[value]).ok()?,
        DType::T2 => builder.op(Unpack {}, &[value]).ok()?,
        _ => builder.op(Cast { to: DType::F32 }, &[value]).ok()?,
    };
    let shape = builder.ty(value).shape.clone();
    let width = Dim::Const(elements(shape.dims()));
    match shape.dims().iter().position(|dim| *dim == n()) {
        Some(at) => {
            let others = (0..shape.rank() as u32).filter(|axis| *axis != at as u32);
            let axes = [at as u32].into_iter().chain(others).collect();
            value = builder.op(Permute { axes }, &[value]).ok()?;
            builder.op(Reshape { shape: Shape::new([n(), width]) }, &[value]).ok()
        }
        None => {
            value = builder.op(Reshape { shape: Shape::new([Dim::Const(1), width.clone()]) }, &[value]).ok()?;
            builder.op(Broadcast { shape: Shape::new([n(), width]) }, &[value]).ok()
        }
    }
}

const FACTOR: &str = "factor.";

/// The program with a factor before every real operand of every op: one for each column, or one where the columns are not known. With an
/// operand off a little, what an op computes on its way is off a little, too. Caches that are appended to are what they are.
fn with_factors(program: &Program) -> Verified<Program> {
    let mut graphs = Vec::new();
    for graph in &program.graphs {
        let mut builder = Builder::new(&graph.name);
        let mut input = |builder: &mut Builder, id: ValueId| {
            let value = &graph.values[id];
            Some(builder.input(value.name.as_deref().unwrap_or("unnamed"), value.ty.clone()))
        };
        let mut operand = |builder: &mut Builder, id: ValueId, position: usize, copy: ValueId| {
            let ty = builder.ty(copy).clone();
            let is_cache = matches!(graph.op(id), Some(Op::KvAppend(_))) && position == 0;
            if ty.dtype != DType::F32 || is_cache {
                return copy;
            }
            let shape = ty.shape.last_const().map_or(Shape::default(), |width| Shape::of(&[width]));
            let key = format!("{FACTOR}{}.{id}.{position}", graph.name);
            let factor = builder.param(&key, &key, TensorType::new(DType::F32, shape));
            builder.op(Mul {}, &[copy, factor]).expect("columns broadcast")
        };
        let copies = copy(graph, &mut builder, &mut input, &mut operand).expect("every input is copied");
        let outputs: Vec<ValueId> = graph.outputs.iter().map(|output| copies[output.index()]).collect();
        graphs.push(builder.finish(&outputs));
    }
    let program = Program { name: program.name.clone(), symbols: program.symbols.clone(), graphs };
    ir::verify(program).unwrap_or_else(|errors| panic!("{errors}"))
}

/// One call: tokens that alternate between the sequences, and the rows that are wanted.
#[derive(Debug)]
struct CallTokens {
    ids: Vec<u32>,
    spans: Vec<Span>,
    rows: Vec<usize>,
    /// How many tokens each sequence has before.
    before: usize,
}

impl CallTokens {
    fn tokens(&self) -> Vec<Token> {
        let tokens = self.ids.iter().zip(&self.spans).enumerate();
        tokens.map(|(at, (&id, &span))| Token { id, sequence: at % SEQUENCES as usize, position: None, span }).collect()
    }

    fn inputs(&self) -> Vec<Tensor> {
        let (n, sequences) = (self.ids.len(), SEQUENCES as usize);
        let list = |values: Vec<usize>| Tensor::of(DType::I32, &[values.len()], values.into_iter().map(|v| v as f64));
        let spans = self.spans.iter().flat_map(|span| [f64::from(span.first), f64::from(span.reach)]);
        vec![
            Tensor::of(DType::I32, &[n], self.ids.iter().map(|&id| f64::from(id))),
            list((0..n).map(|at| at % sequences).collect()),
            list((0..n).map(|at| self.before + at / sequences).collect()),
            Tensor::of(DType::I32, &[n, 2], spans),
            list(self.rows.clone()),
        ]
    }
}

/// Two calls: all rows of the first, every other row of the second, which goes on where the first stopped.
fn calls(vocab: u64, first: usize, second: usize, seed: u64) -> Vec<CallTokens> {
    let mut numbers = Numbers::new(seed);
    // A number that the sequences divide, so that both have the same length.
    let (first, sequences) = (first - first % SEQUENCES as usize, SEQUENCES as usize);
    let second = second.min((CONTEXT as usize - first / sequences) * sequences);
    let mut call = |length: usize, before: usize, step: usize| CallTokens {
        ids: (0..length).map(|_| numbers.below(vocab) as u32).collect(),
        spans: (0..length).map(|_| Span { first: 0, reach: numbers.below(4) as u32 }).collect(),
        rows: (0..length).step_by(step).collect(),
        before,
    };
    // Without tokens nothing runs.
    let calls = [call(first, 0, 1), call(second, first / sequences, 2)];
    calls.into_iter().filter(|call| !call.ids.is_empty()).collect()
}

/// The evaluator's logits of all calls, one after another. With a seed, factors are off 1 by up to `spread` either way.
fn evaluate(
    program: &Verified<Program>,
    parameters: &HashMap<String, Tensor>,
    calls: &[CallTokens],
    perturbation: Option<(f64, u64)>,
) -> Vec<f64> {
    let mut parameters = parameters.clone();
    let mut numbers = Numbers::new(perturbation.map_or(0, |(_, seed)| seed));
    // In the order of their keys, so that a seed means one thing.
    let mut factors: Vec<(&String, &mut Tensor)> =
        parameters.iter_mut().filter(|(key, _)| key.starts_with(FACTOR)).collect();
    factors.sort_by_key(|(key, _)| *key);
    for (_, factor) in factors {
        for value in &mut factor.data {
            let unit = numbers.below(2001) as f64 / 1000.0 - 1.0;
            *value = 1.0 + perturbation.map_or(0.0, |(spread, _)| spread * unit);
        }
    }
    let mut evaluator = Evaluator::new(program, &parameters);
    let runs = calls.iter().map(|call| evaluator.run(&call.inputs()).expect("the inputs fit").remove(0).data);
    runs.flatten().collect()
}

/// How far each result moves at most when every intermediate value is off by up to `spread`.
fn movement(
    program: &Verified<Program>,
    parameters: &HashMap<String, Tensor>,
    calls: &[CallTokens],
    expected: &[f64],
    (spread, seeds): (f64, std::ops::Range<u64>),
) -> Vec<f64> {
    let mut most = vec![0.0_f64; expected.len()];
    for seed in seeds {
        let moved = evaluate(program, parameters, calls, Some((spread, seed)));
        for ((most, moved), expected) in most.iter_mut().zip(moved).zip(expected) {
            let distance =
                if moved == *expected || moved.is_nan() && expected.is_nan() { 0.0 } else { (moved - expected).abs() };
            *most = most.max(if distance.is_nan() { f64::INFINITY } else { distance });
        }
    }
    most
}

/// Whether some real value of the entry, or one that a body carries, comes near the end of f32's range: from there on the evaluator computes
/// what f32 has no numbers for.
fn overflows(program: &Verified<Program>, parameters: &HashMap<String, Tensor>, calls: &[CallTokens]) -> bool {
    let mut program = Program::clone(program);
    let entry = program.graphs.last_mut().expect("there is an entry");
    entry.outputs = entry.values.ids().filter(|id| entry.ty(*id).dtype == DType::F32).collect();
    let program = ir::verify(program).expect("any value may be an output");
    let mut evaluator = Evaluator::new(&program, parameters);
    calls.iter().any(|call| {
        let values = evaluator.run(&call.inputs()).expect("the inputs fit");
        values.iter().flat_map(|tensor| &tensor.data).any(|value| 1e30 < value.abs())
    })
}

fn run(session: &mut Session, calls: &[CallTokens]) -> Vec<f32> {
    let mut logits = Vec::new();
    for call in calls {
        let rows = session.forward(&call.tokens(), &call.rows).expect("the tokens fit");
        rows.rows().for_each(|row| logits.extend_from_slice(row));
    }
    logits
}

/// What became of a random program.
enum Outcome {
    Agrees,
    /// It is no decoder, or the compiler refuses it for a reason that it documents.
    Refused(String),
    /// Its numbers leave the range of f32.
    Overflows,
}

fn build(target: &Target, optimise: bool) -> Build {
    Build {
        context: CONTEXT as u32,
        sequences: SEQUENCES as u32,
        chunk: MAX_TOKENS as u32,
        kv: KvFormat::F32,
        target: target.clone(),
        optimise,
        packing: None,
        residency: Residency::default(),
    }
}

/// Compares one random program; an error says what differs.
fn compare(recipe: &Recipe, lengths: (usize, usize), seed: u64) -> Result<Outcome, String> {
    let Some(program) = decoder(&recipe.program()) else { return Ok(Outcome::Refused("no decoder".to_owned())) };
    let vocab = program.entry().ty(program.entry().outputs[0]).shape.last_const().expect("logits have columns");
    let calls = calls(vocab, lengths.0, lengths.1, seed);
    let factored = with_factors(&program);
    let parameters = random::parameters(&factored, seed);
    // The reference first: what has no place in f32 is not compared.
    let expected = evaluate(&factored, &parameters, &calls, None);
    if overflows(&program, &parameters, &calls) {
        return Ok(Outcome::Overflows);
    }
    // f32 rounds to 2^-24; elementary functions and sums of a few terms are off by some units of that.
    let moved = movement(&factored, &parameters, &calls, &expected, (2.0_f64.powi(-20), 1..4));
    for optimise in [false, true] {
        // The logits of each form that the optimiser gave the program: costs differ between targets, and so may the choice between forms that
        // are equal but for rounding.
        let mut forms: HashMap<String, Vec<f32>> = HashMap::new();
        for target in targets() {
            let build = build(&target, optimise);
            let what =
                || format!("{target}{}\n{}", if optimise { ", optimised" } else { "" }, ir::text::print(&program));
            let compile = || session::compile(program.clone(), &build);
            let compiled =
                std::panic::catch_unwind(compile).map_err(|_| format!("the compiler panics for {}", what()))?;
            let compiled = match compiled {
                Ok(compiled) => compiled,
                Err(error) if is_refusal(&error) => return Ok(Outcome::Refused(format!("{error:#}"))),
                Err(error) => return Err(format!("{error:#}\n{}", what())),
            };
            let opened = session::write(&compiled, &Given(&parameters))
                .and_then(|directory| session::session(directory.path(), 2));
            let mut session = opened.map_err(|error| format!("{error:#}\n{}", what()))?;
            let logits = run(&mut session, &calls);
            let bits = |values: &[f32]| -> Vec<u32> {
                values.iter().map(|value| if value.is_nan() { f32::NAN } else { *value }.to_bits()).collect()
            };
            let before = forms.entry(ir::text::print(&compiled.program)).or_insert_with(|| logits.clone());
            if bits(before) != bits(&logits) {
                let at = bits(before).iter().zip(bits(&logits)).position(|(left, right)| *left != right);
                let at = at.unwrap_or(0);
                return Err(format!(
                    "logit {at} is {} for another target, and {} for {}",
                    before[at],
                    logits[at],
                    what()
                ));
            }
            let actual: Vec<f64> = logits.iter().map(|&logit| logit.into()).collect();
            // Parameters are up to 2, and an op may add and take away some of them: a norm its bias, a product its terms.
            let bound = |at: usize| 8.0 * moved[at] + 1e-6 * expected[at].abs().max(2.0);
            if let Err(mismatch) = bounded(&expected, &actual, bound) {
                // Perhaps it stands at an edge that so few evaluations did not cross.
                let edges = movement(&factored, &parameters, &calls, &expected, (2.0_f64.powi(-14), 10..26));
                let bound = |at: usize| bound(at).max(1.5 * edges[at]);
                let has_body = 1 < program.graphs.len();
                if has_body
                    && actual
                        .iter()
                        .zip(&expected)
                        .any(|(actual, expected)| expected.is_finite() && !actual.is_finite())
                {
                    // The evaluator does not show what happens inside a body.
                    return Ok(Outcome::Overflows);
                }
                if bounded(&expected, &actual, bound).is_err() {
                    // Whose fault: the optimiser's if its program means something else, the back end's otherwise.
                    let optimised = evaluate(&ir::verify(compiled.program.clone()).unwrap(), &parameters, &calls, None);
                    let culprit = if bounded(&expected, &optimised, bound).is_err() { "optimiser" } else { "back end" };
                    let optimised = ir::text::print(&compiled.program);
                    return Err(format!("the {culprit}: {mismatch}\n{calls:?}\n{}\noptimised:\n{optimised}", what()));
                }
            }
        }
    }
    Ok(Outcome::Agrees)
}

/// Whether the compiler says that it has no way to compute something, rather than that it went wrong.
fn is_refusal(error: &anyhow::Error) -> bool {
    use compiler::emit::plan::PlanEmitError;
    use compiler::lower::nest::NestLowerError;
    match error.downcast_ref() {
        Some(CompileError::Plan(PlanEmitError::Schedule { .. } | PlanEmitError::NoKernel(_))) => true,
        Some(CompileError::Plan(PlanEmitError::Nest(error))) => matches!(error, NestLowerError::NoKernel { .. }),
        _ => false,
    }
}

fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { failure_persistence: None, max_shrink_iters: 4000, ..config }
}

/// The same cases in every run; `PROPTEST_CASES` and `PROPTEST_RNG_SEED` ask for others.
#[test]
fn random_programs_compute_what_they_mean() {
    let config = config();
    let cases = if config.cases == ProptestConfig::default().cases && std::env::var_os("PROPTEST_CASES").is_none() {
        100
    } else {
        config.cases
    };
    let seed = match config.rng_seed {
        RngSeed::Random => 1,
        RngSeed::Fixed(seed) => seed,
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(ProptestConfig { cases, ..config }, rng);
    let counts = std::cell::RefCell::new((0_u32, 0_u32, HashMap::<String, u32>::new()));
    let strategy = (recipes(14, false), 0..=MAX_TOKENS as usize, 0..=MAX_TOKENS as usize, any::<u64>());
    let result = runner.run(&strategy, |(recipe, first, second, seed)| {
        let outcome = compare(&recipe, (first, second), seed).map_err(TestCaseError::fail)?;
        let mut counts = counts.borrow_mut();
        match outcome {
            Outcome::Agrees => counts.0 += 1,
            Outcome::Overflows => counts.1 += 1,
            Outcome::Refused(reason) => *counts.2.entry(reason).or_default() += 1,
        }
        Ok(())
    });
    let (agree, overflow, refused) = counts.into_inner();
    println!("{agree} agree, {overflow} overflow, {} are refused", refused.values().sum::<u32>());
    for (reason, count) in &refused {
        println!("{count} x {reason}");
    }
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(cases <= 3 * agree, "too few programs are compared");
}

/// Whole layers with grouped heads, in every format of the caches.
#[test]
fn layers_compute_what_they_mean() {
    let model = Model::shipped("tiny").unwrap();
    for kv in [KvFormat::F32, KvFormat::Bf16, KvFormat::Int4, KvFormat::K8v4] {
        let (length, chunk) = (21, 20);
        let build = Build { kv, chunk, ..Build::new(40) };
        let built = model.build(&build).unwrap();
        let parameters = given_parameters(&built.program);
        let ids = random_ids(model.spec.vocab.into(), length, 3);
        let mut evaluator = Evaluator::new(&built.program, &parameters);
        let mut expected = Vec::new();
        for (call, ids) in ids.chunks(chunk as usize).enumerate() {
            let inputs = reference_inputs(ids, call * chunk as usize);
            expected.extend(evaluator.run(&inputs).unwrap().remove(0).data);
        }
        for optimise in [false, true] {
            let mut first: Option<Vec<f32>> = None;
            for target in targets() {
                let build = Build { optimise, ..build.on(&target) };
                let compiled = session::compile(built.program.clone(), &build).unwrap();
                let directory = session::write(&compiled, &Given(&parameters)).unwrap();
                let mut session = session::session(directory.path(), 2).unwrap();
                let logits = session::logits(&mut session, 0, &ids, chunk as usize).unwrap();
                let what = format!("{} for {target}, optimised: {optimise}", kv.name());
                assert_eq!(first.get_or_insert_with(|| logits.clone()), &logits, "{what}");
                let actual: Vec<f64> = logits.iter().map(|&logit| logit.into()).collect();
                // As for whole models: an activation that rounds to the other code moves a row by about a percent.
                let error = relative_l2(&expected, &actual);
                assert!(error <= 0.02, "{what}: relative error {error}");
                let agreement = argmax_agreement(&expected, &actual, session.vocab());
                assert!(0.98 <= agreement || ids.len() as f64 * (1.0 - agreement) < 1.5, "{what}: {agreement}");
            }
        }
    }
}

/// Parameters of a model without a checkpoint: norms about 1, the rest about 0, scales such that activations keep their size.
fn given_parameters(program: &Verified<Program>) -> HashMap<String, Tensor> {
    let mut parameters = random::parameters(program, 11);
    for (key, tensor) in &mut parameters {
        let is_norm = key.contains("norm");
        let is_scale = key.ends_with("scale");
        for value in &mut tensor.data {
            *value = match tensor.ty.dtype {
                DType::T2 => *value,
                _ if is_norm => 1.0 + *value / 8.0,
                _ if is_scale => 0.25,
                _ => *value / 4.0,
            };
        }
    }
    parameters
}
