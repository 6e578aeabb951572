//! What the optimiser makes of whole models: the ops of a layer, the same result every time, and how long it takes.

use std::collections::BTreeMap;

use compiler::Target;
use compiler::rewrite::{Options, Stop, optimise};
use compiler::target::Machine;
use ir::graph::Def;
use ir::{Graph, Program, Verified};
use models::spec::KvFormat;
use models::{BuildOptions, Naming};

fn model(name: &str) -> Verified<Program> {
    let spec = models::spec::read(models::find_shipped(name).expect("a shipped spec")).unwrap();
    let context = spec.context.min(256);
    let options =
        BuildOptions { context, sequences: 1, chunk: 128, logits: 16, kv: KvFormat::Int4, naming: Naming::Tritter };
    models::build(&spec, &options).unwrap().program
}

fn target() -> Target {
    "x86_64:avx2".parse().unwrap()
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
        let (program, report) = optimise(&model(name), &target(), &Options::all()).unwrap();
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
        let (program, report) = optimise(&model(name), &target(), &Options::all()).unwrap();
        let ops = run_time_ops(program.graph("layer").unwrap());
        println!("{report}");
        assert_eq!(ops["ternary_matmul"], 4, "{name}: {ops:?}");
        assert_eq!(ops["add_layer_norm"], 1, "{name}: {ops:?}");
        assert_eq!(ops["relu2_mul"], 1, "{name}: {ops:?}");
        assert!(!ops.contains_key("matmul") && !ops.contains_key("mul") && !ops.contains_key("unpack"), "{name}: {ops:?}");
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
            graph.updates.iter().map(|update| (graph.label(update.state), graph.label(update.value))).collect::<Vec<_>>()
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
        let (expected, _) = optimise(&source, &base, &Options::all()).unwrap();
        let rates: [fn(&mut Machine) -> &mut f64; 6] = [
            |machine| &mut machine.read_gb_per_s,
            |machine| &mut machine.int8_gmac_per_s,
            |machine| &mut machine.f32_gmac_per_s,
            |machine| &mut machine.f32_gflop_per_s,
            |machine| &mut machine.launch_us,
            |machine| &mut machine.barrier_us,
        ];
        for rate in 0..rates.len() {
            for factor in [0.5, 1.5] {
                let mut machine = base.machine;
                *rates[rate](&mut machine) *= factor;
                *rates[(rate + 1) % rates.len()](&mut machine) *= 2.0 - factor;
                let (found, _) = optimise(&source, &base.clone().with_machine(machine), &Options::all()).unwrap();
                assert_eq!(ir::text::print(&found), ir::text::print(&expected), "{name}: rate {rate} times {factor}");
            }
        }
    }
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
