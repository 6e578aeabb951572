//! Batches: nothing is lost, nothing is twice, and one can go on from anywhere.

use std::collections::BTreeMap;

use ir::mask::{Mask, Span};
use proptest::prelude::*;
use runtime::training::Batch;
use runtime::training::batches::{Batches, Position, Size};
use runtime::training::corpus::{Corpus, Split};
use runtime::training::shard::Draft;
use tempfile::TempDir;

use crate::broken::Disk;

/// The first id of a document, by its number.
const BASE: i32 = 1000;

/// Documents of these lengths, in shards of three; no id occurs twice, so each says where it comes from.
fn corpus(lengths: &[usize]) -> (TempDir, Corpus) {
    let dir = TempDir::new().unwrap();
    let mut bases = (0..).step_by(BASE as usize);
    for (number, lengths) in lengths.chunks(3).enumerate() {
        let mut draft = Draft::new(100_000);
        for (&length, base) in lengths.iter().zip(&mut bases) {
            draft.push(&(base..base + length as u32).collect::<Vec<_>>()).unwrap();
        }
        draft.write(&Split::Train.file(dir.path(), number), &mut Disk::new()).unwrap();
    }
    let corpus = Corpus::open(&[dir.path().to_owned()], Split::Train, &mut |_, _| {}).unwrap();
    (dir, corpus)
}

/// Batches of one sequence.
fn one(tokens: usize) -> Size {
    Size { tokens, context: tokens }
}

