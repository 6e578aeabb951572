//! What the optimiser makes of whole models: the ops of a layer, the same result every time, and how long it takes.

use std::collections::{BTreeMap, HashMap};

use compiler::Target;
use compiler::egraph::explain::explain;
use compiler::rewrite::{Exactness, Options, Stop, optimise};
use compiler::target::Machine;
use ir::graph::Def;
use ir::op::Concrete;
use ir::packing::TernaryLayout;
use ir::reference::{Evaluator, Tensor, concrete, key_of_round};
use ir::{DType, Graph, Program, Verified};
use models::spec::KvFormat;
use models::{BuildOptions, HeadFormat, Naming};

/// Multiplies one of a machine's rates.
type Perturb<'a> = dyn Fn(&mut Machine, f64) + 'a;

fn model(name: &str) -> Verified<Program> {
    build(models::find_shipped(name).expect("a shipped spec"))
}

fn build(spec: &str) -> Verified<Program> {
    let spec = models::spec::read(spec).unwrap();
    let context = spec.context.min(256);
    let options = BuildOptions {
        context,
        sequences: 1,
        chunk: 128,
        logits: 16,
        kv: KvFormat::Int4,
        head: HeadFormat::Stored,
        naming: Naming::Tritter,
    };
    models::build(&spec, &options).unwrap().program
}

fn target() -> Target {
    "x86_64:avx2".parse().unwrap()
}

/// The rules as they are, but weights in 2 bits: these tests count ops, and a small matrix may be smaller in either packing.
fn two_bits() -> Options {
    Options { packing: Some(TernaryLayout::Tile16), ..Options::all() }
}

/// How often each op occurs at run time: ops of weights only are left out.
fn run_time_ops(graph: &Graph) -> BTreeMap<&'static str, usize> {
    let mut is_weight_time = vec![false; graph.values.len()];
    let mut ops = BTreeMap::new();
    for (index, (id, value)) in graph.values.iter().enumerate() {
        is_weight_time[index] = match &value.def {
            Def::Param { .. } | Def::Const(_) => true,
            Def::Input | Def::State { .. } => false,
            Def::Op { inputs, .. } => inputs.iter().all(|input| is_weight_time[ir::entity::Id::index(*input)]),
        };
        if let (false, Some(op)) = (is_weight_time[index], graph.op(id)) {
            *ops.entry(op.name()).or_default() += 1;
        }
    }
    ops
}

#[test]
fn a_bitnet_layer_is_four_sweeps_over_its_weights() {
    for name in ["tiny", "bitnet-code-nano", "bitnet-2b-4t"] {
        let (program, report) = optimise(&model(name), &target(), &two_bits()).unwrap();
        let ops = run_time_ops(program.graph("layer").unwrap());
        println!("{report}");
        let expected = BTreeMap::from([
            ("ternary_matmul", 4),
            ("rms_norm_quantize", 4),
            ("relu2_mul", 1),
            ("rope", 2),
            ("kv_append", 2),
            ("attention", 1),
            ("add", 2),
            // Queries, keys, values; gate and up.
            ("slice", 5),
            // Three into heads, one back.
            ("reshape", 4),
        ]);
        assert_eq!(ops, expected, "{name}");
    }
}

#[test]
fn a_tritter_layer_is_four_sweeps_over_its_weights() {
    for name in ["test", "7b"] {
        let (program, report) = optimise(&model(name), &target(), &two_bits()).unwrap();
        let ops = run_time_ops(program.graph("layer").unwrap());
        println!("{report}");
        assert_eq!(ops["ternary_matmul"], 4, "{name}: {ops:?}");
        assert_eq!(ops["add_layer_norm"], 1, "{name}: {ops:?}");
        assert_eq!(ops["relu2_mul"], 1, "{name}: {ops:?}");
        assert!(
            !ops.contains_key("matmul") && !ops.contains_key("mul") && !ops.contains_key("unpack"),
            "{name}: {ops:?}"
        );
    }
}

#[test]
fn nothing_but_names_and_order_changes_without_stages() {
    let source = model("tiny");
    let (program, report) = optimise(&source, &target(), &Options::none()).unwrap();
    for (before, after) in source.graphs.iter().zip(&program.graphs) {
        assert_eq!(run_time_ops(before), run_time_ops(after));
    }
    assert!(report.graphs.iter().all(|graph| graph.stages.is_empty() && graph.cost_before == graph.cost_after));
}

