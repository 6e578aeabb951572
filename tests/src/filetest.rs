//! Runs one filetest: its header, its kinds, and the comparison with what the file expects.
//!
//! ```text
//! ;! kinds = ["text", "run"]                  TOML: the kinds, and the options that they read
//!
//! graph @double(x: f32[2]) -> f32[2] {        the program
//!   y = add x, x
//!   return y
//! }
//! ; run: x=[1 2] == [2 4]                     comments that a kind reads
//!
//! ;; text                                     from here on written by bless: a section for each kind that expects a text
//! ; program @double
//! ; ...
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use similar::TextDiff;

use crate::kinds::{KINDS, Kind};

/// A filetest as it was read.
pub struct Case {
    /// The file.
    pub path: PathBuf,
    /// The file's path below `filetests/`, without `.tri`: the name of the test.
    pub name: String,
    /// All before the expectations: header, program and comments. Lines are those of the file.
    pub text: String,
    /// The options of the header.
    pub options: toml::Table,
    kinds: Vec<&'static dyn Kind>,
    /// The file's sections: what each kind is expected to give.
    expected: Vec<(String, String)>,
}

/// Starts a line of the header.
const HEADER: &str = ";!";
/// Starts a section.
const SECTION: &str = ";; ";

impl Case {
    /// Reads a filetest.
    ///
    /// # Errors
    ///
    /// If the file, or its header, cannot be read, or names a kind or an option that does not exist.
    pub fn read(root: &Path, path: &Path) -> anyhow::Result<Case> {
        let content = std::fs::read_to_string(path)?;
        let name = path.strip_prefix(root)?.with_extension("").to_string_lossy().replace('\\', "/");
        Self::parse(&content, path, name)
    }

    fn parse(content: &str, path: &Path, name: String) -> anyhow::Result<Case> {
        let header: String = content
            .lines()
            .map_while(|line| line.strip_prefix(HEADER))
            .map(|line| format!("{}\n", line.trim_start()))
            .collect();
        let mut options: toml::Table = header.parse().context("the header is not TOML")?;
        let named = options.remove("kinds").context("the header names no `kinds`")?;
        let named = named.as_array().context("`kinds` must be a list")?;
        let kinds = named.iter().map(find_kind).collect::<anyhow::Result<Vec<_>>>()?;
        for option in options.keys() {
            let is_known = kinds.iter().any(|kind| kind.options().contains(&option.as_str()));
            ensure!(is_known, "no kind of this test reads the option `{option}`");
        }
        let (text, sections) = match content.find(&format!("\n{SECTION}")) {
            Some(at) => content.split_at(at + 1),
            None => (content, ""),
        };
        let text = text.trim_end().to_owned() + "\n";
        Ok(Case { path: path.to_owned(), name, text, options, kinds, expected: read_sections(sections)? })
    }

    /// Tests the file. If `bless`, what comes out is written down as expected.
    ///
    /// # Errors
    ///
    /// If a kind fails, or what comes out is not what is expected.
    pub fn run(&self, bless: bool) -> anyhow::Result<()> {
        let mut found = Vec::new();
        for kind in &self.kinds {
            if let Some(text) = kind.run(self).with_context(|| format!("kind `{}`", kind.name()))? {
                found.push((kind.name().to_owned(), text.trim_end().to_owned()));
            }
        }
        if found == self.expected {
            return Ok(());
        }
        let (expected, found) = (write_sections(&self.expected), write_sections(&found));
        if bless {
            return Ok(std::fs::write(&self.path, format!("{}{found}", self.text))?);
        }
        let diff = TextDiff::from_lines(&expected, &found);
        let diff = diff.unified_diff().context_radius(3).header("expected", "found").to_string();
        Err(anyhow!(
            "{} expects something else; if what was found is right, write it down with TRITTER_BLESS=1\n\n{diff}",
            self.path.display()
        ))
    }

