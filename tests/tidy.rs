//! What the tree must be like, beyond what the compiler checks: fences between crates, headers, sizes, `unsafe`, the README's map, goldens.
//!
//! Each test lists all that it finds wrong. `cargo test -p tritter-tests --test tidy -- --nocapture` prints the lines of code of each crate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use compiler::rewrite;
use kernels::{Family, KernelName};
use tritter_tests::filetest::Case;
use tritter_tests::kinds::{self, KINDS};
use tritter_tests::source::{code_of, find_word};
use tritter_tests::{files_below, workspace};

/// What a crate may depend on of ours, from architecture.md's table of directions; and whether its library must do without `unsafe` wholly.
struct Fence {
    folder: &'static str,
    package: &'static str,
    ours: &'static [&'static str],
    lint: Option<&'static str>,
}

const FORBID: Option<&str> = Some("#![forbid(unsafe_code)]");
/// For the compiler, which maps checkpoints and loads NVRTC, each in one place that says so.
const DENY: Option<&str> = Some("#![deny(unsafe_code)]");
/// Packages in the folder of another one, whose sources are found with it.
const NESTED: &[&str] = &["models/tokenizer", "models/curation", "models/curation/engine", "tests/cuda"];
const EVERYTHING: &[&str] = &["ir", "kernels", "models", "tokenizer", "curation", "compiler", "runtime"];
/// Dependencies that are many packages, by the start of their names.
const FAMILIES: &[&str] = &["ballista", "cranelift", "datafusion"];

const FENCES: &[Fence] = &[
    Fence { folder: "ir", package: "tritter-ir", ours: &[], lint: FORBID },
    Fence { folder: "kernels", package: "tritter-kernels", ours: &["ir"], lint: None },
    Fence { folder: "models", package: "tritter-models", ours: &["ir"], lint: FORBID },
    Fence { folder: "models/tokenizer", package: "tritter-tokenizer", ours: &[], lint: FORBID },
    Fence { folder: "models/curation", package: "tritter-curation", ours: &[], lint: FORBID },
    Fence { folder: "models/curation/engine", package: "tritter-curation-engine", ours: &["curation"], lint: FORBID },
    Fence {
        folder: "compiler",
        package: "tritter-compiler",
        ours: &["ir", "kernels", "models", "tokenizer"],
        lint: DENY,
    },
    Fence { folder: "runtime", package: "tritter-runtime", ours: &["ir", "kernels", "tokenizer"], lint: None },
    Fence { folder: "tests", package: "tritter-tests", ours: EVERYTHING, lint: FORBID },
    Fence { folder: "tests/cuda", package: "tritter-cuda-tests", ours: &["ir", "kernels", "compiler"], lint: None },
    Fence { folder: "examples", package: "tritter-examples", ours: EVERYTHING, lint: None },
];

/// Dependencies that only some crates may have: the start of their names, and the crates. They may be development dependencies elsewhere only where
/// listed.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("egg", &["compiler"]),
    ("cranelift", &["compiler"]),
    // The runtime maps artifacts, the compiler checkpoints.
    ("memmap2", &["runtime", "compiler"]),
    // The compiler loads NVRTC, and the runtime cuBLASLt; the driver comes through cudarc.
    ("libloading", &["compiler", "runtime"]),
    // The conformance program goes alone to a GPU machine, and needs less of the driver than a session.
    ("cudarc", &["runtime", "tests/cuda"]),
    // Their build takes as long as that of all else: nothing waits for them but what runs on them.
    ("datafusion", &["models/curation/engine"]),
    ("ballista", &["models/curation/engine"]),
    ("tokio", &["models/curation/engine"]),
];

/// Where `unsafe` may stand: paths, or folders that end in `/`.
const UNSAFE_IN: &[&str] = &[
    "kernels/src/cpu.rs",
    "kernels/src/cpu/",
    "runtime/src/device.rs",
    "runtime/src/device/",
    "runtime/src/artifact.rs",
    "compiler/src/weights.rs",
    "compiler/src/weights/",
    "compiler/src/emit/nvrtc.rs",
    // Tests and benchmarks that call machine code.
    "kernels/tests/conformance.rs",
    "kernels/benches/kernels.rs",
    "compiler/tests/nest_support/mod.rs",
    "tests/cuda/src/gpu.rs",
    "tests/cuda/src/check.rs",
];

