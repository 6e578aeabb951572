//! Runs: what they keep, and that one which went on is the same as one which never stopped.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use runtime::RuntimeError;
use runtime::training::Trainer;
use runtime::training::batches::{Batches, Position, Size};
use runtime::training::checkpoint::{self, Progress};
use runtime::training::config::{Config, Recipe, Validation};
use runtime::training::corpus::{Corpus, Split};
use runtime::training::run::{Ending, Event, Job, train};
use runtime::training::schedule::{Curve, Schedule, Stage};
use runtime::training::storage::Storage;
use tempfile::TempDir;

use crate::broken::Disk;
use crate::toy::{TOKENS, Toy, write_documents};

/// Documents, and a run over them.
pub(crate) struct Setup {
    pub(crate) dir: TempDir,
    pub(crate) config: Config,
    train: Corpus,
    validation: Corpus,
}

impl Setup {
    pub(crate) fn new(steps: u64) -> Self {
        let dir = TempDir::new().unwrap();
        write_documents(dir.path());
        Self::in_dir(steps, dir)
    }

    fn in_dir(steps: u64, dir: TempDir) -> Self {
        let (train, validation) = corpora(dir.path());
        Self { config: config(dir.path(), steps), dir, train, validation }
    }

    pub(crate) fn out(&self) -> &Path {
        &self.config.out
    }

    pub(crate) fn job(&self) -> Job<'_> {
        Job {
            config: &self.config,
            artifact: "the artifact",
            train: &self.train,
            validation: &self.validation,
            resume: false,
            until: None,
        }
    }

    pub(crate) fn resumed(&self) -> Job<'_> {
        Job { resume: true, ..self.job() }
    }
}

pub(crate) fn corpora(dir: &Path) -> (Corpus, Corpus) {
    let open = |split| Corpus::open(&[dir.to_owned()], split, &mut |_, _| {}).unwrap();
    (open(Split::Train), open(Split::Validation))
}

pub(crate) fn config(dir: &Path, steps: u64) -> Config {
    let stage = |until, rate, decay| Stage { until, rate, decay, curve: Curve::Linear };
    let stages = vec![stage(0.5, (0.1, 0.05), (0.1, 0.0)), stage(1.0, (0.03, 0.0), (0.0, 0.0))];
    Config {
        artifact: "toy".into(),
        shards: vec![dir.to_owned()],
        out: dir.join("out"),
        recipe: Recipe { seed: 5, steps, batch: 3 * TOKENS as u64, schedule: Schedule { warm_up: 2, stages } },
        checkpoint_every: 4,
        keep: 2,
        validation: Some(Validation { every: 3, batches: 2 }),
    }
}

pub(crate) fn run(job: &Job<'_>, toy: &mut Toy, disk: &mut dyn Storage) -> Result<Ending, RuntimeError> {
    train(job, toy, disk, &mut |_| ControlFlow::Continue(()))
}

/// What was measured, letter by letter, without the times.
pub(crate) fn measured(out: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let timeless = |line: &str| {
        let (before, time) = line.split_once(",\"seconds\":").unwrap();
        format!("{before}{}", &time[time.find([',', '}']).unwrap()..])
    };
    text.lines().map(timeless).collect()
}