#[test]
fn inputs_outputs_states_and_parameters_stay() {
    let source = model("test");
    let (program, _) = optimise(&source, &target(), &Options::all()).unwrap();
    for (before, after) in source.graphs.iter().zip(&program.graphs) {
        let labels = |graph: &Graph, ids: &[ir::ValueId]| ids.iter().map(|id| graph.label(*id)).collect::<Vec<_>>();
        assert_eq!(labels(before, &before.inputs), labels(after, &after.inputs));
        assert_eq!(labels(before, &before.outputs), labels(after, &after.outputs));
        let updates = |graph: &Graph| {
            graph
                .updates
                .iter()
                .map(|update| (graph.label(update.state), graph.label(update.value)))
                .collect::<Vec<_>>()
        };
        assert_eq!(updates(before), updates(after));
        let keys = |graph: &Graph| {
            let mut keys: Vec<String> = graph.params().map(|(_, key)| key.to_string()).collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(before), keys(after));
    }
}

#[test]
fn results_are_the_same_every_time() {
    for name in ["tiny", "test"] {
        let source = model(name);
        let run = || {
            let (program, report) = optimise(&source, &target(), &Options::all()).unwrap();
            format!("{}\n{report}", ir::text::print(&program))
        };
        let first = run();
        for _ in 0..5 {
            assert_eq!(run(), first, "{name}");
        }
    }
}

/// Guessed rates must not matter: each is halved and half more, and all are in turn.
#[test]
fn results_do_not_hang_on_the_guesses_of_the_cost_model() {
    for name in ["tiny", "bitnet-2b-4t", "test", "7b"] {
        let source = model(name);
        let base = target();
        // How weights are packed is what the rates are there to decide.
        let options = two_bits();
        let (expected, _) = optimise(&source, &base, &options).unwrap();
        let products = |machine: &mut Machine, factor: f64, is_ternary: bool| {
            for rate in &mut machine.products {
                if (rate.weights == DType::T2) == is_ternary {
                    rate.one *= factor;
                    rate.many *= factor;
                }
            }
        };
        let rates: [&Perturb<'_>; 5] = [
            &|machine, factor| machine.read_gb_per_s *= factor,
            &|machine, factor| products(machine, factor, true),
            &|machine, factor| products(machine, factor, false),
            &|machine, factor| machine.f32_gflop_per_s *= factor,
            &|machine, factor| machine.step_us *= factor,
        ];
        for rate in 0..rates.len() {
            for factor in [0.5, 1.5] {
                let mut machine = base.machine.clone();
                rates[rate](&mut machine, factor);
                rates[(rate + 1) % rates.len()](&mut machine, 2.0 - factor);
                let (found, _) = optimise(&source, &base.clone().with_machine(machine), &options).unwrap();
                assert_eq!(ir::text::print(&found), ir::text::print(&expected), "{name}: rate {rate} times {factor}");
            }
        }
    }
}

/// Fewer bytes win where memory decides, fewer operations where arithmetic does; and what is asked for is done.
#[test]
fn weights_are_packed_in_the_way_that_is_faster() {
    let source = model("bitnet-2b-4t");
    let packed = |base3_one: f64, only: Option<TernaryLayout>| {
        let mut machine = target().machine.clone();
        machine.read_gb_per_s = 60.0;
        for rate in machine.products.iter_mut().filter(|rate| rate.activations == DType::Q8) {
            match rate.layout {
                Some(TernaryLayout::Tile16) => (rate.one, rate.many) = (50.0, 480.0),
                Some(TernaryLayout::Tile16Base3) => (rate.one, rate.many) = (base3_one, 440.0),
                _ => {}
            }
        }
        let options = Options { packing: only, ..Options::all() };
        let (program, report) = optimise(&source, &target().with_machine(machine), &options).unwrap();
        let ops = run_time_ops(program.graph("layer").unwrap());
        let count = |name: &str| ops.get(name).copied().unwrap_or_default();
        for packing in report.graphs.iter().flat_map(|graph| &graph.packings) {
            let best = packing.ways.iter().min_by_key(|way| way.cost).unwrap().layout;
            assert_eq!(packing.chosen, only.unwrap_or(best), "{packing}");
        }
        (count("ternary_matmul"), count("ternary_matmul_base3"))
    };
    assert_eq!(packed(70.0, None), (0, 4));
    assert_eq!(packed(50.0, None), (4, 0));
    assert_eq!(packed(50.0, Some(TernaryLayout::Tile16Base3)), (0, 4));
    assert_eq!(packed(70.0, Some(TernaryLayout::Tile16)), (4, 0));
}

