//! Scratch: writes a filetest for every rule that has none.
use std::collections::{HashMap, HashSet};
use compiler::rewrite::{self, Rule, STAGES};
use ir::graph::Def;
use ir::reference::{Evaluator, Tensor, concrete};
use ir::{DType, Graph, Symbol};

fn size(letter: &str) -> u64 {
    match letter { "a" => 2, "b" => 3, "m" => 2, "d" => 4, "k" => 3, _ => 2 }
}

fn number(v: f64) -> String {
    if v == 0.0 && v.is_sign_negative() { "-0".into() } else { format!("{v}") }
}

fn values(ty: &ir::op::Concrete, at: &mut usize, positive: bool) -> Vec<f64> {
    let n: usize = ty.dims.iter().product();
    let width = ty.dims.last().copied().unwrap_or(1).max(1);
    (0..n).map(|i| {
        *at += 1;
        let k = (*at * 7 + i) % 9;
        match ty.dtype {
            DType::T2 => [1.0, 0.0, -1.0, 1.0, 1.0, -1.0, 0.0][(i + *at) % 7],
            DType::I32 => (i % 2) as f64,
            DType::Q8 | DType::Q4 => if i % width == 0 { 127.0 } else { (i as f64) * 5.0 - 20.0 },
            _ if positive => [4.0, 1.0, 0.25, 16.0, 64.0][i % 5],
            _ => [1.0, -2.0, 3.0, 0.5, 2.0, -1.0, 4.0, -3.0, 1.5][k],
        }
    }).collect()
}

fn main() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests/rewrite");
    let families: Vec<(&str, Vec<Rule>)> = vec![
        ("arithmetic", rewrite::arithmetic::rules()),
        ("movement", rewrite::movement::rules()),
        ("matmul", [rewrite::matmul::rules(), rewrite::matmul::merges()].concat()),
        ("ternary", rewrite::ternary::rules()),
        ("norm", rewrite::norm::rules()),
        ("activation", rewrite::activation::rules()),
        ("attention", rewrite::attention::rules()),
    ];
    let mut count = 0;
    let known: HashSet<String> = families.iter().flat_map(|(_, rules)| rules.iter().map(|r| r.name.clone())).collect();
    for rule in rewrite::rules() { assert!(known.contains(&rule.name), "{}", rule.name); }
    for (family, rules) in &families {
        std::fs::create_dir_all(root.join(family)).unwrap();
        for rule in rules {
            count += 1;
            let path = root.join(family).join(format!("{}.tri", rule.name));
            if path.exists() { continue; }
            let stage = STAGES.iter().find(|s| s.families.iter().any(|f| f().iter().any(|r| r.name == rule.name))).unwrap().name;
            let mut written = None;
            for example in &rule.examples {
                if let Ok(Some(instance)) = rule.instance(0, example, &size) { written = Some(instance.left); break; }
            }
            let Some(program) = written else { println!("NO INSTANCE {}", rule.name); continue };
            let mut program = (*program).clone();
            program.name = "main".into();
            let graph: &mut Graph = &mut program.graphs[0];
            graph.name = "main".into();
            let outputs = graph.outputs.clone();
            let names: HashSet<String> = graph.values.iter().filter_map(|(_, v)| v.name.as_ref().map(|n| n.trim_start_matches('?').to_string())).collect();
            let mut next = 0;
            let fresh = ["a", "b", "c", "d", "e", "f"];
            let ids: Vec<ir::ValueId> = graph.values.ids().collect();
            for id in ids {
                let value = &mut graph.values[id];
                if let Some(n) = &value.name { value.name = Some(std::sync::Arc::from(n.trim_start_matches('?'))); }
                match &mut value.def {
                    Def::Param { key } => { *key = std::sync::Arc::from(key.trim_start_matches('?')); }
                    Def::Op { .. } => {
                        if value.name.is_none() {
                            let name = if outputs.contains(&id) { if names.contains("y") { "z".to_string() } else { "y".to_string() } } else {
                                loop { let n = fresh[next]; next += 1; if !names.contains(n) { break n.to_string(); } }
                            };
                            value.name = Some(name.as_str().into());
                        }
                    }
                    Def::Const(_) => if value.name.is_none() { let n = format!("c{}", ir::entity::Id::index(id)); value.name = Some(n.as_str().into()); },
                    _ => {}
                }
            }
            for s in &mut program.symbols { s.max = 4; }
            let verified = ir::verify(program.clone()).unwrap_or_else(|e| panic!("{} {e}", rule.name));
            let text = ir::text::print(&program);
            let body = text.split_once('\n').unwrap().1.trim_start();
            let mut out = format!(";! kinds = [\"rewrite\"]\n;! stage = [\"{stage}\"]\n;! expect = [\"{}\"]\n\n; {}\n", rule.name, rule.sentence);
            out.push_str(body.trim_end());
            out.push('\n');
            // A line of numbers.
            let graph = &program.graphs[0];
            let uses_n = !program.symbols.is_empty();
            let symbols = HashMap::from([(Symbol::new("n"), 2usize)]);
            let positive = rule.name.contains("sqrt") || rule.name.contains("-log");
            let mut at = 0;
            let mut line = String::from(if uses_n { "n=2" } else { "" });
            let mut total = 0;
            let mut inputs = Vec::new();
            let mut params = HashMap::new();
            for (_, v) in graph.values.iter() {
                let ty = || concrete(&v.ty, &symbols);
                let mut data = match &v.def { Def::Input | Def::Param { .. } => values(&ty(), &mut at, positive), _ => continue };
                if v.name.as_deref() == Some("ids") { for d in &mut data { *d = d.abs(); } }
                total += data.len();
                let text: Vec<String> = data.iter().map(|v| number(*v)).collect();
                let name = match &v.def { Def::Param { key } => key.to_string(), _ => v.name.as_deref().unwrap().to_string() };
                if !line.is_empty() { line.push(' '); }
                line.push_str(&format!("{name}=[{}]", text.join(" ")));
                let t = Tensor::new(ty(), data);
                if let Def::Param { key } = &v.def { params.insert(key.to_string(), t); } else { inputs.push(t); }
            }
            let outs = Evaluator::new(&verified, &params).run(&inputs).unwrap();
            let all: Vec<f64> = outs.iter().flat_map(|o| o.data.clone()).collect();
            total += all.len();
            let finite = all.iter().all(|v| v.is_finite());
            if total <= 48 && finite {
                let nice = all.iter().all(|v| (v * 1024.0).fract() == 0.0 && v.abs() < 1e6);
                let sign = if nice { "==" } else { "~=" };
                let fmt = |v: f64| if nice { number(v) } else { format!("{v:.6}") };
                let lists: Vec<String> = outs.iter().map(|o| format!("[{}]", o.data.iter().map(|v| fmt(*v)).collect::<Vec<_>>().join(" "))).collect();
                if !line.is_empty() { line.push(' '); }
                out.push_str(&format!("; run: {line}{sign} {}\n", lists.join(" ")));
            } else { println!("no run {} {total} {finite}", rule.name); }
            std::fs::write(path, out).unwrap();
        }
    }
    println!("{count} rules");
}
