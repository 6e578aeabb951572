//! The licence of a document as an SPDX expression: from its own tag, from the manifest or the licence file of its project; and whether a list allows it.

use std::sync::LazyLock;

use spdx::detection::{Store, TextData};

use crate::quality::code::Language;

/// The licences under which code may be trained on by default: those that ask for no more than attribution.
pub const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "PSF-2.0",
    "Python-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// The expression after `SPDX-License-Identifier:` in the first hundred lines of a file.
pub fn of_tag(text: &str) -> Option<&str> {
    let lines = text.lines().take(100);
    let mut tags = lines.filter_map(|line| line.split_once("SPDX-License-Identifier:"));
    let (_, tag) = tags.next()?;
    let tag = tag.trim().trim_end_matches("*/").trim_end_matches("-->").trim().trim_matches(['"', '\'']);
    (!tag.is_empty()).then_some(tag)
}

/// What a manifest says of licences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The licence of its package.
    pub package: Option<PackageLicence>,
    /// The licence that the members of its Cargo workspace may inherit.
    pub workspace: Option<String>,
}

/// The licence of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackageLicence {
    /// This SPDX expression.
    Is(String),
    /// That of the Cargo workspace around it.
    Inherited,
}

impl Manifest {
    /// Whether manifests are named so.
    pub fn is_one(name: &str) -> bool {
        matches!(name, "Cargo.toml" | "pyproject.toml" | "package.json")
    }

    /// What `Cargo.toml`, `pyproject.toml` and `package.json` say, by the file's name; nothing of others, and of what does not parse.
    pub fn read(name: &str, text: &str) -> Manifest {
        match name {
            "Cargo.toml" => text.parse().map_or(Manifest::default(), |table| Manifest::of_cargo(&table)),
            "pyproject.toml" => {
                let table = text.parse::<toml::Table>().ok();
                let licence = table.as_ref().and_then(|table| table.get("project")?.get("license"));
                let licence = licence.and_then(|licence| licence.as_str().or_else(|| licence.get("text")?.as_str()));
                Manifest::of_package(licence)
            }
            "package.json" => {
                let value = serde_json::from_str::<serde_json::Value>(text).ok();
                Manifest::of_package(value.as_ref().and_then(|value| value.get("license")?.as_str()))
            }
            _ => Manifest::default(),
        }
    }

    fn of_package(licence: Option<&str>) -> Manifest {
        Manifest { package: licence.map(|licence| PackageLicence::Is(expression(licence))), workspace: None }
    }

    fn of_cargo(table: &toml::Table) -> Manifest {
        let expression = |value: &toml::Value| value.as_str().map(expression);
        let licence = table.get("package").and_then(|package| package.get("license"));
        let inherits = |licence: &toml::Value| licence.get("workspace").and_then(toml::Value::as_bool) == Some(true);
        let package = licence.and_then(|licence| match expression(licence) {
            Some(licence) => Some(PackageLicence::Is(licence)),
            None => inherits(licence).then_some(PackageLicence::Inherited),
        });
        let workspace = table.get("workspace").and_then(|workspace| workspace.get("package")?.get("license"));
        Manifest { package, workspace: workspace.and_then(expression) }
    }
}

/// Cargo once wrote alternatives with a slash.
fn expression(licence: &str) -> String {
    licence.replace('/', " OR ")
}

/// The licences whose texts are known: those that most projects have, and those that most often are taken for them.
#[rustfmt::skip]
const KNOWN: &[&str] = &[
    "0BSD", "AFL-3.0", "AGPL-3.0-only", "Apache-1.1", "Apache-2.0", "Artistic-1.0-Perl", "Artistic-2.0", "BSD-1-Clause", "BSD-2-Clause",
    "BSD-2-Clause-Patent", "BSD-3-Clause", "BSD-3-Clause-Clear", "BSD-4-Clause", "BSL-1.0", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-SA-4.0", "CC0-1.0",
    "CDDL-1.0", "CECILL-2.1", "CPL-1.0", "ECL-2.0", "EPL-1.0", "EPL-2.0", "EUPL-1.2", "GPL-1.0-only", "GPL-2.0-only", "GPL-3.0-only", "HPND", "ISC",
    "JSON", "LGPL-2.0-only", "LGPL-2.1-only", "LGPL-3.0-only", "LPPL-1.3c", "MIT", "MIT-0", "MPL-1.1", "MPL-2.0", "MS-PL", "MS-RL", "MulanPSL-2.0",
    "NCSA", "OFL-1.1", "OSL-3.0", "OpenSSL", "PHP-3.01", "PSF-2.0", "PostgreSQL", "Python-2.0", "QPL-1.0", "Ruby", "SSPL-1.0", "UPL-1.0",
    "Unicode-3.0", "Unicode-DFS-2016", "Unlicense", "Vim", "W3C", "WTFPL", "X11", "ZPL-2.1", "Zlib", "bzip2-1.0.6", "curl", "libtiff",
];

/// The share of pairs of words that a file has to have in common with a licence: askalono's bound, over which a text differs in names and dates only.
const MIN_SCORE: f32 = 0.9;

