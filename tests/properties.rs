//! Properties of what stands between the program and its bytes: places in memory, packings, and the arithmetic and text of plans.

use std::collections::BTreeMap;

use compiler::schedule::memory::{Lifetime, Request, lifetimes, place};
use ir::DType;
use ir::entity::Id;
use ir::packing::{RowFormat, TernaryLayout};
use ir::plan::{ALIGNMENT, Access, Arg, BufferId, Expr, Plan, Step};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tritter_tests::session::{Build, Model, compile};

/// The same cases in every run; `PROPTEST_CASES` and `PROPTEST_RNG_SEED` ask for others.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    let rng_seed = match config.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        seed @ RngSeed::Fixed(_) => seed,
    };
    ProptestConfig { rng_seed, failure_persistence: None, ..config }
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let request = (0..5000_u64, 0..40_usize, 0..12_usize);
    prop::collection::vec(request, 0..60).prop_map(|list| {
        let requests = list.into_iter().enumerate().map(|(index, (bytes, first, length))| Request {
            buffer: BufferId::new(index),
            bytes,
            lifetime: Lifetime { first, last: first + length },
        });
        requests.collect()
    })
}

/// Steps over a few buffers. A number is a buffer that is written; the list beside it, some that are read. A nested list is a repeat.
#[derive(Clone, Debug)]
enum Draft {
    Write(usize, Vec<usize>),
    Repeat(Vec<(usize, Vec<usize>)>),
}

const BUFFERS: usize = 12;

fn drafts() -> impl Strategy<Value = Vec<Draft>> {
    let write = || (0..BUFFERS, prop::collection::vec(0..BUFFERS, 0..3));
    let draft = prop_oneof![
        4 => write().prop_map(|(to, from)| Draft::Write(to, from)),
        1 => prop::collection::vec(write(), 1..6).prop_map(Draft::Repeat),
    ];
    prop::collection::vec(draft, 1..20)
}

fn arg(access: Access, buffer: usize) -> Arg {
    Arg { access, buffer: BufferId::new(buffer), offset: Expr::from(0) }
}

/// A step for each read; what nothing was written to is not read.
fn steps_of(drafts: &[Draft]) -> Vec<Step> {
    let mut written = [false; BUFFERS];
    let mut steps_of_one = |to: usize, from: &[usize]| -> Vec<Step> {
        let mut steps = Vec::new();
        for &from in from.iter().filter(|&&from| from != to && written[from]) {
            steps.push(Step::Copy { from: arg(Access::Read, from), to: arg(Access::Write, to), bytes: Expr::from(64) });
        }
        written[to] |= !steps.is_empty();
        if steps.is_empty() {
            // From the input, which every plan here has.
            let copy =
                Step::Copy { from: arg(Access::Read, BUFFERS), to: arg(Access::Write, to), bytes: Expr::from(64) };
            written[to] = true;
            steps.push(copy);
        }
        steps
    };
    let mut steps = Vec::new();
    for draft in drafts {
        match draft {
            Draft::Write(to, from) => steps.extend(steps_of_one(*to, from)),
            Draft::Repeat(inner) => {
                let inner = inner.iter().flat_map(|(to, from)| steps_of_one(*to, from)).collect();
                steps.push(Step::Repeat { count: 3, reverse: false, steps: inner });
            }
        }
    }
    steps
}

/// What each step of a run touches, repeats unrolled.
fn unrolled(steps: &[Step]) -> Vec<(BufferId, BufferId)> {
    let mut touches = Vec::new();
    for step in steps {
        match step {
            Step::Copy { from, to, .. } => touches.push((from.buffer, to.buffer)),
            Step::Repeat { count, steps, .. } => (0..*count).for_each(|_| touches.extend(unrolled(steps))),
            Step::Call(_) => unreachable!("there are only copies"),
        }
    }
    touches
}

