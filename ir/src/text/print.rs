//! Program to text, in its one canonical form.

use std::collections::HashSet;
use std::fmt::Write as _;

use smallvec::SmallVec;

use super::number::{self, Precision};
use super::{GraphMap, KEYWORDS, Position, SourceMap, is_id, is_plain};
use crate::entity::Id;
use crate::graph::{Def, Graph, Program, Value, ValueId};
use crate::op::{Attr, Op, OpDef};
use crate::shape::{Dim, Shape, TensorType};

/// Elements of a constant in one line; more are broken into lines of this many.
const ELEMENTS_IN_A_LINE: usize = 16;

/// The canonical text of a program.
pub fn print(program: &Program) -> String {
    print_with_positions(program).0
}

/// As [`print`](fn@print), and says where in the text each part stands.
pub fn print_with_positions(program: &Program) -> (String, SourceMap) {
    let mut printer = Printer::new(false);
    printer.program(program);
    (printer.text, printer.map)
}

/// The text of a program for people: after each op, its type as a comment.
pub fn print_annotated(program: &Program) -> String {
    let mut printer = Printer::new(true);
    printer.program(program);
    printer.text
}

struct Printer {
    text: String,
    line: u32,
    /// A byte of the line that is being written, and its column.
    counted: (usize, u32),
    annotated: bool,
    map: SourceMap,
}

impl Printer {
    fn new(annotated: bool) -> Self {
        Self { text: String::new(), line: 1, counted: (0, 1), annotated, map: SourceMap::default() }
    }

    fn program(&mut self, program: &Program) {
        self.put("program");
        self.map.program = Some(self.since(0));
        self.put(" @");
        self.name(&program.name);
        self.newline();
        for decl in &program.symbols {
            self.put("symbol ");
            let start = self.text.len();
            self.name(decl.symbol.name());
            let position = self.since(start);
            self.map.symbols.push(position);
            self.put(&format!(" <= {}", decl.max));
            self.newline();
        }
        for graph in &program.graphs {
            self.newline();
            self.graph(graph);
        }
    }

    fn graph(&mut self, graph: &Graph) {
        let labels = labels(graph);
        self.put("graph ");
        let start = self.text.len();
        self.put("@");
        self.name(&graph.name);
        let header = self.since(start);
        let mut map = GraphMap { header, values: Vec::with_capacity(graph.values.len()), updates: Vec::new() };

        self.put("(");
        let n_listed = graph.values.values().take_while(|value| matches!(value.def, Def::Input)).count();
        for (id, value) in graph.values.iter().take(n_listed) {
            if 0 < id.index() {
                self.put(", ");
            }
            map.values.push(self.label(&labels[id.index()]));
            self.put(": ");
            self.ty(&value.ty);
        }
        self.put(") -> ");
        let outputs: Vec<Option<&Value>> = graph.outputs.iter().map(|&output| graph.values.get(output)).collect();
        match outputs[..] {
            [Some(output)] => self.ty(&output.ty),
            _ => {
                self.put("(");
                for (index, output) in outputs.iter().enumerate() {
                    if 0 < index {
                        self.put(", ");
                    }
                    match output {
                        Some(output) => self.ty(&output.ty),
                        None => self.put("?"),
                    }
                }
                self.put(")");
            }
        }
        self.put(" {");
        self.newline();

        for (id, value) in graph.values.iter().skip(n_listed) {
            self.put("  ");
            let position = self.value(graph, &labels, id, value);
            map.values.push(position);
            self.newline();
        }
        for update in &graph.updates {
            self.put("  update ");
            let position = self.label(&label(&labels, update.state));
            map.updates.push(position);
            self.put(" = ");
            self.put(&label(&labels, update.value));
            self.newline();
        }
        if !graph.outputs.is_empty() {
            self.put("  return ");
            self.operands(&labels, &graph.outputs);
            self.newline();
        }
        self.put("}");
        self.newline();
        self.map.graphs.push(map);
    }

