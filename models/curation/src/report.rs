//! What was found in a corpus, for people: counted document by document, written as text and as one page of HTML that needs no other file.
//!
//! Whatever drives the stages adds its documents in one order and gets the same report: nothing in it is a time, a host or a hash map's order.

mod distribution;

use std::collections::BTreeMap;

use minijinja::Environment;
use minijinja::value::Serde;
use serde_json::{Value, json};

use crate::duplicates::Bands;
use crate::judge::{Judgement, Label, Severity, reasons};
use crate::quality::RuleSet;
use distribution::Distribution;

/// How many places of a rule are shown, and how many copies of a document.
const MAX_EXAMPLES: usize = 5;

/// How many clusters of copies are shown.
const MAX_CLUSTERS: usize = 20;

/// A document, and what was found in it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its path, or what its corpus calls it.
    pub path: &'a str,
    /// Which of the inputs it came from.
    pub source: &'a str,
    /// The size of its content, secrets included.
    pub n_bytes: usize,
    /// The hash of that.
    pub blake3: &'a str,
    /// What the stages say of it.
    pub judgement: &'a Judgement,
    /// The document that stays in its place, if it is a copy.
    pub copy_of: Option<&'a str>,
    /// How many Triton kernels it has.
    pub n_kernels: usize,
}

impl Entry<'_> {
    /// What training does with it, and why.
    pub fn label(&self) -> (Label, &str) {
        match self.copy_of {
            Some(_) => (Label::Rejected, "duplicate"),
            None => (self.judgement.label, &self.judgement.reason),
        }
    }
}

/// What a corpus was judged by, as far as a report says it.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The rule sets for quality.
    pub rules: Vec<RuleSet>,
    /// How signatures were cut into bands.
    pub bands: Bands,
    /// The least similarity of near copies.
    pub threshold: f64,
}

/// What a corpus was found to be.
#[derive(Debug)]
pub struct Report {
    settings: Settings,
    all: Count,
    n_kernels: usize,
    labels: BTreeMap<(Label, String), Count>,
    languages: BTreeMap<String, Count>,
    licences: BTreeMap<String, Count>,
    sources: BTreeMap<String, Source>,
    rules: BTreeMap<String, RuleCount>,
    clusters: BTreeMap<String, Cluster>,
    distributions: Vec<Distribution>,
    documents: blake3::Hasher,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    n_documents: usize,
    n_lines: usize,
    n_bytes: usize,
}

#[derive(Debug, Default)]
struct Source {
    count: Count,
    labels: BTreeMap<Label, usize>,
}

#[derive(Debug)]
struct RuleCount {
    severity: Severity,
    n: usize,
    n_documents: usize,
    examples: Vec<Example>,
}

#[derive(Debug)]
struct Example {
    path: String,
    line: usize,
    column: usize,
    message: String,
    excerpt: String,
}

#[derive(Debug, Default)]
struct Cluster {
    n_copies: usize,
    n_exact: usize,
    copies: Vec<String>,
}

impl Report {
    /// A report without documents.
    pub fn new(settings: Settings) -> Report {
        Report {
            settings,
            all: Count::default(),
            n_kernels: 0,
            labels: BTreeMap::new(),
            languages: BTreeMap::new(),
            licences: BTreeMap::new(),
            sources: BTreeMap::new(),
            rules: BTreeMap::new(),
            clusters: BTreeMap::new(),
            distributions: Distribution::all(),
            documents: blake3::Hasher::new(),
        }
    }

