//! Python that is dangerous in other forms than calls: texts, defaults, handlers, imports, asserts, and marks that turn the text round.

use std::sync::LazyLock;

use regex_automata::meta::Regex;
use tree_sitter::Node;

use super::calls::BROKEN_TLS;
use super::{Call, Danger, Module, Rule};
use crate::judge::Severity::{self, High, Low, Medium};
use crate::python::{self, Literal};

const fn rule(id: &'static str, bandit: &'static str, severity: Severity, message: &'static str) -> Rule {
    Rule { id, bandit, severity, message }
}

static ASSERT: Rule = rule("assert", "B101", Low, "is not there when Python optimises");
static ALL_INTERFACES: Rule = rule("all-interfaces", "B104", Medium, "listens to every network");
static PASSWORD_TEXT: Rule = rule("password-text", "B105", Low, "a password in the source?");
static PASSWORD_ARGUMENT: Rule = rule("password-argument", "B106", Low, "a password in the source?");
static PASSWORD_DEFAULT: Rule = rule("password-default", "B107", Low, "a password in the source?");
static SHARED_FOLDER: Rule =
    rule("shared-folder", "B108", Low, "everybody can write there; tempfile makes names of one's own");
static IGNORED_ERROR: Rule = rule("ignored-error", "B110", Low, "hides every error");
static SKIPPED_ERROR: Rule = rule("skipped-error", "B112", Low, "hides every error");
static DEFAULT_TLS: Rule = rule("broken-tls-default", "B503", High, "the version of TLS is broken");
static SQL_TEXT: Rule = rule("sql-text", "B608", Medium, "puts text into SQL; parameters keep it apart");
static TURNED_TEXT: Rule = rule("turned-text", "B613", High, "shows other code than it runs");

/// Modules that are dangerous as such, and the tests of bandit that name them.
#[rustfmt::skip]
static IMPORTS: &[(Rule, &[&str])] = &[
    (rule("import-telnet", "B401", Low, "sends passwords as they are"), &["telnetlib"]),
    (rule("import-ftp", "B402", Low, "sends passwords as they are"), &["ftplib"]),
    (rule("import-pickle", "B403", Low, "reading a pickle runs what its writer chose"), &["pickle", "cPickle", "dill", "shelve"]),
    (rule("import-subprocess", "B404", Low, "runs programs"), &["subprocess"]),
    (rule("import-xml-etree", "B405", Low, "expands entities without end; defusedxml does not"), &["xml.etree.cElementTree", "xml.etree.ElementTree"]),
    (rule("import-xml-sax", "B406", Low, "expands entities without end; defusedxml does not"), &["xml.sax"]),
    (rule("import-xml-expat", "B407", Low, "expands entities without end; defusedxml does not"), &["xml.dom.expatbuilder"]),
    (rule("import-xml-minidom", "B408", Low, "expands entities without end; defusedxml does not"), &["xml.dom.minidom"]),
    (rule("import-xml-pulldom", "B409", Low, "expands entities without end; defusedxml does not"), &["xml.dom.pulldom"]),
    (rule("import-xmlrpc", "B411", Low, "expands entities without end; defusedxml does not"), &["xmlrpc"]),
    (rule("import-cgi-handler", "B412", Low, "takes a proxy from the request"), &[
        "wsgiref.handlers.CGIHandler", "twisted.web.twcgi.CGIScript", "twisted.web.twcgi.CGIDirectory",
    ]),
    (rule("import-pycrypto", "B413", Low, "is not maintained and has known faults; cryptography is maintained"), &[
        "Crypto.Cipher", "Crypto.Hash", "Crypto.IO", "Crypto.Protocol", "Crypto.PublicKey", "Crypto.Random", "Crypto.Signature", "Crypto.Util",
    ]),
    (rule("import-ipmi", "B415", Low, "speaks IPMI, which is not secure"), &["pyghmi"]),
];

/// Every rule of this file.
pub(super) fn rules() -> impl Iterator<Item = &'static Rule> {
    let rules = [
        &ASSERT,
        &ALL_INTERFACES,
        &PASSWORD_TEXT,
        &PASSWORD_ARGUMENT,
        &PASSWORD_DEFAULT,
        &SHARED_FOLDER,
        &IGNORED_ERROR,
        &SKIPPED_ERROR,
        &DEFAULT_TLS,
        &SQL_TEXT,
        &TURNED_TEXT,
    ];
    rules.into_iter().chain(IMPORTS.iter().map(|(rule, _)| rule))
}

/// Names of what holds a password, as bandit has them.
static PASSWORD: LazyLock<Regex> = LazyLock::new(|| {
    const WORD: &str = "(?:pas+wo?r?d|pass(?:phrase)?|pwd|token|secrete?)";
    expression(&format!("(?i)(?:^{WORD}$|_{WORD}_|^{WORD}_|_{WORD}$)"))
});

