//! Properties of the text form and of the verifier, on random programs.

use compiler::autodiff::Keep;
use ir::entity::Id;
use ir::graph::{Def, Program, SymbolDecl, Update};
use ir::reference::Evaluator;
use ir::text::{parse, parse_with_positions, print, print_annotated, print_with_positions};
use ir::{Dim, Symbol, ValueId, verify};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, RngSeed};
use tritter_tests::gradient::{all_gradients, inputs_to_parameters, with_loss};
use tritter_tests::random::{self, recipes};

/// The same cases in every run; `PROPTEST_CASES` and `PROPTEST_RNG_SEED` ask for others.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    let rng_seed = match config.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        seed @ RngSeed::Fixed(_) => seed,
    };
    // Programs without a place for a fault are no cases; there are many of them.
    ProptestConfig { rng_seed, failure_persistence: None, max_global_rejects: u32::MAX, ..config }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_printed_reads_back(recipe in recipes(24, true)) {
        let program = recipe.program().into_inner();
        let (text, printed) = print_with_positions(&program);
        let (read, parsed) = parse_with_positions(&text).map_err(|errors| TestCaseError::fail(errors.show(&text)))?;
        prop_assert_eq!(&read, &program, "{}", text);
        prop_assert_eq!(print(&read), text.as_str());
        prop_assert_eq!(printed, parsed);
        prop_assert_eq!(parse(&print_annotated(&program)), Ok(program));
    }

    #[test]
    fn what_compaction_leaves_reads_back(recipe in recipes(24, true)) {
        let mut program = recipe.program().into_inner();
        program.graphs = program.graphs.iter().map(ir::Graph::compact).collect();
        prop_assert_eq!(parse(&print(&program)), Ok(program));
    }

    #[test]
    fn random_programs_evaluate(recipe in recipes(24, false), n in 0..8_usize, seed: u64) {
        let program = recipe.program();
        let parameters = random::parameters(&program, seed);
        let mut evaluator = Evaluator::new(&program, &parameters);
        for run in 0..2 {
            let outputs = evaluator.run(&random::inputs(&program, n, seed.wrapping_add(run)));
            prop_assert_eq!(outputs.map(|outputs| outputs.len()), Ok(program.entry().outputs.len()));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(recipe in recipes(12, true), edits in prop::collection::vec(edit(), 1..6)) {
        let mut text: Vec<char> = print(&recipe.program()).chars().collect();
        for edit in &edits {
            edit.apply(&mut text);
        }
        let text: String = text.into_iter().collect();
        match parse_with_positions(&text) {
            Ok((program, map)) => {
                prop_assert_eq!(parse(&print(&program)), Ok(program.clone()));
                if let Err(errors) = verify(program.clone()) {
                    ir::text::show_verify_errors(&program, &errors, Some((&text, &map)));
                }
            }
            Err(errors) => {
                prop_assert!(!errors.0.is_empty());
                errors.show(&text);
            }
        }
    }

    #[test]
    fn no_characters_make_the_parser_panic(text in "[ -~\n\t\u{e9}]{0,80}") {
        if let Err(errors) = parse(&text) {
            errors.show(&text);
        }
    }

    #[test]
    fn the_verifier_finds_seeded_faults(recipe in recipes(12, false), fault in fault()) {
        let mut program = recipe.program().into_inner();
        prop_assume!(fault.seed(&mut program));
        let Err(errors) = verify(program.clone()) else {
            return Err(TestCaseError::fail(format!("{fault:?} was not found in\n{}", print(&program))));
        };
        // The printer and the messages stand even what no text can say.
        ir::text::show_verify_errors(&program, &errors, None);
    }
}

/// A change of a text.
#[derive(Clone, Debug)]
enum Edit {
    Delete { at: usize, length: usize },
    Repeat { at: usize, length: usize },
    Insert { at: usize, piece: &'static str },
    SwapLines { left: usize, right: usize },
}

/// Pieces that mean something to the parser, or nothing.
const PIECES: [&str; 24] = [
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "\\",
    "=",
    ":",
    ",",
    "@",
    "#",
    "->",
    "\n",
    ";",
    "return ",
    "update ",
    "18446744073709551615",
    "-1",
    "nan",
    "f32[",
    "\u{0}",
    "\u{1F9EE}",
];

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (any::<usize>(), 1..20_usize).prop_map(|(at, length)| Edit::Delete { at, length }),
        (any::<usize>(), 1..60_usize).prop_map(|(at, length)| Edit::Repeat { at, length }),
        (any::<usize>(), prop::sample::select(PIECES.as_slice())).prop_map(|(at, piece)| Edit::Insert { at, piece }),
        (any::<usize>(), any::<usize>()).prop_map(|(left, right)| Edit::SwapLines { left, right }),
    ]
}

