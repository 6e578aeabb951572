//! Plans with streamed layers keep their rules however layers are cut, on a GPU as on a CPU: what a step reads is in the slots all at once.

use compiler::rewrite;
use compiler::schedule::Residency;
use compiler::target::{Card, Target};
use ir::entity::Id;
use ir::plan::{Budget, KernelId, Plan, Source, Transit, check};
use ir::{Program, Verified};
use models::spec::KvFormat;
use models::{BuildOptions, HeadFormat, Naming};
use tritter_compiler as compiler;

/// A shipped model and what is planned for it, but for where its weights are.
struct Model {
    spec: models::spec::Spec,
    program: Verified<Program>,
}

impl Model {
    fn new(name: &str) -> Self {
        let text = models::find_shipped(name).expect("it is shipped");
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
        let program = models::build(&spec, &options).expect("the options fit the spec").program;
        Self { spec, program }
    }

    fn plan(&self, target: &Target, residency: Residency) -> Result<Plan, compiler::CompileError> {
        let planning = compiler::PlanningOptions {
            rewrite: rewrite::Options::all(),
            context: self.spec.context.min(256).into(),
            sequences: 1,
            residency,
            budget: Budget::default(),
        };
        compiler::plan(&self.program, target, &planning).map(|planned| planned.plan)
    }
}

fn gpu() -> Target {
    Card::find("H100").expect("it is in the table").target()
}

#[test]
fn what_a_step_reads_is_there_at_once() {
    let cpu: Target = "x86_64:avx2".parse().expect("it is a target");
    let mut wrong = Vec::new();
    for name in ["tiny", "bitnet-2b-4t", "7b", "70b"] {
        let model = Model::new(name);
        for (target, packs_copies) in [(&gpu(), true), (&gpu(), false), (&cpu, false)] {
            for split in [1, 2, 3, 4, 8] {
                for slots in [2, 3, 4, 6].into_iter().filter(|slots| Residency::least_slots(split) <= *slots) {
                    let streamed = model.spec.layers.min(3);
                    let residency = Residency { streamed, split, slots, packs_copies, ..Residency::default() };
                    let errors = match model.plan(target, residency) {
                        Ok(plan) => check(&plan).err().map(|errors| errors.to_string()),
                        Err(error) => Some(error.to_string()),
                    };
                    wrong.extend(errors.map(|errors| format!("{name} for {target}, {residency:?}: {errors}")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A plan of the tiny model for a GPU with all layers streamed in parcels.
fn in_parcels(split: u32, slots: u32) -> Result<Plan, compiler::CompileError> {
    let model = Model::new("tiny");
    let streamed = model.spec.layers;
    model.plan(&gpu(), Residency { streamed, split, slots, packs_copies: true, ..Residency::default() })
}

/// What is changed of a plan's parcels.
type Change = fn(&mut Transit, &mut Source);

#[test]
fn parcels_that_are_not_those_of_the_pieces_are_refused() {
    let plan = in_parcels(3, 3).expect("three slots are enough");
    let parcels: u64 = plan.placement.copied_bytes().sum();
    let pieces: u64 = plan.placement.pieces().map(|(segment, _)| segment.bytes).sum();
    assert!(parcels != pieces && plan.placement.streamed_bytes() == parcels);
    let refused = |change: Change| {
        let mut plan = plan.clone();
        let mut transit = plan.placement.transit.take().expect("it has parcels");
        change(&mut transit, &mut plan.placement.source);
        plan.placement.transit = Some(transit);
        check(&plan).expect_err("the plan was changed").to_string()
    };
    let of_parcels = "travels in other bytes";
    let of_places = "parcels need at least two places";
    let changes: [(Change, &str); 9] = [
        (|transit, _| transit.parcels[1] += 64, of_parcels),
        (|transit, _| transit.parcels.truncate(1), of_parcels),
        // Parcels take places in turn: each has to fit into each.
        (|transit, _| transit.places[1].bytes = 1024, of_parcels),
        (|transit, _| transit.places.truncate(1), of_places),
        (|transit, _| transit.blocks = 0, of_places),
        (|transit, _| transit.kernel = KernelId::new(9999), of_places),
        (|_, source| *source = Source::Disk { buffers: 3 }, of_places),
        (|transit, _| transit.places[1].offset = transit.places[0].offset, "does not lie after the one before it"),
        (|transit, _| transit.places[0].offset = 0, "does not lie after the one before it"),
    ];
    for (change, wanted) in changes {
        let found = refused(change);
        assert!(found.contains(wanted), "{found}");
    }
}

#[test]
fn too_few_slots_are_refused_with_how_many_do() {
    let error = in_parcels(3, 2).expect_err("a step may read two pieces").to_string();
    assert!(error.contains("at least 3 slots"), "{error}");
}
