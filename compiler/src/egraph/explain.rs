//! Which named rules lead from a value of the source to what became of it, and whether each step is right.
//!
//! The chain comes from egg's proofs. It is checked here, step by step: the term before must match the rule's left side, the term after its
//! right side, and the rule must allow the variables that only the right side has.

use std::collections::BTreeMap;
use std::fmt;

use egg::{ENodeOrVar, FlatTerm, Id, Language, PatternAst, Subst, Symbol, Var};
use ir::{Graph, Program, ValueId, Verified};

use super::cost::CostModel;
use super::extract::{Choices, extract};
use super::{EGraph, ENode};
use crate::rewrite::rule::Rule;
use crate::rewrite::{Options, RewriteError, check_options, rules, saturate};
use crate::target::Target;

/// How a value of the source became what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// What it was.
    pub source: String,
    /// The steps. A step in a shared part is listed once.
    pub steps: Vec<Step>,
    /// What it became.
    pub result: String,
}

/// One application of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The rule.
    pub rule: String,
    /// What the rule says.
    pub sentence: String,
    /// Whether it was used from left to right.
    pub is_forward: bool,
    /// The part that changes, before.
    pub before: String,
    /// The part that changes, after.
    pub after: String,
    /// Whether the step was checked and found right.
    pub is_checked: bool,
}

/// Terms are printed to this depth; what lies deeper is `…`, for a layer is too large to be read as one term.
const DEPTH: usize = 4;

/// Explains what became of a value of a graph of a program.
///
/// # Errors
///
/// If there is no such value, or the optimiser fails.
pub fn explain(
    program: &Verified<Program>,
    graph: &str,
    value: ValueId,
    target: &Target,
    options: &Options,
) -> Result<Explanation, RewriteError> {
    check_options(target, options)?;
    let model = &CostModel::new(target.machine.clone()).with_packing(options.packing);
    let missing = || RewriteError::Explain { graph: graph.to_owned(), value: value.to_string() };
    let graph = program.graph(graph).ok_or_else(missing)?;
    graph.values.get(value).ok_or_else(missing)?;
    let options = Options { proofs: true, ..options.clone() };
    let saturated = saturate(graph, model, &options)?;
    let mut loaded = saturated.loaded;
    let class = loaded.class(value);
    // A value that the result does not contain is explained by the best that it could be alone.
    let choices = match saturated.choices.nodes.contains_key(&class) {
        true => saturated.choices,
        false => extract(&loaded.egraph, &[class], model, options.limits.decisions)
            .map_err(|source| RewriteError::Extract { graph: graph.name.clone(), source })?,
    };
    let result = add_term(&mut loaded.egraph, &choices, class, &mut BTreeMap::new());
    let source = loaded.terms[ir::entity::Id::index(value)];
    let mut proof = loaded.egraph.explain_id_equivalence(source, result);
    let terms = proof.make_flat_explanation();
    let by_name = rules_by_variant();
    let mut steps: Vec<Step> = Vec::new();
    for pair in terms.windows(2) {
        let Some(found) = find_step(&pair[0], &pair[1]) else { continue };
        let (name, left, right) = match found.is_forward {
            true => (found.rule, found.before, found.after),
            false => (found.rule, found.after, found.before),
        };
        let known = by_name.get(name.as_str());
        let step = Step {
            rule: known.map_or_else(|| name.to_string(), |(rule, _)| rule.name.clone()),
            sentence: known.map(|(rule, _)| rule.sentence.clone()).unwrap_or_default(),
            is_forward: found.is_forward,
            before: print(graph, found.before, DEPTH),
            after: print(graph, found.after, DEPTH),
            is_checked: known.is_some_and(|(rule, variant)| check(&mut loaded.egraph, rule, *variant, left, right)),
        };
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    let (first, last) = (terms.first(), terms.last());
    let text = |term: Option<&FlatTerm<ENode>>| term.map(|term| print(graph, term, DEPTH)).unwrap_or_default();
    Ok(Explanation { source: text(first), steps, result: text(last) })
}

impl Explanation {
    /// Whether every step was checked and found right.
    pub fn is_checked(&self) -> bool {
        self.steps.iter().all(|step| step.is_checked)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.source)?;
        for step in &self.steps {
            let direction = if step.is_forward { "" } else { ", read backwards" };
            let checked = if step.is_checked { "" } else { " (not checked)" };
            writeln!(f, "  {}{direction}{checked}: {}", step.rule, step.sentence)?;
            writeln!(f, "    - {}", step.before)?;
            writeln!(f, "    + {}", step.after)?;
        }
        writeln!(f, "{}", self.result)
    }
}

/// The very term of the chosen nodes, so that the proof ends there.
fn add_term(egraph: &mut EGraph, choices: &Choices, class: Id, made: &mut BTreeMap<Id, Id>) -> Id {
    if let Some(&id) = made.get(&class) {
        return id;
    }
    let node = match choices.nodes.get(&class) {
        Some(node) => node.clone(),
        // Attributes are not chosen: each is the one member of its class.
        None => egraph[class].nodes[0].clone(),
    };
    let node = node.map_children(|child| {
        let child = egraph.find(child);
        add_term(egraph, choices, child, made)
    });
    let id = egraph.add_uncanonical(node);
    made.insert(class, id);
    id
}

fn rules_by_variant() -> BTreeMap<String, (&'static Rule, usize)> {
    let variants =
        |rule: &'static Rule| (0..rule.left.len()).map(move |variant| (rule.variant_name(variant), (rule, variant)));
    rules().into_iter().flat_map(variants).collect()
}

struct Found<'a> {
    rule: Symbol,
    is_forward: bool,
    before: &'a FlatTerm<ENode>,
    after: &'a FlatTerm<ENode>,
}

