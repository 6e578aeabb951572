//! Text to program: recursive descent over lines, all errors with their positions.
//!
//! A statement that cannot be read is reported and skipped up to the end of its line. The value that it was to define is then known but has no
//! id, so that its uses are no errors of their own. Nothing recurses, so no text can exhaust the stack.

mod cursor;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use smallvec::SmallVec;

use super::lex::{Lexeme, Token, excerpt, lex};
use super::number::Precision;
use super::{GraphMap, ParseCause, ParseError, ParseErrors, Position, SourceMap, is_id};
use crate::dtype::DType;
use crate::entity::Id;
use crate::graph::{Constant, Def, Graph, Program, SymbolDecl, Update, Value, ValueId};
use crate::op::{Attr, Op, OpDef, PartsError};
use crate::shape::{Dim, MAX_RANK, Shape, Symbol, TensorType};

/// Reads a program.
///
/// The result has types for all values, but is not verified.
///
/// # Errors
///
/// Everything that the text says wrongly, in its order.
pub fn parse(text: &str) -> Result<Program, ParseErrors> {
    parse_with_positions(text).map(|(program, _)| program)
}

/// As [`parse`], and says where in the text each part stands.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_with_positions(text: &str) -> Result<(Program, SourceMap), ParseErrors> {
    let mut errors = Vec::new();
    let lexemes = lex(text, &mut errors);
    let unread_lines: HashSet<u32> = errors.iter().map(|error: &ParseError| error.position.line).collect();
    let n_unread = errors.len();
    let mut parser = Parser { lexemes, at: 0, errors, map: SourceMap::default() };
    let program = parser.program();
    let Parser { mut errors, map, .. } = parser;
    if errors.is_empty() {
        return Ok((program, map));
    }
    // What a line that could not even be split into tokens seems to lack says nothing.
    let mut index = 0;
    errors.retain(|error| {
        index += 1;
        index <= n_unread || !unread_lines.contains(&error.position.line)
    });
    errors.sort_by_key(|error| error.position);
    Err(ParseErrors(errors))
}

/// What an attribute's value may be.
const ATTRIBUTE: &str = "a number, an element type, a shape, a list of axes or a `@name`";

/// What one part of the text says, or why it says nothing.
type Parsed<T> = Result<T, Box<ParseError>>;

struct Parser<'a> {
    lexemes: Vec<Lexeme<'a>>,
    at: usize,
    errors: Vec<ParseError>,
    map: SourceMap,
}

/// How a text refers to a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Label {
    /// By an id, such as `v12`; the value has no name.
    Id(String),
    /// By name, and by a number if several have it.
    Name(String, Option<u64>),
}

impl Label {
    fn name(&self) -> Option<Arc<str>> {
        match self {
            Label::Id(_) => None,
            Label::Name(name, _) => Some(Arc::from(name.as_str())),
        }
    }

    fn text(&self) -> String {
        match self {
            Label::Id(name) | Label::Name(name, None) => excerpt(name),
            Label::Name(name, Some(number)) => format!("{}#{number}", excerpt(name)),
        }
    }
}

/// The graph being read.
struct Scope {
    graph: Graph,
    map: GraphMap,
    /// What each label means: a value, or nothing if its definition was wrong. And where it was defined.
    labels: HashMap<Label, (Option<ValueId>, Position)>,
    /// The label of the statement being read, until its value exists.
    defining: Option<(Label, Position)>,
    returned: bool,
}

impl<'a> Parser<'a> {
    fn program(&mut self) -> Program {
        let mut program = Program { name: String::new(), symbols: Vec::new(), graphs: Vec::new() };
        let mut named = false;
        self.skip_newlines();
        self.map.program = Some(self.position());
        loop {
            self.skip_newlines();
            let start = self.at;
            let result = match self.token() {
                Token::End => break,
                Token::Name("program") if !named && program.symbols.is_empty() && program.graphs.is_empty() => {
                    named = true;
                    self.program_line(&mut program)
                }
                Token::Name("symbol") if program.graphs.is_empty() => self.symbol_line(&mut program),
                Token::Name("graph") => self.graph(&mut program),
                _ => Err(self.expected(if program.graphs.is_empty() {
                    "`program` (first), `symbol` or `graph`"
                } else {
                    "`graph`"
                })),
            };
            if let Err(error) = result {
                self.errors.push(*error);
                self.skip_line();
            }
            debug_assert!(start < self.at, "every round of the loop reads something");
        }
        if let (false, Some(entry)) = (named, program.graphs.last()) {
            program.name.clone_from(&entry.name);
        }
        program
    }

