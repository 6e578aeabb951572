//! How a spec's text becomes a tree of values that know their places: the part of RON that specs need.
//!
//! The crate `ron` stops at the first error and forgets places, so specs are read by this parser; a test holds it against `ron` on all
//! shipped specs. After an error it goes on behind the next comma, and leaves [`Value::Broken`] where nothing could be read.

use std::fmt;

use super::check::SpecCause;

/// A place in a text; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) line: u32,
    pub(crate) col: u32,
}

/// A value and where it starts.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Bool(bool),
    Integer(i128),
    Real(f64),
    Text(String),
    /// A name by itself, such as `bf16`.
    Name(String),
    /// `name(...)`, the name being optional.
    Group(Group),
    List(Vec<Node>),
    /// Something that was reported already.
    Broken,
}

/// What stands between parentheses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) name: Option<String>,
    /// `field: value`.
    pub(crate) fields: Vec<Field>,
    /// Values without a field's name.
    pub(crate) values: Vec<Node>,
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) at: At,
    pub(crate) name: String,
    pub(crate) value: Node,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(value) => write!(f, "`{value}`"),
            Value::Integer(value) => write!(f, "{value}"),
            Value::Real(value) => write!(f, "{value:?}"),
            Value::Text(value) => write!(f, "the text {value:?}"),
            Value::Name(name) => write!(f, "`{name}`"),
            Value::Group(Group { name: Some(name), .. }) => write!(f, "`{name}(..)`"),
            Value::Group(_) => f.write_str("a group `(..)`"),
            Value::List(_) => f.write_str("a list `[..]`"),
            Value::Broken => f.write_str("nothing"),
        }
    }
}

/// Brackets deeper than this are refused, so that no text can exhaust the stack. Specs need four.
const MAX_DEPTH: u32 = 64;

/// The value that a text holds; errors go to `errors`.
pub(crate) fn parse(text: &str, errors: &mut Vec<(At, SpecCause)>) -> Node {
    let mut parser = Parser { chars: text.chars().collect(), next: 0, at: At { line: 1, col: 1 }, depth: 0, errors };
    parser.skip_attributes();
    let node = parser.value();
    parser.skip_space();
    if parser.peek().is_some() {
        parser.unexpected("the end of the file");
    }
    node
}

