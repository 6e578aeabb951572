//! The report of a corpus: what it counts, what it must not show, and that names cannot become markup.

use tritter_curation::Secrets;
use tritter_curation::duplicates::Bands;
use tritter_curation::judge::{Criteria, judge, reasons};
use tritter_curation::quality::RuleSet;
use tritter_curation::report::{Entry, Report, Settings};

/// What legends tell of; documents are judged by the first, since code is no prose.
const RULES: [RuleSet; 2] = [RuleSet::StarCoder, RuleSet::Gopher];

fn report(documents: &[(&str, &str, Option<&str>)]) -> Report {
    let secrets = Secrets::built_in().expect("the built-in rules are well formed");
    let criteria = Criteria {
        secrets: &secrets,
        count_tokens: &|text| text.len(),
        licences: None,
        evaluations: None,
        rules: &RULES[..1],
    };
    let settings = Settings { rules: RULES.to_vec(), bands: Bands { n: 20, rows: 5 }, threshold: 0.7 };
    let mut report = Report::new(settings);
    for (path, text, copy_of) in documents {
        let judgement = judge(path, text, None, criteria);
        let blake3 = blake3::hash(text.as_bytes()).to_hex();
        let entry = Entry {
            path,
            source: "corpus",
            n_bytes: text.len(),
            blake3: &blake3,
            judgement: &judgement,
            copy_of: *copy_of,
            n_kernels: 0,
        };
        report.add(&entry, true);
    }
    report
}

const CODE: &str = "# Adds.\ndef add(x, y):\n    return x + y\n";

#[test]
fn everything_is_counted_and_shown() {
    let danger = format!("{CODE}\nresult = eval(text)\n");
    let report = report(&[("a.py", CODE, None), ("b.py", &danger, None), ("c.py", CODE, Some("a.py"))]);
    let text = report.text();
    for line in [
        "3 documents, 11 lines",
        "1  negative: security",
        "1  rejected: duplicate",
        "1  security/eval (high)",
        "1  exact copies",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let page = report.html().expect("the page's template is well formed");
    for part in [
        "<code>b.py:5:10</code>",
        "<pre>result = eval(text)</pre>",
        "<td><code>a.py</code></td>",
        "<li><code>c.py</code></li>",
    ] {
        assert!(page.contains(part), "{part} is not in the page");
    }
    for outside in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "the page needs another file: {outside}");
    }
}

#[test]
fn the_legend_has_every_reason_and_the_curve_of_the_bands() {
    let report = report(&[]);
    let (text, page) = (report.text(), report.html().expect("the page's template is well formed"));
    let reasons = reasons(&RULES);
    assert!(30 < reasons.len(), "{reasons:?}");
    for (_, reason, meaning) in reasons {
        assert!(text.contains(&format!("  {reason}: {meaning}\n")), "{reason} is not in\n{text}");
        assert!(page.contains(&format!("<td>{reason}<span")), "{reason} is not in the page");
    }
    // 1 - (1 - 0.8^5)^20
    for part in ["a similarity of 0.7 or more; how likely 20 bands of 5 find it", "0.80  0.9996  ####"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(page.contains("20 bands of 5") && page.contains("title=\"0.80: 0.9996\""));
}

#[test]
fn secrets_are_not_shown_and_names_are_no_markup() {
    let token = ["ghp_zQWBuTSOoRi4A9spHcVY5", "ncnsDkxkJ0mLq17"].concat();
    let text = format!("{CODE}\nTOKEN, SAME = \"{token}\", \"{token}\"  # <script>\n");
    let report = report(&[("<b>&\"a.py", &text, None)]);
    let page = report.html().expect("the page's template is well formed");
    assert!(!page.contains(&token) && !page.contains(&token[..12]), "the page shows a secret");
    assert!(page.contains("[secret:github-classic-token]"));
    assert!(!page.contains("<script>") && !page.contains("<b>&\""), "a name became markup");
}

#[test]
fn no_documents_make_a_report_too() {
    let report = report(&[]);
    assert!(report.text().starts_with("0 documents, 0 lines, 0.0 MB"));
    report.html().expect("the page's template is well formed");
}