#[test]
fn every_shipped_model_stays_within_the_limits() {
    for (name, _) in models::shipped() {
        let (_, report) = optimise(&model(name), &target(), &Options::all()).unwrap();
        for graph in &report.graphs {
            assert!(graph.extraction.proved, "{name} @{}: {:?}", graph.graph, graph.extraction);
            assert!(graph.cost_after <= graph.cost_before, "{name} @{}", graph.graph);
            for stage in &graph.stages {
                assert_eq!(stage.stop, Stop::Saturated, "{name} @{} {}", graph.graph, stage.stage);
                assert!(stage.nodes < 2_000, "{name} @{} {}: {} nodes", graph.graph, stage.stage, stage.nodes);
            }
        }
    }
}

#[test]
fn unknown_stages_are_refused_together() {
    let options = Options { stages: vec!["fuse".into(), "fuze".into(), "x".into()], ..Options::all() };
    let error = optimise(&model("tiny"), &target(), &options).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("fuze, x") && text.contains("canonicalise"), "{text}");
}

/// Numbers that are the same in each run, in -1..1 (Numerical Recipes' constants).
fn noise(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    f64::from((*state >> 40) as u32) / f64::from(1 << 23) - 1.0
}

fn random_tensor(ty: &Concrete, state: &mut u64) -> Tensor {
    Tensor::from_fn(ty, |_| match ty.dtype {
        DType::T2 => (noise(state) * 1.5).round(),
        DType::BF16 => ((noise(state) * 128.0).round() + 192.0) / 256.0,
        _ => f64::from(noise(state) as f32),
    })
}

/// The parameters of all rounds.
fn random_parameters(program: &Program) -> HashMap<String, Tensor> {
    let mut state = 3;
    let mut tensors = HashMap::new();
    for graph in &program.graphs {
        let rounds = if graph.name == program.entry().name { 1 } else { program.rounds(&graph.name) as u32 };
        for (value, key) in graph.params() {
            for round in 0..rounds {
                let ty = concrete(graph.ty(value), &HashMap::new());
                tensors.entry(key_of_round(key, Some(round))).or_insert_with(|| random_tensor(&ty, &mut state));
            }
        }
    }
    tensors
}

/// Two calls of 5 and 1 tokens.
fn logits(program: &Verified<Program>, parameters: &HashMap<String, Tensor>) -> Vec<Tensor> {
    let mut evaluator = Evaluator::new(program, parameters);
    let mut call = |ids: &[f64], first: usize| {
        let n = ids.len();
        let ints = |dims: &[usize], data: Vec<f64>| Tensor::of(DType::I32, dims, data);
        let inputs = [
            ints(&[n], ids.to_vec()),
            ints(&[n], vec![0.0; n]),
            ints(&[n], (first..first + n).map(|pos| pos as f64).collect()),
            ints(&[n, 2], vec![0.0; 2 * n]),
            ints(&[1], vec![n as f64 - 1.0]),
            Tensor::of(DType::F32, &[1, 4], vec![0.0; 4]),
            ints(&[1, 2], vec![0.0; 2]),
        ];
        evaluator.run(&inputs).unwrap().remove(0)
    };
    vec![call(&[5.0, 9.0, 200.0, 31.0, 7.0], 0), call(&[42.0], 5)]
}

/// Small models of both families, in every form that weights, scales, activations and biases have.
fn variants() -> Vec<(String, Verified<Program>)> {
    let bitnet = models::find_shipped("tiny").unwrap();
    let tritter = models::find_shipped("test").unwrap();
    let tritter = tritter
        .replace("vocab: 65536", "vocab: 267")
        .replace("hidden: 256", "hidden: 24")
        .replace("width: 512", "width: 20");
    let linears = [
        "weights: packed, scale: multiplies(bf16), activations: int8",
        "weights: packed, scale: multiplies(f32), activations: int8, scaled_biases: true",
        "weights: packed, scale: divides(bf16), activations: int8",
        "weights: packed, scale: row(f32), activations: f32",
        "weights: packed, scale: row(f32), activations: int8, scaled_biases: true",
        "weights: absmean(f32), scale: derived, activations: int8",
        "weights: absmean(bf16), scale: derived, activations: f32",
        "weights: threshold_row(f32), scale: row(f32), activations: f32",
    ];
    let mut programs = Vec::new();
    for spec in [bitnet, &tritter] {
        let (before, after) = (spec.find("linear: (").unwrap() + 9, spec.find("activations: int8").unwrap() + 17);
        for linear in linears {
            programs.push((linear.to_owned(), build(&format!("{}{linear}{}", &spec[..before], &spec[after..]))));
        }
    }
    programs
}

