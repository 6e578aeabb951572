//! Follows input from outside through one Python function to where it runs: as code, as a command, as SQL, as an object.
//!
//! Sources are what a person, a command line, an environment or a request gives. A name is tainted by what is assigned to it; operators, f-strings, `format`,
//! `join`, subscripts and methods of text pass taint on, and other calls do not: what a function gives back is that function's matter. A name that is assigned
//! something else is clean again, unless it was tainted outside the block of that assignment, which may not be run. What is tainted where a loop ends is where
//! it starts.

use std::collections::BTreeMap;
use std::ops::Range;

use tree_sitter::Node;

use super::{Call, Danger, Module, Rule};
use crate::judge::Severity::Critical;
use crate::python::{self, Literal};

const fn rule(id: &'static str, message: &'static str) -> Rule {
    Rule { id, bandit: "", severity: Critical, message }
}

static CODE: Rule = rule("input-as-code", "input from outside runs as code");
static COMMAND: Rule = rule("input-as-command", "input from outside is given to a shell");
static SQL: Rule = rule("input-as-sql", "input from outside is put into SQL");
static OBJECT: Rule = rule("input-as-object", "input from outside is read as objects of any kind");

/// Every rule of this file.
pub(super) static RULES: [&Rule; 4] = [&CODE, &COMMAND, &SQL, &OBJECT];

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    what: String,
    line: usize,
}

/// A tainted name's value, and the byte where it was assigned.
#[derive(Debug, Clone)]
struct Taint {
    origin: Origin,
    at: usize,
}

/// What happens in a function, by the place where it has happened: an assignment after the value that it assigns.
struct Event<'t> {
    at: usize,
    kind: EventKind<'t>,
}

enum EventKind<'t> {
    Call(Node<'t>),
    /// The value goes to the names.
    Assign {
        names: Node<'t>,
        value: Node<'t>,
        adds: bool,
    },
    /// A loop starts that ends at this byte.
    LoopStart(usize),
    /// A loop ends that started at this byte.
    LoopEnd(usize),
}

/// Expressions are followed no deeper than this; generated ones are deeper.
const MAX_DEPTH: usize = 100;

/// Finds input that reaches a sink in the same function, or in the module outside all functions.
pub(super) fn find(nodes: &[Node<'_>], module: &Module<'_>, found: &mut Vec<Danger>) {
    let functions = functions(nodes);
    for (_, events) in functions {
        let mut flow = Flow { module, tainted: BTreeMap::new(), carried: Vec::new(), found: Vec::new() };
        flow.run(&events);
        if !flow.carried.is_empty() {
            flow.tainted.clear();
            flow.found.clear();
            flow.run(&events);
        }
        found.append(&mut flow.found);
    }
}

/// The events of each function, in their order, and of what is outside all of them.
fn functions<'t>(nodes: &[Node<'t>]) -> Vec<(Node<'t>, Vec<Event<'t>>)> {
    let Some(root) = nodes.first() else { return Vec::new() };
    let mut functions = vec![(*root, Vec::new())];
    let mut open = vec![0_usize];
    for node in nodes.iter().copied() {
        while let [.., _, last] = open[..]
            && functions[last].0.end_byte() <= node.start_byte()
        {
            open.pop();
        }
        let current = open.last().copied().unwrap_or(0);
        if node.kind() == "function_definition" {
            open.push(functions.len());
            functions.push((node, Vec::new()));
            continue;
        }
        let assign = |names, value, at: Option<usize>, adds| {
            let (names, value) = (node.child_by_field_name(names)?, node.child_by_field_name(value)?);
            let at = at.unwrap_or(value.end_byte());
            Some(Event { at, kind: EventKind::Assign { names, value, adds } })
        };
        let event = match node.kind() {
            "call" => Some(Event { at: node.end_byte(), kind: EventKind::Call(node) }),
            "assignment" => assign("left", "right", None, false),
            "augmented_assignment" => assign("left", "right", None, true),
            "named_expression" => assign("name", "value", None, false),
            // The body of a comprehension stands before its loop: the names are taken from the start.
            "for_in_clause" => assign("left", "right", node.parent().map(|whole| whole.start_byte()), true),
            "for_statement" => assign("left", "right", None, true),
            _ => None,
        };
        functions[current].1.extend(event);
        if matches!(node.kind(), "for_statement" | "while_statement") {
            let (start, end) = (node.start_byte(), node.end_byte());
            functions[current].1.push(Event { at: start, kind: EventKind::LoopStart(end) });
            functions[current].1.push(Event { at: end, kind: EventKind::LoopEnd(start) });
        }
    }
    for (_, events) in &mut functions {
        // A call ends where the assignment of what it gives does, and is looked at before.
        events.sort_by_key(|event| {
            let order = match event.kind {
                EventKind::LoopStart(_) | EventKind::Call(_) => 0,
                EventKind::Assign { .. } => 1,
                EventKind::LoopEnd(_) => 2,
            };
            (event.at, order)
        });
    }
    functions
}