    /// The text after `; keyword:` of each line that starts so, with the number of the line.
    pub fn directives(&self, keyword: &str) -> Vec<(usize, &str)> {
        let prefix = format!("; {keyword}:");
        let lines = self.text.lines().enumerate();
        lines.filter_map(|(index, line)| Some((index + 1, line.strip_prefix(&prefix)?.trim()))).collect()
    }

    /// An option that is a list of strings; empty if it is not given.
    ///
    /// # Errors
    ///
    /// If it is something else.
    pub fn strings(&self, option: &str) -> anyhow::Result<Vec<&str>> {
        let Some(value) = self.options.get(option) else { return Ok(Vec::new()) };
        let list = value.as_array().with_context(|| format!("`{option}` must be a list"))?;
        list.iter().map(|item| item.as_str().with_context(|| format!("`{option}` must be a list of strings"))).collect()
    }

    /// An option that is a string.
    ///
    /// # Errors
    ///
    /// If it is something else.
    pub fn string(&self, option: &str) -> anyhow::Result<Option<&str>> {
        let Some(value) = self.options.get(option) else { return Ok(None) };
        value.as_str().map(Some).with_context(|| format!("`{option}` must be a string"))
    }

    /// Whether the test is of this kind.
    pub fn has_kind(&self, name: &str) -> bool {
        self.kinds.iter().any(|kind| kind.name() == name)
    }
}

fn find_kind(name: &toml::Value) -> anyhow::Result<&'static dyn Kind> {
    let name = name.as_str().context("`kinds` must be a list of strings")?;
    KINDS.iter().copied().find(|kind| kind.name() == name).with_context(|| {
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.name()).collect();
        format!("there is no kind `{name}`; the kinds: {}", known.join(", "))
    })
}

fn read_sections(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut sections: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix(SECTION), sections.last_mut()) {
            (Some(name), _) => sections.push((name.to_owned(), String::new())),
            (None, Some((_, content))) if line.starts_with(';') => {
                let line = line.strip_prefix("; ").or(line.strip_prefix(';')).unwrap_or(line);
                if !content.is_empty() {
                    content.push('\n');
                }
                content.push_str(line);
            }
            _ if line.is_empty() => {}
            _ => bail!("after the first `{SECTION}` there are comments only, but this stands there: {line}"),
        }
    }
    Ok(sections)
}

fn write_sections(sections: &[(String, String)]) -> String {
    let mut out = String::new();
    for (name, content) in sections {
        out.push_str(&format!("\n{SECTION}{name}\n"));
        for line in content.lines() {
            out.push_str(format!("; {line}").trim_end());
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(content: &str) -> anyhow::Result<Case> {
        Case::parse(content, Path::new("x.tri"), "x".to_owned())
    }

    #[test]
    fn sections_are_read_as_they_are_written() {
        let sections = vec![("text".to_owned(), "a\n\n  b".to_owned()), ("verify".to_owned(), "c".to_owned())];
        let written = write_sections(&sections);
        assert_eq!(written, "\n;; text\n; a\n;\n;   b\n\n;; verify\n; c\n");
        assert_eq!(read_sections(&written).unwrap(), sections);
    }

    #[test]
    fn headers_are_read_strictly() {
        let case = parse(";! kinds = [\"text\"]\n\ngraph\n; run: a\n\n;; text\n; x\n").unwrap();
        assert_eq!(case.text, ";! kinds = [\"text\"]\n\ngraph\n; run: a\n");
        assert_eq!(case.directives("run"), [(4, "a")]);
        assert_eq!(case.expected, [("text".to_owned(), "x".to_owned())]);
        for (wrong, message) in [
            ("graph", "names no `kinds`"),
            (";! kinds = [", "not TOML"),
            (";! kinds = [\"tex\"]", "no kind `tex`; the kinds: text"),
            (";! kinds = [\"text\"]\n;! stage = 1", "reads the option `stage`"),
            (";! kinds = [\"text\"]\n\n;; text\nx", "comments only"),
        ] {
            let error = parse(wrong).err().unwrap();
            assert!(format!("{error:#}").contains(message), "{error:#}");
        }
    }
}