/// Where types may be serialised: the plan and the model spec are formats, all else is not.
const SERIALIZE_IN: &[&str] = &[
    "ir/src/plan.rs",
    "ir/src/plan/",
    "models/src/spec.rs",
    "models/src/spec/",
    // What a run of training keeps of itself in its checkpoints.
    "runtime/src/training/",
    // The filter `tojson` of chat templates.
    "models/tokenizer/src/chat.rs",
    // What goes to executors, and rows that become columns.
    "models/curation/engine/src/",
];

const MAX_LINES: usize = 1000;

struct Source {
    /// From the root of the workspace, with `/`.
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path == *place || place.ends_with('/') && self.path.starts_with(place))
    }

    /// Whether it belongs to the tests: a crate's folders `tests/` and `benches/`, or the tests package.
    fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.contains("/tests/") || self.path.contains("/benches/")
    }

    fn is_binary(&self) -> bool {
        self.path.contains("/src/bin/")
    }

    /// Numbers and text of lines of code that have a word.
    fn lines_with(&self, word: &str) -> Vec<(usize, &str)> {
        let lines = self.code.lines().enumerate();
        lines.filter(|(_, line)| find_word(line, word).is_some()).map(|(index, line)| (index + 1, line)).collect()
    }
}

fn sources() -> Vec<Source> {
    let root = workspace();
    let mut sources = Vec::new();
    let folders: Vec<&Fence> = FENCES.iter().filter(|fence| !NESTED.contains(&fence.folder)).collect();
    for fence in folders {
        for path in files_below(&root.join(fence.folder), "rs").expect("the crate's folder can be read") {
            let relative = relative(&path);
            if relative.contains("/target/") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("sources are text");
            sources.push(Source { path: relative, code: code_of(&text), text });
        }
    }
    assert!(20 < sources.len(), "the sources were not found");
    sources
}

fn relative(path: &Path) -> String {
    let root = workspace();
    path.strip_prefix(&root).expect("a path of the workspace").to_string_lossy().replace('\\', "/")
}