struct Flow<'s, 'm> {
    module: &'m Module<'s>,
    tainted: BTreeMap<&'s str, Taint>,
    /// What is tainted where loops end, with the bytes at which they do.
    carried: Vec<(usize, &'s str, Taint)>,
    found: Vec<Danger>,
}

impl<'s> Flow<'s, '_> {
    fn run(&mut self, events: &[Event<'_>]) {
        for event in events {
            match event.kind {
                EventKind::Call(node) => self.sink(node),
                EventKind::Assign { names, value, adds } => {
                    let origin = self.origin(value, 0);
                    self.assign(names, origin.as_ref(), adds);
                }
                EventKind::LoopStart(end) => {
                    let carried = self.carried.iter().filter(|(at, _, _)| *at == end);
                    for (name, taint) in carried.map(|(_, name, taint)| (*name, taint.clone())) {
                        self.tainted.entry(name).or_insert(taint);
                    }
                }
                EventKind::LoopEnd(start) => {
                    let is_of_loop = |taint: &Taint| (start..event.at).contains(&taint.at);
                    let tainted = self.tainted.iter().filter(|(_, taint)| is_of_loop(taint));
                    self.carried.extend(tainted.map(|(name, taint)| (event.at, *name, taint.clone())));
                }
            }
        }
    }

    fn assign(&mut self, names: Node<'_>, origin: Option<&Origin>, adds: bool) {
        let source = self.module.source;
        let at = names.start_byte();
        let mut open = vec![names];
        while let Some(node) = open.pop() {
            match node.kind() {
                "identifier" => {
                    let name = python::text(node, source);
                    if let Some(origin) = origin {
                        self.tainted.insert(name, Taint { origin: origin.clone(), at });
                    } else if !adds && self.tainted.get(name).is_some_and(|taint| block(names).contains(&taint.at)) {
                        self.tainted.remove(name);
                    }
                }
                "pattern_list"
                | "tuple_pattern"
                | "list_pattern"
                | "parenthesized_expression"
                | "list_splat_pattern" => {
                    open.extend(python::named_children(node));
                }
                _ => {}
            }
        }
    }

    /// Where the value of an expression came from outside, if it did.
    fn origin(&self, node: Node<'_>, depth: usize) -> Option<Origin> {
        if MAX_DEPTH < depth {
            return None;
        }
        let node = python::bare(node);
        if let Some(what) = self.source(node) {
            return Some(Origin { what, line: node.start_position().row + 1 });
        }
        let of_field = |name| node.child_by_field_name(name).and_then(|part| self.origin(part, depth + 1));
        let of_children = || python::named_children(node).into_iter().find_map(|child| self.origin(child, depth + 1));
        match node.kind() {
            "identifier" => self.tainted.get(python::text(node, self.module.source)).map(|taint| taint.origin.clone()),
            "attribute" => of_field("object"),
            "subscript" => of_field("value"),
            "assignment" => of_field("right"),
            "named_expression" => of_field("value"),
            "binary_operator"
            | "boolean_operator"
            | "concatenated_string"
            | "string"
            | "list"
            | "tuple"
            | "set"
            | "dictionary"
            | "pair"
            | "list_splat"
            | "dictionary_splat"
            | "await"
            | "expression_list"
            | "interpolation"
            | "list_comprehension"
            | "generator_expression"
            | "set_comprehension"
            | "for_in_clause" => of_children(),
            // The condition decides which, and is no part of either.
            "conditional_expression" => {
                [0, 2].into_iter().filter_map(|at| node.named_child(at)).find_map(|part| self.origin(part, depth + 1))
            }
            "call" => self.of_call(node, depth),
            _ => None,
        }
    }

    /// What a call passes on: of methods of text, of text and of paths what they are given.
    fn of_call(&self, node: Node<'_>, depth: usize) -> Option<Origin> {
        let call = Call::of(node, self.module)?;
        let passes = [
            "str",
            "repr",
            "bytes",
            "list",
            "tuple",
            "sorted",
            "reversed",
            "iter",
            "next",
            "open",
            "os.path.join",
            "os.path.expanduser",
            "os.fspath",
            "pathlib.Path",
            "io.BytesIO",
            "io.StringIO",
            "base64.b64decode",
            "urllib.parse.unquote",
            "json.loads",
        ];
        let arguments = || call.positional.iter().chain(call.keywords.iter().map(|(_, value)| value));
        let of_arguments = || arguments().find_map(|argument| self.origin(*argument, depth + 1));
        if passes.contains(&call.path.as_str()) {
            return of_arguments();
        }
        let callee = node.child_by_field_name("function").filter(|callee| callee.kind() == "attribute")?;
        let object = python::bare(callee.child_by_field_name("object")?);
        // Numbers and lengths of a text are no text.
        if matches!(
            call.name,
            "count" | "find" | "index" | "isdigit" | "isalnum" | "isidentifier" | "startswith" | "endswith"
        ) {
            return None;
        }
        if matches!(call.name, "format" | "join" | "replace") && Literal::of(object, self.module.source).is_some() {
            return of_arguments().or_else(|| self.origin(object, depth + 1));
        }
        self.origin(object, depth + 1)
    }

    /// What a source is called, if the expression is one.
    fn source(&self, node: Node<'_>) -> Option<String> {
        let source = self.module.source;
        let path = match node.kind() {
            "call" => self.module.names.path(python::bare(node.child_by_field_name("function")?), source)?,
            "attribute" | "identifier" => self.module.names.path(node, source)?,
            _ => return None,
        };
        let is_call = node.kind() == "call";
        let is_source = if is_call {
            [
                "input",
                "raw_input",
                "os.getenv",
                "os.environ.get",
                "sys.stdin.read",
                "sys.stdin.readline",
                "sys.stdin.readlines",
            ]
            .contains(&path.as_str())
                || path
                    .rsplit_once('.')
                    .is_some_and(|(of, name)| is_request(of) && ["get_json", "get_data"].contains(&name))
        } else {
            ["sys.argv", "os.environ", "sys.stdin"].contains(&path.as_str())
                || path.rsplit_once('.').is_some_and(|(of, name)| is_request(of) && REQUEST_PARTS.contains(&name))
        };
        is_source.then(|| if is_call { format!("{path}()") } else { path })
    }

    fn sink(&mut self, node: Node<'_>) {
        let Some(call) = Call::of(node, self.module) else { return };
        let source = self.module.source;
        let first = call.positional.first().copied();
        let path = call.path.as_str();
        let (rule, what) = match path {
            "eval" | "exec" | "builtins.eval" | "builtins.exec" => (&CODE, first),
            "os.system" | "os.popen" | "subprocess.getoutput" | "subprocess.getstatusoutput" => (&COMMAND, first),
            "subprocess.Popen"
            | "subprocess.call"
            | "subprocess.check_call"
            | "subprocess.check_output"
            | "subprocess.run" => {
                let is_shell = call.keyword("shell").is_some_and(|shell| shell.kind() == "true");
                (&COMMAND, call.argument("args", 0).filter(|_| is_shell))
            }
            "pickle.loads" | "pickle.load" | "dill.loads" | "dill.load" | "marshal.loads" | "jsonpickle.decode" => {
                (&OBJECT, first)
            }
            "yaml.load" | "yaml.unsafe_load" | "yaml.full_load" => {
                let loader = call.argument("Loader", 1).map(|loader| python::text(loader, source));
                let is_safe = loader.is_some_and(|loader| loader.ends_with("SafeLoader"));
                (&OBJECT, first.filter(|_| !is_safe))
            }
            _ if ["execute", "executemany", "executescript"].contains(&call.name) && path != call.name => (&SQL, first),
            _ => return,
        };
        let Some(origin) = what.and_then(|what| self.origin(what, 0)) else { return };
        let mut danger = Danger::at(rule, node);
        danger.message = format!("{}: {} of line {}", rule.message, origin.what, origin.line).into();
        self.found.push(danger);
    }
}

/// The bytes of the block that a node stands in.
fn block(node: Node<'_>) -> Range<usize> {
    let mut node = node;
    while let Some(parent) = node.parent().filter(|_| node.kind() != "block") {
        node = parent;
    }
    node.byte_range()
}

/// What of a request its sender chooses.
const REQUEST_PARTS: &[&str] = &[
    "args",
    "form",
    "values",
    "json",
    "data",
    "cookies",
    "headers",
    "files",
    "query_string",
    "query_params",
    "path_params",
    "GET",
    "POST",
    "COOKIES",
    "META",
    "FILES",
    "body",
];

/// Whether a path is a web framework's request: by its import, or by the name that views give it.
fn is_request(path: &str) -> bool {
    path.rsplit('.').next() == Some("request")
}
