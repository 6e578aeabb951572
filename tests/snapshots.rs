//! What the compiler writes, as it was when somebody last looked at it: a plan, a report, programs, nests, code, and the help texts.
//!
//! `INSTA_UPDATE=always cargo test -p tritter-tests --test snapshots` writes down what comes out; with `INSTA_UPDATE=no` nothing is written.

use compiler::emit::nvrtc::Search;
use compiler::schedule::Residency;
use compiler::{Compiled, Options, rewrite};
use insta::assert_snapshot;
use ir::plan::Budget;
use tritter_tests::binary::Program;
use tritter_tests::session::{Build, Model};

/// The model of the tests for a target that every machine can compile for, with all dumps.
fn compiled(target: &str) -> Compiled {
    let build = Build { sequences: 2, chunk: 32, target: target.parse().unwrap(), ..Build::new(40) };
    let program = Model::shipped("tiny").unwrap().build(&build).unwrap().program;
    let options = Options {
        rewrite: rewrite::Options::all(),
        context: build.context.into(),
        sequences: build.sequences.into(),
        dumps: true,
        nvrtc: Search::default(),
        residency: Residency::default(),
        budget: Budget::default(),
        allow_spills: false,
    };
    compiler::compile(program, &build.target, &options).unwrap()
}

fn dump<'a>(compiled: &'a Compiled, name: &str) -> &'a str {
    let found = compiled.dumps.iter().find(|dump| dump.name.ends_with(name));
    let names: Vec<&str> = compiled.dumps.iter().map(|dump| dump.name.as_str()).collect();
    &found.unwrap_or_else(|| panic!("there is no {name} among {names:?}")).text
}

#[test]
fn a_small_model_goes_through_all_stages() {
    let compiled = compiled("x86_64");
    assert_snapshot!("tiny_source", dump(&compiled, "source.tri"));
    assert_snapshot!("tiny_optimised", dump(&compiled, "optimised.tri"));
    assert_snapshot!("tiny_rewriting", dump(&compiled, "rewriting.txt"));
    assert_snapshot!("tiny_nests", dump(&compiled, "nests.txt"));
    assert_snapshot!("tiny_plan", compiled.plan.to_ron());
    assert_snapshot!("tiny_report", compiled.report.to_string());
}

/// The kernel of a norm and of what follows it: reductions, elementwise work and a quantiser in one.
#[test]
fn generated_code_is_as_it_was_for_every_target() {
    for (target, name) in
        [("x86_64", "norm_clif_x86_64"), ("x86_64:avx2", "norm_clif_avx2"), ("aarch64:neon", "norm_clif_neon")]
    {
        let compiled = compiled(target);
        let listing = compiled.code.listings.iter().find(|listing| listing.name == "layer_attention_norm_q8");
        let names: Vec<&str> = compiled.code.symbols.iter().map(|symbol| symbol.name.as_str()).collect();
        let listing = listing.unwrap_or_else(|| panic!("no such kernel among {names:?}"));
        assert_snapshot!(name, listing.clif);
    }
}

/// One file a program: what is said, and in which order.
#[test]
fn help_texts_are_as_they_were() {
    for (program, name, commands) in [
        (Program::Tritterc, "help_tritterc", &["compile", "print", "verify", "opt", "explain", "emit", "diff"][..]),
        (Program::Tritter, "help_tritter", &["run", "logits", "eval", "compare", "bench"]),
    ] {
        let mut text = program.succeed(&["--help"]);
        for command in commands {
            text += &format!("\n--- {command}\n\n{}", program.succeed(&[command, "--help"]));
        }
        // No default depends on the machine but the count of threads, which is not shown.
        assert_snapshot!(name, text);
    }
}
