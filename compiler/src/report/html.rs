//! What the compiler did and what it promises, as one page for a browser: nothing in it is fetched, and it can be read without scripts.

mod call;
mod front;
mod graph;
mod layout;
mod markup;
mod memory;
mod rewrites;
mod timeline;

use ir::plan::Certificate;
use ir::plan::certificate::{Allocation, Lifetime};
use ir::{Program, Verified};

use self::call::PhaseCall;
use self::graph::Changes;
use self::markup::{Markup, Px, grouped, human_ns, percent};
use super::human_bytes;
use crate::error::CompileError;
use crate::pipeline::Compiled;
use crate::rewrite;
use crate::target::Target;

pub use front::FrontPoint;

/// Looks, and what is nicer with a script: names at once where one points, and larger drawings.
const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");

/// What a page is about.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// The program as it was declared.
    pub source: &'a Verified<Program>,
    /// What became of it.
    pub compiled: &'a Compiled,
    /// What it was compiled for.
    pub target: &'a Target,
    /// How it was optimised, by which rewrites are explained.
    pub rewriting: &'a rewrite::Options,
    /// Schedules of memory to choose from; without any their section is left out.
    pub front: &'a [FrontPoint],
}

/// The text of a page, the same for the same input.
///
/// # Errors
///
/// If the optimiser cannot say what it did; that is a bug.
pub fn page(page: &Page<'_>) -> Result<String, CompileError> {
    let plan = &page.compiled.plan;
    let calls: Vec<PhaseCall<'_>> = (0..plan.phases.len()).map(|index| PhaseCall::new(plan, index)).collect();
    let mut graphs = Markup::default();
    graph_sections(&mut graphs, page, &calls)?;

    let mut out = Markup::default();
    out.raw("<!DOCTYPE html>\n");
    out.element("html", &[("lang", &"en"), ("xmlns", &"http://www.w3.org/1999/xhtml")], |out| {
        out.element("head", &[], |out| {
            out.empty("meta", &[("charset", &"utf-8")]);
            out.empty("meta", &[("name", &"viewport"), ("content", &"width=device-width, initial-scale=1")]);
            out.empty("meta", &[("name", &"color-scheme"), ("content", &"light dark")]);
            out.leaf("title", &[], format!("{} for {}", plan.model, plan.target));
            out.element("style", &[], |out| out.raw(STYLE));
        });
        out.element("body", &[], |out| {
            header(out, page, &calls);
            out.element("main", &[], |out| {
                promise(out, page);
                out.raw(&graphs.into_text());
                section(out, "memory", "Memory over a call", |out| {
                    phase_tabs(out, "memory", &calls, |out, call| memory::map(out, plan, call));
                });
                section(out, "timeline", "Timeline of a call", |out| {
                    phase_tabs(out, "timeline", &calls, |out, call| timeline::timeline(out, plan, call));
                });
                if !page.front.is_empty() {
                    section(out, "front", "Schedules of memory", |out| front::front(out, page.front));
                }
            });
            out.element("div", &[("id", &"tip"), ("hidden", &"hidden")], |_| {});
            out.element("script", &[], |out| out.raw(SCRIPT));
        });
    });
    out.raw("\n");
    Ok(out.into_text())
}

fn header(out: &mut Markup, page: &Page<'_>, calls: &[PhaseCall<'_>]) {
    let Compiled { plan, report, .. } = page.compiled;
    let certificate = Certificate::of(plan);
    out.element("header", &[], |out| {
        out.leaf("p", &[("class", &"kicker")], "tritterc report");
        out.leaf("h1", &[], &plan.model);
        out.element("nav", &[], |out| {
            let links = [
                ("promise", "Memory promised"),
                ("graphs", "Graphs"),
                ("memory", "Memory over a call"),
                ("timeline", "Timeline"),
            ];
            let front = (!page.front.is_empty()).then_some(("front", "Schedules"));
            for (id, label) in links.into_iter().chain(front) {
                out.leaf("a", &[("href", &format!("#{id}"))], label);
            }
        });
        out.element("dl", &[], |out| {
            let mut fact = |name: &str, value: &str, note: &str| {
                out.element("div", &[], |out| {
                    out.leaf("dt", &[], name);
                    out.leaf("dd", &[], value);
                    if !note.is_empty() {
                        out.leaf("dd", &[("class", &"quiet")], note);
                    }
                });
            };
            fact("target", &plan.target, "");
            fact("device memory", &human_bytes(certificate.device_bytes()), "all that running it takes");
            let streamed = match plan.placement.streamed_bytes() {
                0 => "all resident".to_owned(),
                bytes => format!("{} copied for each call", human_bytes(bytes)),
            };
            fact("weights", &human_bytes(plan.weights_bytes), &streamed);
            let sequences = if plan.sequences == 1 { "sequence" } else { "sequences" };
            fact("context", &grouped(plan.context), &format!("positions of {} {sequences}", plan.sequences));
            fact("vocabulary", &grouped(plan.vocab), "tokens");
            for call in calls.iter().take(1).chain(calls.iter().skip(1).last()) {
                let tokens = if call.phase.max_tokens == 1 { "token" } else { "tokens" };
                let note =
                    format!("predicted for {} {tokens}, {} launches", call.phase.max_tokens, call.total_launches());
                fact(&call.phase.name, &human_ns(timeline::call_ns(plan, call)), &note);
            }
        });
        out.element("p", &[("class", &"machine")], |out| {
            out.text(format!("Times are predicted for this machine, {}", report.machine));
            let link = plan.machine.link_bytes_per_us as f64 / 1e3;
            out.text(format!(
                ", copies at {link:.1} GB/s. Calls are the longest of their phase at the end of the context."
            ));
        });
    });
}