    /// Counts a document. `is_exact` says of a copy that it is one byte for byte.
    pub fn add(&mut self, entry: &Entry<'_>, is_exact: bool) {
        let judgement = entry.judgement;
        let count = Count { n_documents: 1, n_lines: judgement.measures.n_lines, n_bytes: entry.n_bytes };
        self.all.add(count);
        self.n_kernels += entry.n_kernels;
        let (label, reason) = entry.label();
        self.labels.entry((label, reason.to_owned())).or_default().add(count);
        self.languages.entry(judgement.language.unwrap_or("other").to_owned()).or_default().add(count);
        let licence = judgement.licence.as_deref().unwrap_or("none");
        self.licences.entry(licence.to_owned()).or_default().add(count);
        let source = self.sources.entry(entry.source.to_owned()).or_default();
        source.count.add(count);
        *source.labels.entry(label).or_default() += 1;
        for part in [entry.path, "\0", entry.blake3] {
            self.documents.update(part.as_bytes());
        }
        if let Some(kept) = entry.copy_of {
            let cluster = self.clusters.entry(kept.to_owned()).or_default();
            cluster.n_copies += 1;
            cluster.n_exact += usize::from(is_exact);
            if cluster.copies.len() < MAX_EXAMPLES {
                cluster.copies.push(entry.path.to_owned());
            }
            // What is not kept says nothing of the corpus but that it is a copy.
            return;
        }
        self.add_findings(entry);
        if judgement.language.is_some() {
            for distribution in &mut self.distributions {
                distribution.add(&judgement.measures, label);
            }
        }
    }

    fn add_findings(&mut self, entry: &Entry<'_>) {
        let mut last: Vec<&str> = Vec::new();
        for finding in &entry.judgement.findings {
            let rule = self.rules.entry(finding.rule.clone()).or_insert_with(|| RuleCount {
                severity: finding.severity,
                n: 0,
                n_documents: 0,
                examples: Vec::new(),
            });
            rule.n += 1;
            if last.contains(&finding.rule.as_str()) {
                continue;
            }
            last.push(&finding.rule);
            rule.n_documents += 1;
            // Of one document one place, so that the examples are of several.
            if rule.examples.len() < MAX_EXAMPLES {
                rule.examples.push(Example {
                    path: entry.path.to_owned(),
                    line: finding.line,
                    column: finding.column,
                    message: finding.message.clone().into_owned(),
                    excerpt: finding.excerpt.clone(),
                });
            }
        }
    }