/// The texts of SPDX's list, ready to be compared with.
static TEXTS: LazyLock<Store> = LazyLock::new(|| {
    let mut texts = Store::new();
    for (id, text) in spdx::text::LICENSE_TEXTS.iter().filter(|(id, _)| KNOWN.contains(id)) {
        texts.add_license((*id).to_owned(), TextData::new(text));
    }
    texts
});

/// Whether a file is named as licences are: `LICENSE`, `LICENCE` or `COPYING`, and what follows after a sign; sources that are named so are none.
pub fn is_licence_file(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let rest = ["LICENSE", "LICENCE", "COPYING"].iter().find_map(|start| upper.strip_prefix(start));
    let is_text = Language::of(name).is_none_or(|language| ["markdown", "text", "html"].contains(&language.name));
    rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric())) && is_text
}

/// The licence whose text a file has: the one of SPDX's list that has most pairs of words in common with it, or, where a file holds several texts, by phrases
/// that stand in one and in no other. Files whose names [`is_licence_file`] refuses have none.
pub fn of_licence_file(name: &str, text: &str) -> Option<&'static str> {
    if !is_licence_file(name) {
        return None;
    }
    let nearest = TEXTS.analyze(&TextData::new(text));
    let known = || KNOWN.iter().find(|id| **id == nearest.name).copied();
    if MIN_SCORE <= nearest.score { known() } else { by_phrases(text) }
}

fn by_phrases(text: &str) -> Option<&'static str> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").to_ascii_lowercase();
    let has = |phrase: &str| text.contains(phrase);
    Some(if has("gnu affero general public license version 3") {
        "AGPL-3.0-only"
    } else if has("gnu lesser general public license version 3") {
        "LGPL-3.0-only"
    } else if has("gnu lesser general public license version 2.1") {
        "LGPL-2.1-only"
    } else if has("gnu general public license version 3") {
        "GPL-3.0-only"
    } else if has("gnu general public license version 2") {
        "GPL-2.0-only"
    } else if has("mozilla public license version 2.0") {
        "MPL-2.0"
    } else if has("python software foundation license version 2") {
        "PSF-2.0"
    } else if has("apache license version 2.0, january 2004") || has("licensed under the apache license, version 2.0") {
        "Apache-2.0"
    } else if has("this is free and unencumbered software released into the public domain") {
        "Unlicense"
    } else if has("cc0 1.0 universal") {
        "CC0-1.0"
    } else if has("boost software license - version 1.0") {
        "BSL-1.0"
    } else if has("redistribution and use in source and binary forms") {
        if has("neither the name") { "BSD-3-Clause" } else { "BSD-2-Clause" }
    } else if has("permission is hereby granted, free of charge, to any person obtaining a copy") {
        "MIT"
    } else if has("permission to use, copy, modify, and/or distribute this software for any purpose") {
        if has("provided that the above copyright notice") { "ISC" } else { "0BSD" }
    } else if has("this software is provided 'as-is', without any express or implied warranty") {
        "Zlib"
    } else {
        return None;
    })
}

/// Whether a licence has this name on SPDX's list, whatever the case of its letters.
pub fn is_known(id: &str) -> bool {
    spdx::identifiers::LICENSES.iter().any(|licence| licence.name.eq_ignore_ascii_case(id))
}

/// Whether an SPDX expression can be met by licences of the list alone: either side of an `OR`, both of an `AND`; an exception after `WITH` only adds rights.
/// An expression that does not parse is not allowed.
pub fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let mut depth = 0;
    let answer = alternatives(&mut words, allowed, &mut depth);
    answer == Some(true) && words.next().is_none()
}

/// Parentheses deeper than any licence has are not followed.
const MAX_DEPTH: usize = 32;

type Words<'t, 'w> = &'t mut std::iter::Peekable<std::str::SplitWhitespace<'w>>;

fn alternatives(words: Words<'_, '_>, allowed: &[&str], depth: &mut usize) -> Option<bool> {
    let mut answer = conjunction(words, allowed, depth)?;
    while words.next_if(|word| word.eq_ignore_ascii_case("OR")).is_some() {
        answer |= conjunction(words, allowed, depth)?;
    }
    Some(answer)
}

fn conjunction(words: Words<'_, '_>, allowed: &[&str], depth: &mut usize) -> Option<bool> {
    let mut answer = licence(words, allowed, depth)?;
    while words.next_if(|word| word.eq_ignore_ascii_case("AND")).is_some() {
        answer &= licence(words, allowed, depth)?;
    }
    Some(answer)
}

fn licence(words: Words<'_, '_>, allowed: &[&str], depth: &mut usize) -> Option<bool> {
    let word = words.next()?;
    if word == "(" {
        *depth += 1;
        if MAX_DEPTH < *depth {
            return None;
        }
        let answer = alternatives(words, allowed, depth)?;
        *depth -= 1;
        words.next_if_eq(&")")?;
        return Some(answer);
    }
    if [")", "OR", "AND", "WITH"].iter().any(|other| word.eq_ignore_ascii_case(other)) {
        return None;
    }
    if words.next_if(|word| word.eq_ignore_ascii_case("WITH")).is_some() {
        words.next()?;
    }
    Some(allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(word)))
}
