//! The page that the compiler writes for a browser: it is well formed, fetches nothing, and leaves nothing out.

use std::collections::BTreeSet;

use compiler::emit::nvrtc::Search;
use compiler::report::html::{FrontPoint, Page, page};
use compiler::schedule::Residency;
use compiler::{Compiled, Options, Target, rewrite};
use ir::plan::{Budget, Role};
use ir::{Program, Verified};
use roxmltree::{Document, Node, ParsingOptions};
use tritter_tests::session::{Build, Model};

/// A name that would be markup if it were not escaped.
const HOSTILE: &str = "</title><script>alert(1)</script>&\"'";

fn source(name: &str) -> Verified<Program> {
    let built = Model::shipped("tiny").unwrap().build(&Build { chunk: 32, ..Build::new(40) }).unwrap();
    let mut program = Program::clone(&built.program);
    program.name = name.to_owned();
    ir::verify(program).unwrap()
}

fn compiled(source: &Verified<Program>, target: &Target, streamed: u32) -> Compiled {
    let options = Options {
        rewrite: rewrite::Options::all(),
        context: 40,
        sequences: 1,
        dumps: false,
        nvrtc: Search::default(),
        residency: Residency { streamed, split: 2, slots: 2, ..Residency::default() },
        budget: Budget { device_bytes: Some(10_000_000), ..Budget::default() },
        allow_spills: false,
    };
    compiler::compile(source.clone(), target, &options).unwrap()
}

/// The page of a small model, two of whose layers are streamed.
fn written(name: &str, front: &[FrontPoint]) -> (Compiled, String) {
    let source = source(name);
    let target: Target = "x86_64:avx2".parse().unwrap();
    let compiled = compiled(&source, &target, 2);
    let rewriting = &rewrite::Options::all();
    let text = page(&Page { source: &source, compiled: &compiled, target: &target, rewriting, front }).unwrap();
    (compiled, text)
}

fn parse(text: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).unwrap_or_else(|error| panic!("{error}"))
}

fn with_id<'a>(document: &'a Document<'_>, id: &str) -> Option<Node<'a, 'a>> {
    document.descendants().find(|node| node.attribute("id") == Some(id))
}

fn all_text(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|node| node.text()).collect()
}

#[test]
fn a_page_is_well_formed_and_fetches_nothing() {
    let (_, text) = written(HOSTILE, &[]);
    let document = parse(&text);
    let title =
        document.descendants().find(|node| node.has_tag_name(("http://www.w3.org/1999/xhtml", "title"))).unwrap();
    assert!(title.text().unwrap().starts_with(HOSTILE), "{title:?}");
    for node in document.descendants().filter(Node::is_element) {
        let tag = node.tag_name().name();
        assert!(!["link", "img", "iframe", "object", "image", "use"].contains(&tag), "{tag}");
        for attribute in node.attributes() {
            let is_inside = attribute.name() != "href" || attribute.value().starts_with('#');
            assert!(is_inside && attribute.name() != "src" && !attribute.name().starts_with("on"), "{attribute:?}");
        }
    }
    for word in ["@import", "url(", "fetch(", "XMLHttpRequest"] {
        assert!(!text.contains(word), "{word}");
    }
    assert_eq!(text.matches("://").count(), 1, "the namespace, and nothing else");
    // Links lead somewhere, and nothing has the name of something else.
    let ids: Vec<&str> = document.descendants().filter_map(|node| node.attribute("id")).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    for link in document.descendants().filter_map(|node| node.attribute("href")) {
        assert!(ids.contains(&&link[1..]), "{link}");
    }
}

