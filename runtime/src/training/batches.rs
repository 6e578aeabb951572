//! Which tokens are in which batch.
//!
//! Every epoch has all documents, in an order of its own that the seed decides. Their tokens are laid behind each other and cut into sequences of
//! one size, and these into batches. What of a document has no room in a sequence goes on in the next one, as a document there: it sees nothing
//! of what came before. So each token of an epoch is read once and, but for the first ones of documents, is a target once. A batch without targets is passed over.
//!
//! A [`Position`] says where the next batch begins, and is all that has to be known to go on from there.

use serde::{Deserialize, Serialize};

use crate::sample::Random;
use crate::training::corpus::Corpus;
use crate::training::{Batch, Trainer};

/// What the loss ignores.
const NO_TARGET: i32 = -1;

/// A token, by its place in the order of the documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// How often all documents were read before.
    pub epoch: u64,
    /// Documents that were read in this epoch.
    pub document: u64,
    /// Tokens that were read of the next one.
    pub offset: u64,
}

/// How large batches are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Tokens of a batch.
    pub tokens: usize,
    /// Tokens of a sequence; the last one of a batch is shorter if it has to be.
    pub context: usize,
}

impl Size {
    /// What a trainer takes.
    pub fn of(trainer: &dyn Trainer) -> Self {
        Self { tokens: trainer.tokens(), context: trainer.context() }
    }
}

/// The batches of a corpus, without an end.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    corpus: &'a Corpus,
    size: Size,
    seed: u64,
    position: Position,
    /// The documents in the order of the position's epoch.
    order: Vec<u32>,
}

impl<'a> Batches<'a> {
    /// Those that follow a position. None if the corpus has nothing to predict, a batch or a sequence has no tokens, or the corpus has no such position.
    pub fn new(corpus: &'a Corpus, size: Size, seed: u64, position: Position) -> Option<Self> {
        if corpus.targets() == 0 || size.tokens == 0 || size.context == 0 {
            return None;
        }
        let order = order(corpus.documents(), seed, position.epoch);
        let document = usize::try_from(position.document).ok().and_then(|document| order.get(document))?;
        let is_inside = position.offset < corpus.length(*document as usize) as u64;
        is_inside.then_some(Self { corpus, size, seed, position, order })
    }

    /// Where the next batch begins.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next batch.
    pub fn next_batch(&mut self) -> Batch {
        loop {
            let batch = self.fill();
            if batch.targets.iter().any(|&target| target != NO_TARGET) {
                return batch;
            }
        }
    }

    fn fill(&mut self) -> Batch {
        let Size { tokens, context } = self.size;
        let mut ids = Vec::with_capacity(tokens + 1);
        let (mut targets, mut span) = (Vec::with_capacity(tokens), Vec::with_capacity(2 * tokens));
        while ids.len() < tokens {
            let document = self.order[self.position.document as usize] as usize;
            let (length, offset, begin) = (self.corpus.length(document), self.position.offset as usize, ids.len());
            let first = begin % context;
            let room = (context - first).min(tokens - begin);
            let end = length.min(offset + room);
            // One more than is read, if there is one: the target of the last.
            self.corpus.read(document, offset..length.min(end + 1), &mut ids);
            targets.extend(&ids[begin + 1..]);
            ids.truncate(begin + end - offset);
            targets.resize(ids.len(), NO_TARGET);
            span.extend((offset..end).flat_map(|_| [first as i32, 0]));
            self.advance(end, length);
        }
        let each = |value: fn(usize, usize) -> usize| (0..tokens).map(|at| value(at, context) as i32).collect();
        let (seq, pos, rows) = (each(|at, context| at / context), each(|at, context| at % context), each(|at, _| at));
        Batch { ids, seq, pos, span, rows, targets }
    }

    /// Goes to a token of the document at hand, or to the next document.
    fn advance(&mut self, token: usize, length: usize) {
        self.position.offset = token as u64;
        if token < length {
            return;
        }
        self.position.offset = 0;
        self.position.document += 1;
        if self.position.document < self.order.len() as u64 {
            return;
        }
        self.position = Position { epoch: self.position.epoch + 1, document: 0, offset: 0 };
        self.order = order(self.order.len(), self.seed, self.position.epoch);
    }
}

/// How many targets a batch has.
pub fn targets(batch: &Batch) -> u64 {
    batch.targets.iter().filter(|&&target| target != NO_TARGET).count() as u64
}

/// The order of documents in an epoch: each order is as probable as any other (Fisher and Yates, as Durstenfeld has it).
fn order(documents: usize, seed: u64, epoch: u64) -> Vec<u32> {
    // Neighbouring seeds and epochs should have nothing in common.
    let mixed = blake3::hash(&[seed.to_le_bytes(), epoch.to_le_bytes()].concat());
    let mut random = Random::new(mixed.as_bytes().first_chunk().map_or(0, |&bytes| u64::from_le_bytes(bytes)));
    let mut order: Vec<u32> = (0..documents as u32).collect();
    for last in (1..order.len()).rev() {
        // The upper half of a product of 128 bits: all but evenly distributed, off by 2^-32 at the most.
        let chosen = (u128::from(random.bits()) * (last as u128 + 1)) >> 64;
        order.swap(last, chosen as usize);
    }
    order
}
