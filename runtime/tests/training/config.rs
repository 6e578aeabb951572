//! Configurations: what is read, and that all errors are told at once.

use std::path::Path;

use runtime::training::config::{Config, Recipe, Validation};
use runtime::training::schedule::{Curve, Schedule, Stage};

fn read(text: &str) -> Result<Config, Vec<String>> {
    let result = Config::from_ron(text, Path::new("base"));
    result.map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// The example of the module's documentation.
fn example() -> String {
    let source = include_str!("../../src/training/config.rs");
    let lines = source.lines().skip_while(|line| *line != "//! ```ron").skip(1).take_while(|line| *line != "//! ```");
    lines.map(|line| format!("{}\n", line.trim_start_matches("//!"))).collect()
}

#[test]
fn the_example_is_read_as_it_says() {
    let config = read(&example()).unwrap();
    let first = Stage { until: 0.5, rate: (1.5e-3, 8e-4), decay: (0.1, 0.0), curve: Curve::Cosine };
    let second = Stage { until: 1.0, rate: (5e-4, 0.0), decay: (0.0, 0.0), curve: Curve::Linear };
    let schedule = Schedule { warm_up: 375, stages: vec![first, second] };
    let expected = Config {
        artifact: "base/step".into(),
        shards: vec!["base/data".into()],
        out: "base/runs/nano".into(),
        recipe: Recipe { seed: 1, steps: 1000, batch: 524_288, schedule },
        checkpoint_every: 100,
        keep: 3,
        validation: Some(Validation { every: 100, batches: 16 }),
    };
    assert_eq!(config, expected);
}

#[test]
fn what_may_be_left_out_has_defaults() {
    let text = "(artifact: \"/a\", shards: [\"d\"], out: \"o\", steps: 5, batch: 8, schedule: (stages: [(until: 1, rate: (1, 0))]))";
    let config = read(text).unwrap();
    assert_eq!(config.artifact, Path::new("/a"));
    assert_eq!((config.recipe.seed, config.checkpoint_every, config.keep, config.validation), (0, 1000, 3, None));
    assert_eq!(config.recipe.schedule.stages[0].rate, (1.0, 0.0));
}

#[test]
fn all_errors_are_told_at_once() {
    let text = "(artifact: 3, shards: \"data\", sed: 1, steps: -5, batch: 2.5,
        schedule: (warm_up: 1, stages: [(until: \"x\", rate: 1e-3), (rate: (1, 2, 3), curve: \"sine\")]),
        checkpoint: (keep: 2), validation: 7)";
    assert_eq!(
        read(text).unwrap_err(),
        [
            "artifact: must be a text in double quotes that is not empty",
            "shards: must be a list, `[..]`",
            "out: is missing",
            "steps: must be a whole number, 0 or more",
            "batch: must be a whole number, 0 or more",
            "schedule.stages[0].until: must be a number",
            "schedule.stages[0].rate: must be two numbers, `(from, to)`",
            "schedule.stages[1].until: is missing",
            "schedule.stages[1].rate: must be two numbers, `(from, to)`",
            "schedule.stages[1].curve: must be \"linear\" or \"cosine\"",
            "checkpoint.every: is missing",
            "validation: must be a group of fields, `(name: value, ..)`",
            "sed: there is no such field",
        ]
    );
    let text = "(artifact: \"a\", shards: [], out: \"o\", steps: 0, batch: 0, checkpoint: (every: 0, keep: 0),
        validation: (every: 0, batches: 0), schedule: (warm_up: 9, stages: [
            (until: 0.5, rate: (-1, 0)), (until: 0.25, rate: (1, inf)), (until: 0.75, rate: (1, 1))]))";
    assert_eq!(
        read(text).unwrap_err(),
        [
            "steps: must be at least 1",
            "batch: must be at least 1",
            "checkpoint.every: must be at least 1",
            "checkpoint.keep: must be at least 1",
            "validation.every: must be at least 1",
            "validation.batches: must be at least 1",
            "shards: there must be one at least",
            "schedule.stages[0].rate: is (-1, 0), neither may be below 0, or more than f32 holds",
            "schedule.stages[1].until: is 0.25, it must be above 0.5 and at most 1",
            "schedule.stages[1].rate: is (1, inf), neither may be below 0, or more than f32 holds",
            "schedule.stages[2].until: is 0.75, but the last stage goes on until 1",
            "schedule.warm_up: is 9, but the first stage ends after 0 of 0 steps",
        ]
    );
}

#[test]
fn what_is_no_ron_is_told_with_its_place() {
    let problems = read("(\n  steps: ,\n)").unwrap_err();
    assert!(problems.len() == 1 && problems[0].starts_with("line 2:"), "{problems:?}");
    assert!(read("[1, 2]").unwrap_err()[0].starts_with("the file: must be a group"));
    assert!(!read("").unwrap_err().is_empty());
}

#[test]
fn a_step_is_a_whole_number_of_calls() {
    let mut config = read(&example()).unwrap();
    assert!(config.problems_for(1 << 16).is_empty());
    config.recipe.batch = 100;
    let problems: Vec<String> = config.problems_for(64).iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["batch: is 100, it must be a multiple of the 64 tokens of the artifact's calls"]);
    assert!(!config.problems_for(0).is_empty());
}

#[test]
fn recipes_say_where_they_differ() {
    let here = read(&example()).unwrap().recipe;
    let mut there = here.clone();
    assert!(here.differences(&there).is_empty());
    (there.seed, there.schedule.stages[1].rate.0) = (2, 4e-4);
    let differences = here.differences(&there);
    assert_eq!(differences[0], ["seed", "1", "2"].map(str::to_owned));
    assert_eq!((differences.len(), differences[1][0].as_str()), (2, "schedule"));
}