    fn program_line(&mut self, program: &mut Program) -> Parsed<()> {
        self.map.program = Some(self.advance().position);
        program.name = self.at_name("the program's `@name`")?;
        self.end_of_line()
    }

    fn symbol_line(&mut self, program: &mut Program) -> Parsed<()> {
        self.advance();
        let position = self.position();
        let name = self.name("the symbol's name")?;
        self.mark("<=", "`<=` and the symbol's largest value")?;
        let max = self.integer("a whole number below 2^64")?;
        program.symbols.push(SymbolDecl { symbol: Symbol::new(&name), max });
        self.map.symbols.push(position);
        self.end_of_line()
    }

    /// `graph @name(inputs) -> types { statements }`. A wrong header is reported, and the statements are read all the same.
    fn graph(&mut self, program: &mut Program) -> Parsed<()> {
        self.advance();
        let mut scope = Scope {
            graph: Graph::new(""),
            map: GraphMap { header: self.position(), values: Vec::new(), updates: Vec::new() },
            labels: HashMap::new(),
            defining: None,
            returned: false,
        };
        let declared = match self.header(&mut scope) {
            Ok(types) => Some(types),
            Err(error) => {
                self.errors.push(*error);
                self.skip_to_body();
                None
            }
        };
        let n_errors = self.errors.len();
        if self.take_mark("{") {
            self.statements(&mut scope)?;
        }
        // With a statement missing, what the graph returns says nothing.
        if let (Some(declared), true) = (declared, n_errors == self.errors.len()) {
            self.check_returns(&scope, &declared);
        }
        program.graphs.push(scope.graph);
        self.map.graphs.push(scope.map);
        Ok(())
    }

    fn header(&mut self, scope: &mut Scope) -> Parsed<Vec<TensorType>> {
        scope.graph.name = self.at_name("the graph's `@name`")?;
        scope.map.header = self.since(scope.map.header);
        self.mark("(", "`(` and the inputs")?;
        self.skip_newlines();
        while !self.take_mark(")") {
            self.input(scope)?;
            self.separator(")", "`,` or `)` after an input")?;
        }
        self.mark("->", "`->` and the types of the results")?;
        let mut types = Vec::new();
        if self.take_mark("(") {
            self.skip_newlines();
            while !self.take_mark(")") {
                types.push(self.ty()?);
                self.separator(")", "`,` or `)` after a type")?;
            }
        } else {
            types.push(self.ty()?);
        }
        match self.token() {
            Token::Mark("{") => Ok(types),
            _ => Err(self.expected("`{` and the graph's statements")),
        }
    }

    fn check_returns(&mut self, scope: &Scope, declared: &[TensorType]) {
        let outputs = || scope.graph.outputs.iter().map(|&output| scope.graph.ty(output));
        if !outputs().eq(declared) {
            let cause = ParseCause::Returns { declared: types(declared.iter()), found: types(outputs()) };
            self.errors.push(ParseError { position: scope.map.header, cause });
        }
    }

    /// Statements up to and with the closing brace.
    fn statements(&mut self, scope: &mut Scope) -> Parsed<()> {
        loop {
            self.skip_newlines();
            match self.token() {
                Token::Mark("}") => {
                    self.advance();
                    return self.end_of_line();
                }
                Token::End => return Err(self.expected("`}` at the end of the graph")),
                // A brace was forgotten: no value can be called so and be followed by `@`.
                Token::Name("graph") if matches!(self.peek(1), Token::Mark("@")) => {
                    let error = self.expected("`}` at the end of the graph");
                    self.errors.push(*error);
                    return Ok(());
                }
                _ => {}
            }
            let result = self.statement(scope).and_then(|()| match self.token() {
                Token::Mark("}") => Ok(()),
                _ => self.end_of_line(),
            });
            if let Err(error) = result {
                self.errors.push(*error);
                self.skip_statement();
            }
            if let Some((label, position)) = scope.defining.take() {
                scope.labels.entry(label).or_insert((None, position));
            }
        }
    }

