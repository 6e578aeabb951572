//! Where the weights of layers are while calls run: on the device, or copied there piece by piece for each call.
//!
//! What all rounds share is on the device always, but for an embedding table that may stay in host memory. A streamed layer is cut into pieces of
//! nearly equal bytes; a piece is copied into one of a few slots, each as large as the largest piece that comes there. Pieces are copied in the order of their use,
//! round and round over the tokens, each as soon as its slot is free. Streamed layers stand evenly among those that stay. What a plan makes of it is an
//! [`ir::plan::Placement`].

/// Where the layers' weights are while calls run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Residency {
    /// Layers whose weights are copied for each call.
    pub streamed: u32,
    /// Pieces of a streamed layer.
    pub split: u32,
    /// Places for pieces.
    pub slots: u32,
    /// Whether an embedding table that is only gathered from stays in host memory.
    pub host_embedding: bool,
    /// Where pieces come from.
    pub source: Tier,
    /// Whether ternary weights travel in 1.6 bits, and are unpacked to 2 on the device.
    pub packs_copies: bool,
}

/// A memory that weights are streamed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Pinned host memory.
    #[default]
    Host,
    /// A disk, through a pinned ring in host memory.
    Disk,
}

impl Default for Residency {
    /// Nothing is streamed.
    fn default() -> Self {
        Self { streamed: 0, split: 1, slots: 0, host_embedding: false, source: Tier::Host, packs_copies: false }
    }
}

impl Residency {
    /// Whether a layer is streamed, of so many in all.
    pub fn streams(&self, layer: u32, layers: u32) -> bool {
        let (layer, layers, streamed) = (u64::from(layer), u64::from(layers.max(1)), u64::from(self.streamed));
        layer * streamed / layers != (layer + 1) * streamed / layers
    }
}

/// Cuts tensors that lie one behind another, of so many bytes each, into at most `split` runs whose largest is as small as can be; gives the bytes of
/// each run.
pub fn cut(tensors: &[u64], split: u32) -> Vec<u64> {
    let runs = |limit: u64| {
        let mut runs: Vec<u64> = Vec::new();
        for &bytes in tensors {
            match runs.last_mut() {
                Some(last) if last.saturating_add(bytes) <= limit => *last += bytes,
                _ => runs.push(bytes),
            }
        }
        runs
    };
    // No run is smaller than the largest tensor, and one run may hold all.
    let (mut low, mut high) = (
        tensors.iter().copied().max().unwrap_or(0),
        tensors.iter().fold(0, |sum: u64, &bytes| sum.saturating_add(bytes)),
    );
    while low < high {
        let middle = low + (high - low) / 2;
        match runs(middle).len() <= split.max(1) as usize {
            true => high = middle,
            false => low = middle + 1,
        }
    }
    runs(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_layers_as_wanted_are_streamed_and_evenly() {
        for layers in [1, 2, 7, 80] {
            for streamed in 0..=layers {
                let residency = Residency { streamed, ..Residency::default() };
                let which: Vec<u32> = (0..layers).filter(|&layer| residency.streams(layer, layers)).collect();
                assert_eq!(which.len(), streamed as usize);
                let gaps = which.windows(2).map(|pair| pair[1] - pair[0]);
                assert!(gaps.clone().max().unwrap_or(0) <= gaps.min().unwrap_or(0) + 1, "{which:?}");
            }
        }
    }

    #[test]
    fn pieces_are_as_even_as_tensors_allow() {
        assert_eq!(cut(&[4, 4, 4, 4], 2), [8, 8]);
        assert_eq!(cut(&[1, 9, 1, 1], 3), [1, 9, 2]);
        assert_eq!(cut(&[1, 9, 1, 1], 9), [1, 9, 2]);
        assert_eq!(cut(&[3, 5], 1), [8]);
        assert_eq!(cut(&[], 4), [0_u64; 0]);
    }
}
