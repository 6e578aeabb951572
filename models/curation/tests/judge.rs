//! Labels with their reasons, licences of documents and of projects, and what may be trained on.

use std::borrow::Cow;

use tritter_curation::Secrets;
use tritter_curation::judge::{Criteria, Judgement, Label, Severity, judge, reasons};
use tritter_curation::licence::{
    Manifest, PERMISSIVE, PackageLicence, is_allowed, is_known, is_licence_file, of_licence_file, of_tag,
};
use tritter_curation::quality::RuleSet;

const CODE: &str = "def double(x):
    # Once more.
    return x + x


def triple(x):
    return double(x) + x


def quadruple(x):
    return double(double(x))


def quintuple(x):
    return quadruple(x) + x
";

fn judged(path: &str, text: &str, project: Option<&str>) -> Judgement {
    judged_by(&[RuleSet::StarCoder], path, text, project)
}

fn judged_by(rules: &[RuleSet], path: &str, text: &str, project: Option<&str>) -> Judgement {
    let secrets = Secrets::built_in().expect("the built-in rules are well formed");
    judge(
        path,
        text,
        project,
        Criteria {
            secrets: &secrets,
            count_tokens: &|text| text.len(),
            licences: Some(PERMISSIVE),
            evaluations: None,
            rules,
        },
    )
}

#[test]
fn labels_have_their_reasons() {
    let label = |path: &str, text: &str, project: Option<&str>| {
        let judgement = judged(path, text, project);
        let Cow::Borrowed(reason) = judgement.reason else { panic!("the stages name their reasons") };
        (judgement.label, reason)
    };
    assert_eq!(label("a.py", CODE, Some("MIT")), (Label::Positive, "no fault"));
    assert_eq!(label("a.py", CODE, None), (Label::Rejected, "licence"));
    assert_eq!(label("a.py", CODE, Some("GPL-3.0-only")), (Label::Rejected, "licence"));
    let tagged = format!("# SPDX-License-Identifier: Apache-2.0\n{CODE}");
    assert_eq!(label("a.py", &tagged, Some("GPL-3.0-only")), (Label::Positive, "no fault"));
    let generated = format!("# This file is generated. Do not edit.\n{CODE}");
    assert_eq!(label("a.py", &generated, Some("MIT")), (Label::Rejected, "generated"));
    let documented = CODE.replace("# Once more.", "# Adding a number to itself doubles it, and so does a shift; the sum is what all types have, strings and lists among them.");
    assert_eq!(label("a.py", &documented, Some("MIT")), (Label::Educational, "documentation"));
    let danger = format!("{CODE}\nmodel.eval()\nresult = eval(text)\n");
    assert_eq!(label("a.py", &danger, Some("MIT")), (Label::Negative, "security"));
    assert_eq!(label("a.py", &danger.replace("= eval", "= model.eval"), Some("MIT")), (Label::Positive, "no fault"));
    let branches = format!("# One function.\ndef f(x):\n{}", "    if x: pass\n".repeat(60));
    assert_eq!(label("a.py", &branches, Some("MIT")), (Label::Negative, "complexity"));
}

#[test]
fn rule_sets_judge_as_they_are_asked_to() {
    let label = |rules: &[RuleSet]| {
        let judgement = judged_by(rules, "a.py", CODE, Some("MIT"));
        let sets: Vec<RuleSet> = judgement.quality.iter().map(|(set, _)| *set).collect();
        assert_eq!(sets, rules);
        (judgement.label, judgement.reason.into_owned(), judgement.findings)
    };
    assert_eq!(label(&[]).0, Label::Positive);
    assert_eq!(label(&[RuleSet::StarCoder]).0, Label::Positive);
    let (label, reason, findings) = label(&RuleSet::ALL);
    assert_eq!((label, reason.as_str()), (Label::Rejected, "gopher_short_doc"));
    let messages: Vec<(&str, &str)> =
        findings.iter().map(|finding| (finding.rule.as_str(), &*finding.message)).collect();
    assert_eq!(
        messages,
        [
            ("gopher/gopher_short_doc", "fewer than 50 words: 29, the bound is 50"),
            ("c4/too_few_sentences", "fewer than five sentences in lines that end as sentences do: 1, the bound is 5"),
            (
                "fineweb/line_punct_ratio",
                "fewer than 12 % of its lines end with a punctuation mark: 0.111, the bound is 0.12"
            ),
        ]
    );
    // What decides is what the legend has.
    let legend = reasons(&RuleSet::ALL);
    assert!(legend.iter().any(|(of, name, _)| (*of, *name) == (label, reason.as_str())));
    assert!(!reasons(&[RuleSet::StarCoder]).iter().any(|(_, name, _)| *name == reason));
}

