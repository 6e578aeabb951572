//! Predicted times of plans beside what was measured on cards, with `tritter bench`: the loop in README.md repeats it.

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

/// A model as it was compiled, and the milliseconds of its calls.
struct Measured {
    card: &'static str,
    model: &'static str,
    kv: KvFormat,
    head: HeadFormat,
    context: u32,
    sequences: u32,
    chunk: u32,
    /// Layers that are streamed from the host's memory.
    streamed: u32,
    host_embedding: bool,
    /// Pieces of a streamed layer.
    split: u32,
    packs_copies: bool,
    calls: &'static [(CallSizes, f64)],
}

const PLAIN: Measured = Measured {
    card: "H100",
    model: "",
    kv: KvFormat::Bf16,
    head: HeadFormat::Stored,
    context: 4096,
    sequences: 1,
    chunk: 512,
    streamed: 0,
    host_embedding: false,
    split: 3,
    packs_copies: false,
    calls: &[],
};

/// A token behind so many.
const fn one(before: u64) -> CallSizes {
    CallSizes { tokens: 1, rows: 1, keys: before + 1 }
}

/// A prompt behind so many tokens.
const fn prompt(before: u64, tokens: u64) -> CallSizes {
    CallSizes { tokens, rows: 1, keys: before * tokens + tokens * (tokens + 1) / 2 }
}

/// A token for each of eight sequences, each behind so many.
const fn eight(before: u64) -> CallSizes {
    CallSizes { tokens: 8, rows: 8, keys: 8 * (before + 1) }
}

/// An H100 80GB HBM3 and an H200, 2026-11-23, and 2026-11-24 where there are eight.
const MEASURED: &[Measured] = &[
    Measured { model: "125m", context: 2048, calls: &[(one(552), 0.327), (prompt(0, 512), 0.980)], ..PLAIN },
    Measured { model: "350m", context: 2048, calls: &[(one(552), 0.579), (prompt(0, 512), 2.125)], ..PLAIN },
    Measured { model: "1b", calls: &[(one(552), 0.565), (prompt(0, 512), 2.422)], ..PLAIN },
    Measured { model: "3b", calls: &[(one(552), 0.978), (prompt(0, 512), 4.629)], ..PLAIN },
    Measured { model: "7b", calls: &[(one(552), 1.449), (prompt(0, 512), 8.437)], ..PLAIN },
    Measured { model: "10b", calls: &[(one(552), 2.188), (prompt(0, 512), 13.439)], ..PLAIN },
    Measured {
        model: "13b",
        kv: KvFormat::Int4,
        head: HeadFormat::Int8,
        calls: &[(one(552), 2.764), (prompt(0, 512), 16.102)],
        ..PLAIN
    },
    Measured {
        model: "3b",
        kv: KvFormat::Int4,
        head: HeadFormat::Int8,
        context: 131_072,
        calls: &[
            (one(1_528), 1.111),
            (one(30_528), 1.901),
            (one(120_528), 4.378),
            (prompt(1_000, 512), 5.253),
            (prompt(30_000, 512), 21.09),
            (prompt(120_000, 512), 68.35),
        ],
        ..PLAIN
    },
    Measured {
        model: "bitnet-2b-4t",
        head: HeadFormat::Int8,
        sequences: 8,
        chunk: 4096,
        calls: &[
            (one(592), 0.763),
            (one(4_074), 0.942),
            (eight(525), 0.977),
            (prompt(0, 512), 4.31),
            (prompt(0, 4_064), 26.7),
        ],
        ..PLAIN
    },
    Measured {
        card: "H200",
        model: "bitnet-2b-4t",
        head: HeadFormat::Int8,
        sequences: 8,
        chunk: 4096,
        calls: &[(one(672), 0.720), (eight(525), 0.900), (prompt(0, 512), 4.10)],
        ..PLAIN
    },
    Measured {
        model: "bitnet-2b-4t",
        kv: KvFormat::F32,
        head: HeadFormat::Int8,
        streamed: 4,
        calls: &[(one(552), 1.70), (prompt(0, 512), 4.94)],
        ..PLAIN
    },
    Measured {
        model: "bitnet-2b-4t",
        kv: KvFormat::F32,
        head: HeadFormat::Int8,
        streamed: 30,
        calls: &[(one(552), 11.05), (prompt(0, 512), 10.52)],
        ..PLAIN
    },
    Measured { model: "1b", streamed: 6, calls: &[(one(552), 1.795)], ..PLAIN },
    Measured { model: "3b", streamed: 26, calls: &[(one(552), 11.40), (prompt(0, 512), 11.07)], ..PLAIN },
    Measured {
        model: "7b",
        kv: KvFormat::Int4,
        streamed: 20,
        host_embedding: true,
        calls: &[(one(552), 19.42), (prompt(0, 512), 19.19)],
        ..PLAIN
    },
    Measured { model: "10b", streamed: 10, calls: &[(one(552), 11.55), (prompt(0, 512), 14.35)], ..PLAIN },
    Measured {
        model: "30b",
        kv: KvFormat::Int4,
        head: HeadFormat::Int8,
        streamed: 27,
        host_embedding: true,
        calls: &[(one(552), 65.8), (prompt(0, 512), 67.3)],
        ..PLAIN
    },
    Measured {
        model: "70b",
        kv: KvFormat::Int4,
        head: HeadFormat::Int8,
        streamed: 23,
        host_embedding: true,
        calls: &[(one(532), 91.5), (prompt(0, 512), 91.7)],
        ..PLAIN
    },
    // These had no part in fitting the table's rates, but for the time of a parcel's copy and the rate of attention for one token.
    Measured {
        model: "350m",
        kv: KvFormat::Int4,
        context: 2048,
        calls: &[(one(552), 0.647), (prompt(0, 512), 2.137)],
        ..PLAIN
    },
    Measured { model: "1b", kv: KvFormat::K8v4, calls: &[(one(552), 0.587), (prompt(0, 512), 2.562)], ..PLAIN },
    Measured {
        model: "bitnet-2b-4t",
        kv: KvFormat::Int4,
        head: HeadFormat::Int4,
        calls: &[(one(552), 0.843), (prompt(0, 512), 4.503)],
        ..PLAIN
    },
    Measured {
        model: "bitnet-2b-4t",
        kv: KvFormat::K8v4,
        head: HeadFormat::Int8,
        streamed: 12,
        packs_copies: true,
        calls: &[(one(552), 3.384), (prompt(0, 512), 5.417)],
        ..PLAIN
    },
    Measured {
        model: "bitnet-2b-4t",
        kv: KvFormat::F32,
        head: HeadFormat::Int8,
        streamed: 30,
        packs_copies: true,
        calls: &[(one(552), 8.117)],
        ..PLAIN
    },
    Measured {
        model: "7b",
        kv: KvFormat::Int4,
        context: 32_768,
        calls: &[(one(552), 1.474), (prompt(0, 512), 8.443), (one(20_528), 1.870), (prompt(20_000, 512), 21.91)],
        ..PLAIN
    },
    Measured {
        model: "70b",
        kv: KvFormat::Int4,
        head: HeadFormat::Int8,
        streamed: 23,
        host_embedding: true,
        split: 4,
        packs_copies: true,
        calls: &[(one(532), 75.2), (prompt(0, 512), 80.4)],
        ..PLAIN
    },
];