/// Every allocation, and the budget.
fn promise(out: &mut Markup, page: &Page<'_>) {
    let plan = &page.compiled.plan;
    let certificate = Certificate::of(plan);
    section(out, "promise", "Memory promised", |out| {
        out.element("p", &[("class", &"lead")], |out| {
            out.text("Everything is allocated before the first call and nothing after it: ");
            out.leaf("strong", &[], format!("{} of the device", human_bytes(certificate.device_bytes())));
            if !certificate.host.is_empty() {
                out.text(" and ");
                out.leaf("strong", &[], format!("{} of the host", human_bytes(certificate.host_bytes())));
            }
            out.text(". The compiler has proved it, and the runtime proves it again when it opens the plan.");
        });
        allocations(out, "Device", &certificate.device, certificate.device_bytes(), plan.budget.device_bytes);
        if !certificate.host.is_empty() {
            allocations(out, "Host", &certificate.host, certificate.host_bytes(), plan.budget.host_bytes);
        }
    });
}

fn allocations(out: &mut Markup, whose: &str, all: &[Allocation], total: u64, budget: Option<u64>) {
    const WIDTH: f64 = 1240.0;
    let room = budget.unwrap_or(total).max(total).max(1);
    let class = |at: usize| format!("part{}", at % 6);
    out.leaf("h3", &[], whose);
    out.element(
        "svg",
        &[("class", &"bar"), ("viewBox", &"0 0 1240 40"), ("role", &"img"), ("aria-label", &whose)],
        |out| {
            let mut left = 0.0;
            out.shape(
                "rect",
                &[("class", &"free"), ("width", &Px(WIDTH)), ("height", &"40")],
                "free within the budget",
            );
            for (at, one) in all.iter().enumerate() {
                let width = one.bytes as f64 / room as f64 * WIDTH;
                let attributes: markup::Attributes<'_> = &[
                    ("class", &class(at)),
                    ("x", &Px(left)),
                    ("width", &Px((width - 0.8).max(0.6))),
                    ("height", &"40"),
                ];
                out.shape("rect", attributes, format!("{}\n{}", one.name, human_bytes(one.bytes)));
                left += width;
            }
        },
    );
    out.element("table", &[("class", &"certificate")], |out| {
        out.element("tr", &[], |out| {
            for head in ["allocation", "bytes", "", "share", "contents live"] {
                out.leaf("th", &[], head);
            }
        });
        for (at, one) in all.iter().enumerate() {
            out.element("tr", &[], |out| {
                out.element("td", &[], |out| {
                    out.element("i", &[("class", &format!("dot {}", class(at)))], |_| {});
                    out.text(&one.name);
                });
                out.leaf("td", &[("class", &"number")], human_bytes(one.bytes));
                out.leaf("td", &[("class", &"number quiet")], grouped(one.bytes));
                out.leaf("td", &[("class", &"number")], percent(one.bytes, total));
                out.leaf("td", &[], lifetime(&one.lifetime));
            });
        }
        out.element("tr", &[("class", &"total")], |out| {
            out.leaf("td", &[], "in all");
            out.leaf("td", &[("class", &"number")], human_bytes(total));
            out.leaf("td", &[("class", &"number quiet")], grouped(total));
            out.leaf("td", &[], "");
            let against = match budget {
                Some(budget) => format!(
                    "of a budget of {}, {} left",
                    human_bytes(budget),
                    human_bytes(budget.saturating_sub(total))
                ),
                None => "no budget was given".to_owned(),
            };
            out.leaf("td", &[], against);
        });
    });
}