/// Statements of SQL, as bandit has them.
static SQL: LazyLock<Regex> = LazyLock::new(|| {
    expression(r"(?is)(?:select\s.*from\s|delete\s+from\s|insert\s+into\s.*values[\s(]|update\s.*set\s)")
});

fn expression(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a constant that the tests have used")
}

/// Finds the forms of a tree.
pub(super) fn find(nodes: &[Node<'_>], module: &Module<'_>, found: &mut Vec<Danger>) {
    for node in nodes.iter().copied() {
        match node.kind() {
            "assert_statement" => found.push(Danger::at(&ASSERT, node)),
            "string" | "concatenated_string" => text(node, module, found),
            "call" => call(node, module, found),
            "function_definition" => defaults(node, module, found),
            "except_clause" => handler(node, module, found),
            _ => {}
        }
    }
    python::each_import(nodes, module.source, |path, statement| {
        let last = found.last();
        // Of the names of one statement the first says enough.
        let is_new =
            |rule: &Rule| last.is_none_or(|last| last.rule != rule || last.line != statement.start_position().row + 1);
        let danger = imported(&path).filter(|rule| is_new(rule)).map(|rule| Danger::at(rule, statement));
        found.extend(danger);
    });
    found.extend(turned(module.source));
}

/// The rule of a module, or of what starts with its path.
fn imported(path: &str) -> Option<&'static Rule> {
    let rule = IMPORTS.iter().find(|(_, modules)| modules.iter().any(|module| path.starts_with(module)));
    rule.map(|(rule, _)| rule)
}

fn text(node: Node<'_>, module: &Module<'_>, found: &mut Vec<Danger>) {
    let (Some(literal), Some(parent)) = (Literal::of(node, module.source), python::parent(node)) else { return };
    // A text that stands alone is documentation.
    if literal.is_bytes || parent.kind() == "expression_statement" {
        return;
    }
    let pieces = &literal.pieces;
    found.extend(pieces.iter().filter(|piece| *piece == "0.0.0.0").map(|_| Danger::at(&ALL_INTERFACES, node)));
    let is_shared = |piece: &&String| ["/tmp", "/var/tmp", "/dev/shm"].iter().any(|folder| piece.starts_with(folder));
    found.extend(pieces.iter().filter(is_shared).map(|_| Danger::at(&SHARED_FOLDER, node)));
    if !literal.is_formatted && is_password(node, parent, &pieces.concat(), module) {
        found.push(Danger::at(&PASSWORD_TEXT, node));
    }
    let statement = statement(node, parent, &literal, module);
    if statement.is_some_and(|statement| SQL.is_match(&statement)) {
        found.push(Danger::at(&SQL_TEXT, node));
    }
}

fn is_named_like_password(node: Node<'_>, source: &str) -> bool {
    let name = match node.kind() {
        "identifier" => Some(node),
        "attribute" => node.child_by_field_name("attribute"),
        _ => None,
    };
    name.is_some_and(|name| PASSWORD.is_match(python::text(name, source)))
}

/// A part of a node, without parentheses.
fn field<'t>(node: Node<'t>, name: &str) -> Option<Node<'t>> {
    node.child_by_field_name(name).map(python::bare)
}

/// Whether a text is assigned to a password's name, compared with one, or the value of such a key.
fn is_password(node: Node<'_>, parent: Node<'_>, text: &str, module: &Module<'_>) -> bool {
    let source = module.source;
    let is_text = |node: Option<Node<'_>>| node.is_some_and(|node| Literal::plain(node, source).is_some());
    match parent.kind() {
        "assignment" if parent.child_by_field_name("type").is_none() => targets(parent, source),
        "pair" if field(parent, "key") == Some(node) => {
            let is_constant = |value: Node<'_>| {
                matches!(value.kind(), "integer" | "float" | "true" | "false" | "none")
                    || Literal::of(value, source).is_some_and(|value| !value.is_formatted)
            };
            PASSWORD.is_match(text) && field(parent, "value").is_some_and(is_constant)
        }
        "subscript" if field(parent, "subscript") == Some(node) => {
            let assignment = python::parent(parent).filter(|outer| outer.kind() == "assignment");
            let value = assignment.and_then(|assignment| field(assignment, "right"));
            PASSWORD.is_match(text) && assignment.is_some() && is_text(value)
        }
        "comparison_operator" => {
            let operands = python::named_children(parent);
            let is_text = is_text(operands.get(1).map(|operand| python::bare(*operand)));
            operands.first().is_some_and(|left| is_named_like_password(python::bare(*left), source)) && is_text
        }
        _ => false,
    }
}

/// Whether one of the names that an assignment gives is a password's; of `a = b = text` both are looked at.
fn targets(assignment: Node<'_>, source: &str) -> bool {
    let mut assignment = Some(assignment);
    while let Some(one) = assignment.filter(|one| one.kind() == "assignment") {
        if one.child_by_field_name("left").is_some_and(|left| is_named_like_password(left, source)) {
            return true;
        }
        assignment = one.parent();
    }
    false
}