#[test]
fn optimised_models_compute_what_their_sources_do() {
    for (name, source) in variants() {
        let parameters = random_parameters(&source);
        let expected = logits(&source, &parameters);
        for options in [Options::all(), Options { exactness: Exactness::Exact, ..Options::all() }, Options::none()] {
            let (program, _) = optimise(&source, &target(), &options).unwrap();
            for (expected, found) in expected.iter().zip(logits(&program, &parameters)) {
                let norm = |data: &mut dyn Iterator<Item = f64>| data.map(|x| x * x).sum::<f64>().sqrt();
                let error = norm(&mut expected.data.iter().zip(&found.data).map(|(left, right)| left - right));
                let size = norm(&mut expected.data.iter().copied());
                // The evaluator computes in f64, so what is rounded elsewhere is far below the width of an int8 code.
                assert!(error <= 1e-6 * size, "{name}: {error} of {size}");
                let is_exact = options.exactness == Exactness::Exact || options.stages.is_empty();
                assert!(!is_exact || error == 0.0, "{name}: {error} of {size}");
            }
        }
    }
}

#[test]
fn every_form_of_a_layer_becomes_four_sweeps() {
    for (name, source) in variants() {
        let (program, report) = optimise(&source, &target(), &two_bits()).unwrap();
        let ops = run_time_ops(program.graph("layer").unwrap());
        assert_eq!(ops["ternary_matmul"], 4, "{name}: {ops:?}");
        assert!(
            ["matmul", "mul", "div", "unpack", "dequantize"].iter().all(|op| !ops.contains_key(op)),
            "{name}: {ops:?}"
        );
        assert!(report.graphs.iter().all(|graph| graph.extraction.proved), "{name}: {report}");
    }
}

/// Merging must not stop at one block of a kind, and the search must not blow up with their number.
#[test]
fn a_layer_of_many_blocks_is_extracted_as_well() {
    let spec = models::find_shipped("tiny").unwrap();
    let (start, end) = (spec.find("        attention(").unwrap(), spec.find("    ],").unwrap());
    let spec = format!("{}{}{}", &spec[..start], spec[start..end].repeat(4), &spec[end..]);
    let (program, report) = optimise(&build(&spec), &target(), &two_bits()).unwrap();
    let ops = run_time_ops(program.graph("layer").unwrap());
    assert_eq!(ops["ternary_matmul"], 16, "{report}");
    assert_eq!(ops["rms_norm_quantize"], 16, "{report}");
    println!("{report}");
}

#[test]
fn every_value_of_a_layer_can_be_explained_and_each_step_checks() {
    for name in ["tiny", "test"] {
        let program = model(name);
        let graph = program.graph("layer").unwrap();
        for value in ["attention.q", "attention.v.heads", "ffn.inner", "ffn.down"] {
            let (id, _) = graph.values.iter().find(|(_, found)| found.name.as_deref() == Some(value)).unwrap();
            let explanation = explain(&program, "layer", id, &target(), &Options::all()).unwrap();
            println!("{name} {value}:\n{explanation}");
            assert!(explanation.is_checked(), "{name} {value}:\n{explanation}");
            let rules: Vec<&str> = explanation.steps.iter().map(|step| step.rule.as_str()).collect();
            assert!(rules.contains(&"matmul-unpacked") && rules.contains(&"absorb-scale"), "{name} {value}: {rules:?}");
            assert!(
                rules.contains(&"merge-ternary-matmuls") || value.starts_with("ffn.down"),
                "{name} {value}: {rules:?}"
            );
        }
    }
}

#[test]
fn what_is_not_there_cannot_be_explained() {
    let program = model("tiny");
    let error = explain(&program, "nowhere", "v3".parse().unwrap(), &target(), &Options::all()).unwrap_err();
    assert!(error.to_string().contains("`nowhere`"), "{error}");
    let error = explain(&program, "layer", "v9999".parse().unwrap(), &target(), &Options::all()).unwrap_err();
    assert!(error.to_string().contains("v9999"), "{error}");
}
