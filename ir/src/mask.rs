//! Which keys a query may see, as a predicate; and the key ranges that follow from it, so that nothing else is ever touched.
//!
//! One predicate covers causal, bidirectional, prefix-LM, sliding-window, sink and document masks. What is fixed for a model is in [`Mask`];
//! what differs from token to token is its [`Span`]:
//!
//! | mask | `Mask` | `Span` of a token at position `p` |
//! |---|---|---|
//! | causal | no window | `first = 0, reach = 0` |
//! | bidirectional over `len` tokens | no window | `first = 0, reach = len` |
//! | prefix-LM with a prefix of `m` tokens | no window | `first = 0, reach = m` |
//! | sliding window of `w` | `window = w` | `first = 0, reach = 0` |
//! | StreamingLLM, `s` sinks | `window = w, sinks = s` | `first = 0, reach = 0` |
//! | packed documents | any | `first` = where the token's document starts |

use std::ops::Range;

/// The part of a mask that belongs to the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mask {
    /// A query sees this many keys back, itself included; 0 means all of them.
    pub window: u32,
    /// With a window: the first so many keys of the document stay visible.
    pub sinks: u32,
}

/// The part of a mask that belongs to one query token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The first key that may be seen: the start of the token's document.
    pub first: u32,
    /// Keys before this one are seen although they may be later than the query or outside its window: the end of a prefix, or of the
    /// whole sequence where attention is bidirectional.
    pub reach: u32,
}

impl Mask {
    /// Whether the query at position `query` sees the key at position `key`.
    pub fn visible(self, query: u32, span: Span, key: u32) -> bool {
        if key < span.first {
            return false;
        }
        if key < span.reach {
            return true;
        }
        let in_window = self.window == 0 || query < key.saturating_add(self.window);
        key <= query && (in_window || key - span.first < self.sinks)
    }

    /// The visible keys as two ascending ranges that do not overlap; either may be empty.
    pub fn ranges(self, query: u32, span: Span) -> [Range<u32>; 2] {
        let end = query.saturating_add(1);
        let window_start = if self.window == 0 { 0 } else { end.saturating_sub(self.window) };
        let sinks_end = if self.window == 0 { 0 } else { span.first.saturating_add(self.sinks).min(end) };
        let head = span.first..span.reach.max(sinks_end).max(span.first);
        let tail_start = window_start.max(head.end);
        [head, tail_start..end.max(tail_start)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_exactly_the_visible_keys() {
        for window in [0, 1, 3, 8] {
            for sinks in [0, 1, 4] {
                let mask = Mask { window, sinks };
                for query in 0..12 {
                    for first in 0..=query {
                        for reach in [0, 1, 5, 12] {
                            let span = Span { first, reach };
                            let ranges = mask.ranges(query, span);
                            assert!(ranges[0].end <= ranges[1].start, "{mask:?} {query} {span:?}: {ranges:?}");
                            for key in 0..16 {
                                let listed = ranges.iter().any(|range| range.contains(&key));
                                assert_eq!(
                                    listed,
                                    mask.visible(query, span, key),
                                    "{mask:?} {query} {span:?} key {key}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