#[test]
fn a_secret_makes_a_document_negative_and_does_not_stay_in_it() {
    let token = ["ghp_zQWBuTSOoRi4A9spHcVY5", "ncnsDkxkJ0mLq17"].concat();
    let text = format!("{CODE}\nTOKEN = \"{token}\"\n");
    let judgement = judged("a.py", &text, Some("MIT"));
    assert_eq!((judgement.label, &*judgement.reason), (Label::Negative, "secrets"));
    let mut findings = judgement.findings.iter();
    let finding = findings.find(|finding| finding.rule.starts_with("secrets/")).expect("it has a secret");
    assert_eq!((finding.rule.as_str(), finding.line, finding.column), ("secrets/github-classic-token", 17, 10));
    assert_eq!(finding.severity, Severity::Critical);
    let redacted = judgement.redacted.expect("it has a secret");
    assert!(redacted.contains("TOKEN = \"[secret:github-classic-token]\"") && !redacted.contains(&token));
}

#[test]
fn licences_are_read_from_tags_manifests_and_texts() {
    assert_eq!(of_tag("/* SPDX-License-Identifier: MIT OR Apache-2.0 */"), Some("MIT OR Apache-2.0"));
    assert_eq!(of_tag("no tag"), None);
    let package = |name: &str, text: &str| Manifest::read(name, text).package;
    let is = |licence: &str| Some(PackageLicence::Is(licence.to_owned()));
    let cargo = "[package]\nname = \"x\"\nlicense = \"MIT/Apache-2.0\"\n";
    assert_eq!(package("Cargo.toml", cargo), is("MIT OR Apache-2.0"));
    assert_eq!(package("pyproject.toml", "[project]\nlicense = {text = \"ISC\"}\n"), is("ISC"));
    assert_eq!(package("package.json", "{\"license\": \"BSD-3-Clause\"}"), is("BSD-3-Clause"));
    assert_eq!(package("setup.cfg", "license = MIT"), None);
    for member in ["license.workspace = true", "license = { workspace = true }"] {
        let member = format!("[package]\nname = \"x\"\n{member}\n");
        assert_eq!(package("Cargo.toml", &member), Some(PackageLicence::Inherited));
    }
    let root = Manifest::read("Cargo.toml", "[workspace.package]\nlicense = \"MIT/ISC\"\n");
    assert_eq!(root, Manifest { package: None, workspace: Some("MIT OR ISC".to_owned()) });
    for name in ["LICENSE", "licence.txt", "LICENSE-MIT", "LICENSE.APACHE", "COPYING.md", "License_BSD"] {
        assert!(is_licence_file(name), "{name}");
    }
    for name in ["licence.rs", "license_check.py", "LICENSES", "licensee.md", "copying.c", "license.json", "UNLICENSE"]
    {
        assert!(!is_licence_file(name), "{name}");
    }
    assert!(is_known("mit") && is_known("Apache-2.0") && !is_known("MIT OR ISC") && !is_known("bogus"));
    for (file, expected) in [("LICENSE-MIT", "MIT"), ("LICENSE-APACHE", "Apache-2.0")] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
        let text = std::fs::read_to_string(path).expect("the project has its licences");
        assert_eq!(of_licence_file(file, &text), Some(expected));
    }
    assert_eq!(of_licence_file("main.rs", "MIT"), None);
    assert_eq!(
        of_licence_file(
            "licence.rs",
            &std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../LICENSE-MIT"))
                .expect("the project has its licences")
        ),
        None
    );
    assert_eq!(of_licence_file("LICENSE", "All rights reserved."), None);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../LICENSE-MIT");
    let mit = std::fs::read_to_string(file).expect("the project has its licences");
    // Another name, other lines, a word more; and not the licence that forbids what this one allows.
    let other = format!("The MIT License\n\nCopyright 1999 A. Nother\n{}", mit.replace('\n', " ").to_uppercase());
    assert_eq!(of_licence_file("COPYING", &other), Some("MIT"));
    let both = format!("{mit}\n\n{}", "Parts of this are under the GNU General Public License version 2. ".repeat(20));
    assert_eq!(of_licence_file("LICENSE", &both), Some("GPL-2.0-only"));
}

#[test]
fn expressions_are_allowed_by_their_alternatives() {
    for allowed in
        ["MIT", "mit", "GPL-2.0-only OR MIT", "MIT AND (ISC OR GPL-3.0-only)", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(is_allowed(allowed, PERMISSIVE), "{allowed}");
    }
    for refused in ["GPL-2.0-only", "MIT AND GPL-2.0-only", "", "MIT OR", "(MIT", "MIT)", "MIT ISC", &"(".repeat(5000)]
    {
        assert!(!is_allowed(refused, PERMISSIVE), "{refused}");
    }
}