    /// The report as text.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} documents, {} lines, {:.1} MB\nall paths and contents: blake3 {}\n",
            self.all.n_documents,
            self.all.n_lines,
            self.all.n_bytes as f64 / 1e6,
            self.documents.finalize().to_hex()
        );
        let labels = self.labels.iter().map(|((label, reason), count)| (format!("{}: {reason}", label.name()), count));
        section(&mut text, "labels", labels.map(|(name, count)| (name, count.n_documents)));
        text.push_str("\nlabels and their reasons mean\n");
        let mut last = None;
        for (label, reason, meaning) in reasons(&self.settings.rules) {
            let name = if last == Some(label) { "" } else { label.name() };
            text.push_str(&format!("{name:>11}  {reason}: {meaning}\n"));
            last = Some(label);
        }
        let rules = self.rules.iter().map(|(name, rule)| (format!("{name} ({})", rule.severity.name()), rule.n));
        section(&mut text, "findings", rules);
        let count = |(name, count): (&String, &Count)| (name.clone(), count.n_documents);
        section(&mut text, "languages", self.languages.iter().map(count));
        section(&mut text, "licences", self.licences.iter().map(count));
        section(&mut text, "near-duplicates", self.copies().map(|(name, n)| (name.to_owned(), n)));
        let Settings { bands, threshold, .. } = &self.settings;
        let Bands { n, rows } = bands;
        let found = format!("near is a similarity of {threshold} or more; how likely {n} bands of {rows} find it");
        text.push_str(&format!("\n{found}\n"));
        text.extend(bands.curve().lines().map(|line| format!("     {}\n", line.trim_end())));
        section(&mut text, "kernels", [("Triton kernels".to_owned(), self.n_kernels)]);
        section(
            &mut text,
            "sources",
            self.sources.iter().map(|(name, source)| (name.clone(), source.count.n_documents)),
        );
        text
    }

    fn copies(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let sum = |of: fn(&Cluster) -> usize| self.clusters.values().map(of).sum::<usize>();
        let n_exact = sum(|cluster| cluster.n_exact);
        [("exact copies", n_exact), ("near copies", sum(|cluster| cluster.n_copies) - n_exact)].into_iter()
    }

    /// The report as a page.
    ///
    /// # Errors
    ///
    /// If the page's template is not well formed, which this crate's tests exclude.
    pub fn html(&self) -> Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        environment.add_filter("grouped", grouped);
        // The name's ending makes all values text in it.
        environment.add_template("page.html", include_str!("report/page.html"))?;
        environment.get_template("page.html")?.render(minijinja::Value::from(Serde(self.page())))
    }

    /// Everything that the page shows, in the order in which it does.
    pub fn page(&self) -> Value {
        let share = |n: usize| percent(n, self.all.n_documents);
        let counts = |counts: &BTreeMap<String, Count>| -> Vec<Value> {
            let mut counts: Vec<(&String, &Count)> = counts.iter().collect();
            counts.sort_by_key(|(name, count)| (std::cmp::Reverse(count.n_documents), *name));
            let row = |(name, count): (&String, &Count)| json!({ "name": name, "documents": count.n_documents, "share": share(count.n_documents), "mb": megabytes(count.n_bytes) });
            counts.into_iter().map(row).collect()
        };
        let meanings = reasons(&self.settings.rules);
        let labels: Vec<Value> = Label::ALL
            .iter()
            .map(|label| {
                let counted = self.reasons(*label);
                let n: usize = counted.iter().map(|(_, count)| count.n_documents).sum();
                let n_bytes: usize = counted.iter().map(|(_, count)| count.n_bytes).sum();
                // Those that no document has say what the others were not rejected for.
                let others = meanings.iter().filter(|(other, reason, _)| other == label && !counted.iter().any(|(name, _)| name == reason));
                let others = others.map(|(_, reason, _)| (*reason, Count::default()));
                let reasons: Vec<Value> = counted
                    .iter()
                    .copied()
                    .chain(others)
                    .map(|(reason, count)| {
                        let meaning = meanings.iter().find(|(other, name, _)| other == label && *name == reason).map(|(_, _, meaning)| meaning);
                        json!({ "name": reason, "meaning": meaning, "documents": count.n_documents, "share": share(count.n_documents), "mb": megabytes(count.n_bytes) })
                    })
                    .collect();
                json!({ "name": label.name(), "documents": n, "share": share(n), "mb": megabytes(n_bytes), "reasons": reasons })
            })
            .collect();
        let mut clusters: Vec<(&String, &Cluster)> = self.clusters.iter().collect();
        clusters.sort_by_key(|(kept, cluster)| (std::cmp::Reverse(cluster.n_copies), *kept));
        let clusters: Vec<Value> = clusters
            .into_iter()
            .take(MAX_CLUSTERS)
            .map(|(kept, cluster)| {
                json!({ "kept": kept, "copies": cluster.copies, "n": cluster.n_copies, "exact": cluster.n_exact, "more": cluster.n_copies - cluster.copies.len() })
            })
            .collect();
        let sources: Vec<Value> = self
            .sources
            .iter()
            .map(|(name, source)| {
                let n = |label: &Label| source.labels.get(label).copied().unwrap_or(0);
                let labels: Vec<usize> = Label::ALL.iter().map(n).collect();
                json!({ "name": name, "documents": source.count.n_documents, "mb": megabytes(source.count.n_bytes), "labels": labels })
            })
            .collect();
        let curve: Vec<Value> = self
            .settings
            .bands
            .points()
            .map(|(similarity, probability)| {
                json!({ "similarity": format!("{similarity:.2}"), "probability": format!("{probability:.4}"), "height": format!("{:.1}", probability * 100.0) })
            })
            .collect();
        json!({
            "documents": self.all.n_documents,
            "lines": self.all.n_lines,
            "mb": megabytes(self.all.n_bytes),
            "hash": self.documents.finalize().to_hex().as_str(),
            "kernels": self.n_kernels,
            "labels": labels,
            "severities": self.severities(),
            "languages": counts(&self.languages),
            "licences": counts(&self.licences),
            "n_clusters": self.clusters.len(),
            "rules": self.settings.rules.iter().map(|set| set.name()).collect::<Vec<_>>(),
            "threshold": self.settings.threshold,
            "bands": { "n": self.settings.bands.n, "rows": self.settings.bands.rows },
            "curve": curve,
            "copies": self.copies().map(|(name, n)| json!({ "name": name, "n": n })).collect::<Vec<_>>(),
            "clusters": clusters,
            "sources": sources,
            "distributions": self.distributions.iter().map(Distribution::figure).collect::<Vec<_>>(),
        })
    }

    /// The reasons of a label, the most frequent first.
    fn reasons(&self, label: Label) -> Vec<(&str, Count)> {
        let of_label = self.labels.iter().filter(|((other, _), _)| *other == label);
        let mut reasons: Vec<(&str, Count)> = of_label.map(|((_, reason), count)| (reason.as_str(), *count)).collect();
        reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(count.n_documents), *reason));
        reasons
    }

    /// The rules that found something, the worst severity first and in it the most frequent.
    fn severities(&self) -> Vec<Value> {
        let group = |severity: Severity| {
            let mut rules: Vec<(&String, &RuleCount)> =
                self.rules.iter().filter(|(_, rule)| rule.severity == severity).collect();
            rules.sort_by_key(|(name, rule)| (std::cmp::Reverse(rule.n), *name));
            let n: usize = rules.iter().map(|(_, rule)| rule.n).sum();
            let rules: Vec<Value> = rules.into_iter().map(|(name, rule)| rule.figure(name)).collect();
            json!({ "name": severity.name(), "n": n, "rules": rules })
        };
        Severity::ALL.into_iter().map(group).collect()
    }
}

