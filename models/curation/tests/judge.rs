//! Labels with their reasons, licences of documents and of projects, and what may be trained on.

use std::borrow::Cow;

use tritter_curation::Secrets;
use tritter_curation::judge::{Criteria, Judgement, Label, Severity, judge};
use tritter_curation::licence::{PERMISSIVE, is_allowed, of_licence_file, of_manifest, of_tag};

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
    let secrets = Secrets::built_in().expect("the built-in rules are well formed");
    judge(
        path,
        text,
        project,
        Criteria { secrets: &secrets, count_tokens: &|text| text.len(), licences: Some(PERMISSIVE), evaluations: None },
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
    let cargo = "[package]\nname = \"x\"\nlicense = \"MIT/Apache-2.0\"\n";
    assert_eq!(of_manifest("Cargo.toml", cargo).as_deref(), Some("MIT OR Apache-2.0"));
    assert_eq!(of_manifest("pyproject.toml", "[project]\nlicense = {text = \"ISC\"}\n").as_deref(), Some("ISC"));
    assert_eq!(of_manifest("package.json", "{\"license\": \"BSD-3-Clause\"}").as_deref(), Some("BSD-3-Clause"));
    assert_eq!(of_manifest("setup.cfg", "license = MIT"), None);
    for (file, expected) in [("LICENSE-MIT", "MIT"), ("LICENSE-APACHE", "Apache-2.0")] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
        let text = std::fs::read_to_string(path).expect("the project has its licences");
        assert_eq!(of_licence_file(file, &text), Some(expected));
    }
    assert_eq!(of_licence_file("main.rs", "MIT"), None);
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
