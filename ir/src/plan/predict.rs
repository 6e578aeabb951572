//! How long a call of a plan is taken to need.

use super::{Plan, ROUND, Step};

/// The sizes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallSizes {
    /// Its tokens, of all sequences.
    pub tokens: u64,
    /// Those whose logits are wanted.
    pub rows: u64,
    /// The keys that all of its tokens see together.
    pub keys: u64,
}

impl CallSizes {
    /// A call of `tokens` tokens of one sequence behind `before` others, the last of which has its logits computed.
    pub fn behind(before: u64, tokens: u64) -> Self {
        let pairs = tokens.saturating_mul(tokens.saturating_add(1)) / 2;
        Self { tokens, rows: 1, keys: before.saturating_mul(tokens).saturating_add(pairs) }
    }
}

/// Nanoseconds of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallTime {
    /// Of the steps that are repeated, all rounds together.
    pub rounds: u64,
    /// Of all others, and of the call itself.
    pub rest: u64,
}

impl CallTime {
    /// All steps one after another.
    pub fn total(self) -> u64 {
        self.rounds.saturating_add(self.rest)
    }

    /// The same where copies of so many nanoseconds go on beside the rounds.
    pub fn beside(self, copies: u64) -> u64 {
        self.rounds.max(copies).saturating_add(self.rest)
    }
}

impl Plan {
    /// How long a call is taken to need; none if no phase takes so many tokens.
    pub fn predict_call(&self, sizes: CallSizes) -> Option<CallTime> {
        let phase = self.phase_of(sizes.tokens)?;
        let lookup = |symbol: &str| match symbol {
            "n" => Some(sizes.tokens),
            "m" => Some(sizes.rows),
            "keys" => Some(sizes.keys),
            ROUND => Some(0),
            _ => None,
        };
        let mut time = CallTime { rest: self.machine.call_ns, ..CallTime::default() };
        for step in &phase.steps {
            match step {
                Step::Repeat { count, steps, .. } => {
                    let round = steps.iter().map(|step| self.predict_ns(step, &lookup)).fold(0, u64::saturating_add);
                    time.rounds = time.rounds.saturating_add(round.saturating_mul(u64::from(*count)));
                }
                step => time.rest = time.rest.saturating_add(self.predict_ns(step, &lookup)),
            }
        }
        Some(time)
    }
}

/// The symbol of the keys that all tokens of a call see together.
const KEYS: &str = "keys";

/// Calls of more tokens than this are taken to be of one sequence, whose tokens see the same keys.
const SEQUENCES: u64 = 16;

/// Tokens of one sequence that read a key together: tiles of attention hold 64 to 128 of them.
const TILE: u64 = 64;

/// The value of a symbol where bytes are counted that come from memory: a key is read once for all tokens of a tile that see it.
pub(super) fn read(symbol: &str, value: u64, tokens: u64) -> Option<u64> {
    Some(if symbol == KEYS && SEQUENCES < tokens { value.div_ceil(tokens.min(TILE)) } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_tile_read_their_keys_together() {
        assert_eq!(
            (read(KEYS, 4096, 8), read(KEYS, 4096, 32), read(KEYS, 4096, 512)),
            (Some(4096), Some(128), Some(64))
        );
        assert_eq!(read("n", 4096, 512), Some(4096));
    }

    #[test]
    fn a_call_sees_what_is_before_it_and_itself() {
        assert_eq!(CallSizes::behind(0, 1), CallSizes { tokens: 1, rows: 1, keys: 1 });
        assert_eq!(CallSizes::behind(511, 1).keys, 512);
        assert_eq!(CallSizes::behind(10, 4).keys, 11 + 12 + 13 + 14);
    }
}