    fn statement(&mut self, scope: &mut Scope) -> Parsed<()> {
        if scope.returned {
            return Err(self.error(ParseCause::AfterReturn));
        }
        match *self.token() {
            Token::Name("param") => {
                self.advance();
                let (ty, key) = self.keyed(scope)?;
                self.define(scope, ty, Def::Param { key });
            }
            Token::Name("state") => {
                self.advance();
                let (ty, key) = self.keyed(scope)?;
                self.define(scope, ty, Def::State { key });
            }
            Token::Name("input") => {
                self.advance();
                self.input(scope)?;
            }
            Token::Name("const") => {
                self.advance();
                self.constant(scope)?;
            }
            Token::Name("update") => {
                self.advance();
                self.update(scope)?;
            }
            Token::Name("return") => {
                self.advance();
                scope.returned = true;
                scope.graph.outputs = self.operands(scope)?.into_iter().flatten().collect();
            }
            _ => self.op_statement(scope)?,
        }
        Ok(())
    }

    /// `name: type`.
    fn declared(&mut self, scope: &mut Scope) -> Parsed<TensorType> {
        self.definition(scope)?;
        self.mark(":", "`:` and a type")?;
        self.ty()
    }

    fn input(&mut self, scope: &mut Scope) -> Parsed<()> {
        let ty = self.declared(scope)?;
        if let Some(value) = self.define(scope, ty, Def::Input) {
            scope.graph.inputs.push(value);
        }
        Ok(())
    }

    /// `name: type = "key"`.
    fn keyed(&mut self, scope: &mut Scope) -> Parsed<(TensorType, Arc<str>)> {
        let ty = self.declared(scope)?;
        self.mark("=", "`=` and a key in quotes")?;
        match self.advance_if(|token| matches!(token, Token::Quoted(_))).map(|lexeme| lexeme.token) {
            Some(Token::Quoted(key)) => Ok((ty, Arc::from(key))),
            _ => Err(self.expected("a key in quotes")),
        }
    }

    /// `name: type = [elements]`.
    fn constant(&mut self, scope: &mut Scope) -> Parsed<()> {
        let ty = self.declared(scope)?;
        self.mark("=", "`=` and the elements in brackets")?;
        self.mark("[", "`[` and the elements")?;
        self.skip_newlines();
        let mut elements = Vec::new();
        while !self.take_mark("]") {
            elements.push(self.real(Precision::Element(ty.dtype), "a number")?);
            self.separator("]", "`,` or `]` after an element")?;
        }
        self.define(scope, ty, Def::Const(Constant(elements.into())));
        Ok(())
    }

    fn update(&mut self, scope: &mut Scope) -> Parsed<()> {
        let start = self.position();
        let state = self.operand(scope)?;
        let position = self.since(start);
        self.mark("=", "`=` and the state's new value")?;
        let value = self.operand(scope)?;
        if let (Some(state), Some(value)) = (state, value) {
            scope.graph.updates.push(Update { state, value });
            scope.map.updates.push(position);
        }
        Ok(())
    }

