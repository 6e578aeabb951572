//! Guesses of what comes next, for free: what followed when the last few tokens occurred before.
//!
//! Text repeats itself: names in code, quotations, lists. A guess of a few tokens is checked in one call, which reads the weights once for all of
//! them, and every token that turns out as guessed saves a call (prompt lookup decoding, Saxena, 2023). What is generated is the same with and
//! without guesses, because each token is still chosen from the logits after the tokens before it, with the same random bits.

use std::collections::HashMap;

/// The tokens that a guess looks for: the longer ones are tried first.
const LENGTHS: [usize; 2] = [4, 2];

/// All tokens so far, and where the last few of them occurred.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    ids: Vec<u32>,
    /// For each length of [`LENGTHS`] and each run of so many tokens, the position after its last occurrence but the one at the end.
    after: [HashMap<Vec<u32>, usize>; LENGTHS.len()],
}

impl Lookup {
    /// Adds tokens that occurred.
    pub fn see(&mut self, ids: &[u32]) {
        for &id in ids {
            // What ended before this token is known to be followed by it.
            let end = self.ids.len();
            for (after, length) in self.after.iter_mut().zip(LENGTHS) {
                if length <= end {
                    after.insert(self.ids[end - length..].to_vec(), end);
                }
            }
            self.ids.push(id);
        }
    }

    /// At most so many tokens that may come next; none if nothing like the last tokens occurred before.
    pub fn guess(&self, at_most: usize) -> &[u32] {
        let end = self.ids.len();
        let lasts = LENGTHS.iter().zip(&self.after).filter(|(length, _)| **length <= end);
        let found = lasts.filter_map(|(length, after)| after.get(&self.ids[end - length..])).next();
        found.map_or(&[], |&start| &self.ids[start..end.min(start + at_most)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_guessed() {
        let mut lookup = Lookup::default();
        assert_eq!(lookup.guess(3), [0_u32; 0]);
        lookup.see(&[1, 2, 3, 4, 5, 1, 2]);
        assert_eq!(lookup.guess(3), [3, 4, 5]);
        assert_eq!(lookup.guess(9), [3, 4, 5, 1, 2]);
        assert_eq!(lookup.guess(0), [0_u32; 0]);
        lookup.see(&[9]);
        assert_eq!(lookup.guess(3), [0_u32; 0]);
    }

    #[test]
    fn a_longer_run_counts_before_a_later_one() {
        let mut lookup = Lookup::default();
        lookup.see(&[1, 2, 3, 4, 7, 3, 4, 8, 1, 2, 3, 4]);
        assert_eq!(lookup.guess(1), [7]);
        lookup.see(&[7, 3, 4]);
        assert_eq!(lookup.guess(1), [8]);
    }
}