    /// The statement that defines a value; the position of its name.
    fn value(&mut self, graph: &Graph, labels: &[String], id: ValueId, value: &Value) -> Position {
        let own = &labels[id.index()];
        match &value.def {
            Def::Input => {
                self.put("input ");
                let position = self.label(own);
                self.put(": ");
                self.ty(&value.ty);
                position
            }
            Def::Param { key } => self.keyed("param ", own, &value.ty, key),
            Def::State { key } => self.keyed("state ", own, &value.ty, key),
            Def::Const(constant) => {
                self.put("const ");
                let position = self.label(own);
                self.put(": ");
                self.ty(&value.ty);
                self.put(" = [");
                let is_broken = ELEMENTS_IN_A_LINE < constant.0.len();
                for (index, &element) in constant.0.iter().enumerate() {
                    if is_broken && index % ELEMENTS_IN_A_LINE == 0 {
                        self.put(if index == 0 { "" } else { "," });
                        self.newline();
                        self.put("    ");
                    } else if 0 < index {
                        self.put(", ");
                    }
                    number::write(&mut self.text, element, Precision::Element(value.ty.dtype));
                }
                if is_broken {
                    self.newline();
                    self.put("  ");
                }
                self.put("]");
                position
            }
            Def::Op { op, inputs } => {
                let position = self.label(own);
                if !is_inferred(graph, op, inputs, &value.ty) {
                    self.put(": ");
                    self.ty(&value.ty);
                }
                self.put(" = ");
                self.put(op.name());
                self.put(" ");
                self.operands(labels, inputs);
                for (index, (name, attr)) in op.attr_names().iter().zip(op.attrs()).enumerate() {
                    if 0 < index || !inputs.is_empty() {
                        self.put(", ");
                    }
                    self.put(name);
                    self.put("=");
                    self.attr(&attr);
                }
                if self.annotated {
                    self.put("  ; ");
                    self.ty(&value.ty);
                }
                position
            }
        }
    }

    fn keyed(&mut self, keyword: &str, own: &str, ty: &TensorType, key: &str) -> Position {
        self.put(keyword);
        let position = self.label(own);
        self.put(": ");
        self.ty(ty);
        self.put(" = ");
        quote(&mut self.text, key);
        position
    }

    fn operands(&mut self, labels: &[String], operands: &[ValueId]) {
        for (index, &operand) in operands.iter().enumerate() {
            if 0 < index {
                self.put(", ");
            }
            self.put(&label(labels, operand));
        }
    }

    fn attr(&mut self, attr: &Attr) {
        match attr {
            Attr::Real(value) => number::write(&mut self.text, *value, Precision::Attribute),
            Attr::Shape(shape) => self.shape(shape),
            Attr::Name(name) => {
                self.put("@");
                self.name(name);
            }
            Attr::Int(_) | Attr::DType(_) | Attr::Axes(_) => self.put(&attr.to_string()),
        }
    }

    fn ty(&mut self, ty: &TensorType) {
        self.put(ty.dtype.name());
        self.shape(&ty.shape);
    }

    fn shape(&mut self, shape: &Shape) {
        self.put("[");
        for (index, dim) in shape.dims().iter().enumerate() {
            if 0 < index {
                self.put(", ");
            }
            match dim {
                Dim::Const(value) => self.put(&value.to_string()),
                Dim::Sym(symbol) => self.name(symbol.name()),
            }
        }
        self.put("]");
    }

    /// A name that is not a value's: only its characters can make quotes necessary.
    fn name(&mut self, name: &str) {
        if is_plain(name) {
            self.put(name);
        } else {
            quote(&mut self.text, name);
        }
    }

    fn label(&mut self, label: &str) -> Position {
        let start = self.text.len();
        self.put(label);
        self.since(start)
    }

    fn put(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn newline(&mut self) {
        self.text.push('\n');
        self.line = self.line.saturating_add(1);
        self.counted = (self.text.len(), 1);
    }

    /// The position of what was written from byte `start` on.
    fn since(&mut self, start: usize) -> Position {
        let count = |text: &str| u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        let (from, column) = self.counted;
        let column = column.saturating_add(count(&self.text[from..start]));
        self.counted = (start, column);
        Position { line: self.line, column, width: count(&self.text[start..]).max(1) }
    }
}

/// How each value is called in the text; all differ.
fn labels(graph: &Graph) -> Vec<String> {
    let mut taken: HashSet<&str> = HashSet::new();
    let mut labels = Vec::with_capacity(graph.values.len());
    for (id, value) in graph.values.iter() {
        let Some(name) = &value.name else {
            labels.push(id.to_string());
            continue;
        };
        let mut label = String::with_capacity(name.len());
        if is_plain(name) && !is_id(name) && !KEYWORDS.contains(&&**name) {
            label.push_str(name);
        } else {
            quote(&mut label, name);
        }
        if !taken.insert(name) {
            // Writing to a string does not fail.
            let _ = write!(label, "#{}", id.index());
        }
        labels.push(label);
    }
    labels
}

/// A value's label, or its id if there is no such value.
fn label(labels: &[String], value: ValueId) -> String {
    labels.get(value.index()).cloned().unwrap_or_else(|| value.to_string())
}

fn is_inferred(graph: &Graph, op: &Op, inputs: &[ValueId], ty: &TensorType) -> bool {
    let types: Option<SmallVec<[&TensorType; 4]>> =
        inputs.iter().map(|&input| graph.values.get(input).map(|value| &value.ty)).collect();
    types.is_some_and(|types| op.infer(&types).as_ref() == Ok(ty))
}

fn quote(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            _ if character.is_control() => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}
