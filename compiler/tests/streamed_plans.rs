//! Plans with streamed layers keep their rules however layers are cut, on a GPU as on a CPU: what a step reads is in the slots all at once.

use compiler::rewrite;
use compiler::schedule::Residency;
use compiler::target::{Card, Target};
use ir::plan::{Budget, check};
use models::spec::KvFormat;
use models::{BuildOptions, HeadFormat, Naming};
use tritter_compiler as compiler;

#[test]
fn what_a_step_reads_is_there_at_once() {
    let mut wrong = Vec::new();
    for model in ["tiny", "bitnet-2b-4t", "7b", "70b"] {
        let text = models::find_shipped(model).expect("it is shipped");
        let spec = models::spec::read(text).expect("shipped specs are well formed");
        let options = BuildOptions {
            context: spec.context.min(256),
            sequences: 1,
            chunk: 24,
            logits: 1,
            kv: KvFormat::Bf16,
            head: HeadFormat::Stored,
            naming: Naming::Own,
        };
        let built = models::build(&spec, &options).expect("the options fit the spec");
        let gpu = Card::find("H100").expect("it is in the table").target();
        let cpu: Target = "x86_64:avx2".parse().expect("it is a target");
        for (target, packs_copies) in [(&gpu, true), (&gpu, false), (&cpu, false)] {
            for split in [1, 2, 3, 4, 8] {
                for slots in [2, 3, 4, 6].into_iter().filter(|slots| Residency::least_slots(split) <= *slots) {
                    let streamed = spec.layers.min(3);
                    let residency = Residency { streamed, split, slots, packs_copies, ..Residency::default() };
                    let planning = compiler::PlanningOptions {
                        rewrite: rewrite::Options::all(),
                        context: 256,
                        sequences: 1,
                        residency,
                        budget: Budget::default(),
                    };
                    let errors = match compiler::plan(&built.program, target, &planning) {
                        Ok(planned) => check(&planned.plan).err().map(|errors| errors.to_string()),
                        Err(error) => Some(error.to_string()),
                    };
                    wrong.extend(errors.map(|errors| format!("{model} for {target}, {residency:?}: {errors}")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
