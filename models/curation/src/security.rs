//! Finds calls that are dangerous as they are made, in Python's syntax tree: names are resolved through imports, and arguments decide where they do.
//!
//! `model.eval()` is a method of a model and no call of the built-in `eval`; text in comments and strings is no call at all.

use tree_sitter::Node;

use crate::judge::Severity;
use crate::python::{self, Names};

/// A rule: what is called, under which condition, and how bad it is.
#[derive(Debug)]
pub struct Rule {
    /// Its name.
    pub id: &'static str,
    /// What is wrong, for people.
    pub message: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The test of bandit that says the same.
    pub bandit: &'static str,
    calls: &'static [&'static str],
    condition: Condition,
}

#[derive(Debug, Clone, Copy)]
enum Condition {
    Always,
    /// A keyword argument that is no constant of falsehood; the finding stands at it.
    IsSet(&'static str),
    /// A keyword argument that is `False`; the finding stands at it.
    IsFalse(&'static str),
    /// Neither the keyword argument nor the second one is one of these, by the last part of its path.
    IsNot(&'static str, &'static [&'static str]),
}

/// Every rule.
pub const RULES: &[Rule] = &[
    Rule {
        id: "exec",
        message: "runs text as code",
        severity: Severity::High,
        bandit: "B102",
        calls: &["exec"],
        condition: Condition::Always,
    },
    Rule {
        id: "eval",
        message: "runs text as code; ast.literal_eval reads data",
        severity: Severity::High,
        bandit: "B307",
        calls: &["eval"],
        condition: Condition::Always,
    },
    Rule {
        id: "unpickle",
        message: "reading a pickle runs what its writer chose",
        severity: Severity::High,
        bandit: "B301",
        calls: &[
            "pickle.loads",
            "pickle.load",
            "pickle.Unpickler",
            "dill.loads",
            "dill.load",
            "dill.Unpickler",
            "shelve.open",
            "shelve.DbfilenameShelf",
            "jsonpickle.decode",
            "jsonpickle.unpickler.decode",
            "jsonpickle.unpickler.Unpickler",
            "pandas.read_pickle",
        ],
        condition: Condition::Always,
    },
    Rule {
        id: "unmarshal",
        message: "marshal reads what must be trusted",
        severity: Severity::High,
        bandit: "B302",
        calls: &["marshal.load", "marshal.loads"],
        condition: Condition::Always,
    },
    Rule {
        id: "temporary-name",
        message: "another process can take the name before the file is made; tempfile.mkstemp makes it",
        severity: Severity::High,
        bandit: "B306",
        calls: &["tempfile.mktemp"],
        condition: Condition::Always,
    },
    Rule {
        id: "unverified-context",
        message: "takes any certificate",
        severity: Severity::High,
        bandit: "B323",
        calls: &["ssl._create_unverified_context"],
        condition: Condition::Always,
    },
    Rule {
        id: "unverified-request",
        message: "takes any certificate",
        severity: Severity::High,
        bandit: "B501",
        calls: &[
            "requests.get",
            "requests.options",
            "requests.head",
            "requests.post",
            "requests.put",
            "requests.patch",
            "requests.delete",
            "httpx.get",
            "httpx.options",
            "httpx.head",
            "httpx.post",
            "httpx.put",
            "httpx.patch",
            "httpx.delete",
            "httpx.request",
            "httpx.stream",
            "httpx.Client",
            "httpx.AsyncClient",
        ],
        condition: Condition::IsFalse("verify"),
    },
    Rule {
        id: "yaml-load",
        message: "makes any object that the text names; yaml.safe_load makes data",
        severity: Severity::High,
        bandit: "B506",
        calls: &["yaml.load"],
        condition: Condition::IsNot("Loader", &["SafeLoader", "CSafeLoader"]),
    },
    Rule {
        id: "subprocess-shell",
        message: "gives the command to a shell",
        severity: Severity::High,
        bandit: "B602",
        calls: &[
            "subprocess.Popen",
            "subprocess.call",
            "subprocess.check_call",
            "subprocess.check_output",
            "subprocess.run",
        ],
        condition: Condition::IsSet("shell"),
    },
    Rule {
        id: "shell",
        message: "gives the command to a shell; subprocess.run takes its parts",
        severity: Severity::High,
        bandit: "B605",
        calls: &[
            "os.system",
            "os.popen",
            "os.popen2",
            "os.popen3",
            "os.popen4",
            "popen2.popen2",
            "popen2.popen3",
            "popen2.popen4",
            "popen2.Popen3",
            "popen2.Popen4",
            "commands.getoutput",
            "commands.getstatusoutput",
            "subprocess.getoutput",
            "subprocess.getstatusoutput",
        ],
        condition: Condition::Always,
    },
];

/// A dangerous call.
#[derive(Debug, Clone, Copy)]
pub struct Danger {
    /// The rule that found it.
    pub rule: &'static Rule,
    /// Its line, from 1.
    pub line: usize,
    /// Its column, in bytes from 1.
    pub column: usize,
}

/// Every dangerous call of a Python module, in the order of the text.
pub fn find_dangers(source: &str) -> Vec<Danger> {
    // Parsing costs a hundred times more than this, and few modules call any of them.
    let last = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
    let mut names = RULES.iter().flat_map(|rule| rule.calls).map(|path| last(path));
    if !names.any(|name| memchr::memmem::find(source.as_bytes(), name.as_bytes()).is_some()) {
        return Vec::new();
    }
    let Some(tree) = python::parse(source) else { return Vec::new() };
    let names = Names::of(tree.root_node(), source);
    let mut found = Vec::new();
    python::visit(tree.root_node(), |node| {
        if node.kind() != "call" {
            return;
        }
        let Some(path) = node.child_by_field_name("function").and_then(|callee| names.path(callee, source)) else {
            return;
        };
        for rule in RULES.iter().filter(|rule| rule.calls.contains(&path.as_str())) {
            if let Some(at) = rule.condition.holds(node, source) {
                let place = at.start_position();
                found.push(Danger { rule, line: place.row + 1, column: place.column + 1 });
            }
        }
    });
    found
}

impl Condition {
    /// The node at which a finding stands, if it is one.
    fn holds<'t>(self, call: Node<'t>, source: &str) -> Option<Node<'t>> {
        let arguments = call.child_by_field_name("arguments")?;
        let keyword = |name: &str| {
            let arguments = python::named_children(arguments).into_iter();
            let mut keywords = arguments.filter(|argument| argument.kind() == "keyword_argument");
            let keyword = keywords.find(|argument| {
                argument.child_by_field_name("name").is_some_and(|key| python::text(key, source) == name)
            });
            keyword.and_then(|argument| argument.child_by_field_name("value"))
        };
        match self {
            Condition::Always => Some(call),
            Condition::IsSet(name) => keyword(name).filter(|value| !is_false(*value, source)),
            Condition::IsFalse(name) => keyword(name).filter(|value| value.kind() == "false"),
            Condition::IsNot(name, safe) => {
                let arguments = python::named_children(arguments).into_iter();
                let mut positional =
                    arguments.filter(|argument| !matches!(argument.kind(), "keyword_argument" | "comment"));
                let value = keyword(name).or_else(|| positional.nth(1));
                let is_safe = value.is_some_and(|value| {
                    let path = python::text(value, source);
                    safe.contains(&path.rsplit('.').next().unwrap_or(path))
                });
                (!is_safe).then_some(call)
            }
        }
    }
}

/// Whether an expression is a constant of falsehood.
fn is_false(value: Node<'_>, source: &str) -> bool {
    match value.kind() {
        "false" | "none" => true,
        "integer" | "float" => python::text(value, source).parse() == Ok(0.0),
        "list" | "dictionary" | "tuple" => value.named_child_count() == 0,
        "string" => python::named_children(value).iter().all(|child| child.kind() != "string_content"),
        _ => false,
    }
}