fn manifest(folder: &str) -> toml::Table {
    let path = workspace().join(folder).join("Cargo.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of a manifest's dependencies in one of its tables; for targets too.
fn dependencies(manifest: &toml::Table, table: &str) -> Vec<String> {
    let of = |manifest: &toml::Table| -> Vec<String> {
        manifest.get(table).and_then(toml::Value::as_table).map_or(Vec::new(), |table| table.keys().cloned().collect())
    };
    let mut names = of(manifest);
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        names.extend(targets.values().filter_map(toml::Value::as_table).flat_map(of));
    }
    names
}

#[track_caller]
fn nothing_in(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn every_member_of_the_workspace_has_a_fence() {
    let root = manifest(".");
    let members = root["workspace"]["members"].as_array().expect("members are a list");
    let mut members: Vec<&str> = members.iter().filter_map(toml::Value::as_str).collect();
    let mut fenced: Vec<&str> = FENCES.iter().map(|fence| fence.folder).collect();
    members.sort_unstable();
    fenced.sort_unstable();
    assert_eq!(members, fenced);
    for fence in FENCES {
        assert_eq!(manifest(fence.folder)["package"]["name"].as_str(), Some(fence.package), "{}", fence.folder);
    }
}

#[test]
fn dependencies_keep_their_direction() {
    let mut found = Vec::new();
    for fence in FENCES {
        let manifest = manifest(fence.folder);
        for table in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for name in dependencies(&manifest, table) {
                if EVERYTHING.contains(&name.as_str()) && !fence.ours.contains(&name.as_str()) {
                    found.push(format!("{}/Cargo.toml: {table}: must not depend on `{name}`", fence.folder));
                }
                for (start, folders) in ONLY_IN {
                    let is_it = name == *start || FAMILIES.contains(start) && name.starts_with(start);
                    if is_it && !folders.contains(&fence.folder) {
                        let only = folders.join(" and ");
                        found.push(format!("{}/Cargo.toml: {table}: `{name}` is only for {only}", fence.folder));
                    }
                }
            }
        }
    }
    for source in sources().iter().filter(|source| source.path.starts_with("compiler/src/")) {
        if !source.is_binary() {
            let named = source.code.lines().enumerate().filter(|(_, line)| {
                find_word(line, "models").is_some_and(|at| {
                    let before = line[..at].trim_end();
                    line[at..].starts_with("models::") && !before.ends_with("::") || before.ends_with("use")
                })
            });
            found.extend(named.map(|(index, _)| format!("{}:{}: `models` is only for bin/", source.path, index + 1)));
        }
        let maps_weights = source.is_in(&["compiler/src/weights.rs", "compiler/src/weights/"]);
        if !maps_weights {
            let lines = source.lines_with("memmap2");
            found
                .extend(lines.iter().map(|(line, _)| format!("{}:{line}: `memmap2` is only for weights", source.path)));
        }
    }
    nothing_in(found);
}

#[test]
fn every_module_says_what_it_is() {
    let headless = sources().into_iter().filter(|source| !source.text.starts_with("//! "));
    nothing_in(headless.map(|source| format!("{}: the first line is no `//!` header", source.path)).collect());
}

#[test]
fn no_file_is_too_long() {
    let long = sources().into_iter().filter(|source| !source.is_test() && MAX_LINES < source.text.lines().count());
    nothing_in(long.map(|source| format!("{}: {} lines", source.path, source.text.lines().count())).collect());
}

#[test]
fn libraries_refuse_unsafe_code() {
    let mut found = Vec::new();
    for fence in FENCES {
        let path = workspace().join(fence.folder).join("src/lib.rs");
        let (Some(lint), Ok(text)) = (fence.lint, std::fs::read_to_string(&path)) else { continue };
        if !code_of(&text).contains(lint) {
            found.push(format!("{}: has no `{lint}`", relative(&path)));
        }
    }
    nothing_in(found);
}

#[test]
fn unsafe_stands_where_it_may_and_says_why() {
    let mut found = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in source.lines_with("unsafe") {
            let at = find_word(line, "unsafe").expect("the line has the word");
            let after = line[at + "unsafe".len()..].trim_start();
            if is_function_type(after) {
                continue;
            }
            if !source.is_in(UNSAFE_IN) {
                found.push(format!("{}:{number}: `unsafe` is not for this file", source.path));
            }
            // Functions state their contract in docs, which clippy checks; blocks and impls discharge one.
            let is_use = after.is_empty() || after.starts_with('{') || after.starts_with("impl");
            if is_use && !is_discharged(&lines, number - 1) {
                found.push(format!("{}:{number}: this `unsafe` has no `// SAFETY:`", source.path));
            }
        }
    }
    nothing_in(found);
}

/// Whether what follows `unsafe` makes it the type of a function, which does nothing unsafe: `fn(`, `extern "C" fn(`.
fn is_function_type(after: &str) -> bool {
    let after = after.strip_prefix("extern").map_or(after, str::trim_start);
    after.starts_with("fn(")
}

/// Whether a comment with `SAFETY:` stands in this line, or above the statement that goes on in it.
fn is_discharged(lines: &[&str], index: usize) -> bool {
    if lines[index].contains("// SAFETY:") {
        return true;
    }
    // A statement may start a few lines before its `unsafe`.
    let mut code_lines = 0;
    for line in lines[..index].iter().rev() {
        let line = line.trim_start();
        if line.starts_with("//") {
            if line.starts_with("// SAFETY:") {
                return true;
            }
        } else if !line.starts_with("#[") {
            code_lines += 1;
            if 4 <= code_lines || line.is_empty() {
                return false;
            }
        }
    }
    false
}

#[test]
fn options_are_values_and_not_the_environment() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test() && !source.is_binary()) {
        for word in ["var", "var_os", "vars", "vars_os", "set_var"] {
            for (number, line) in source.lines_with(word) {
                let at = find_word(line, word).expect("the line has the word");
                if line[..at].ends_with("env::") {
                    found.push(format!("{}:{number}: `env::{word}` is only for bin/ and tests", source.path));
                }
            }
        }
    }
    nothing_in(found);
}

