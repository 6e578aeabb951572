//! The two programs as their users run them: built once for a test, started, and measured.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};

/// One of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The compiler.
    Tritterc,
    /// The runtime.
    Tritter,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Program::Tritterc => "tritterc",
            Program::Tritter => "tritter",
        }
    }

    /// Where the program is. The first call builds both, in the profile of the running test.
    ///
    /// # Panics
    ///
    /// If they cannot be built.
    pub fn path(self) -> PathBuf {
        static BUILT: OnceLock<Result<Vec<(String, PathBuf)>, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
        let built = built.as_ref().unwrap_or_else(|error| panic!("the programs cannot be built: {error}"));
        let found = built.iter().find(|(name, _)| name == self.name());
        found.unwrap_or_else(|| panic!("cargo built no {}", self.name())).1.clone()
    }

    /// A command that runs the program with these arguments, without input.
    pub fn command(self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path());
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn run(self, args: &[&str]) -> Output {
        self.command(args).output().unwrap_or_else(|error| panic!("{} cannot be started: {error}", self.name()))
    }

    /// Standard output of a run that succeeds.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn succeed(self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{} {args:?}: {}", self.name(), text(&output.stderr));
        text(&output.stdout)
    }

    /// The JSON on standard output of a run that succeeds.
    ///
    /// # Panics
    ///
    /// If it fails, or prints something else.
    pub fn json(self, args: &[&str]) -> serde_json::Value {
        let text = self.succeed(args);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{} {args:?}: {error}\n{text}", self.name()))
    }

    /// Runs the program to its end, and tells the most bytes of memory that it had at a time, mapped files that were touched among them.
    ///
    /// # Errors
    ///
    /// If it fails, or the system does not tell.
    pub fn run_measured(self, args: &[&str]) -> anyhow::Result<(Output, u64)> {
        let child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let status = format!("/proc/{}/status", child.id());
        let waiter = std::thread::spawn(move || child.wait_with_output());
        let mut peak = 0;
        while !waiter.is_finished() {
            // The system's own record of the peak, so nothing is missed between two looks but the last moments.
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            peak = peak.max(kib.unwrap_or(0) * 1024);
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = waiter.join().map_err(|_| anyhow!("the program could not be waited for"))??;
        ensure!(output.status.success(), "{} {args:?}: {}", self.name(), text(&output.stderr));
        ensure!(peak != 0, "the system does not tell how much memory {} took", self.name());
        Ok((output, peak))
    }
}

/// What a program printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Builds both programs as `cargo test --workspace` does, so that there it finds nothing to do: with the packages whose features decide how
/// dependencies are built.
fn build() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let test = std::env::current_exe()?;
    // <target>/<profile>/deps/<test>
    let profile =
        test.ancestors().nth(2).and_then(|folder| folder.file_name()).context("the test lies in no target folder")?;
    let profile = match profile.to_string_lossy() {
        folder if folder == "debug" => "dev".to_owned(),
        folder => folder.into_owned(),
    };
    let target = test.ancestors().nth(3).context("the test lies in no target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(crate::workspace()).args(["build", "--message-format=json", "--profile", &profile]);
    command.args(["-p", "tritter-compiler", "-p", "tritter-runtime", "-p", "tritter-tests", "--bins", "--tests"]);
    let output = command.arg("--target-dir").arg(target).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let mut built = Vec::new();
    for line in text(&output.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let is_program = message["target"]["kind"][0] == "bin" && message["profile"]["test"] == false;
        if let (true, Some(name), Some(path)) =
            (is_program, message["target"]["name"].as_str(), message["executable"].as_str())
        {
            built.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(built)
}