    /// `name = op operands, attribute=value`, or `name: type = ...`.
    fn op_statement(&mut self, scope: &mut Scope) -> Parsed<()> {
        self.definition(scope)?;
        let declared = if self.take_mark(":") { Some(self.ty()?) } else { None };
        self.mark("=", "`=` and an op")?;
        let position = self.position();
        let Some(Lexeme { token: Token::Name(name), .. }) = self.advance_if(|token| matches!(token, Token::Name(_)))
        else {
            return Err(self.expected("the name of an op"));
        };
        let Some((_, known)) = Op::signature(name) else {
            let cause = ParseCause::UnknownOp { name: excerpt(name), closest: closest_op(name) };
            return Err(Box::new(ParseError { position, cause }));
        };
        let n_errors = self.errors.len();
        let (operands, mut given) = self.arguments(scope)?;
        let mut attrs: SmallVec<[Attr; 4]> = SmallVec::new();
        let mut places: SmallVec<[Position; 4]> = SmallVec::new();
        for &wanted in known {
            match given.iter().position(|(attr, _, _)| *attr == wanted) {
                Some(index) => {
                    let (_, place, attr) = given.remove(index);
                    attrs.push(attr);
                    places.push(place);
                }
                None => {
                    let cause = ParseCause::MissingAttribute { op: name.to_owned(), name: wanted };
                    self.errors.push(ParseError { position, cause });
                }
            }
        }
        for (attr, position, _) in given {
            let cause = match known.contains(&attr) {
                true => ParseCause::DuplicateAttribute(attr.to_owned()),
                false => ParseCause::UnknownAttribute { op: name.to_owned(), name: excerpt(attr), known },
            };
            self.errors.push(ParseError { position, cause });
        }
        let complete: Option<SmallVec<[ValueId; 4]>> = operands.into_iter().collect();
        let (Some(inputs), true) = (complete, n_errors == self.errors.len()) else {
            return Ok(());
        };
        let op = Op::from_parts(name, &attrs).map_err(|error| {
            let place = match &error {
                PartsError::Kind { name, .. } => known.iter().position(|attr| attr == name).map(|index| places[index]),
                _ => None,
            };
            Box::new(ParseError { position: place.unwrap_or(position), cause: ParseCause::Attribute(error) })
        })?;
        let ty = match declared {
            Some(ty) => ty,
            None => {
                let inputs: SmallVec<[&TensorType; 4]> = inputs.iter().map(|&input| scope.graph.ty(input)).collect();
                op.infer(&inputs).map_err(|source| {
                    let types = types(inputs.iter().copied());
                    Box::new(ParseError { position, cause: ParseCause::Type { op: op.name(), types, source } })
                })?
            }
        };
        self.define(scope, ty, Def::Op { op, inputs });
        Ok(())
    }

    /// Operands and `name=value` attributes, in any order. Operands whose definition was wrong, or that do not exist, are `None`.
    #[expect(clippy::type_complexity, reason = "taken apart at once by the one caller")]
    fn arguments(&mut self, scope: &Scope) -> Parsed<(Vec<Option<ValueId>>, Vec<(&'a str, Position, Attr)>)> {
        let mut operands = Vec::new();
        let mut attrs = Vec::new();
        loop {
            match (self.token().clone(), self.peek(1)) {
                (Token::Name(name), Token::Mark("=")) => {
                    let position = self.advance().position;
                    self.advance();
                    attrs.push((name, position, self.attr()?));
                }
                _ => operands.push(self.operand(scope)?),
            }
            if !self.take_mark(",") {
                return Ok((operands, attrs));
            }
        }
    }

    fn operands(&mut self, scope: &Scope) -> Parsed<Vec<Option<ValueId>>> {
        let mut operands = vec![self.operand(scope)?];
        while self.take_mark(",") {
            operands.push(self.operand(scope)?);
        }
        Ok(operands)
    }

    fn operand(&mut self, scope: &Scope) -> Parsed<Option<ValueId>> {
        let start = self.position();
        let label = self.label("the name of a value")?;
        let position = self.since(start);
        match scope.labels.get(&label) {
            Some((value, _)) => Ok(*value),
            None => {
                self.errors.push(ParseError { position, cause: ParseCause::UnknownValue(label.text()) });
                Ok(None)
            }
        }
    }

    fn attr(&mut self) -> Parsed<Attr> {
        match self.token().clone() {
            Token::Mark("@") => Ok(Attr::Name(Arc::from(self.at_name("a `@name`")?))),
            Token::Mark("[") => Ok(Attr::Shape(self.shape()?)),
            Token::Mark("(") => {
                self.advance();
                let mut axes = SmallVec::new();
                while !self.take_mark(")") {
                    axes.push(self.integer("an axis: a whole number below 2^32")?);
                }
                Ok(Attr::Axes(axes))
            }
            Token::Name(name) => match name.parse() {
                Ok(dtype) => {
                    self.advance();
                    Ok(Attr::DType(dtype))
                }
                Err(()) => self.real(Precision::Attribute, ATTRIBUTE).map(Attr::Real),
            },
            Token::Number(digits) if digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') => {
                Ok(Attr::Int(self.integer("a whole number below 2^63")?))
            }
            Token::Number(_) => self.real(Precision::Attribute, ATTRIBUTE).map(Attr::Real),
            _ => Err(self.expected(ATTRIBUTE)),
        }
    }

