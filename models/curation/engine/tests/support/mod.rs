//! A corpus that has some of all, always the same, and what a run makes of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Writes about `n_files` modules with their licences, exact copies, near copies, a credential and a dangerous call.
pub(crate) fn corpus(folder: &Path, n_files: usize) {
    for project in 0..4 {
        let folder = folder.join(format!("project{project}"));
        fs::create_dir_all(&folder).expect("a folder is made");
        let licence = ["MIT", "Apache-2.0", "GPL-3.0-only", "BSD-3-Clause"][project];
        let manifest = format!("[project]\nname = \"p{project}\"\nlicense = \"{licence}\"\n");
        fs::write(folder.join("pyproject.toml"), manifest).expect("a manifest is written");
    }
    let mut seed = 1_u64;
    for file in 0..n_files {
        let mut text = format!("# Module {file}.\n");
        for function in 0..120 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (a, b) = (seed >> 40, (seed >> 20) & 0xfff);
            text.push_str(&format!("def function_{a}(first, second):\n    # Adds {b} where {function} is not enough.\n    if first < second:\n        return first + {b}\n    return second - {a}\n\n\n"));
        }
        match file % 7 {
            3 => text.push_str("result = eval(input())\n"),
            5 => text.push_str(&format!("TOKEN = \"{}\"\n", ["ghp_zQWBuTSOoRi4A9spHcVY5", "ncnsDkxkJ0mLq17"].concat())),
            _ => {}
        }
        let write = |project: usize, name: String, text: &str| {
            fs::write(folder.join(format!("project{project}")).join(name), text).expect("a module is written");
        };
        write(file % 4, format!("module{file}.py"), &text);
        match file % 10 {
            1 => write((file + 1) % 4, format!("copy{file}.py"), &text),
            2 => write((file + 1) % 4, format!("near{file}.py"), &text.replace("# Module", "# The changed module")),
            _ => {}
        }
    }
}

/// The files of the output, by their names, and their bytes.
pub(crate) fn output(out: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in ["", "parquet", "jsonl"] {
        for entry in fs::read_dir(out.join(folder)).expect("the output is there") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                let bytes = fs::read(&path).expect("a file of the output");
                files.insert(path.strip_prefix(out).expect("a path below").to_owned(), bytes);
            }
        }
    }
    assert!(4 < files.len(), "{:?}", files.keys());
    files
}