impl Count {
    fn add(&mut self, other: Count) {
        self.n_documents += other.n_documents;
        self.n_lines += other.n_lines;
        self.n_bytes += other.n_bytes;
    }
}

impl RuleCount {
    fn figure(&self, name: &str) -> Value {
        let first = self.examples.first().map_or("", |example| example.message.as_str());
        // A message that is the same everywhere is the rule's; otherwise each place has its own.
        let is_same = self.examples.iter().all(|example| example.message == first);
        let examples: Vec<Value> = self
            .examples
            .iter()
            .map(|example| {
                let Example { path, line, column, message, excerpt } = example;
                let message = if is_same { "" } else { message };
                json!({ "path": path, "line": line, "column": column, "message": message, "excerpt": excerpt })
            })
            .collect();
        let message = if is_same { first } else { "" };
        json!({ "name": name, "n": self.n, "documents": self.n_documents, "message": message, "examples": examples })
    }
}

/// A section of the text: the most frequent first.
fn section(text: &mut String, title: &str, counts: impl IntoIterator<Item = (String, usize)>) {
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by(|(lhs_name, lhs), (rhs_name, rhs)| (rhs, lhs_name).cmp(&(lhs, rhs_name)));
    text.push_str(&format!("\n{title}\n"));
    for (name, n) in counts {
        text.push_str(&format!("{n:>9}  {name}\n"));
    }
}

fn megabytes(n_bytes: usize) -> String {
    format!("{:.2}", n_bytes as f64 / 1e6)
}

fn percent(part: usize, whole: usize) -> String {
    if whole == 0 { "0".to_owned() } else { format!("{:.2}", part as f64 * 100.0 / whole as f64) }
}

/// A count with commas between its thousands.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if 0 < at && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
