//! Messages under the lines that they are about.

use super::{Position, SourceMap, print_with_positions};
use crate::graph::Program;
use crate::verify::VerifyErrors;

/// Lines of text shown before and after one that has a message.
const CONTEXT: usize = 2;

/// Notes shown under one line; a line with more has other problems than each of them.
const NOTES_IN_A_LINE: usize = 8;

/// The lines of `text` that have notes, with some lines around them, and each note under its line:
///
/// ```text
///   3 |   x = add h, w
///     |       ^^^ `add` of (f32[4], f32[3]): shapes must agree: [4] against [3]
/// ```
pub fn show(text: &str, notes: &[(Position, String)]) -> String {
    let mut notes: Vec<&(Position, String)> = notes.iter().collect();
    notes.sort_by_key(|(position, _)| *position);
    let lines: Vec<&str> = text.lines().collect();
    // Notes at the end of the text may stand behind its last line.
    let n_lines = notes.last().map_or(0, |(position, _)| position.line as usize).max(lines.len());
    let gutter = n_lines.to_string().len().max(3);

    let mut out = String::new();
    let mut shown_to = 0;
    let mut pending = notes.into_iter().peekable();
    while let Some((first, _)) = pending.peek() {
        let noted = first.line as usize;
        let from = noted.saturating_sub(CONTEXT + 1).max(shown_to);
        if shown_to < from && 0 < shown_to {
            out.push_str(&format!("{:>gutter$}\n", "..."));
        }
        for index in from..noted {
            source_line(&mut out, gutter, index, lines.get(index).copied().unwrap_or(""));
        }
        shown_to = noted;
        let line = lines.get(noted.saturating_sub(1)).copied().unwrap_or("");
        let mut n_notes = 0;
        while let Some((position, message)) = pending.next_if(|(position, _)| position.line as usize == noted) {
            n_notes += 1;
            if n_notes <= NOTES_IN_A_LINE {
                note(&mut out, gutter, line, *position, message);
            }
        }
        if NOTES_IN_A_LINE < n_notes {
            out.push_str(&format!("{:>gutter$} | and {} more in this line\n", "", n_notes - NOTES_IN_A_LINE));
        }
        let next_noted = pending.peek().map_or(usize::MAX, |(position, _)| position.line as usize);
        let to = (noted + CONTEXT).min(lines.len()).min(next_noted.saturating_sub(1));
        for (index, line) in lines.iter().enumerate().take(to).skip(noted) {
            source_line(&mut out, gutter, index, line);
            shown_to = index + 1;
        }
    }
    out
}

fn source_line(out: &mut String, gutter: usize, index: usize, line: &str) {
    out.push_str(format!("{:>gutter$} | {line}", index + 1).trim_end());
    out.push('\n');
}

fn note(out: &mut String, gutter: usize, line: &str, position: Position, message: &str) {
    out.push_str(&format!("{:>gutter$} | ", ""));
    // Tabs stay tabs, so that the marks stand under what they mark.
    let before = position.column.saturating_sub(1) as usize;
    let indent: String = line.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    out.push_str(&indent);
    let room = line.chars().count().saturating_sub(before).max(1);
    out.push_str(&"^".repeat((position.width as usize).clamp(1, room)));
    let mut message = message.lines();
    out.push(' ');
    out.push_str(message.next().unwrap_or(""));
    out.push('\n');
    for line in message {
        out.push_str(&format!("{:>gutter$} | {indent}  {line}\n", ""));
    }
}

/// A program with the verifier's messages under its lines. `source` is the text that it was read from and where its parts stand there; without one,
/// the program is printed.
pub fn show_verify_errors(program: &Program, errors: &VerifyErrors, source: Option<(&str, &SourceMap)>) -> String {
    let printed;
    let (text, map) = match source {
        Some(source) => source,
        None => {
            printed = print_with_positions(program);
            (printed.0.as_str(), &printed.1)
        }
    };
    let notes: Vec<_> = errors.0.iter().map(|error| (map.locate(program, error), error.cause.to_string())).collect();
    show(text, &notes)
}