#[test]
fn only_formats_are_serialised() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test() && !source.is_binary()) {
        if !source.is_in(SERIALIZE_IN) {
            let lines = source.lines_with("Serialize");
            found.extend(
                lines.iter().map(|(line, _)| format!("{}:{line}: `Serialize` is for formats only", source.path)),
            );
        }
    }
    nothing_in(found);
}

#[test]
fn the_readme_draws_the_tree_as_it_is() {
    let path = workspace().join("README.md");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let drawn = drawn_paths(&text);
    assert!(!drawn.is_empty(), "README.md has no fenced tree with `├──` lines");
    let mut found: Vec<String> = drawn
        .iter()
        .filter(|(_, path)| !exists(path))
        .map(|(line, path)| format!("README.md:{line}: there is no `{path}`"))
        .collect();
    for fence in FENCES {
        if !drawn.iter().any(|(_, path)| path.trim_end_matches('/') == fence.folder) {
            found.push(format!("README.md: the tree lacks the folder `{}`", fence.folder));
        }
    }
    nothing_in(found);
}

/// The paths of all fenced trees, with their lines. A line holds one entry or several with commas, up to two blanks; `{a,b}` stands for `a` and for
/// `b`.
fn drawn_paths(text: &str) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    let mut is_fenced = false;
    // The folders that are open, with the columns where their names stand.
    let mut open: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
            open.clear();
            continue;
        }
        let Some(at) = line.find("── ").filter(|_| is_fenced) else { continue };
        let column = line[..at].chars().count();
        let entry = &line[at + "── ".len()..];
        let entry = entry.split("  ").next().unwrap_or(entry).trim();
        open.retain(|(other, _)| *other < column);
        let parent = open.last().map_or(String::new(), |(_, path)| path.clone());
        let entries: Vec<String> = split_outside_braces(entry).into_iter().flat_map(|name| expand(&name)).collect();
        for name in &entries {
            paths.push((index + 1, format!("{parent}{name}")));
        }
        if let Some(folder) = entries.iter().rev().find(|name| name.ends_with('/')) {
            open.push((column, format!("{parent}{folder}")));
        }
    }
    paths
}

fn split_outside_braces(entry: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for character in entry.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if character == ',' && depth == 0 {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

fn expand(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else { return vec![name.to_owned()] };
    let Some((choices, after)) = rest.split_once('}') else { return vec![name.to_owned()] };
    choices.split(',').flat_map(|choice| expand(&format!("{before}{}{after}", choice.trim()))).collect()
}

/// Whether the path exists; a `*` in its last part stands for anything.
fn exists(path: &str) -> bool {
    let root = workspace();
    let Some((before, after)) = path.split_once('*') else { return root.join(path).exists() };
    let (folder, start) = before.rsplit_once('/').unwrap_or(("", before));
    let Ok(entries) = std::fs::read_dir(root.join(folder)) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with(start) && name.ends_with(after.trim_end_matches('/'))
    })
}

#[test]
fn trees_are_read_as_they_are_drawn() {
    let text = "```\ntritter/\n├── ir/           what a program is\n│   └── src/{op,shape}.rs, src/text.rs  more\n└── Cargo.toml\n```\n── no\n";
    let paths: Vec<String> = drawn_paths(text).into_iter().map(|(_, path)| path).collect();
    assert_eq!(paths, ["ir/", "ir/src/op.rs", "ir/src/shape.rs", "ir/src/text.rs", "Cargo.toml"]);
    assert!(paths.iter().all(|path| exists(path)));
    assert!(exists("ir/src/*.rs") && !exists("ir/src/*.cu"));
}

/// In prose, too: what stands between backticks and reads like the path of a file or a folder.
#[test]
fn the_readme_names_paths_that_exist() {
    let path = workspace().join("README.md");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for quoted in line.split('`').skip(1).step_by(2) {
            let is_path = quoted.contains('/') && [".rs", ".ron", ".toml", "/"].iter().any(|end| quoted.ends_with(end));
            let is_pattern = quoted.contains(['<', ' ', '*']) || quoted.starts_with("bin/");
            if is_path && !is_pattern && !exists(quoted) {
                found.push(format!("README.md:{}: there is no `{quoted}`", index + 1));
            }
        }
    }
    nothing_in(found);
}

