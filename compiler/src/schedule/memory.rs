//! Where scratch buffers lie: lifetimes from the steps, then places in the arena such that no two that live together overlap.

use std::collections::BTreeMap;

use ir::plan::{ALIGNMENT, Arg, BufferId, Step};

/// When a buffer is used, in steps of one phase counted through repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The first step.
    pub first: usize,
    /// The last step.
    pub last: usize,
}

/// First and last use of every buffer of a phase. What is used inside a repeat and outside of it holds its value through all rounds.
pub fn lifetimes(steps: &[Step]) -> BTreeMap<BufferId, Lifetime> {
    let mut time = 0;
    let mut lifetimes = BTreeMap::new();
    walk(steps, &mut time, &mut lifetimes);
    lifetimes
}

fn walk(steps: &[Step], time: &mut usize, lifetimes: &mut BTreeMap<BufferId, Lifetime>) {
    let mut repeats = Vec::new();
    for step in steps {
        *time += 1;
        let args: Vec<&Arg> = match step {
            Step::Call(call) => call.args.iter().collect(),
            Step::Copy { from, to, .. } => vec![from, to],
            Step::Repeat { steps, .. } => {
                let first = *time;
                walk(steps, time, lifetimes);
                *time += 1;
                repeats.push((first, *time));
                continue;
            }
        };
        for arg in args {
            let now = Lifetime { first: *time, last: *time };
            lifetimes.entry(arg.buffer).or_insert(now).last = *time;
        }
    }
    for (first, last) in repeats {
        let inside = first..=last;
        for lifetime in lifetimes.values_mut() {
            match (inside.contains(&lifetime.first), inside.contains(&lifetime.last)) {
                (true, false) => lifetime.first = first,
                (false, true) => lifetime.last = last,
                _ => {}
            }
        }
    }
}

/// One buffer to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The buffer.
    pub buffer: BufferId,
    /// Its size.
    pub bytes: u64,
    /// When it is used.
    pub lifetime: Lifetime,
}

/// Places, and the size of the arena that holds them all.
#[derive(Debug, Default)]
pub struct Arena {
    /// The offset of each buffer from the start of the arena.
    pub offsets: BTreeMap<BufferId, u64>,
    /// The size of the arena.
    pub bytes: u64,
}

/// Places buffers, the largest first, each at the lowest offset where it meets no other that lives at the same time.
pub fn place(mut requests: Vec<Request>) -> Arena {
    requests.sort_by_key(|request| (std::cmp::Reverse(request.bytes), request.buffer));
    let mut placed: Vec<(u64, u64, Lifetime)> = Vec::new();
    let mut arena = Arena::default();
    for request in requests {
        let bytes = request.bytes.next_multiple_of(ALIGNMENT);
        let mut neighbours: Vec<(u64, u64)> = placed
            .iter()
            .filter(|(_, _, other)| other.first <= request.lifetime.last && request.lifetime.first <= other.last)
            .map(|&(start, end, _)| (start, end))
            .collect();
        neighbours.sort_unstable();
        let mut offset = 0;
        for (start, end) in neighbours {
            if offset + bytes <= start {
                break;
            }
            offset = offset.max(end);
        }
        placed.push((offset, offset + bytes, request.lifetime));
        arena.bytes = arena.bytes.max(offset + bytes);
        arena.offsets.insert(request.buffer, offset);
    }
    arena
}

#[cfg(test)]
mod tests {
    use ir::entity::Id;

    use super::*;

    #[test]
    fn buffers_that_live_together_never_overlap_and_others_share() {
        let request = |index, bytes, first, last| Request {
            buffer: BufferId::new(index),
            bytes,
            lifetime: Lifetime { first, last },
        };
        let requests = vec![request(0, 100, 0, 1), request(1, 64, 1, 3), request(2, 128, 2, 4), request(3, 1, 4, 5)];
        let arena = place(requests.clone());
        for (position, left) in requests.iter().enumerate() {
            for right in &requests[position + 1..] {
                let (start_left, start_right) = (arena.offsets[&left.buffer], arena.offsets[&right.buffer]);
                let together = left.lifetime.first <= right.lifetime.last && right.lifetime.first <= left.lifetime.last;
                let disjoint = start_left + left.bytes <= start_right || start_right + right.bytes <= start_left;
                assert!(disjoint || !together, "{left:?} {right:?} {arena:?}");
            }
        }
        assert_eq!(arena.bytes, 192, "the first and the third share");
    }
}
