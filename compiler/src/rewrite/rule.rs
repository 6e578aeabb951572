//! What a rewrite rule is: patterns, a condition, how exact it is, and examples that it fires on.
//!
//! A rule is data. Both sides are patterns in text; what the right side needs beyond the left (a shape, a sum of offsets) is computed by one
//! small function, which also is the rule's condition. Three things are then the same for all rules: a rule fires only where its right side
//! has the left side's type, so no condition repeats a type rule; proofs show its name and can be checked; and the soundness test
//! instantiates its examples and evaluates both sides.

use egg::{Applier, ENodeOrVar, Id, Language, Pattern, PatternAst, Rewrite, Subst, Symbol, Var};
use ir::graph::Constant;
use ir::op::{Attr, Real};
use ir::{DType, Dim, Shape, TensorType};

use crate::egraph::analysis::{TensorFact, infer};
use crate::egraph::{EGraph, ENode, Fact, Facts};

/// How equal the two sides of a rule are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exactness {
    /// Bit for bit, for all values, NaNs and infinities included.
    Exact,
    /// As real numbers, for finite values. Rounding differs, and so may which special value stands for an overflow.
    Rounding,
}

/// A rewrite rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Unique among all rules.
    pub name: String,
    /// What it says.
    pub sentence: String,
    /// How equal its sides are.
    pub exactness: Exactness,
    /// The left side, and its mirror images, which differ in the order of commutative operands.
    pub left: Vec<Pattern<ENode>>,
    /// The right side.
    pub right: Pattern<ENode>,
    condition: Condition,
    check: Option<Check>,
    /// What the variables may be: see [`Rule::example`].
    pub examples: Vec<&'static str>,
}