#[test]
fn a_page_names_every_allocation_buffer_launch_and_rule() {
    let (compiled, text) = written("tiny", &[]);
    let document = parse(&text);
    let plan = &compiled.plan;
    let cells = |id: &str| -> BTreeSet<String> {
        let section = with_id(&document, id).unwrap_or_else(|| panic!("no section {id}"));
        section.descendants().filter(|node| node.tag_name().name() == "td").map(all_text).collect()
    };
    let memory = cells("memory");
    for buffer in &plan.buffers {
        assert!(memory.contains(&buffer.name), "{}", buffer.name);
    }
    // Those of scratch are drawn as well, each with its name and its steps.
    let drawn: Vec<String> = with_id(&document, "memory")
        .unwrap()
        .descendants()
        .filter(|node| node.attribute("class").is_some_and(|class| class.starts_with("scratch")))
        .map(all_text)
        .collect();
    for buffer in plan.buffers.iter().filter(|buffer| matches!(buffer.role, Role::Scratch(_))) {
        let is_it = |title: &&String| title.starts_with(&format!("{} (b", buffer.name)) && title.contains("step ");
        assert!(drawn.iter().any(|title| is_it(&title)), "{}", buffer.name);
    }
    let timeline = cells("timeline");
    assert!(plan.kernels.iter().all(|kernel| timeline.contains(&kernel.name)));
    let promise = cells("promise");
    for part in ["weights", "caches", "inputs and outputs", "slots", "scratch"] {
        assert!(promise.contains(part), "{part}");
    }
    assert!(all_text(with_id(&document, "promise").unwrap()).contains("of a budget of 10.00 MB"));
    let graphs = all_text(with_id(&document, "graphs").unwrap());
    for stage in compiled.report.rewriting.graphs.iter().flat_map(|graph| &graph.stages) {
        assert!(stage.rules.keys().all(|rule| graphs.contains(rule)), "{stage:?}");
    }
    assert!(graphs.contains("every step checked") && !graphs.contains("not every step"));
    assert!(with_id(&document, "front").is_none());
}

/// Frames of launches stand for the steps of the plan, one for each.
#[test]
fn every_step_of_a_round_has_a_frame() {
    let (compiled, text) = written("tiny", &[]);
    let document = parse(&text);
    let frames: BTreeSet<&str> = document
        .descendants()
        .filter(|node| node.attribute("class") == Some("title"))
        .filter_map(|node| node.text())
        .filter_map(|text| text.strip_prefix("step ")?.split(' ').next())
        .collect();
    let launches: u64 = compiled.report.phases[0].2.values().sum();
    let layers = u64::from(Model::shipped("tiny").unwrap().spec.layers);
    let repeated: usize = compiled.plan.phases[0]
        .steps
        .iter()
        .map(|step| if let ir::plan::Step::Repeat { steps, .. } = step { steps.len() } else { 0 })
        .sum();
    let copies = compiled.report.phases[0].2.get("copy").copied().unwrap_or(0);
    assert_eq!(frames.len() as u64, launches - copies - (layers - 1) * repeated as u64);
}

#[test]
fn a_front_is_drawn_where_there_is_one() {
    let point = |label: &str, token_ns, device_bytes, is_chosen| FrontPoint {
        label: label.to_owned(),
        token_ns,
        first_token_ns: 10 * token_ns,
        device_bytes,
        host_bytes: 0,
        is_chosen,
    };
    let points =
        [point("all <resident>", 1_000_000, 14_000_000_000, false), point("half", 7_000_000, 8_000_000_000, true)];
    let (_, text) = written("tiny", &points);
    let document = parse(&text);
    let front = with_id(&document, "front").unwrap();
    let circles: Vec<Node<'_, '_>> = front.descendants().filter(|node| node.tag_name().name() == "circle").collect();
    assert_eq!(circles.len(), 2);
    assert_eq!(circles[1].attribute("class"), Some("point chosen"));
    assert!(all_text(circles[0]).starts_with("all <resident>\n1.00 ms a token\n10.0 ms to the first token\n14.00 GB"));
}

#[test]
fn the_same_input_gives_the_same_page() {
    assert!(written("tiny", &[]).1 == written("tiny", &[]).1);
}
