//! Where this machine may have NVRTC.

use std::path::{Path, PathBuf};

use compiler::emit::nvrtc::Search;

/// What was asked for; else an installed toolkit, then the folders where Python keeps packages.
pub(crate) fn search(explicit: Option<&Path>) -> Search {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let roots = [
        folder("VIRTUAL_ENV"),
        folder("CONDA_PREFIX"),
        folder("HOME").map(|home| home.join(".local")),
        Some("/usr/local".into()),
        Some("/usr".into()),
    ];
    Search {
        explicit: explicit.map(Path::to_owned),
        cuda_home: folder("CUDA_HOME").or_else(|| folder("CUDA_PATH")),
        site_packages: roots.into_iter().flatten().flat_map(|root| site_packages(&root)).collect(),
    }
}

/// `lib/python3.*/site-packages` and what Debian calls it, in the order of their names.
fn site_packages(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root.join("lib")) else { return Vec::new() };
    let is_python = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"));
    let mut pythons: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_python).collect();
    pythons.sort();
    let both = |python: PathBuf| [python.join("site-packages"), python.join("dist-packages")];
    pythons.into_iter().flat_map(both).filter(|path| path.is_dir()).collect()
}