    fn ty(&mut self) -> Parsed<TensorType> {
        let Token::Name(name) = *self.token() else { return Err(self.expected("a type, such as f32[n, 4]")) };
        let Ok(dtype) = name.parse::<DType>() else {
            return Err(self.error(ParseCause::DType(excerpt(name))));
        };
        self.advance();
        Ok(TensorType::new(dtype, self.shape()?))
    }

    fn shape(&mut self) -> Parsed<Shape> {
        let position = self.position();
        self.mark("[", "`[` and the dimensions")?;
        self.skip_newlines();
        let mut dims = SmallVec::new();
        while !self.take_mark("]") {
            dims.push(match self.token() {
                Token::Number(_) => Dim::Const(self.integer("a dimension: a whole number below 2^64")?),
                _ => Dim::Sym(Symbol::new(&self.name("a dimension: a number or a symbol")?)),
            });
            if MAX_RANK < dims.len() {
                return Err(Box::new(ParseError { position, cause: ParseCause::Rank }));
            }
            self.separator("]", "`,` or `]` after a dimension")?;
        }
        Ok(Shape(dims))
    }

    /// The label that a statement defines.
    fn definition(&mut self, scope: &mut Scope) -> Parsed<()> {
        let start = self.position();
        let label = self.label("a statement")?;
        scope.defining = Some((label, self.since(start)));
        Ok(())
    }

    /// Gives the label being defined its value; reports it and gives nothing if another value has this label.
    fn define(&mut self, scope: &mut Scope, ty: TensorType, def: Def) -> Option<ValueId> {
        let (label, position) = scope.defining.take()?;
        if let Some((_, first)) = scope.labels.get(&label) {
            let cause = ParseCause::Redefined { name: label.text(), line: first.line };
            self.errors.push(ParseError { position, cause });
            return None;
        }
        let value = scope.graph.values.push(Value { name: label.name(), ty, def });
        debug_assert_eq!(value.index(), scope.map.values.len(), "each value has one position");
        scope.map.values.push(position);
        scope.labels.insert(label, (Some(value), position));
        Some(value)
    }

    fn label(&mut self, expected: &'static str) -> Parsed<Label> {
        let is_quoted = matches!(self.token(), Token::Quoted(_));
        let name = self.name(expected)?;
        let number = if self.take_mark("#") { Some(self.integer("a number")?) } else { None };
        Ok(if !is_quoted && number.is_none() && is_id(&name) { Label::Id(name) } else { Label::Name(name, number) })
    }
}

/// As they stand in a header or a message.
pub(super) fn types<'t>(types: impl Iterator<Item = &'t TensorType>) -> String {
    types.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The op that a wrong name was most likely to be: the one with the fewest edits between them, if those are at most a third of it.
fn closest_op(name: &str) -> Option<&'static str> {
    let distances = Op::NAMES.iter().map(|op| (edit_distance(name, op), *op));
    distances.min().filter(|(distance, op)| *distance <= op.len().div_ceil(3)).map(|(_, op)| op)
}

/// The fewest insertions, deletions and replacements of bytes that turn one into the other (Wagner and Fischer, 1974).
fn edit_distance(left: &str, right: &str) -> usize {
    // Far longer names are no misspellings; not comparing them bounds the work.
    if right.len() * 2 < left.len() {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, left) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
