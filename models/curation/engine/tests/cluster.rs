//! Schedulers and executors as processes on the loopback address: one, two and four of them write the bytes that one process does, and one that is killed
//! in the middle of a stage takes nothing with it.

mod support;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{corpus, output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tritter-curate");

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> Running {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().expect("the program starts"))
}

fn scheduler() -> (Running, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let scheduler = start(&["scheduler", "--bind", &address, "--timeout", "3"]);
    wait("the scheduler listens", || TcpStream::connect(&address).is_ok());
    (scheduler, address)
}

fn executors(address: &str, n: usize) -> Vec<Running> {
    (0..n).map(|_| start(&["executor", "--scheduler", address, "--threads", "1"])).collect()
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The command of a run over the corpus.
fn command(source: &Path, out: &Path, place: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("run").arg(source).arg("-o").arg(out).args(["--partition-mib", "1"]).args(place);
    command.stdout(Stdio::null()).stderr(Stdio::inherit());
    command
}

fn n_kept(out: &Path) -> usize {
    let kept = fs::read_dir(out.join("work/verdicts")).map(|entries| {
        entries
            .filter_map(Result::ok)
            .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "parquet"))
            .count()
    });
    kept.unwrap_or(0)
}

#[test]
fn one_two_and_four_executors_write_what_one_process_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("corpus");
    corpus(&source, 120);
    let out = folder.path().join("here");
    assert!(command(&source, &out, &[]).status().expect("the program runs").success());
    let expected = output(&out);
    for n in [1, 2, 4] {
        let (_scheduler, address) = scheduler();
        let _executors = executors(&address, n);
        let out = folder.path().join(format!("cluster{n}"));
        let status = command(&source, &out, &["--scheduler", &address]).status();
        assert!(status.expect("the program runs").success(), "{n} executors failed");
        assert!(output(&out) == expected, "{n} executors wrote something else");
    }
}

#[test]
fn a_run_that_is_killed_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("corpus");
    corpus(&source, 120);
    let (expected, out) = (folder.path().join("whole"), folder.path().join("killed"));
    assert!(command(&source, &expected, &[]).status().expect("the program runs").success());
    let mut run = Running(command(&source, &out, &["--threads", "1"]).spawn().expect("the program starts"));
    wait("something is judged", || 0 < n_kept(&out));
    run.0.kill().expect("the program runs");
    run.0.wait().expect("the program ends");
    let n_before = n_kept(&out);
    assert!(n_before < n_kept(&expected), "all was judged before the run was killed");
    let again = command(&source, &out, &[]).stderr(Stdio::piped()).output().expect("the program runs");
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains(&format!("; {n_before} of {} partitions from an earlier run", n_kept(&expected))), "{said}");
    assert!(output(&out) == output(&expected), "the second run wrote something else");
}

#[test]
fn an_executor_that_is_killed_takes_nothing_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("corpus");
    corpus(&source, 300);
    let out = folder.path().join("here");
    assert!(command(&source, &out, &[]).status().expect("the program runs").success());
    let (expected, n_partitions) = (output(&out), n_kept(&out));
    assert!(6 < n_partitions, "{n_partitions} partitions leave no time to kill anything");
    let (_scheduler, address) = scheduler();
    let mut executors = executors(&address, 3);
    let out = folder.path().join("cluster");
    let mut run = Running(command(&source, &out, &["--scheduler", &address]).spawn().expect("the program starts"));
    wait("something is judged", || 0 < n_kept(&out));
    // As the system's `kill -9` does.
    executors[1].0.kill().expect("the executor runs");
    assert!(n_kept(&out) < n_partitions, "all was judged before the executor was killed");
    assert!(run.0.wait().expect("the program ends").success(), "the run failed");
    assert!(output(&out) == expected, "something was lost with the executor");
}