/// Where two successive terms differ by one rule.
fn find_step<'a>(before: &'a FlatTerm<ENode>, after: &'a FlatTerm<ENode>) -> Option<Found<'a>> {
    if let Some(rule) = after.forward_rule {
        return Some(Found { rule, is_forward: true, before, after });
    }
    if let Some(rule) = after.backward_rule {
        return Some(Found { rule, is_forward: false, before, after });
    }
    before.children.iter().zip(&after.children).find_map(|(before, after)| find_step(before, after))
}

/// Whether `left = right` is an instance of a rule.
fn check(egraph: &mut EGraph, rule: &Rule, variant: usize, left: &FlatTerm<ENode>, right: &FlatTerm<ENode>) -> bool {
    let mut bindings: BTreeMap<Var, &FlatTerm<ENode>> = BTreeMap::new();
    let matches = |pattern: &PatternAst<ENode>, term, bindings: &mut BTreeMap<_, _>| {
        bind(pattern, pattern.len() - 1, term, bindings)
    };
    if !matches(&rule.left[variant].ast, left, &mut bindings) || !matches(&rule.right.ast, right, &mut bindings) {
        return false;
    }
    let mut subst = Subst::with_capacity(bindings.len());
    for (var, term) in bindings {
        let class = egraph.add_expr(&term.get_recexpr());
        subst.insert(var, class);
    }
    let root = egraph.add_expr(&left.get_recexpr());
    egraph.rebuild();
    rule.allows(egraph, root, &subst)
}

fn bind<'a>(
    pattern: &PatternAst<ENode>,
    at: usize,
    term: &'a FlatTerm<ENode>,
    bindings: &mut BTreeMap<Var, &'a FlatTerm<ENode>>,
) -> bool {
    match &pattern[Id::from(at)] {
        ENodeOrVar::Var(var) => {
            let known = bindings.entry(*var).or_insert(term);
            known.get_recexpr() == term.get_recexpr()
        }
        ENodeOrVar::ENode(node) => {
            node.matches(&term.node)
                && node.children().len() == term.children.len()
                && node
                    .children()
                    .iter()
                    .zip(&term.children)
                    .all(|(child, term)| bind(pattern, usize::from(*child), term, bindings))
        }
    }
}

/// A term as text, with the graph's names.
fn print(graph: &Graph, term: &FlatTerm<ENode>, depth: usize) -> String {
    match &term.node {
        ENode::Value(value) => graph.label(*value),
        ENode::Op { name, .. } if depth == 0 => format!("({name} …)"),
        ENode::Op { name, .. } => {
            let children = term.children.iter().map(|child| format!(" {}", print(graph, child, depth - 1)));
            format!("({name}{})", children.collect::<String>())
        }
        leaf => leaf.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egraph::Facts;
    use crate::egraph::analysis::LeafFact;
    use ir::{DType, Shape, TensorType};

    fn term(text: &str) -> FlatTerm<ENode> {
        let expr: egg::RecExpr<ENode> = text.parse().unwrap();
        let mut terms: Vec<FlatTerm<ENode>> = Vec::new();
        for node in &expr {
            let children = node.children().iter().map(|child| terms[usize::from(*child)].clone()).collect();
            terms.push(FlatTerm::new(node.clone(), children));
        }
        terms.pop().unwrap()
    }

    /// `v0` f32 `[4, 8]`; `v1` and `v2` ternary parameters `[3, 8]`; `v3` and `v4` their scales.
    fn egraph() -> EGraph {
        let mut facts = Facts::default();
        let types = [
            (DType::F32, vec![4, 8]),
            (DType::T2, vec![3, 8]),
            (DType::T2, vec![3, 8]),
            (DType::F32, vec![3]),
            (DType::F32, vec![3]),
        ];
        for (index, (dtype, dims)) in types.into_iter().enumerate() {
            let ty = TensorType::new(dtype, Shape::of(&dims));
            facts.leaves.insert(ir::entity::Id::new(index), LeafFact { ty, is_param: index != 0 });
        }
        EGraph::new(facts)
    }

    #[test]
    fn right_steps_pass_and_wrong_ones_do_not() {
        let merged = "(ternary_matmul v0 (concat v1 v2 0) (concat v3 v4 0))";
        let slice = |start: u64, end: u64| format!("(slice {merged} 1 {start} {end})");
        for (rule, left, right, is_right) in [
            ("neg-neg", "(neg (neg v0))", "v0", true),
            ("neg-neg", "(neg (neg v0))", "v3", false),
            ("neg-neg", "(neg (relu v0))", "v0", false),
            ("slice-slice", "(slice (slice v0 1 2 8) 1 1 3)", "(slice v0 1 3 5)", true),
            ("slice-slice", "(slice (slice v0 1 2 8) 1 1 3)", "(slice v0 1 3 6)", false),
            ("fold-neg", "(neg const:f32[1]:2.0)", "const:f32[1]:-2.0", true),
            ("fold-neg", "(neg const:f32[1]:2.0)", "const:f32[1]:2.0", false),
            ("merge-ternary-matmuls", "(ternary_matmul v0 v1 v3)", &slice(0, 3), true),
            ("merge-ternary-matmuls", "(ternary_matmul v0 v2 v4)", &slice(3, 6), true),
            ("merge-ternary-matmuls", "(ternary_matmul v0 v1 v3)", &slice(3, 6), false),
            ("merge-ternary-matmuls", "(ternary_matmul v0 v1 v4)", &slice(0, 3), false),
        ] {
            let found = rules().into_iter().find(|known| known.name == rule).unwrap();
            assert_eq!(check(&mut egraph(), found, 0, &term(left), &term(right)), is_right, "{rule}: {left} = {right}");
        }
    }
}