impl Edit {
    fn apply(&self, text: &mut Vec<char>) {
        if text.is_empty() {
            return;
        }
        match *self {
            Edit::Delete { at, length } => {
                let at = at % text.len();
                text.drain(at..(at + length).min(text.len()));
            }
            Edit::Repeat { at, length } => {
                let at = at % text.len();
                let piece = text[at..(at + length).min(text.len())].to_vec();
                text.splice(at..at, piece);
            }
            Edit::Insert { at, piece } => {
                let at = at % text.len();
                text.splice(at..at, piece.chars());
            }
            Edit::SwapLines { left, right } => {
                let whole: String = text.iter().collect();
                let mut lines: Vec<&str> = whole.split('\n').collect();
                let n = lines.len();
                lines.swap(left % n, right % n);
                *text = lines.join("\n").chars().collect();
            }
        }
    }
}

/// A way to break a program that verifies.
#[derive(Clone, Debug)]
enum Fault {
    /// An op's type gets one more dimension.
    Type(usize),
    /// An operand becomes its own user, or a value that does not exist.
    Order {
        value: usize,
        beyond: bool,
    },
    /// An op loses its operands.
    Arity(usize),
    NoOutputs,
    UnknownOutput,
    NoInputs,
    NoSymbols,
    TwoSymbols,
    LooseSymbol,
    TwoGraphs,
    NoGraphs,
    /// A value that is no state is updated.
    UpdateTarget(usize),
    /// An update is listed twice.
    TwoUpdates,
    /// A state's key is taken by another state.
    OneKey,
    /// A key has a place for the round where there is none.
    Round,
    /// A repeat's body has another name.
    NoBody,
    /// A constant has one element more.
    Constant,
    /// A dimension without measure.
    TooLarge(usize),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        any::<usize>().prop_map(Fault::Type),
        (any::<usize>(), any::<bool>()).prop_map(|(value, beyond)| Fault::Order { value, beyond }),
        any::<usize>().prop_map(Fault::Arity),
        Just(Fault::NoOutputs),
        Just(Fault::UnknownOutput),
        Just(Fault::NoInputs),
        Just(Fault::NoSymbols),
        Just(Fault::TwoSymbols),
        Just(Fault::LooseSymbol),
        Just(Fault::TwoGraphs),
        Just(Fault::NoGraphs),
        any::<usize>().prop_map(Fault::UpdateTarget),
        Just(Fault::TwoUpdates),
        Just(Fault::OneKey),
        Just(Fault::Round),
        Just(Fault::NoBody),
        Just(Fault::Constant),
        any::<usize>().prop_map(Fault::TooLarge),
    ]
}

impl Fault {
    /// Breaks the program; says whether there was a place for it.
    fn seed(&self, program: &mut Program) -> bool {
        self.try_seed(program).is_some()
    }

