//! Where generated text ends: stop strings that may begin in one token and end in another.

/// Holds text back as long as it may be the beginning of a stop string, and cuts it off where one is complete.
#[derive(Clone, Debug)]
pub struct StopStrings {
    /// None is empty.
    stops: Vec<String>,
    /// What was given and not yet let through.
    held: String,
    stopped: Option<usize>,
}

impl StopStrings {
    /// A filter for these strings; empty ones are ignored.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new(), stopped: None }
    }

    /// Takes more text and gives what certainly comes before any stop string. The first stop string to begin wins, the longest of those.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.held.push_str(text);
        let found = self.stops.iter().enumerate().filter_map(|(index, stop)| Some((self.held.find(stop)?, index)));
        let first = found.min_by_key(|&(start, index)| (start, std::cmp::Reverse(self.stops[index].len())));
        // What might be an earlier beginning of another stop string is waited for before the text is cut.
        let pending = self.pending_start();
        match first {
            Some((start, index)) if pending.is_none_or(|pending| start <= pending) => {
                self.stopped = Some(index);
                self.held.truncate(start);
                std::mem::take(&mut self.held)
            }
            _ => {
                let keep = pending.unwrap_or(self.held.len());
                let rest = self.held.split_off(keep);
                std::mem::replace(&mut self.held, rest)
            }
        }
    }

    /// Gives what was held back: no more text comes. A stop string that was waiting for another to complete takes effect.
    pub fn finish(&mut self) -> String {
        let found = self.stops.iter().enumerate().filter_map(|(index, stop)| Some((self.held.find(stop)?, index)));
        if let Some((start, index)) = found.min() {
            self.stopped = Some(index);
            self.held.truncate(start);
        }
        std::mem::take(&mut self.held)
    }

    /// The stop string that was found.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.map(|index| self.stops[index].as_str())
    }

    /// Where the earliest beginning of a stop string starts that reaches the end of the text and is not complete.
    fn pending_start(&self) -> Option<usize> {
        let starts = self.held.char_indices().map(|(start, _)| start);
        starts.into_iter().find(|&start| {
            let rest = &self.held[start..];
            self.stops.iter().any(|stop| rest.len() < stop.len() && stop.starts_with(rest))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes through if the text arrives in these pieces, and what stopped it.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let mut filter = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()));
        let mut text = String::new();
        for piece in pieces {
            text += &filter.push(piece);
        }
        text += &filter.finish();
        (text, filter.stopped().map(str::to_owned))
    }

    #[test]
    fn a_stop_string_is_found_however_the_text_is_cut() {
        let whole = "one two\n\nthree";
        for cut in 0..=whole.len() {
            for second in cut..=whole.len() {
                let pieces = [&whole[..cut], &whole[cut..second], &whole[second..]];
                assert_eq!(run(&["\n\n"], &pieces), ("one two".to_owned(), Some("\n\n".to_owned())), "{pieces:?}");
            }
        }
    }

    #[test]
    fn what_only_began_like_one_comes_through() {
        assert_eq!(run(&["###"], &["a#", "#b", "##"]), ("a##b##".to_owned(), None));
        assert_eq!(run(&["abc"], &["ab", "abc"]), ("ab".to_owned(), Some("abc".to_owned())));
        assert_eq!(run(&[], &["x", ""]), ("x".to_owned(), None));
        assert_eq!(run(&[""], &["x"]), ("x".to_owned(), None));
    }

    #[test]
    fn the_first_to_begin_wins() {
        assert_eq!(run(&["c", "abcd"], &["abcd"]), (String::new(), Some("abcd".to_owned())));
        assert_eq!(run(&["c", "abcd"], &["ab", "c", "d"]), (String::new(), Some("abcd".to_owned())));
        assert_eq!(run(&["c", "abcd"], &["ab", "c", "x"]), ("ab".to_owned(), Some("c".to_owned())));
        assert_eq!(run(&["c", "abcd"], &["ab", "c"]), ("ab".to_owned(), Some("c".to_owned())));
    }

    #[test]
    fn text_is_held_only_as_long_as_needed() {
        let mut filter = StopStrings::new(["é!".to_owned()]);
        assert_eq!(filter.push("caf"), "caf");
        assert_eq!(filter.push("é"), "");
        assert_eq!(filter.push("s"), "és");
        assert_eq!(filter.push("é!x"), "");
        assert_eq!(filter.push("y"), "");
        assert_eq!(filter.stopped(), Some("é!"));
    }
}
