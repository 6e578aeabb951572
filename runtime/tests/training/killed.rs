//! A process that is killed, as the system does it: real files, at any moment.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use runtime::sample::Random;
use runtime::training::run::{Job, train};
use runtime::training::storage::Files;
use tempfile::TempDir;

use crate::broken::Disk;
use crate::runs::{Reference, config, corpora, measured, run, timeless};
use crate::toy::{Toy, write_documents};

const STEPS: u64 = 60;
/// Tells the other process where to run.
const DIR: &str = "TRITTER_TEST_RUN";

#[test]
#[ignore = "it is what the test below runs and kills"]
fn the_process() {
    let dir = PathBuf::from(std::env::var_os(DIR).expect("the test below says where"));
    let (documents, validation) = corpora(&dir);
    let config = config(&dir, STEPS);
    let job =
        Job { config: &config, artifact: "toy", train: &documents, validation: &validation, resume: true, until: None };
    train(&job, &mut Toy::new(), &mut Files, &mut |_| {
        std::thread::sleep(Duration::from_millis(1));
        ControlFlow::Continue(())
    })
    .unwrap();
}

#[test]
fn a_process_that_is_killed_goes_on() {
    let reference = undisturbed();
    let dir = TempDir::new().unwrap();
    write_documents(dir.path());
    let mut random = Random::new(3);
    let mut kills = 0;
    loop {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["killed::the_process", "--exact", "--ignored", "--quiet"]).env(DIR, dir.path());
        let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        // Long enough for some steps; a run that takes long on a slow machine is let alone after a while.
        if kills < 25 {
            std::thread::sleep(Duration::from_millis(10 + random.bits() % 90));
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        if status.success() {
            break;
        }
        assert_eq!(status.code(), None, "it ended by itself");
        kills += 1;
    }
    assert!(0 < kills, "it was never killed");
    finished(&reference, dir.path());
}

fn undisturbed() -> Reference {
    let dir = TempDir::new().unwrap();
    write_documents(dir.path());
    let mut toy = Toy::new();
    let ending = again(dir.path(), &mut toy);
    Reference { states: toy.bytes(), progress: timeless(&ending.progress), measured: measured(&dir.path().join("out")) }
}

/// Goes on where nothing is left to do, which reads what is there.
fn finished(reference: &Reference, dir: &Path) {
    let mut toy = Toy::new();
    let ending = again(dir, &mut toy);
    reference.is_reached(&ending, &mut toy, &dir.join("out"));
}

fn again(dir: &Path, toy: &mut Toy) -> runtime::training::run::Ending {
    let (documents, validation) = corpora(dir);
    let config = config(dir, STEPS);
    let job =
        Job { config: &config, artifact: "toy", train: &documents, validation: &validation, resume: true, until: None };
    run(&job, toy, &mut Disk::new()).unwrap()
}