fn lifetime(lifetime: &Lifetime) -> String {
    match lifetime {
        Lifetime::Always => "from the start to the end".to_owned(),
        Lifetime::Piece => "while a piece of the weights is copied and read".to_owned(),
        Lifetime::Call(phases) => {
            let phases: Vec<String> =
                phases.iter().map(|(name, bytes)| format!("{name} {}", human_bytes(*bytes))).collect();
            format!("within a call: {}", phases.join(", "))
        }
    }
}

/// Each graph before and after, and the rewrites between.
fn graph_sections(out: &mut Markup, page: &Page<'_>, calls: &[PhaseCall<'_>]) -> Result<(), CompileError> {
    let phases = graph::groups(page)?;
    let mut parts = Vec::new();
    for (index, source) in page.source.graphs.iter().enumerate() {
        let changes = Changes::between(source, &page.compiled.program.graphs[index]);
        let mut part = Markup::default();
        let rounds = page.source.rounds(&source.name);
        part.element("h3", &[], |out| {
            out.leaf("code", &[], format!("@{}", source.name));
            if index + 1 < page.source.graphs.len() {
                out.leaf("span", &[("class", &"quiet")], format!(" runs {rounds} times in a call"));
            }
        });
        if let Some(report) = page.compiled.report.rewriting.graphs.get(index) {
            rewrites::rules(&mut part, report);
        }
        graph::graph(&mut part, page, (index, &changes), &phases, calls);
        rewrites::proofs(&mut part, page, index, &changes)?;
        parts.push(part.into_text());
    }
    section(out, "graphs", "Graphs", |out| {
        graph_legend(out);
        parts.iter().for_each(|part| out.raw(part));
    });
    Ok(())
}

fn graph_legend(out: &mut Markup) {
    out.element("ul", &[("class", &"legend")], |out| {
        let values = [("gone", "not computed any more"), ("rewritten", "computed otherwise"), ("new", "new")];
        for (class, label) in values {
            out.element("li", &[], |out| {
                out.element("i", &[("class", &class)], |_| {});
                out.text(label);
            });
        }
        for nature in call::Nature::ALL.into_iter().filter(|nature| *nature != call::Nature::Copy) {
            out.element("li", &[], |out| {
                out.element("i", &[("class", &format!("framed {}", nature.class()))], |_| {});
                out.text(format!("launch: {}", nature.label()));
            });
        }
    });
    out.element("p", &[("class", &"quiet")], |out| {
        out.text("A frame is one launch; over it stand its step and the time of one round. ");
        out.text("Weights stand in the boxes that read them. As it runs, views of other values are left out.");
    });
    out.element("label", &[("class", &"zoom"), ("hidden", &"hidden")], |out| {
        out.text("size ");
        out.empty("input", &[("type", &"range"), ("min", &"30"), ("max", &"150"), ("value", &"100")]);
    });
}

fn section(out: &mut Markup, id: &str, title: &str, content: impl FnOnce(&mut Markup)) {
    out.element("section", &[("id", &id)], |out| {
        out.leaf("h2", &[], title);
        content(out);
    });
}

fn phase_tabs(out: &mut Markup, id: &str, calls: &[PhaseCall<'_>], content: impl Fn(&mut Markup, &PhaseCall<'_>)) {
    let name = |call: &PhaseCall<'_>| format!("{}, up to {}", call.phase.name, call.phase.max_tokens);
    let names: Vec<String> = calls.iter().map(name).collect();
    tabs(out, id, &names, |out, tab| content(out, &calls[tab]));
}

/// One of several parts at a time. Buttons that exclude each other choose it, so it takes no script.
fn tabs(out: &mut Markup, id: &str, names: &[String], content: impl Fn(&mut Markup, usize)) {
    out.element("div", &[("class", &"tabs")], |out| {
        for (at, name) in names.iter().enumerate().filter(|_| 1 < names.len()) {
            let button = format!("{id}-{at}");
            match at {
                0 => out.empty("input", &[("type", &"radio"), ("name", &id), ("id", &button), ("checked", &"checked")]),
                _ => out.empty("input", &[("type", &"radio"), ("name", &id), ("id", &button)]),
            }
            out.leaf("label", &[("for", &button)], name);
        }
        let class = if names.len() == 1 { "panels single" } else { "panels" };
        out.element("div", &[("class", &class)], |out| {
            (0..names.len()).for_each(|at| out.element("div", &[("class", &"panel")], |out| content(out, at)));
        });
    });
}