/// All filetests that can be read; those that cannot are errors of the test program that runs them.
fn filetests() -> Vec<Case> {
    let root = workspace().join("tests/filetests");
    let paths = files_below(&root, "tri").expect("the folder can be read");
    paths.iter().filter_map(|path| Case::read(&root, path).ok()).collect()
}

/// A rule `fold-add` has a file `rewrite/<family>/fold-add.tri` that says it must fire.
#[test]
fn every_rule_has_a_sentence_and_a_filetest() {
    let cases = filetests();
    let tested = |rule: &str| {
        cases.iter().any(|case| {
            let is_its_file = case.name.starts_with("rewrite/") && case.name.ends_with(&format!("/{rule}"));
            is_its_file && kinds::rewrite::expected_rules(case).is_ok_and(|rules| rules.contains(&rule))
        })
    };
    let mut found = Vec::new();
    for rule in rewrite::rules() {
        if !rule.sentence.ends_with('.') || rule.sentence.split_whitespace().count() < 3 {
            found.push(format!("rule `{}`: `{}` is no sentence", rule.name, rule.sentence));
        }
        if !tested(&rule.name) {
            found.push(format!(
                "rule `{0}`: there is no tests/filetests/rewrite/<family>/{0}.tri with `expect = [\"{0}\"]`",
                rule.name
            ));
        }
    }
    nothing_in(found);
}

/// The folder of a filetest of this kind is that of a family of rules, and a file called like a rule tests that rule.
#[test]
fn filetests_of_rules_lie_in_their_family() {
    let families: BTreeSet<String> = files_below(&workspace().join("compiler/src/rewrite"), "rs")
        .expect("the folder can be read")
        .iter()
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    let mut found = Vec::new();
    for case in filetests() {
        let Some(name) = case.name.strip_prefix("rewrite/") else { continue };
        let folder = name.split('/').next().unwrap_or_default();
        if !families.contains(folder) {
            found.push(format!("{}: there is no family `{folder}`", case.name));
        }
        let stem = name.rsplit('/').next().unwrap_or_default();
        let is_hyphenated = stem.contains('-');
        if is_hyphenated && !rewrite::rules().iter().any(|rule| rule.name == stem) {
            found.push(format!("{}: there is no rule `{stem}` any more", case.name));
        }
    }
    nothing_in(found);
}

#[test]
fn every_stage_of_the_optimiser_is_tested_alone() {
    let cases = filetests();
    let is_tested = |stage: &str| cases.iter().any(|case| case.strings("stage").is_ok_and(|stages| stages == [stage]));
    let untested = rewrite::STAGES.iter().filter(|stage| !is_tested(stage.name));
    nothing_in(untested.map(|stage| format!("stage `{}` has no filetest of its own", stage.name)).collect());
}

/// The kinds of filetests that show what a pass of `pipeline.rs` does.
const PASSES: &[(&str, &[&str])] =
    &[("optimise", &["rewrite"]), ("plan", &["schedule", "lower", "plan"]), ("code", &["emit"]), ("check", &["plan"])];

#[test]
fn every_pass_has_filetests() {
    let path = workspace().join("compiler/src/pipeline.rs");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let passes: Vec<&str> =
        text.split(".time(\"").skip(1).map(|rest| rest.split('"').next().unwrap_or_default()).collect();
    assert!(!passes.is_empty(), "pipeline.rs times no passes");
    let cases = filetests();
    let mut found = Vec::new();
    for pass in passes {
        match PASSES.iter().find(|(name, _)| *name == pass) {
            None => found.push(format!("pass `{pass}`: tidy.rs does not say which filetests are its own")),
            Some((_, kinds)) => {
                let missing = kinds.iter().filter(|kind| !cases.iter().any(|case| case.has_kind(kind)));
                found.extend(missing.map(|kind| format!("pass `{pass}`: no filetest is of the kind `{kind}`")));
            }
        }
    }
    nothing_in(found);
}

