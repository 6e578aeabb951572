//! HTML and SVG as text: whatever is opened is closed, and every name is escaped.
//!
//! What comes out is also well-formed XML, so that a strict parser can check it.

use std::fmt::{self, Display, Write as _};

/// A document, or a part of one, that grows at its end.
#[derive(Debug, Default)]
pub(super) struct Markup {
    text: String,
}

/// Names and values of the attributes of an element.
pub(super) type Attributes<'a> = &'a [(&'static str, &'a dyn Display)];

impl Markup {
    /// The text so far.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// An element and what `content` puts into it.
    pub(super) fn element(&mut self, tag: &'static str, attributes: Attributes<'_>, content: impl FnOnce(&mut Self)) {
        self.open(tag, attributes, ">");
        content(self);
        self.text += "</";
        self.text += tag;
        self.text += ">";
        // Only elements whose content ignores white space end a line.
        if matches!(tag, "div" | "section" | "svg" | "g" | "tr" | "table" | "style" | "script" | "details" | "head") {
            self.text.push('\n');
        }
    }

    /// An element with text in it.
    pub(super) fn leaf(&mut self, tag: &'static str, attributes: Attributes<'_>, text: impl Display) {
        self.element(tag, attributes, |out| out.text(text));
    }

    /// An element that has no content by its nature, such as `meta`, or one of SVG's that needs none.
    pub(super) fn empty(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.open(tag, attributes, "/>");
    }

    /// A shape of SVG's that says what it is when it is pointed at.
    pub(super) fn shape(&mut self, tag: &'static str, attributes: Attributes<'_>, title: impl Display) {
        self.element(tag, attributes, |out| out.leaf("title", &[], title));
    }

    /// Text.
    pub(super) fn text(&mut self, text: impl Display) {
        write!(Escaping { out: &mut self.text }, "{text}").expect("strings take all text");
    }

    /// Markup of our own, as it is.
    pub(super) fn raw(&mut self, text: &str) {
        self.text += text;
    }

    fn open(&mut self, tag: &'static str, attributes: Attributes<'_>, end: &str) {
        self.text += "<";
        self.text += tag;
        for (name, value) in attributes {
            self.text += " ";
            self.text += name;
            self.text += "=\"";
            self.text(value);
            self.text += "\"";
        }
        self.text += end;
    }
}

/// Replaces what would be markup by what stands for it, and what no document may hold by a mark.
struct Escaping<'a> {
    out: &'a mut String,
}

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.out.push_str("&amp;"),
                '<' => self.out.push_str("&lt;"),
                '>' => self.out.push_str("&gt;"),
                '"' => self.out.push_str("&quot;"),
                '\n' | '\t' => self.out.push(c),
                c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => self.out.push('\u{fffd}'),
                c => self.out.push(c),
            }
        }
        Ok(())
    }
}

/// A length or a place in a drawing, to a tenth of its unit: more cannot be seen, and less text is smaller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Px(pub(super) f64);

impl Display for Px {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (self.0 * 10.0).round() as i64;
        let (sign, tenths) = (if tenths < 0 { "-" } else { "" }, tenths.unsigned_abs());
        match tenths % 10 {
            0 => write!(f, "{sign}{}", tenths / 10),
            rest => write!(f, "{sign}{}.{rest}", tenths / 10),
        }
    }
}

/// As much of a text as `most` characters can show.
pub(super) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// Nanoseconds as people read them.
pub(super) fn human_ns(nanoseconds: u64) -> String {
    let mut value = nanoseconds as f64;
    if value < 1000.0 {
        return format!("{nanoseconds} ns");
    }
    for unit in ["µs", "ms"] {
        value /= 1000.0;
        if value < 1000.0 {
            return format!("{} {unit}", three_digits(value));
        }
    }
    format!("{} s", three_digits(value / 1000.0))
}

/// A number with three digits that count, or all those before the point.
pub(super) fn three_digits(value: f64) -> String {
    let places = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.places$}")
}

/// A number in full, in groups of three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if 0 < at && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count as people read it.
pub(super) fn human_count(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["", " k", " M", " G"] {
        if value < 1000.0 {
            return if unit.is_empty() { count.to_string() } else { format!("{}{unit}", three_digits(value)) };
        }
        value /= 1000.0;
    }
    format!("{} T", three_digits(value))
}

/// A part of a whole in percent.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let share = if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 };
    if part != 0 && share < 0.1 { "< 0.1 %".to_owned() } else { format!("{share:.1} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_markup() {
        let mut out = Markup::default();
        out.leaf("b", &[("title", &"\"><script>")], "a < b & \u{0}c > d");
        assert_eq!(out.into_text(), "<b title=\"&quot;&gt;&lt;script&gt;\">a &lt; b &amp; \u{fffd}c &gt; d</b>");
    }

    #[test]
    fn numbers_are_short_and_keep_their_sign() {
        let texts = [0.0, -0.04, 1.25, -1.5, 12.0, 99.96].map(|value| Px(value).to_string());
        assert_eq!(texts, ["0", "0", "1.3", "-1.5", "12", "100"]);
        assert_eq!([999, 1_000, 12_345, 123_456_789].map(human_ns), ["999 ns", "1.00 µs", "12.3 µs", "123 ms"]);
        assert_eq!([999, 83_886_080].map(human_count), ["999", "83.9 M"]);
        assert_eq!(
            (percent(0, 0), percent(1, 100_000), percent(1, 3)),
            ("0.0 %".into(), "< 0.1 %".into(), "33.3 %".into())
        );
        assert_eq!(shortened("attention", 5), "atte…");
        assert_eq!([7, 4096, 1_234_567].map(grouped), ["7", "4,096", "1,234,567"]);
    }
}