fn expr() -> impl Strategy<Value = Expr> {
    let symbol = prop::sample::select(["n", "m", "keys", "layer", "_x1"].as_slice());
    let factor = prop_oneof![0..100_u64, Just(1 << 40), Just(u64::MAX)];
    let term = (factor, prop::collection::vec(symbol, 0..4));
    (prop::collection::vec(term, 0..5), prop::option::of(1..70_u64)).prop_map(|(terms, divisor)| {
        let product = |(factor, symbols): (u64, Vec<&str>)| {
            symbols.into_iter().fold(Expr::from(factor), |product, symbol| product * Expr::symbol(symbol))
        };
        let sum = terms.into_iter().map(product).fold(Expr::from(0), |sum, term| sum + term);
        match divisor {
            Some(divisor) => sum.div_ceil(divisor),
            None => sum,
        }
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_lives_together_lies_apart(requests in requests()) {
        let arena = place(requests.clone());
        let aligned = |request: &Request| request.bytes.next_multiple_of(ALIGNMENT);
        for (index, left) in requests.iter().enumerate() {
            let start = arena.offsets[&left.buffer];
            prop_assert!(start.is_multiple_of(ALIGNMENT) && start + left.bytes <= arena.bytes, "{left:?} at {start}");
            for right in &requests[index + 1..] {
                let (other, together) = (arena.offsets[&right.buffer], left.lifetime.first <= right.lifetime.last
                    && right.lifetime.first <= left.lifetime.last);
                let apart = start + left.bytes <= other || other + right.bytes <= start;
                prop_assert!(apart || !together, "{left:?} at {start}, {right:?} at {other}");
            }
        }
        let sum: u64 = requests.iter().map(aligned).sum();
        prop_assert!(arena.bytes <= sum, "{} bytes for {sum}", arena.bytes);
        let live_at = |time: usize| -> u64 {
            let live = requests.iter().filter(|request| request.lifetime.first <= time && time <= request.lifetime.last);
            live.map(|request| request.bytes).sum()
        };
        prop_assert!((0..60).map(live_at).max().unwrap_or(0) <= arena.bytes);
        // The order in which they are asked for does not matter.
        let mut turned = requests;
        turned.reverse();
        prop_assert_eq!(place(turned).offsets, arena.offsets);
    }

    /// Run the steps, and no value is ever overwritten before its last reader.
    #[test]
    fn lifetimes_hold_values_through_all_rounds(drafts in drafts()) {
        let steps = steps_of(&drafts);
        let found = lifetimes(&steps);
        let input = BufferId::new(BUFFERS);
        let requests = found.iter().filter(|(buffer, _)| **buffer != input);
        let requests = requests.map(|(&buffer, &lifetime)| Request { buffer, bytes: 64, lifetime }).collect();
        let arena = place(requests);
        // The buffer whose value is at each place; a read must find its own.
        let mut holders: BTreeMap<u64, BufferId> = BTreeMap::new();
        for (from, to) in unrolled(&steps) {
            if from != input {
                prop_assert_eq!(holders.get(&arena.offsets[&from]), Some(&from), "{:?}\n{:?}", steps, arena);
            }
            holders.insert(arena.offsets[&to], to);
        }
    }

    #[test]
    fn packings_round_trip_whole_and_in_pieces(
        rows in 1..70_u64,
        cols in 1..90_u64,
        seed: u64,
        cut in 0.0..1.0_f64,
    ) {
        let mut numbers = tritter_tests::random::Numbers::new(seed);
        let values: Vec<i8> = (0..rows * cols).map(|_| numbers.below(3) as i8 - 1).collect();
        for layout in TernaryLayout::ALL {
            let bytes = layout.encode(&values, rows, cols);
            prop_assert_eq!(bytes.len() as u64, layout.bytes(rows, cols));
            prop_assert_eq!(layout.decode(&bytes, rows, cols), Ok(values.clone()), "{}", layout);
            let first = (cut * rows as f64) as u64;
            let mut piece = vec![0; ((rows - first) * cols) as usize];
            prop_assert_eq!(layout.decode_rows(&bytes, rows, cols, first..rows, &mut piece), Ok(()));
            prop_assert_eq!(&piece[..], &values[(first * cols) as usize..]);
            if let Some(block) = layout.row_block() {
                let pieces = (0..rows).step_by(block as usize).flat_map(|start| {
                    let end = (start + block).min(rows);
                    layout.encode(&values[(start * cols) as usize..(end * cols) as usize], end - start, cols)
                });
                prop_assert_eq!(pieces.collect::<Vec<u8>>(), bytes, "{}", layout);
            }
        }
    }

    /// A byte of damage is another value or an error, nothing else.
    #[test]
    fn damaged_packings_decode_or_say_where(rows in 1..40_u64, cols in 1..40_u64, at: usize, byte: u8) {
        for layout in TernaryLayout::ALL {
            let mut bytes = layout.encode(&vec![1; (rows * cols) as usize], rows, cols);
            let at = at % bytes.len();
            bytes[at] = byte;
            match layout.decode(&bytes, rows, cols) {
                Ok(values) => prop_assert!(values.iter().all(|value| (-1..=1).contains(value))),
                Err(bad) => prop_assert!(bad.row < rows && bad.col < cols && bad.byte == byte, "{bad:?}"),
            }
        }
    }

    #[test]
    fn records_are_within_half_a_step(row in prop::collection::vec(-100.0_f32..100.0, 1..70)) {
        for dtype in [DType::Q8, DType::Q4] {
            let format = RowFormat::new(dtype, row.len()).unwrap();
            let mut record = vec![0xAA; format.stride()];
            format.encode(&row, &mut record);
            let mut read = vec![0.0; row.len()];
            format.decode(&record, &mut read);
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let min = row.iter().copied().fold(f32::MAX, f32::min);
            let step = if dtype == DType::Q8 { max.abs().max(min.abs()) / 127.0 } else { (max - min) / 15.0 };
            for (value, read) in row.iter().zip(&read) {
                prop_assert!((value - read).abs() <= 0.5 * step * 1.001 + 1e-4, "{dtype}: {value} is read as {read}");
            }
        }
    }

    #[test]
    fn expressions_read_back_and_compute(expr in expr(), n in 0..1000_u64, m in 0..1000_u64) {
        let text = expr.to_string();
        prop_assert_eq!(Expr::try_from(text.clone()), Ok(expr.clone()), "{}", text);
        let lookup = |symbol: &str| match symbol {
            "n" => Some(n),
            "m" => Some(m),
            "keys" => Some(n * m),
            "layer" => Some(7),
            _ => Some(1),
        };
        // By hand from the text, in a type that holds it.
        let (sum, divisor) = match text.strip_prefix("ceil((") {
            Some(rest) => {
                let (sum, divisor) = rest.trim_end_matches(')').split_once(") / ").unwrap();
                (sum.to_owned(), divisor.parse::<u128>().unwrap())
            }
            None => (text.clone(), 1),
        };
        let term = |term: &str| -> Option<u128> {
            term.split('*').map(str::trim).try_fold(1_u128, |product, factor| {
                let value = factor.parse::<u128>().ok().or_else(|| lookup(factor).map(u128::from));
                product.checked_mul(value.expect("a factor is a number or a symbol"))
            })
        };
        let value: Option<u128> = sum.split('+').map(term).try_fold(0_u128, |sum, term| sum.checked_add(term?));
        match expr.evaluate(&lookup) {
            Some(found) => prop_assert_eq!(Some(u128::from(found)), value.map(|value| value.div_ceil(divisor)), "{}", text),
            // An intermediate is beyond 2^64.
            None => prop_assert!(value.is_none_or(|value| u128::from(u64::MAX) / 1_000_000 < value), "{text}"),
        }
    }

    #[test]
    fn text_that_is_no_expression_is_refused(text in "[nm0-9+*()/ ceil]{0,24}") {
        if let Ok(expr) = Expr::try_from(text) {
            prop_assert_eq!(Expr::try_from(expr.to_string()), Ok(expr));
        }
    }
}

fn tiny_plan() -> Plan {
    let model = Model::shipped("tiny").unwrap();
    let build = Build { sequences: 2, chunk: 20, target: "scalar".parse().unwrap(), ..Build::new(40) };
    compile(model.build(&build).unwrap().program, &build).unwrap().plan
}

#[test]
fn plans_read_back() {
    let plan = tiny_plan();
    let text = plan.to_ron();
    let read = Plan::from_ron(&text).unwrap();
    assert_eq!(read, plan);
    assert_eq!(read.to_ron(), text);
}

/// Any edit gives an error or a plan that keeps all rules, and never a panic.
#[test]
fn edited_plans_are_refused_or_sound() {
    let text = tiny_plan().to_ron();
    let mut numbers = tritter_tests::random::Numbers::new(3);
    let (mut refused, mut sound) = (0, 0);
    for _ in 0..400 {
        let mut bytes = text.clone().into_bytes();
        let at = numbers.below(bytes.len() as u64) as usize;
        match numbers.below(3) {
            0 => bytes[at] = b"0123456789()[]{},:\"-ebkn "[numbers.below(25) as usize],
            1 => drop(bytes.drain(at..(at + 1 + numbers.below(40) as usize).min(text.len()))),
            _ => {
                let piece = bytes[at..(at + 1 + numbers.below(40) as usize).min(text.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
        match Plan::from_ron(&String::from_utf8(bytes).unwrap()) {
            Ok(plan) => {
                assert_eq!(ir::plan::check(&plan), Ok(()));
                sound += 1;
            }
            Err(_) => refused += 1,
        }
    }
    // Names, for one, may be anything.
    assert!(sound < refused, "{sound} of {refused} edits are accepted");
}
