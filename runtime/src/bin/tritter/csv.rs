//! Files of measurements: one line of comma-separated values for each, under one header.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Refuses a file that could not be appended to later.
pub(crate) fn check(path: &Path, header: &str) -> Result<()> {
    // A link that leads nowhere is something, too.
    let is_new = std::fs::symlink_metadata(path).is_err();
    open(path, header)?;
    if is_new {
        // There is nothing to say yet. If this fails, an empty file is what stays.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Appends a line, and the header before the first.
pub(crate) fn append(path: &Path, header: &str, line: &str) -> Result<()> {
    let (mut file, length) = open(path, header)?;
    let header = if length == 0 { format!("{header}\n") } else { String::new() };
    let text = header + line + "\n";
    let result = file.write_all(text.as_bytes());
    if result.is_err() {
        // Half a line would damage the next one. If this fails, too, there is nothing left to try.
        let _ = file.set_len(length);
    }
    result.with_context(|| format!("cannot append to {}", path.display()))
}

/// The file, and its bytes.
fn open(path: &Path, header: &str) -> Result<(File, u64)> {
    let context = || format!("cannot append to {}", path.display());
    let exists = path.exists();
    let file = OpenOptions::new().create(true).append(true).open(path).with_context(context)?;
    let length = file.metadata().with_context(context)?.len();
    if exists && length != 0 {
        let text = std::fs::read_to_string(path).with_context(context)?;
        ensure!(
            text.lines().next() == Some(header) && text.ends_with('\n'),
            "{} is not a file of these runs: its first line is another one, or its last line is cut; name a new file",
            path.display()
        );
    }
    Ok((file, length))
}

/// What a device is called; a CPU says of itself only that it is one.
pub(crate) fn device(name: &str, target: &str) -> String {
    if target.starts_with("cuda:") { name.to_owned() } else { cpu() }
}

/// What the system calls the CPU, and how often it has one.
fn cpu() -> String {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    match (field("cpu family"), field("model")) {
        (Some(family), Some(model)) => format!("{count} x {name} (family {family} model {model})"),
        _ => format!("{count} x {name}"),
    }
}
