//! Splits a text into tokens with their positions; never fails, but reports what it cannot read.

use super::{ParseCause, ParseError, Position};

/// What stands in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A plain name.
    Name(&'a str),
    /// A string in quotes, its escapes replaced.
    Quoted(String),
    /// A number, not read yet.
    Number(&'a str),
    /// Punctuation.
    Mark(&'static str),
    /// The end of a line.
    Newline,
    /// The end of the text.
    End,
}

/// A token and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Lexeme<'a> {
    pub(super) token: Token<'a>,
    pub(super) position: Position,
}

/// Longer marks stand before those that they start with.
const MARKS: [&str; 13] = ["->", "<=", "@", "(", ")", "[", "]", "{", "}", ",", "=", ":", "#"];

/// Whether a byte may stand inside a plain name.
pub(super) fn continues_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')
}

/// All tokens of a text; the last is [`Token::End`]. What cannot be read is appended to `errors` and left out.
pub(super) fn lex<'a>(text: &'a str, errors: &mut Vec<ParseError>) -> Vec<Lexeme<'a>> {
    let mut lexer = Lexer { rest: text, line: 1, column: 1, lexemes: Vec::new(), errors };
    lexer.run();
    lexer.lexemes
}

struct Lexer<'a, 'e> {
    rest: &'a str,
    line: u32,
    column: u32,
    lexemes: Vec<Lexeme<'a>>,
    errors: &'e mut Vec<ParseError>,
}

impl<'a> Lexer<'a, '_> {
    fn run(&mut self) {
        while let Some(next) = self.rest.chars().next() {
            match next {
                '\n' => {
                    self.token(1, Token::Newline);
                    self.line = self.line.saturating_add(1);
                    self.column = 1;
                }
                ' ' | '\t' | '\r' => {
                    self.take(1);
                }
                ';' => {
                    let length = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.take(length);
                }
                '"' => self.quoted(),
                'a'..='z' | 'A'..='Z' | '_' => {
                    let length = name_length(self.rest);
                    self.token(length, Token::Name(&self.rest[..length]));
                }
                _ => match number_length(self.rest) {
                    0 => self.mark(),
                    length => self.token(length, Token::Number(&self.rest[..length])),
                },
            }
        }
        self.token(0, Token::End);
    }

    /// Moves past `length` bytes and returns where they stood.
    fn take(&mut self, length: usize) -> Position {
        let (taken, rest) = self.rest.split_at(length);
        let width = u32::try_from(taken.chars().count()).unwrap_or(u32::MAX);
        let position = Position { line: self.line, column: self.column, width: width.max(1) };
        self.column = self.column.saturating_add(width);
        self.rest = rest;
        position
    }

    fn token(&mut self, length: usize, token: Token<'a>) {
        let position = self.take(length);
        self.lexemes.push(Lexeme { token, position });
    }

    fn error(&mut self, length: usize, cause: ParseCause) {
        let position = self.take(length);
        self.errors.push(ParseError { position, cause });
    }

    fn mark(&mut self) {
        match MARKS.into_iter().find(|mark| self.rest.starts_with(mark)) {
            Some(mark) => self.token(mark.len(), Token::Mark(mark)),
            None => {
                // A run of characters that begin nothing is one error.
                let strange = |next: &char| !next.is_ascii() || next.is_ascii_control() && !next.is_ascii_whitespace();
                let run: usize = self.rest.chars().take_while(strange).map(char::len_utf8).sum();
                let length = run.max(self.rest.chars().next().map_or(0, char::len_utf8));
                let found = excerpt(&self.rest[..length]);
                self.error(length, ParseCause::Character(found));
            }
        }
    }

    fn quoted(&mut self) {
        let line = &self.rest[..self.rest.find('\n').unwrap_or(self.rest.len())];
        let mut content = String::new();
        let mut escapes_hold = true;
        let mut chars = line.char_indices().skip(1);
        while let Some((at, next)) = chars.next() {
            match next {
                '"' if escapes_hold => return self.token(at + 1, Token::Quoted(content)),
                '"' => {
                    // The string still stands for a token, so that one bad escape is one error.
                    let position = self.take(at + 1);
                    self.errors.push(ParseError { position, cause: ParseCause::Escape });
                    self.lexemes.push(Lexeme { token: Token::Quoted(content), position });
                    return;
                }
                '\\' => match escape(&mut chars) {
                    Some(escaped) => content.push(escaped),
                    None => escapes_hold = false,
                },
                _ => content.push(next),
            }
        }
        let length = line.len();
        self.error(length, ParseCause::OpenString);
    }
}

fn escape(chars: &mut impl Iterator<Item = (usize, char)>) -> Option<char> {
    match chars.next()?.1 {
        'n' => Some('\n'),
        't' => Some('\t'),
        'r' => Some('\r'),
        'u' => {
            if chars.next()?.1 != '{' {
                return None;
            }
            let mut code = 0_u32;
            // At most six digits, as no character has more.
            for _ in 0..7 {
                match chars.next()?.1 {
                    '}' => return char::from_u32(code),
                    digit => code = code.checked_mul(16)?.checked_add(digit.to_digit(16)?)?,
                }
            }
            None
        }
        same @ ('"' | '\\') => Some(same),
        _ => None,
    }
}

/// The length of the plain name at the start of `text`; a `-` belongs to it only where the name goes on behind it.
fn name_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut length = 0;
    while length < bytes.len() {
        let goes_on = match bytes[length] {
            b'-' => bytes.get(length + 1).is_some_and(|&next| next != b'-' && continues_name(next)),
            byte => continues_name(byte),
        };
        if !goes_on {
            break;
        }
        length += 1;
    }
    length
}

/// The length of the number at the start of `text`, or 0.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let sign = usize::from(bytes[0] == b'-');
    match bytes.get(sign) {
        Some(b'0'..=b'9') => {}
        Some(b'i') if sign == 1 && text.starts_with("-inf") => return 4,
        _ => return 0,
    }
    let mut length = sign;
    while length < bytes.len() {
        let goes_on = match bytes[length] {
            b'+' | b'-' => length == 0 || matches!(bytes[length - 1], b'e' | b'E'),
            byte => byte.is_ascii_alphanumeric() || byte == b'.',
        };
        if !goes_on {
            break;
        }
        length += 1;
    }
    length
}

/// The start of a piece of text, short enough for a message.
pub(super) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