/// The lines of what was measured as values.
fn values(lines: &[String]) -> Vec<serde_json::Value> {
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a run knows of itself, without the time.
pub(crate) fn timeless(progress: &Progress) -> Progress {
    Progress { seconds: 0.0, ..progress.clone() }
}

/// All names in a directory.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// How 20 steps end that nothing disturbs.
pub(crate) struct Reference {
    pub(crate) states: Vec<Vec<u8>>,
    pub(crate) progress: Progress,
    pub(crate) measured: Vec<String>,
}

pub(crate) fn reference(steps: u64) -> Reference {
    let setup = Setup::new(steps);
    let mut toy = Toy::new();
    let ending = run(&setup.job(), &mut toy, &mut Disk::new()).unwrap();
    assert!(ending.is_done);
    Reference { states: toy.bytes(), progress: timeless(&ending.progress), measured: measured(setup.out()) }
}

impl Reference {
    #[track_caller]
    pub(crate) fn is_reached(&self, ending: &Ending, toy: &mut Toy, out: &Path) {
        assert!(ending.is_done);
        assert_eq!(timeless(&ending.progress), self.progress);
        assert_eq!(toy.bytes(), self.states);
        assert_eq!(measured(out), self.measured);
        // What is on the disk is what was in memory.
        let mut fresh = Toy::new();
        checkpoint::restore(&ending.checkpoint, &mut fresh).unwrap();
        assert_eq!(fresh.bytes(), self.states);
    }
}

#[test]
fn ten_steps_and_ten_more_are_twenty() {
    let reference = reference(20);
    // Told to stop, at a checkpoint and between two; and told again at once.
    for stops in [vec![10], vec![8], vec![1, 2, 3], vec![5, 5, 19]] {
        let setup = Setup::new(20);
        for (index, &until) in stops.iter().enumerate() {
            let job = Job { until: Some(until), resume: index != 0, ..setup.job() };
            let ending = run(&job, &mut Toy::new(), &mut Disk::new()).unwrap();
            assert_eq!((ending.progress.step, ending.is_done), (until, false));
            assert!(ending.checkpoint.is_dir());
        }
        let mut toy = Toy::new();
        let ending = run(&setup.resumed(), &mut toy, &mut Disk::new()).unwrap();
        reference.is_reached(&ending, &mut toy, setup.out());
    }
}

#[test]
fn a_run_learns_and_says_so() {
    let setup = Setup::new(60);
    let mut events = Vec::new();
    let ending = train(&setup.job(), &mut Toy::new(), &mut Disk::new(), &mut |event| {
        events.push(match event {
            Event::Began { step, from } => format!("began at {step} from {from:?}"),
            Event::Stepped { point, tokens_per_s } => {
                assert!(0.0 < *tokens_per_s);
                format!("step {}", point.step)
            }
            Event::Saved { checkpoint } => checkpoint.file_name().unwrap().to_string_lossy().into_owned(),
        });
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(events[..6], ["began at 0 from None", "step 1", "step 2", "step 3", "step-00000004", "step 4"]);
    assert_eq!(events.len(), 1 + 60 + 15);
    assert_eq!(ending.checkpoint, checkpoint::path(setup.out(), 60));

    let lines = values(&measured(setup.out()));
    assert_eq!(lines.len(), 60);
    let number = |line: usize, field: &str| lines[line][field].as_f64().unwrap();
    // Which of three documents' steps an id is in cannot be seen from the id alone, and `ln 3` is 1.1.
    assert!(number(59, "loss") < number(0, "loss") - 1.0, "{} {}", number(0, "loss"), number(59, "loss"));
    assert_eq!((lines[0]["step"].as_u64(), lines[0]["tokens"].as_u64()), (Some(1), Some(24)));
    // A third of 0.1 in the first of two steps of warm-up.
    assert!((number(0, "rate") - 0.1 / 3.0).abs() < 1e-12 && number(0, "decay") == 0.1);
    let validated = lines.iter().filter(|line| line.get("validation_loss").is_some());
    assert_eq!(
        validated.map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(),
        (3..=60).step_by(3).collect::<Vec<_>>()
    );

    // The last two of fifteen checkpoints, and the files beside them.
    let expected = [".lock", "metrics.jsonl", "report.html", "step-00000056", "step-00000060"];
    assert_eq!(names(setup.out()), expected);
    assert_eq!(names(&ending.checkpoint), ["run.ron", "states.safetensors"]);
    let page = std::fs::read_to_string(setup.out().join("report.html")).unwrap();
    for part in
        ["<title>toy, step 60</title>", "polyline class=\"line loss\"", "<circle class=\"validation\"", "60 of 60"]
    {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("NaN") && !page.contains("http"), "the page stands for itself");

    // Nothing is left to do, and nothing is done.
    let again = run(&setup.resumed(), &mut Toy::new(), &mut Disk::new()).unwrap();
    assert_eq!((&again.checkpoint, again.is_done), (&ending.checkpoint, true));
    assert_eq!(names(setup.out()), expected);
}

#[test]
fn looking_at_other_documents_changes_nothing() {
    let with = reference(10);
    let mut setup = Setup::new(10);
    setup.config.validation = None;
    let mut toy = Toy::new();
    run(&setup.job(), &mut toy, &mut Disk::new()).unwrap();
    assert_eq!(toy.bytes(), with.states);
    // It is the mean over all targets, from the same batches each time.
    let losses: Vec<f64> =
        values(&with.measured).iter().filter_map(|line| line.get("validation_loss")?.as_f64()).collect();
    assert_eq!(losses.len(), 4);
}

#[test]
fn whoever_breaks_gets_a_checkpoint() {
    let reference = reference(20);
    let setup = Setup::new(20);
    let ending = train(&setup.job(), &mut Toy::new(), &mut Disk::new(), &mut |event| match event {
        Event::Stepped { point, .. } if point.step == 7 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })
    .unwrap();
    assert_eq!((ending.progress.step, ending.is_done), (7, false));
    assert_eq!(ending.checkpoint, checkpoint::path(setup.out(), 7));
    let mut toy = Toy::new();
    let ending = run(&setup.resumed(), &mut toy, &mut Disk::new()).unwrap();
    reference.is_reached(&ending, &mut toy, setup.out());
}

#[test]
fn a_run_that_is_killed_at_any_write_goes_on() {
    let reference = reference(10);
    let counter = Disk::new();
    run(&Setup::new(10).job(), &mut Toy::new(), &mut counter.clone()).unwrap();
    let operations = counter.operations();
    assert!(60 < operations, "{operations}");
    for operation in 0..operations {
        let setup = Setup::new(10);
        run(&setup.job(), &mut Toy::new(), &mut Disk::dying(operation)).unwrap_err();
        // Killed again, while it goes on.
        let _ = run(&setup.resumed(), &mut Toy::new(), &mut Disk::dying(operation / 3));
        let mut toy = Toy::new();
        let ending = run(&setup.resumed(), &mut toy, &mut Disk::new()).unwrap();
        reference.is_reached(&ending, &mut toy, setup.out());
        let left = names(setup.out());
        assert!(left.iter().all(|name| !name.contains("step") || !name.ends_with(".partial")), "{left:?}");
    }
}

#[test]
fn a_full_disk_leaves_the_checkpoints_that_there_are() {
    let counter = Disk::new();
    run(&Setup::new(12).job(), &mut Toy::new(), &mut counter.clone()).unwrap();
    let reference = reference(12);
    let all = counter.bytes();
    let mut kept = 0;
    for room in (0..all).step_by(97) {
        let setup = Setup::new(12);
        let error = run(&setup.job(), &mut Toy::new(), &mut Disk::with_room(room)).unwrap_err();
        let newest = checkpoint::list(setup.out()).unwrap().pop();
        match (&error, &newest) {
            (RuntimeError::Save { newest: told, .. }, newest) => {
                assert_eq!(*told, newest.as_ref().map(|(_, path)| path.clone()));
                let text = error.to_string();
                assert!(text.contains("cannot write") && text.contains("checkpoint"), "{text}");
            }
            // The file of what is measured is made before the first step.
            (RuntimeError::Io { .. }, None) => {}
            _ => panic!("{error:?}"),
        }
        let left = names(setup.out());
        assert!(left.iter().all(|name| !name.ends_with(".partial")), "{left:?}");
        if let Some((_, newest)) = &newest {
            checkpoint::restore(newest, &mut Toy::new()).unwrap();
            kept += 1;
        }
        let mut toy = Toy::new();
        let ending = run(&setup.resumed(), &mut toy, &mut Disk::new()).unwrap();
        reference.is_reached(&ending, &mut toy, setup.out());
    }
    assert!(20 < kept, "{kept}");
}

/// The message and the checkpoint of a run that ended with no number.
fn diverged(setup: &Setup, toy: &mut Toy) -> (String, Option<PathBuf>) {
    match run(&setup.job(), toy, &mut Disk::new()) {
        Err(error @ RuntimeError::Diverged { .. }) => {
            let text = error.to_string();
            let RuntimeError::Diverged { checkpoint, .. } = error else { unreachable!("it was matched") };
            (text, checkpoint)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_before_the_update() {
    let mut setup = Setup::new(20);
    setup.config.validation = None;
    // The second batch of step 11: two steps behind a checkpoint.
    let mut toy = Toy::new();
    toy.bad_call = Some(10 * 3 + 1);
    let (text, checkpoint) = diverged(&setup, &mut toy);
    assert_eq!(checkpoint, Some(checkpoint::path(setup.out(), 8)));
    assert!(
        text.starts_with("step 11: the loss (NaN) is no finite number") && text.contains("step-00000008"),
        "{text}"
    );
    assert_eq!(measured(setup.out()).len(), 10);
    let mut ten = Setup::new(20);
    ten.config.validation = None;
    let mut expected = Toy::new();
    run(&Job { until: Some(10), ..ten.job() }, &mut expected, &mut Disk::new()).unwrap();
    assert_eq!(toy.bytes(), expected.bytes(), "step 11 changed nothing");

    let mut toy = Toy::new();
    toy.bad_call = Some(0);
    let (text, checkpoint) = diverged(&Setup::new(20), &mut toy);
    assert!(checkpoint.is_none() && text.contains("there is no checkpoint yet"), "{text}");
}

#[test]
fn states_that_are_no_numbers_are_not_kept() {
    let mut setup = Setup::new(20);
    setup.config.validation = None;
    let mut toy = Toy::new();
    // The update of step 8, whose checkpoint is due before anybody has seen what it did.
    toy.bad_update = Some(7);
    let (text, checkpoint) = diverged(&setup, &mut toy);
    assert_eq!(checkpoint, Some(checkpoint::path(setup.out(), 4)));
    assert!(text.starts_with("step 8: the state `logits"), "{text}");
    assert_eq!(names(setup.out()), [".lock", "metrics.jsonl", "report.html", "step-00000004"]);
}

#[test]
fn what_cannot_be_run_is_refused_before_anything_is_written() {
    let setup = Setup::new(20);
    let mut config = setup.config.clone();
    (config.recipe.batch, config.keep) = (TOKENS as u64 + 1, 0);
    let empty = TempDir::new().unwrap();
    let (nothing, _) = corpora(empty.path());
    let job = Job { config: &config, train: &nothing, validation: &nothing, ..setup.job() };
    let error = run(&job, &mut Toy::new(), &mut Disk::new()).unwrap_err().to_string();
    for part in ["checkpoint.keep: must", "batch: is 9", "validation: the shards have no", "shards: they have no"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!setup.out().exists());
}

#[test]
fn a_run_does_not_begin_where_another_has_been() {
    let setup = Setup::new(8);
    run(&setup.job(), &mut Toy::new(), &mut Disk::new()).unwrap();
    let error = run(&setup.job(), &mut Toy::new(), &mut Disk::new()).unwrap_err();
    assert!(
        matches!(&error, RuntimeError::RunExists { newest } if *newest == checkpoint::path(setup.out(), 8)),
        "{error}"
    );
    assert!(error.to_string().contains("--resume"));
}

#[test]
fn two_runs_do_not_share_a_directory() {
    let setup = Setup::new(8);
    let mut refused = None;
    train(&setup.job(), &mut Toy::new(), &mut Disk::new(), &mut |event| {
        if matches!(event, Event::Stepped { point, .. } if point.step == 6) {
            refused = run(&setup.resumed(), &mut Toy::new(), &mut Disk::new()).err();
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(matches!(refused, Some(RuntimeError::RunBusy { .. })), "{refused:?}");
}

#[test]
fn going_on_with_something_else_says_what_differs() {
    let setup = Setup::new(8);
    run(&Job { until: Some(4), ..setup.job() }, &mut Toy::new(), &mut Disk::new()).unwrap();
    let mut config = setup.config.clone();
    (config.recipe.seed, config.recipe.schedule.stages[0].rate.0) = (6, 0.2);
    let other = TempDir::new().unwrap();
    write_documents(other.path());
    std::fs::remove_file(other.path().join("train-00001.shard")).unwrap();
    let (documents, _) = corpora(other.path());
    let job = Job { config: &config, artifact: "another one", train: &documents, ..setup.resumed() };
    let mut toy = Toy::new();
    let error = run(&job, &mut toy, &mut Disk::new()).unwrap_err();
    let RuntimeError::Resume { differences, .. } = &error else { panic!("{error}") };
    let fields: Vec<&str> = differences.iter().map(|[field, ..]| field.as_str()).collect();
    assert_eq!(fields, ["seed", "schedule", "artifact", "documents"]);
    let text = error.to_string();
    assert!(text.contains("seed: 5 there, 6 here") && text.contains("step-00000004"), "{text}");
    assert_eq!(toy, Toy::new());

    // What decides no number may change: how often something is kept, and where.
    let mut config = setup.config.clone();
    (config.checkpoint_every, config.keep, config.validation) = (1, 1, None);
    let moved = setup.dir.path().join("moved");
    std::fs::rename(setup.out(), &moved).unwrap();
    config.out = moved;
    let mut toy = Toy::new();
    run(&Job { config: &config, ..setup.resumed() }, &mut toy, &mut Disk::new()).unwrap();
    assert_eq!(toy.bytes(), reference(8).states);
}

#[test]
fn a_run_without_checkpoints_goes_on_from_the_beginning() {
    let reference = reference(8);
    let setup = Setup::new(8);
    // What a killed run had measured, half a line of it.
    std::fs::create_dir_all(setup.out()).unwrap();
    std::fs::write(setup.out().join("metrics.jsonl"), "{\"step\":1,\"loss\":9,\"norm\":1,\"ra").unwrap();
    let mut toy = Toy::new();
    let ending = run(&setup.resumed(), &mut toy, &mut Disk::new()).unwrap();
    reference.is_reached(&ending, &mut toy, setup.out());
}

#[test]
fn a_trainer_without_a_better_way_forgets_gradients_and_nothing_else() {
    let setup = Setup::new(8);
    let mut toy = Toy::new();
    run(&Job { until: Some(3), ..setup.job() }, &mut toy, &mut Disk::new()).unwrap();
    let before = toy.bytes();
    let mut batches = Batches::new(&setup.train, Size::of(&toy), 0, Position::default()).unwrap();
    toy.accumulate(&batches.next_batch()).unwrap();
    toy.forget().unwrap();
    assert_eq!(toy.bytes(), before);
    let nothing = runtime::training::Update { step: 4, rate: 0.0, decay: 0.0, batches: 1 };
    assert_eq!(toy.update(&nothing).unwrap(), 0.0, "there are no gradients");
}

#[test]
fn a_run_that_has_measured_something_is_not_begun_over_it() {
    let setup = Setup::new(8);
    let metrics = setup.out().join("metrics.jsonl");
    std::fs::create_dir_all(setup.out()).unwrap();
    std::fs::write(&metrics, "{\"step\":1}\n").unwrap();
    let error = run(&setup.job(), &mut Toy::new(), &mut Disk::new()).unwrap_err();
    assert!(matches!(&error, RuntimeError::NoCheckpoint { metrics: named } if *named == metrics), "{error}");
    assert_eq!(std::fs::read_to_string(&metrics).unwrap(), "{\"step\":1}\n");
}
