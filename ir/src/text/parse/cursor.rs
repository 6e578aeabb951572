//! The parser's place in the tokens: looking, moving on, and reading what is one token or little more.

use super::{Parsed, Parser};
use crate::op::Real;
use crate::text::lex::{Lexeme, Token, excerpt};
use crate::text::number::{self, Precision};
use crate::text::{ParseCause, ParseError, Position};

impl<'a> Parser<'a> {
    pub(super) fn at_name(&mut self, expected: &'static str) -> Parsed<String> {
        self.mark("@", expected)?;
        self.name(expected)
    }

    /// A name, plain or in quotes.
    pub(super) fn name(&mut self, expected: &'static str) -> Parsed<String> {
        let name = match self.token() {
            Token::Name(name) => (*name).to_owned(),
            Token::Quoted(name) => name.clone(),
            _ => return Err(self.expected(expected)),
        };
        self.advance();
        Ok(name)
    }

    pub(super) fn real(&mut self, precision: Precision, expected: &'static str) -> Parsed<Real> {
        let (Token::Name(digits) | Token::Number(digits)) = *self.token() else {
            return Err(self.expected(expected));
        };
        let Some(value) = number::read(digits, precision) else {
            return Err(self.error(ParseCause::Number { found: excerpt(digits), expected }));
        };
        self.advance();
        Ok(value)
    }

    pub(super) fn integer<T: std::str::FromStr>(&mut self, expected: &'static str) -> Parsed<T> {
        let Token::Number(digits) = *self.token() else { return Err(self.expected(expected)) };
        let Ok(value) = digits.parse() else {
            return Err(self.error(ParseCause::Number { found: excerpt(digits), expected }));
        };
        self.advance();
        Ok(value)
    }

    /// A comma between elements, or nothing before `close`; line breaks are free.
    pub(super) fn separator(&mut self, close: &'static str, expected: &'static str) -> Parsed<()> {
        self.skip_newlines();
        if self.take_mark(",") {
            self.skip_newlines();
        } else if *self.token() != Token::Mark(close) {
            return Err(self.expected(expected));
        }
        Ok(())
    }

    pub(super) fn mark(&mut self, mark: &'static str, expected: &'static str) -> Parsed<()> {
        if self.take_mark(mark) { Ok(()) } else { Err(self.expected(expected)) }
    }

    pub(super) fn take_mark(&mut self, mark: &'static str) -> bool {
        self.advance_if(|token| *token == Token::Mark(mark)).is_some()
    }

    pub(super) fn end_of_line(&mut self) -> Parsed<()> {
        match self.token() {
            Token::Newline | Token::End => Ok(()),
            _ => Err(self.expected("the end of the line")),
        }
    }

    pub(super) fn skip_newlines(&mut self) {
        while self.advance_if(|token| *token == Token::Newline).is_some() {}
    }

    /// Moves to the next line break or to the brace that closes the graph.
    pub(super) fn skip_statement(&mut self) {
        let stops = |token: &Token<'_>| matches!(token, Token::Newline | Token::End | Token::Mark("}"));
        while self.advance_if(|token| !stops(token)).is_some() {}
    }

    /// Moves to the next line break.
    pub(super) fn skip_line(&mut self) {
        while self.advance_if(|token| !matches!(token, Token::Newline | Token::End)).is_some() {}
    }

    /// Moves to the brace that opens a graph's body, if the header goes on to one before the next graph; else to the end of the line.
    pub(super) fn skip_to_body(&mut self) {
        let stops = |token: &Token<'_>| matches!(token, Token::Mark("{" | "}") | Token::Name("graph") | Token::End);
        let ahead = self.lexemes[self.at..].iter().position(|lexeme| stops(&lexeme.token));
        match ahead {
            Some(distance) if self.lexemes[self.at + distance].token == Token::Mark("{") => self.at += distance,
            _ => self.skip_line(),
        }
    }

    pub(super) fn token(&self) -> &Token<'a> {
        self.peek(0)
    }

    pub(super) fn peek(&self, distance: usize) -> &Token<'a> {
        // The last token is `End`, and nothing moves past it.
        let last = self.lexemes.len() - 1;
        &self.lexemes[(self.at + distance).min(last)].token
    }

    pub(super) fn position(&self) -> Position {
        self.lexemes[self.at].position
    }

    /// The stretch from `start` to the end of what was read last, as far as that is in one line.
    pub(super) fn since(&self, start: Position) -> Position {
        let last = self.lexemes[self.at.saturating_sub(1)].position;
        if last.line != start.line || last.column < start.column {
            return start;
        }
        Position { width: last.column.saturating_add(last.width).saturating_sub(start.column), ..start }
    }

    pub(super) fn advance(&mut self) -> Lexeme<'a> {
        let lexeme = self.lexemes[self.at].clone();
        if self.at + 1 < self.lexemes.len() {
            self.at += 1;
        }
        lexeme
    }

    pub(super) fn advance_if(&mut self, condition: impl Fn(&Token<'a>) -> bool) -> Option<Lexeme<'a>> {
        (condition(self.token()) && *self.token() != Token::End).then(|| self.advance())
    }

    pub(super) fn error(&self, cause: ParseCause) -> Box<ParseError> {
        Box::new(ParseError { position: self.position(), cause })
    }

    pub(super) fn expected(&self, expected: &'static str) -> Box<ParseError> {
        let found = match self.token() {
            Token::Name(text) | Token::Number(text) => format!("`{}`", excerpt(text)),
            Token::Quoted(text) => format!("{:?}", excerpt(text)),
            Token::Mark(mark) => format!("`{mark}`"),
            Token::Newline => "the end of the line".to_owned(),
            Token::End => "the end of the text".to_owned(),
        };
        self.error(ParseCause::Expected { expected, found })
    }
}