#[test]
fn a_card_s_plan_takes_as_long_as_was_measured() {
    let mut wrong = Vec::new();
    for measured in MEASURED {
        let Measured { card, model, kv, head, context, sequences, chunk, streamed, calls, .. } = *measured;
        let Measured { host_embedding, split, packs_copies, .. } = *measured;
        let text = models::find_shipped(model).expect("it is shipped");
        let spec = models::spec::read(text).expect("shipped specs are well formed");
        let options =
            BuildOptions { context, sequences, chunk, logits: 1.max(sequences), kv, head, naming: Naming::Own };
        let built = models::build(&spec, &options).expect("the options fit the spec");
        let planning = compiler::PlanningOptions {
            rewrite: rewrite::Options::all(),
            context: context.into(),
            sequences: sequences.into(),
            residency: Residency { streamed, split, slots: 3, host_embedding, packs_copies, ..Residency::default() },
            budget: Budget::default(),
        };
        let target = Card::find(card).expect("it is in the table").target();
        let plan = compiler::plan(&built.program, &target, &planning).expect("it can be planned").plan;
        for &(sizes, taken) in calls {
            let time = plan.predict_call(sizes).expect("a phase takes it");
            let predicted = time.beside(plan.copy_ns()) as f64 / 1e6;
            let error = predicted / taken - 1.0;
            let line = format!(
                "{card}, {model} with {streamed} layers streamed, {sizes:?}: {predicted:.3} ms, measured {taken:.3} ms, {:+.1} %",
                error * 100.0
            );
            println!("{line}");
            if BOUND <= error.abs() {
                wrong.push(line);
            }
        }
    }
    assert!(wrong.is_empty(), "off by more than {BOUND}:\n{}", wrong.join("\n"));
}
