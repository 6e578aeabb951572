//! Where the layers' weights are while calls run: what of them stays on the device, and how the rest is copied to it.

use ir::plan::Source;

/// Where the layers' weights are while calls run. The default keeps all of them on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Residency {
    /// Layers whose weights are copied for each call. They are spread evenly among the others.
    pub streamed: u32,
    /// Pieces that a streamed layer is cut into, at the most: tensors are not cut.
    pub split: u32,
    /// Places for pieces: how many are copied ahead of their use, and the one in use.
    pub slots: u32,
    /// Whether an embedding table that rows are gathered from, and nothing else, stays in the host's memory.
    pub host_embedding: bool,
    /// Where pieces come from.
    pub source: Source,
}

impl Residency {
    /// Whether a layer is streamed, of so many in all.
    pub fn streams(&self, layer: u32, layers: u32) -> bool {
        let (layer, layers, streamed) = (u64::from(layer), u64::from(layers.max(1)), u64::from(self.streamed));
        layer * streamed / layers != (layer + 1) * streamed / layers
    }
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
}