#[test]
fn every_kind_has_filetests() {
    let cases = filetests();
    let has_tests = |kind: &str| cases.iter().any(|case| case.name.starts_with(&format!("{kind}/")));
    let without = KINDS.iter().filter(|kind| !has_tests(kind.name()));
    nothing_in(without.map(|kind| format!("kind `{}` has no files", kind.name())).collect());
}

/// A name says what a row says, and the conformance test knows the row's family.
#[test]
fn every_kernel_row_has_a_name_that_parses() {
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    for row in kernels::TABLE {
        if !names.insert(row.name) {
            found.push(format!("{}: two rows have this name", row.name));
        }
        match row.name.parse::<KernelName>() {
            Err(error) => found.push(error.to_string()),
            Ok(name) => {
                let agrees = name.to_string() == row.name && name.isa == row.requires.isa && name.output == row.output;
                if !agrees {
                    found.push(format!("{}: the name says something else than the row", row.name));
                }
            }
        }
        if !kernels::find(row.name).is_some_and(|other| std::ptr::eq(other, row)) {
            found.push(format!("{}: it is not found by its name", row.name));
        }
    }
    let conformance = workspace().join("kernels/tests/conformance.rs");
    let text =
        std::fs::read_to_string(&conformance).unwrap_or_else(|error| panic!("{}: {error}", conformance.display()));
    let families: BTreeSet<Family> = kernels::TABLE.iter().map(|row| row.family).collect();
    for family in families {
        if !text.contains(&format!("Family::{family:?}")) {
            found.push(format!("kernels/tests/conformance.rs does not test Family::{family:?}"));
        }
    }
    nothing_in(found);
}

/// A golden file is one that some test names, by its name or by that of its case; a snapshot one whose test still has it.
#[test]
fn no_golden_is_an_orphan() {
    let root = workspace();
    let mut tests = String::new();
    for source in sources().iter().filter(|source| source.is_test() || source.code.contains("#[cfg(test)]")) {
        tests.push_str(&source.text);
    }
    let cases = files_below(&root.join("tests/filetests"), "tri").expect("the folder can be read");
    let stem = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.split('.').next().unwrap_or_default().to_owned()
    };
    let mut found = Vec::new();
    for golden in all_files(&root.join("tests/golden")) {
        let name = golden.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_case = cases.iter().any(|case| stem(case) == stem(&golden));
        if !is_case && !tests.contains(&name) && !tests.contains(&format!("\"{}\"", stem(&golden))) {
            found.push(format!("{}: no test names it", relative(&golden)));
        }
    }
    for fence in FENCES {
        for file in all_files(&root.join(fence.folder)) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".snap.new") {
                found.push(format!("{}: a snapshot that nobody has accepted or refused", relative(&file)));
            }
            let Some(snapshot) = name.strip_suffix(".snap") else { continue };
            let own = snapshot.rsplit("__").next().unwrap_or(snapshot);
            if !tests.contains(own) {
                found.push(format!("{}: no test is called `{own}`, or names it", relative(&file)));
            }
        }
    }
    found.sort();
    found.dedup();
    nothing_in(found);
}

fn all_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path.is_dir() {
            files.extend(all_files(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// Not a check: a visible budget keeps the code small.
#[test]
fn lines_of_code_are_printed() {
    let mut lines: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for source in sources() {
        let in_crate = |fence: &&Fence| source.path.starts_with(&format!("{}/", fence.folder));
        let fence = FENCES.iter().filter(in_crate).max_by_key(|fence| fence.folder.len());
        let count = source.code.lines().filter(|line| !line.trim().is_empty()).count();
        let folder = fence.expect("each source is of a crate").folder;
        let (code, tests) = lines.entry(folder.to_owned()).or_default();
        *if source.is_test() { tests } else { code } += count;
    }
    println!("lines of code, without comments and blank lines");
    println!("{:>18} {:>8} {:>8}", "crate", "code", "tests");
    for (folder, (code, tests)) in &lines {
        println!("{folder:>18} {code:>8} {tests:>8}");
    }
    let sum = |part: fn(&(usize, usize)) -> usize| lines.values().map(part).sum::<usize>();
    println!("{:>18} {:>8} {:>8}", "all", sum(|lines| lines.0), sum(|lines| lines.1));
}