/// Checks what holds in every batch, and gives its tokens and their targets.
fn read(batch: &Batch, size: Size) -> Vec<(i32, i32)> {
    let Size { tokens, context } = size;
    let Batch { ids, seq, pos, span, rows, targets } = batch;
    assert_eq!([ids, seq, pos, rows, targets].map(Vec::len), [tokens; 5]);
    assert_eq!(rows, &(0..tokens as i32).collect::<Vec<_>>());
    for (token, span) in span.as_chunks().0.iter().enumerate() {
        assert_eq!([seq[token], pos[token]], [token / context, token % context].map(|at| at as i32));
        let [first, reach] = span.map(|value| value as u32);
        for key in 0..tokens {
            let is_seen = seq[key] == seq[token]
                && Mask::default().visible(pos[token] as u32, Span { first, reach }, pos[key] as u32);
            // Of one document are those whose ids go up by one from token to token.
            let is_earlier = key <= token && ids[token] - ids[key] == (token - key) as i32;
            assert_eq!(is_seen, is_earlier && seq[key] == seq[token], "token {token}, key {key} of {batch:?}");
        }
    }
    for token in 0..tokens {
        assert!(targets[token] == -1 || targets[token] == ids[token] + 1);
    }
    ids.iter().copied().zip(targets.iter().copied()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_token_is_read_once_in_an_epoch(
        lengths in prop::collection::vec(1_usize..30, 1..12),
        tokens in 1_usize..17,
        context in 1_usize..17,
        seed in any::<u64>(),
    ) {
        let (_dir, corpus) = corpus(&lengths);
        let size = Size { tokens, context };
        let Some(mut batches) = Batches::new(&corpus, size, seed, Position::default()) else {
            prop_assert!(lengths.iter().all(|&length| length == 1));
            return Ok(());
        };
        // How often each id was read and was a target, in all epochs. A batch that has no target is not given, and reads of it are not seen.
        let (mut reads, mut targets) = (BTreeMap::<i32, usize>::new(), BTreeMap::<i32, usize>::new());
        let mut began = vec![Position::default()];
        let mut given = Vec::new();
        while batches.position().epoch < 3 {
            let batch = batches.next_batch();
            for (id, target) in read(&batch, size) {
                *reads.entry(id).or_default() += 1;
                if target != -1 {
                    *targets.entry(target).or_default() += 1;
                }
            }
            began.push(batches.position());
            given.push(batch);
        }
        // The last batch may have read into the next epoch, and over several of few tokens.
        let epochs = batches.position().epoch as usize;
        for (document, &length) in lengths.iter().enumerate() {
            for at in 0..length as i32 {
                let id = document as i32 * BASE + at;
                let count = targets.get(&id).copied().unwrap_or(0);
                let expected = if at == 0 { 0..=0 } else { epochs..=epochs + 1 };
                prop_assert!(expected.contains(&count), "token {at} of a document was a target {count} times");
                let count = reads.get(&id).copied().unwrap_or(0);
                prop_assert!(count <= epochs + 1);
                prop_assert!(epochs <= count || at == length as i32 - 1, "{count}");
            }
        }
        // From wherever a batch begins, the rest is the same.
        for (index, &position) in began[..given.len()].iter().enumerate() {
            let mut again = Batches::new(&corpus, size, seed, position).unwrap();
            for batch in given[index..].iter().take(3) {
                prop_assert_eq!(&again.next_batch(), batch);
            }
        }
    }
}

#[test]
fn what_has_no_room_goes_on_in_the_next_batch() {
    let (_dir, corpus) = corpus(&[5]);
    let mut batches = Batches::new(&corpus, one(3), 0, Position::default()).unwrap();
    let first = batches.next_batch();
    assert_eq!((&first.ids[..], &first.targets[..]), (&[0, 1, 2][..], &[1, 2, 3][..]));
    assert_eq!(first.span, [0, 0, 0, 0, 0, 0]);
    assert_eq!(batches.position(), Position { epoch: 0, document: 0, offset: 3 });
    let second = batches.next_batch();
    assert_eq!((&second.ids[..], &second.targets[..]), (&[3, 4, 0][..], &[4, -1, 1][..]));
    assert_eq!(second.span, [0, 0, 0, 0, 2, 0]);
    assert_eq!(batches.position(), Position { epoch: 1, document: 0, offset: 1 });
}

#[test]
fn a_document_does_not_reach_from_one_sequence_into_another() {
    let (_dir, corpus) = corpus(&[5]);
    let mut batches = Batches::new(&corpus, Size { tokens: 6, context: 3 }, 0, Position::default()).unwrap();
    let batch = batches.next_batch();
    assert_eq!((&batch.ids[..], &batch.targets[..]), (&[0, 1, 2, 3, 4, 0][..], &[1, 2, 3, 4, -1, 1][..]));
    assert_eq!((&batch.seq[..], &batch.pos[..]), (&[0, 0, 0, 1, 1, 1][..], &[0, 1, 2, 0, 1, 2][..]));
    assert_eq!(batch.span, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
}

#[test]
fn epochs_and_seeds_have_orders_of_their_own() {
    let (_dir, corpus) = corpus(&[2; 60]);
    let order = |seed: u64, epoch: u64| -> Vec<i32> {
        let position = Position { epoch, document: 0, offset: 0 };
        Batches::new(&corpus, one(120), seed, position).unwrap().next_batch().ids
    };
    assert_eq!(order(1, 0), order(1, 0));
    let orders = [order(1, 0), order(1, 1), order(2, 0), order(2, 1)];
    for (index, order) in orders.iter().enumerate() {
        assert!(!order.is_sorted() && !orders[..index].contains(order));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted.len(), 120);
        sorted.dedup();
        assert_eq!(sorted.len(), 120);
    }
}

#[test]
fn positions_that_there_are_not_are_refused() {
    let (_dir, two) = corpus(&[2, 1]);
    let at = |document, offset| Batches::new(&two, one(4), 0, Position { epoch: 0, document, offset });
    assert!(at(1, 0).is_some() && at(2, 0).is_none() && at(u64::MAX, 0).is_none() && at(0, 2).is_none());
    assert!(Batches::new(&two, one(0), 0, Position::default()).is_none());
    let (_dir, lone) = corpus(&[1, 1]);
    assert!(Batches::new(&lone, one(4), 0, Position::default()).is_none(), "there is nothing to predict");
}