/// The statement that a text starts in which others are put: by an operator, by `format` and `replace`, or by interpolation.
fn statement(node: Node<'_>, parent: Node<'_>, literal: &Literal, module: &Module<'_>) -> Option<String> {
    if literal.is_formatted {
        return Some(literal.pieces.concat());
    }
    let text = literal.pieces.concat();
    match parent.kind() {
        "attribute" => {
            let name = python::text(parent.child_by_field_name("attribute")?, module.source);
            ["format", "replace"].contains(&name).then_some(text)
        }
        "binary_operator" => {
            let mut top = parent;
            while let Some(outer) = python::parent(top).filter(|outer| outer.kind() == "binary_operator") {
                top = outer;
            }
            let mut texts = vec![text];
            operands(top, parent, node, module.source, &mut texts);
            Some(texts.join(" "))
        }
        _ => None,
    }
}

/// The texts among the operands of a chain of operators, but for those of one of them.
fn operands(top: Node<'_>, stop: Node<'_>, start: Node<'_>, source: &str, texts: &mut Vec<String>) {
    let mut open = vec![top];
    while let Some(node) = open.pop() {
        if node == stop || node == start {
            continue;
        }
        if node.kind() == "binary_operator" {
            let sides = ["right", "left"].into_iter().filter_map(|side| node.child_by_field_name(side));
            open.extend(sides.map(python::bare));
        } else {
            texts.extend(Literal::plain(node, source));
        }
    }
}

fn call(node: Node<'_>, module: &Module<'_>, found: &mut Vec<Danger>) {
    let Some(call) = Call::of(node, module) else { return };
    let passwords = call
        .keywords
        .iter()
        .filter(|(name, value)| PASSWORD.is_match(*name) && Literal::plain(*value, module.source).is_some());
    found.extend(passwords.map(|(_, value)| Danger::at(&PASSWORD_ARGUMENT, *value)).take(1));
    // A module may be named by a text, and what is imported by its whole path.
    let name = match call.path.as_str() {
        "__import__" | "importlib.import_module" | "importlib.__import__" => {
            call.argument("name", 0).and_then(|name| Literal::plain(name, module.source)).unwrap_or_default()
        }
        path => path.to_owned(),
    };
    let rule = IMPORTS.iter().find(|(_, modules)| modules.contains(&name.as_str()));
    found.extend(rule.map(|(rule, _)| Danger::at(rule, node)));
}

fn defaults(node: Node<'_>, module: &Module<'_>, found: &mut Vec<Danger>) {
    let Some(parameters) = node.child_by_field_name("parameters") else { return };
    let source = module.source;
    let (mut is_password, mut is_broken) = (false, false);
    for parameter in python::named_children(parameters) {
        // Names behind `*` are given by name.
        if matches!(parameter.kind(), "keyword_separator" | "list_splat_pattern") {
            break;
        }
        let (Some(name), Some(value)) = (parameter.child_by_field_name("name"), parameter.child_by_field_name("value"))
        else {
            continue;
        };
        let value = python::bare(value);
        is_password |= PASSWORD.is_match(python::text(name, source)) && Literal::plain(value, source).is_some();
        let path = module.names.path(value, source).unwrap_or_default();
        is_broken |= path.rsplit('.').next().is_some_and(|last| BROKEN_TLS.contains(&last));
    }
    found.extend(is_password.then(|| Danger::at(&PASSWORD_DEFAULT, node)));
    found.extend(is_broken.then(|| Danger::at(&DEFAULT_TLS, node)));
}

/// `except:` or `except Exception:` that does nothing.
fn handler(node: Node<'_>, module: &Module<'_>, found: &mut Vec<Danger>) {
    let children = python::named_children(node).into_iter().filter(|child| child.kind() != "comment");
    let (blocks, kinds): (Vec<Node<'_>>, Vec<Node<'_>>) = children.partition(|child| child.kind() == "block");
    let is_wide = kinds.iter().all(|kind| {
        let kind = if kind.kind() == "as_pattern" { kind.named_child(0).unwrap_or(*kind) } else { *kind };
        python::text(python::bare(kind), module.source) == "Exception"
    });
    let Some(block) = blocks.first().filter(|_| is_wide) else { return };
    let statements = python::named_children(*block).into_iter().filter(|child| child.kind() != "comment");
    let statements: Vec<&str> = statements.map(|statement| statement.kind()).collect();
    match statements[..] {
        ["pass_statement"] => found.push(Danger::at(&IGNORED_ERROR, node)),
        ["continue_statement"] => found.push(Danger::at(&SKIPPED_ERROR, node)),
        _ => {}
    }
}

/// The first mark that turns the direction of writing.
fn turned(source: &str) -> Option<Danger> {
    const MARKS: [char; 10] = [
        '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
        '\u{200f}',
    ];
    let at = source.find(MARKS)?;
    let (line, column) = crate::lines::Lines::of(source.as_bytes()).place(at);
    Some(Danger { rule: &TURNED_TEXT, line, column, message: TURNED_TEXT.message.into() })
}