    fn try_seed(&self, program: &mut Program) -> Option<()> {
        let entry = program.graphs.last_mut()?;
        let ids: Vec<ValueId> = entry.values.ids().collect();
        let ops: Vec<ValueId> = ids.iter().copied().filter(|&id| entry.op(id).is_some()).collect();
        let nth = |values: &[ValueId], index: usize| values.get(index.checked_rem(values.len())?).copied();
        match *self {
            Fault::Type(index) => entry.values[nth(&ops, index)?].ty.shape.0.push(Dim::Const(3)),
            Fault::Order { value, beyond } => {
                let value = nth(&ops, value)?;
                let Def::Op { inputs, .. } = &mut entry.values[value].def else { return None };
                *inputs.first_mut()? = if beyond { ValueId::new(ids.len()) } else { value };
            }
            Fault::Arity(index) => {
                let value = nth(&ops, index)?;
                let Def::Op { inputs, .. } = &mut entry.values[value].def else { return None };
                inputs.clear();
            }
            Fault::NoOutputs => entry.outputs.clear(),
            Fault::UnknownOutput => entry.outputs.push(ValueId::new(ids.len())),
            Fault::NoInputs => {
                entry.inputs.pop()?;
            }
            Fault::NoSymbols => {
                program.symbols.pop()?;
            }
            Fault::TwoSymbols => program.symbols.push(program.symbols.first()?.clone()),
            Fault::LooseSymbol => program.symbols.push(SymbolDecl { symbol: Symbol::new("loose"), max: 1 }),
            Fault::TwoGraphs => program.graphs.insert(0, program.graphs.last()?.clone()),
            Fault::NoGraphs => program.graphs.clear(),
            Fault::UpdateTarget(index) => {
                let target = nth(&ops, index)?;
                entry.updates.push(Update { state: target, value: target });
            }
            Fault::TwoUpdates => entry.updates.push(*entry.updates.first()?),
            Fault::OneKey => {
                let (id, _) = entry.states().next()?;
                let copy = entry.values[id].clone();
                entry.values.push(copy);
            }
            Fault::Round => {
                let keyed: Vec<ValueId> = entry.params().chain(entry.states()).map(|(id, _)| id).collect();
                match &mut entry.values[nth(&keyed, 0)?].def {
                    Def::Param { key } | Def::State { key } => *key = "layers.{}.w".into(),
                    _ => return None,
                }
            }
            Fault::NoBody => match &mut program.graphs[..] {
                [body, _] => body.name.push('x'),
                _ => return None,
            },
            Fault::Constant => {
                let constant = ids.iter().copied().find(|&id| matches!(entry.values[id].def, Def::Const(_)))?;
                entry.values[constant].ty.shape.0.push(Dim::Const(2));
            }
            Fault::TooLarge(index) => entry.values[nth(&ids, index)?].ty.shape.0.push(Dim::Const(1 << 48)),
        }
        Some(())
    }
}

/// The generator reaches every op, by itself or through the gradients of what it makes, so what is tested on its programs and on those is tested
/// for every op.
#[test]
fn random_programs_have_every_op() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{TestRng, TestRunner};
    // What only training steps are lowered to; their texts are in `filetests`.
    let lowered = ["gemm", "unpack_in_call"];
    let mut missing: std::collections::BTreeSet<&str> =
        ir::Op::NAMES.iter().copied().filter(|name| !lowered.contains(name)).collect();
    let mut runner = TestRunner::new_with_rng(config(), TestRng::from_seed(RngAlgorithm::ChaCha, &[1; 32]));
    // Long programs have all ops soon; gradients have attention's where no cache is quantised, which short ones are likelier to keep to.
    for round in 0..4000 {
        let recipe = recipes(if round < 200 { 24 } else { 3 }, false)
            .new_tree(&mut runner)
            .expect("recipes reject nothing")
            .current();
        let program = recipe.program();
        let mut programs: Vec<Program> = vec![(*program).clone()];
        let mut bound = program.bind(&[(Symbol::new("n"), 3)]);
        inputs_to_parameters(&mut bound);
        let bound = verify(bound).expect("the same program for one size");
        if let Some(with_loss) = with_loss(&bound)
            && let Some(differentiated) = all_gradients(&with_loss, Keep::Values)
        {
            programs.push(differentiated.program.into_inner());
        }
        for program in &programs {
            let text = print(program);
            assert_eq!(parse(&text).expect("what is printed can be read"), *program, "{text}");
        }
        for value in programs.iter().flat_map(|program| &program.graphs).flat_map(|graph| graph.values.values()) {
            if let Def::Op { op, .. } = &value.def {
                missing.remove(op.name());
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}
