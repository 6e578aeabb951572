//! Hashes the sources and rules of stages and of the plans that drive them, and the versions of what they are built with, so that what was kept of an earlier run is known to be of the same.

use std::fs;
use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    let mut files = Vec::new();
    for folder in ["../src", "../rules", "src"] {
        println!("cargo:rerun-if-changed={folder}");
        list(Path::new(folder), &mut files)?;
    }
    // A package apart from its workspace has none.
    let lock = Path::new("../../../Cargo.lock");
    println!("cargo:rerun-if-changed={}", lock.display());
    if lock.exists() {
        files.push(lock.to_owned());
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let text = fs::read(&file)?;
        hasher.update(file.to_string_lossy().as_bytes()).update(&[0]).update(&text).update(&[0]);
    }
    println!("cargo:rustc-env=TRITTER_STAGES={}", hasher.finalize().to_hex());
    Ok(())
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { list(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