/// Computes the variables that only the right side has; `None` where the rule does not hold.
pub type Condition = fn(&mut Match<'_>) -> Option<()>;

/// Whether given values of the variables that only the right side has are right. For rules that choose them freely.
pub type Check = fn(&Match<'_>) -> Option<()>;

impl Rule {
    /// A rule that holds exactly.
    ///
    /// # Panics
    ///
    /// If a pattern does not parse. Rulesets are built by a test.
    pub fn new(name: impl Into<String>, sentence: impl Into<String>, left: &str, right: &str) -> Self {
        Self {
            name: name.into(),
            sentence: sentence.into(),
            exactness: Exactness::Exact,
            left: vec![parse(left)],
            right: parse(right),
            condition: |_| Some(()),
            check: None,
            examples: Vec::new(),
        }
    }

    /// Says that the rule holds up to rounding.
    pub fn rounding(self) -> Self {
        Self { exactness: Exactness::Rounding, ..self }
    }

    /// Adds a left side with operands in another order.
    ///
    /// # Panics
    ///
    /// If the pattern does not parse.
    pub fn mirrored(mut self, left: &str) -> Self {
        self.left.push(parse(left));
        self
    }

    /// Sets the condition.
    pub fn when(self, condition: Condition) -> Self {
        Self { condition, ..self }
    }

    /// Sets how a proof step is checked, where running the condition again would not give the same right side.
    pub fn checked_by(self, check: Check) -> Self {
        Self { check: Some(check), ..self }
    }

    /// Adds an example: what each variable of the left side is, separated by `;`.
    ///
    /// | | |
    /// |---|---|
    /// | `?x f32[n,k]` | a value of this type. Letters are sizes; `n` is a symbol, `k` and `d` are never 0 |
    /// | `?w param t2[m,k]` | a parameter |
    /// | `?c const f32[1] 2.0` | a constant |
    /// | `?eps 1e-5`, `?shape [n,m]`, `?end a+b` | an attribute |
    /// | `also (neg ?y)` | something else that is in the graph |
    pub fn example(mut self, example: &'static str) -> Self {
        self.examples.push(example);
        self
    }

    /// The names under which egg knows the rule, one for each left side.
    pub fn variant_name(&self, variant: usize) -> String {
        match variant {
            0 => self.name.clone(),
            _ => format!("{}/{variant}", self.name),
        }
    }

    /// The rule as egg runs it.
    ///
    /// # Errors
    ///
    /// What egg finds wrong.
    pub fn rewrites(&self) -> Result<Vec<Rewrite<ENode, Facts>>, String> {
        let rewrite = |(variant, left): (usize, &Pattern<ENode>)| {
            Rewrite::new(self.variant_name(variant), left.clone(), RightSide { rule: self.clone(), left: left.clone() })
        };
        self.left.iter().enumerate().map(rewrite).collect()
    }

    /// Decides whether the rule holds at a match, and completes the substitution to the variables of the right side.
    pub fn bind(&self, egraph: &mut EGraph, root: Id, subst: &Subst) -> Option<Subst> {
        let mut matched = Match { egraph, root, subst: subst.clone() };
        (self.condition)(&mut matched)?;
        let Match { subst, .. } = matched;
        let ty = pattern_type(egraph, &self.right.ast, &subst)?;
        (egraph[root].data.tensor()?.ty == ty).then_some(subst)
    }

    /// Whether a substitution of both sides' variables is one that the rule allows.
    pub fn allows(&self, egraph: &mut EGraph, root: Id, subst: &Subst) -> bool {
        let vars = self.right.vars();
        if let Some(check) = self.check {
            return check(&Match { egraph, root, subst: subst.clone() }).is_some();
        }
        match self.bind(egraph, root, subst) {
            Some(bound) => vars.iter().all(|var| match (bound.get(*var), subst.get(*var)) {
                (Some(left), Some(right)) => egraph.find(*left) == egraph.find(*right),
                _ => false,
            }),
            None => false,
        }
    }
}

fn parse(pattern: &str) -> Pattern<ENode> {
    match pattern.parse() {
        Ok(pattern) => pattern,
        Err(error) => panic!("`{pattern}`: {error}"),
    }
}

/// The type that a pattern has under a substitution; `None` if it has none.
fn pattern_type(egraph: &EGraph, pattern: &PatternAst<ENode>, subst: &Subst) -> Option<TensorType> {
    let mut facts: Vec<Fact> = Vec::with_capacity(pattern.len());
    for node in pattern {
        let fact = match node {
            ENodeOrVar::Var(var) => egraph[*subst.get(*var)?].data.clone(),
            ENodeOrVar::ENode(ENode::Attr(attr)) => Fact::Attr(attr.clone()),
            ENodeOrVar::ENode(node) => {
                let (name, inputs, attrs) = node.parts()?;
                let of = |ids: &[Id]| ids.iter().map(|id| &facts[usize::from(*id)]).collect::<Vec<_>>();
                let (_, ty) = infer(name, &of(inputs), &of(attrs)).ok()?;
                Fact::Tensor(TensorFact { ty, constant: None, uniform: None, weight_time: false })
            }
        };
        facts.push(fact);
    }
    Some(facts.last()?.tensor()?.ty.clone())
}

/// The right side of a rule, with its condition, for one of its left sides.
struct RightSide {
    rule: Rule,
    left: Pattern<ENode>,
}

impl Applier<ENode, Facts> for RightSide {
    fn apply_one(
        &self,
        egraph: &mut EGraph,
        root: Id,
        subst: &Subst,
        _: Option<&PatternAst<ENode>>,
        name: Symbol,
    ) -> Vec<Id> {
        let Some(subst) = self.rule.bind(egraph, root, subst) else { return Vec::new() };
        match egraph.union_instantiations(&self.left.ast, &self.rule.right.ast, &subst, name) {
            (class, true) => vec![class],
            (_, false) => Vec::new(),
        }
    }

    fn vars(&self) -> Vec<Var> {
        self.left.vars()
    }
}

/// A place where the left side of a rule was found.
pub struct Match<'a> {
    /// The e-graph.
    pub egraph: &'a mut EGraph,
    /// The class of the left side.
    pub root: Id,
    subst: Subst,
}

impl Match<'_> {
    /// The class of a variable.
    ///
    /// # Panics
    ///
    /// If neither the left side nor the condition has bound it.
    pub fn class(&self, var: &str) -> Id {
        let class = self.subst.get(variable(var)).unwrap_or_else(|| panic!("{var} is not bound"));
        self.egraph.find(*class)
    }

    /// What is known of a tensor variable.
    pub fn tensor(&self, var: &str) -> Option<&TensorFact> {
        self.egraph[self.class(var)].data.tensor()
    }

    /// The type of a tensor variable.
    pub fn ty(&self, var: &str) -> Option<&TensorType> {
        self.tensor(var).map(|fact| &fact.ty)
    }

    /// The type of the whole.
    pub fn root_ty(&self) -> Option<&TensorType> {
        self.egraph[self.root].data.tensor().map(|fact| &fact.ty)
    }

    /// The constant that the whole is.
    pub fn root_constant(&self) -> Option<&Constant> {
        self.egraph[self.root].data.tensor()?.constant.as_ref()
    }

    /// Whether a tensor variable depends on weights only.
    pub fn weight_time(&self, var: &str) -> bool {
        self.tensor(var).is_some_and(|fact| fact.weight_time)
    }

    /// The one value of all elements of a tensor variable.
    pub fn uniform(&self, var: &str) -> Option<f64> {
        self.tensor(var)?.uniform.map(Real::get)
    }

    /// An attribute variable.
    pub fn attr(&self, var: &str) -> Option<&Attr> {
        self.egraph[self.class(var)].data.attr()
    }

    /// A whole number.
    pub fn int(&self, var: &str) -> Option<u64> {
        match self.attr(var)? {
            Attr::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A real number.
    pub fn real(&self, var: &str) -> Option<f64> {
        match self.attr(var)? {
            Attr::Real(value) => Some(value.get()),
            _ => None,
        }
    }

    /// An element type.
    pub fn dtype(&self, var: &str) -> Option<DType> {
        match self.attr(var)? {
            Attr::DType(dtype) => Some(*dtype),
            _ => None,
        }
    }

    /// A list of axes.
    pub fn axes(&self, var: &str) -> Option<&[u32]> {
        match self.attr(var)? {
            Attr::Axes(axes) => Some(axes),
            _ => None,
        }
    }

    /// The size of an axis of a tensor variable, if it is constant.
    pub fn size(&self, var: &str, axis: u64) -> Option<u64> {
        self.ty(var)?.shape.dims().get(usize::try_from(axis).ok()?).and_then(Dim::as_const)
    }

    /// Binds a variable to an attribute.
    pub fn set(&mut self, var: &str, attr: Attr) {
        let class = self.egraph.add(ENode::Attr(attr));
        self.set_class(var, class);
    }

    /// Binds a variable to a whole number.
    pub fn set_int(&mut self, var: &str, value: u64) -> Option<()> {
        self.set(var, Attr::Int(i64::try_from(value).ok()?));
        Some(())
    }

    /// Binds a variable to a shape.
    pub fn set_shape(&mut self, var: &str, shape: Shape) {
        self.set(var, Attr::Shape(shape));
    }

    /// Binds a variable to a constant.
    pub fn set_constant(&mut self, var: &str, ty: TensorType, constant: Constant) {
        let class = self.egraph.add(ENode::Const(ty, constant));
        self.set_class(var, class);
    }

    /// Binds a variable to a class.
    pub fn set_class(&mut self, var: &str, class: Id) {
        self.subst.insert(variable(var), class);
    }

    /// The nodes of a class that are this op, as their children.
    pub fn nodes<'b>(&'b self, class: Id, op: &'b str) -> impl Iterator<Item = Vec<Id>> + 'b {
        let nodes = self.egraph[class].nodes.iter();
        nodes.filter(move |node| matches!(node, ENode::Op { name, .. } if *name == op)).map(|node| {
            let children = node.children().iter();
            children.map(|child| self.egraph.find(*child)).collect()
        })
    }
}

fn variable(name: &str) -> Var {
    name.parse().expect("variables start with a question mark")
}

/// Goes on only where something holds.
pub fn require(holds: bool) -> Option<()> {
    holds.then_some(())
}
