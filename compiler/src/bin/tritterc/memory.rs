//! What a command line says of memory: a budget, and which weights are copied for each call.

use std::str::FromStr;

use compiler::Target;
use compiler::schedule::{Residency, Tier};
use compiler::target::{Card, Hardware, cards};
use ir::plan::Budget;

/// What a command line says of memory.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct MemoryArgs {
    /// The most memory of the device that running the model may take, such as 14GB or 512MiB; what needs more is refused.
    #[arg(long, value_name = "SIZE")]
    pub(crate) budget: Option<Bytes>,
    /// The most memory of the host that may be kept for weights beside a GPU.
    #[arg(long, value_name = "SIZE")]
    pub(crate) host_budget: Option<Bytes>,
    /// Copy the weights of so many layers to the device for each call, instead of keeping them there.
    #[arg(long, value_name = "LAYERS")]
    pub(crate) stream: Option<u32>,
    /// Where streamed weights wait: in memory of the host, or on the disk.
    #[arg(long, value_enum, default_value = "host", requires = "stream")]
    pub(crate) stream_from: StreamFrom,
    /// Pieces that a streamed layer is cut into, at the most.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64), requires = "stream")]
    pub(crate) pieces: u32,
    /// Places on the device that pieces are copied to.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=1024), requires = "stream")]
    pub(crate) slots: u32,
    /// How ternary weights are packed while they are copied: the tighter way where the device can unpack them, a GPU that streams from the host.
    #[arg(long, value_enum, default_value = "auto", requires = "stream")]
    pub(crate) copy_packing: CopyPacking,
    /// Leave an embedding table that is only gathered from in the host's memory; on a CPU in its file, which must not be cut off while the model runs.
    #[arg(long)]
    pub(crate) host_embedding: bool,
}

/// Where streamed weights wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StreamFrom {
    Host,
    Disk,
}

/// How ternary weights are packed while they are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CopyPacking {
    Auto,
    #[value(name = "2bit")]
    TwoBit,
    #[value(name = "1.6bit")]
    Base3,
}

impl MemoryArgs {
    pub(crate) fn residency(&self, targets: &[Target]) -> Residency {
        let is_gpu = |target: &Target| matches!(target.hardware(), Hardware::Cuda(_));
        let can_pack = targets.iter().all(is_gpu) && self.stream_from == StreamFrom::Host;
        Residency {
            packs_copies: match self.copy_packing {
                CopyPacking::Auto => can_pack,
                CopyPacking::TwoBit => false,
                CopyPacking::Base3 => true,
            },
            streamed: self.stream.unwrap_or(0),
            split: self.pieces,
            slots: self.slots,
            host_embedding: self.host_embedding,
            source: match self.stream_from {
                StreamFrom::Host => Tier::Host,
                StreamFrom::Disk => Tier::Disk,
            },
        }
    }

    /// For one of the targets, which may be a card of the table.
    pub(crate) fn budget(&self, target: &Target, card: Option<&Card>) -> Budget {
        let of_gpu = card.map_or(cards::usual().1, |card| card.driver_bytes);
        Budget {
            overhead_bytes: if matches!(target.hardware(), Hardware::Cuda(_)) { of_gpu } else { 0 },
            device_bytes: self.budget.map(|Bytes(bytes)| bytes),
            host_bytes: self.host_budget.map(|Bytes(bytes)| bytes),
        }
    }
}

/// A size in bytes as people write it: `14GB`, `1.5GiB`, `600 MB`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" => 1_000,
            "m" | "mb" => 1_000_000,
            "g" | "gb" => 1_000_000_000,
            "t" | "tb" => 1_000_000_000_000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            unit => return Err(format!("`{unit}` is no unit; use B, kB, MB, GB, TB, KiB, MiB, GiB or TiB")),
        };
        let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a size like 14GB"))?;
        let bytes = number * factor as f64;
        if bytes < 1.0 || u64::MAX as f64 <= bytes {
            return Err(format!("`{text}` is no size that memory could have"));
        }
        Ok(Self(bytes as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let parsed = |text: &str| text.parse::<Bytes>().map(|Bytes(bytes)| bytes);
        assert_eq!(parsed("14GB"), Ok(14_000_000_000));
        assert_eq!(parsed("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parsed(" 600mb "), Ok(600_000_000));
        assert_eq!(parsed("4096"), Ok(4096));
        for text in ["", "GB", "-1GB", "1..5GB", "14GX", "0", "1e9", "99999999999TB"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