struct Parser<'a> {
    chars: Vec<char>,
    next: usize,
    at: At,
    depth: u32,
    errors: &'a mut Vec<(At, SpecCause)>,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.next).copied()
    }

    fn peek_second(&self) -> Option<char> {
        self.chars.get(self.next + 1).copied()
    }

    fn bump(&mut self) -> Option<char> {
        let char = self.peek()?;
        self.next += 1;
        if char == '\n' {
            self.at = At { line: self.at.line.saturating_add(1), col: 1 };
        } else {
            self.at.col = self.at.col.saturating_add(1);
        }
        Some(char)
    }

    fn report(&mut self, at: At, cause: SpecCause) {
        self.errors.push((at, cause));
    }

    fn unexpected(&mut self, expected: &'static str) {
        let found = self.peek().map_or_else(|| "the end of the file".to_owned(), |char| format!("`{char}`"));
        self.report(self.at, SpecCause::Unexpected { expected, found });
    }

    /// Skips white space and comments.
    fn skip_space(&mut self) {
        while let Some(char) = self.peek() {
            match (char, self.peek_second()) {
                ('/', Some('/')) => while self.peek().is_some_and(|char| char != '\n') && self.bump().is_some() {},
                ('/', Some('*')) => self.skip_block_comment(),
                (char, _) if char.is_whitespace() || char == '\u{feff}' => {
                    self.bump();
                }
                _ => return,
            }
        }
    }

    fn skip_block_comment(&mut self) {
        let start = self.at;
        let mut open = 0_u32;
        loop {
            match (self.peek(), self.peek_second()) {
                (Some('/'), Some('*')) => {
                    open += 1;
                    self.bump();
                }
                (Some('*'), Some('/')) => {
                    open -= 1;
                    self.bump();
                }
                (None, _) => return self.report(start, SpecCause::Unclosed { what: "comment" }),
                _ => {}
            }
            self.bump();
            if open == 0 {
                return;
            }
        }
    }

    /// Skips `#![enable(..)]`: what it could enable is enabled already.
    fn skip_attributes(&mut self) {
        self.skip_space();
        while self.peek() == Some('#') {
            while self.peek().is_some() && self.bump() != Some(']') {}
            self.skip_space();
        }
    }

    /// Goes on to the next comma or closing bracket that is not inside brackets opened on the way.
    fn recover(&mut self) {
        let mut open = 0_u32;
        while let Some(char) = self.peek() {
            match char {
                '(' | '[' | '{' => open += 1,
                ')' | ']' | '}' if open == 0 => return,
                ')' | ']' | '}' => open -= 1,
                ',' if open == 0 => return,
                _ => {}
            }
            self.bump();
        }
    }

    fn value(&mut self) -> Node {
        self.skip_space();
        let at = self.at;
        let value = match self.peek() {
            Some('(') => self.group(None),
            Some('[') => self.list(),
            Some('"') => self.text(),
            Some(char) if char.is_ascii_digit() || matches!(char, '+' | '-' | '.') => self.number(),
            Some(char) if char.is_alphabetic() || char == '_' => self.name_or_group(),
            _ => {
                self.unexpected("a value");
                self.recover();
                Value::Broken
            }
        };
        Node { at, value }
    }

    fn ident(&mut self) -> String {
        let mut name = String::new();
        while let Some(char) = self.peek().filter(|char| char.is_alphanumeric() || *char == '_') {
            name.push(char);
            self.bump();
        }
        name
    }

    fn name_or_group(&mut self) -> Value {
        let name = self.ident();
        self.skip_space();
        match (self.peek(), name.as_str()) {
            (Some('('), _) => self.group(Some(name)),
            (_, "true") => Value::Bool(true),
            (_, "false") => Value::Bool(false),
            _ => Value::Name(name),
        }
    }

    fn number(&mut self) -> Value {
        let at = self.at;
        let mut text = String::new();
        while let Some(char) = self.peek() {
            let after_exponent = text.ends_with(['e', 'E']) && !text.starts_with("0x");
            let sign = matches!(char, '+' | '-') && (text.is_empty() || after_exponent);
            if !(sign || char.is_ascii_alphanumeric() || matches!(char, '.' | '_')) {
                break;
            }
            text.push(char);
            self.bump();
        }
        let digits = text.replace('_', "");
        let integer = match digits.strip_prefix("0x") {
            Some(hex) => i128::from_str_radix(hex, 16).ok(),
            None => digits.parse().ok(),
        };
        match (integer, digits.parse::<f64>()) {
            (Some(integer), _) => Value::Integer(integer),
            (None, Ok(real)) => Value::Real(real),
            (None, Err(_)) => {
                self.report(at, SpecCause::NotANumber { found: text });
                Value::Broken
            }
        }
    }

    fn text(&mut self) -> Value {
        let start = self.at;
        self.bump();
        let mut text = String::new();
        loop {
            let at = self.at;
            match self.bump() {
                Some('"') => return Value::Text(text),
                Some('\\') => match self.escape() {
                    Some(char) => text.push(char),
                    None => self.report(at, SpecCause::Escape),
                },
                Some(char) => text.push(char),
                None => {
                    self.report(start, SpecCause::Unclosed { what: "text" });
                    return Value::Broken;
                }
            }
        }
    }

    /// The character that the rest of an escape stands for.
    fn escape(&mut self) -> Option<char> {
        match self.bump()? {
            'n' => Some('\n'),
            't' => Some('\t'),
            'r' => Some('\r'),
            '0' => Some('\0'),
            char @ ('\\' | '"' | '\'') => Some(char),
            'u' if self.peek() == Some('{') => {
                self.bump();
                let digits = self.ident();
                let closed = self.peek() == Some('}') && self.bump().is_some();
                u32::from_str_radix(&digits, 16).ok().filter(|_| closed).and_then(char::from_u32)
            }
            _ => None,
        }
    }

    fn group(&mut self, name: Option<String>) -> Value {
        let mut group = Group { name, ..Group::default() };
        let closed = self.items(')', |parser| {
            let (start, at) = (parser.next, parser.at);
            let name = parser.ident();
            parser.skip_space();
            if !name.is_empty() && parser.peek() == Some(':') {
                parser.bump();
                group.fields.push(Field { at, name, value: parser.value() });
            } else {
                (parser.next, parser.at) = (start, at);
                group.values.push(parser.value());
            }
        });
        if closed { Value::Group(group) } else { Value::Broken }
    }

    fn list(&mut self) -> Value {
        let mut nodes = Vec::new();
        let closed = self.items(']', |parser| nodes.push(parser.value()));
        if closed { Value::List(nodes) } else { Value::Broken }
    }

    /// Reads the opening bracket, items with commas between them, and the closing bracket. Whether the depth allowed it.
    fn items(&mut self, close: char, mut item: impl FnMut(&mut Self)) -> bool {
        let start = self.at;
        if self.depth == MAX_DEPTH {
            self.report(start, SpecCause::TooDeep { max: MAX_DEPTH });
            self.bump();
            self.recover();
            self.bump();
            return false;
        }
        self.bump();
        self.depth += 1;
        let expected = if close == ')' { "`,` or `)`" } else { "`,` or `]`" };
        loop {
            self.skip_space();
            match self.peek() {
                Some(char) if char == close => {
                    self.bump();
                    break;
                }
                Some(')' | ']' | '}') => {
                    self.unexpected(expected);
                    self.bump();
                    break;
                }
                None => {
                    self.report(start, SpecCause::Unclosed { what: "bracket" });
                    break;
                }
                Some(_) => {}
            }
            item(self);
            self.skip_space();
            match self.peek() {
                Some(',') => {
                    self.bump();
                }
                Some(')' | ']' | '}') | None => {}
                Some(_) => {
                    // A forgotten comma is by far the likeliest cause: report it, and take what follows as the next item.
                    self.unexpected(expected);
                    if !self.peek().is_some_and(|char| char.is_alphanumeric() || matches!(char, '_' | '"' | '(' | '['))
                    {
                        self.recover();
                        if self.peek() == Some(',') {
                            self.bump();
                        }
                    }
                }
            }
        }
        self.depth -= 1;
        true
    }
}
