//! Predicted times of plans beside what was measured: figures of README.md and `runtime/results`.

use compiler::rewrite;
use compiler::schedule::Residency;
use compiler::target::Card;
use ir::plan::Budget;
use ir::plan::CallSizes;
use models::spec::KvFormat;
use models::{BuildOptions, HeadFormat, Naming};
use tritter_compiler as compiler;

/// The largest part that a prediction may be off by.
const BOUND: f64 = 0.15;

#[test]
fn a_card_s_plan_takes_as_long_as_was_measured() {
    let text = models::find_shipped("bitnet-2b-4t").expect("it is shipped");
    let spec = models::spec::read(text).expect("shipped specs are well formed");
    let options = BuildOptions {
        context: 4096,
        sequences: 8,
        chunk: 4096,
        logits: 64,
        kv: KvFormat::Bf16,
        head: HeadFormat::Int8,
        naming: Naming::Own,
    };
    let model = models::build(&spec, &options).expect("the options fit the spec");
    let planning = compiler::PlanningOptions {
        rewrite: rewrite::Options::all(),
        context: 4096,
        sequences: 8,
        residency: Residency::default(),
        budget: Budget::default(),
    };
    // Milliseconds on an H100 80GB HBM3 and on an H200, 2026-11-23.
    let of_h100 = [
        ("decode behind 512 to 768 tokens", CallSizes::behind(672, 1), 0.756),
        ("decode behind 4,068 to 4,080", CallSizes::behind(4074, 1), 0.942),
        ("8 sequences behind 512 to 536", CallSizes { tokens: 8, rows: 8, keys: 8 * 525 }, 1.066),
        ("prefill of 512", CallSizes::behind(0, 512), 4.48),
        ("prefill of 4,064", CallSizes::behind(0, 4064), 26.7),
    ];
    let of_h200 = [
        ("decode behind 512 to 768 tokens", CallSizes::behind(672, 1), 0.720),
        ("8 sequences behind 512 to 536", CallSizes { tokens: 8, rows: 8, keys: 8 * 525 }, 1.003),
        ("prefill of 512", CallSizes::behind(0, 512), 4.10),
    ];
    for (card, calls) in [("H100", &of_h100[..]), ("H200", &of_h200[..])] {
        let target = Card::find(card).expect("it is in the table").target();
        let planned = compiler::plan(&model.program, &target, &planning).expect("it can be planned");
        for (what, sizes, measured) in calls {
            let predicted = planned.plan.predict_call(*sizes).expect("a phase takes it").total() as f64 / 1e6;
            let error = predicted / measured - 1.0;
            println!("{card}, {what}: predicted {predicted:.3} ms, measured {measured:.3} ms, {:+.1} %", error * 100.0);
            assert!(error.abs() < BOUND, "{card}, {what}: predicted {predicted} ms, measured {measured} ms");
        }
    }
}
