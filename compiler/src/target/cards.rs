//! The hardware table: what is known of cards before any of them is touched.
//!
//! The numbers stand in `cards.ron`, each with where it is from. A [`Card`] gives a [`Target`] to plan for, with a [`Machine`] in place of the one
//! that is guessed for its compute capability, its memory, and the rates at which weights can be streamed to it.

use std::sync::LazyLock;

use kernels::Sm;
use serde::Deserialize;

use super::machine::{Machine, Source};
use super::{Hardware, Target};

/// One card.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// What it is called.
    pub name: &'static str,
    /// Its compute capability, if code can be generated for it.
    pub capability: Option<Sm>,
    /// Bytes of its memory, as its driver reports them.
    pub memory_bytes: u64,
    /// Whether a screen usually hangs on it, which takes some of them.
    pub is_desktop: bool,
    /// What the driver takes of them for a program.
    pub driver_bytes: u64,
    /// How weights get there.
    pub link: Link,
    machine: Machine,
}

/// How fast weights are copied to a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Gigabytes a second from pinned host memory.
    pub host_gb_per_s: f64,
    /// Gigabytes a second from a disk.
    pub disk_gb_per_s: f64,
    /// Microseconds that a copy costs beside its bytes.
    pub copy_us: f64,
    /// Whether the device's memory is the host's, so that nothing has to be kept twice.
    pub is_shared: bool,
}

impl Card {
    /// What plans for it are made for. A card that no code can be generated for is planned like the least that it can be.
    pub fn target(&self) -> Target {
        Target::of(Hardware::Cuda(self.capability.unwrap_or(Sm::LEAST))).with_machine(self.machine.clone())
    }

    /// The card of a name: as the table has it, whatever its case, spaces and hyphens; or as a driver reports it, which puts other words before and
    /// behind. A word such as `Laptop`, `SUPER` or `PCIe` behind makes it another card.
    pub fn find(name: &str) -> Option<&'static Card> {
        const OTHERS: [&str; 8] = ["laptop", "super", "ti", "d", "max", "pcie", "nvl", "mobile"];
        let exact = cards().iter().find(|card| plain(card.name) == plain(name));
        let given = words(name);
        let is_reported = |card: &&Card| {
            // The two sizes of one card differ in a word of their own: `A100-SXM4-80GB`.
            let (series, size) = match card.name.split_once('-') {
                Some((series, size)) => (words(series), Some(format!("{size}gb"))),
                None => (words(card.name), None),
            };
            let at = given.windows(series.len()).position(|window| window == series);
            at.is_some_and(|at| {
                let behind = &given[at + series.len()..];
                !behind.iter().any(|word| OTHERS.contains(&word.as_str()))
                    && size.is_none_or(|size| behind.contains(&size))
            })
        };
        exact.or_else(|| cards().iter().find(is_reported))
    }
}

/// Letters and digits, in lower case.
fn plain(name: &str) -> String {
    words(name).concat()
}

/// The runs of letters and digits, in lower case.
fn words(name: &str) -> Vec<String> {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect()
}

/// All cards, in the order of the table.
pub fn cards() -> &'static [Card] {
    static CARDS: LazyLock<Vec<Card>> = LazyLock::new(|| {
        let table: Table<'static> =
            ron::from_str(include_str!("cards.ron")).expect("the table is well formed, as a test shows");
        table.cards.iter().map(|row| row.card(&table)).collect()
    });
    &CARDS
}

/// How weights get to a CPU's memory: from a disk.
pub fn disk() -> Link {
    Link { is_shared: true, ..usual().0 }
}

/// What is taken for a device that the table lacks: the link of most cards in use, and what a driver takes of any.
pub fn usual() -> (Link, u64) {
    let card = cards().iter().find(|card| card.name == "RTX 3090").unwrap_or(&cards()[0]);
    (card.link, card.driver_bytes)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table<'a> {
    read_share: f64,
    links: Vec<LinkRow>,
    disk_gb_per_s: f64,
    copy_us: f64,
    driver_mb: u64,
    rows: Vec<RowsRow>,
    #[serde(borrow)]
    cards: Vec<CardRow<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkRow {
    generation: u32,
    gb_per_s: f64,
}

/// What the rows of the CUDA table reach on a range of capabilities; the first that holds one counts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RowsRow {
    least: String,
    most: String,
    one: f64,
    ternary: f64,
    attention: f64,
    elementwise: f64,
    codes: f64,
    attention_one: f64,
    step_us: f64,
    queued_us: f64,
    attention_us: f64,
    codes_us: f64,
    block_gb_per_s: f64,
    call_us: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CardRow<'a> {
    name: &'a str,
    capability: Option<String>,
    desktop: bool,
    memory_mib: u64,
    read_gb_per_s: f64,
    link: u32,
    int8_tops: f64,
    bf16_tflops: f64,
    f32_tflops: f64,
}

impl CardRow<'static> {
    fn card(&self, table: &Table<'_>) -> Card {
        let sm = |name: &String| name.parse::<Sm>().expect("capabilities of the table are ones that are known");
        let capability = self.capability.as_ref().map(sm);
        let number = capability.unwrap_or(Sm::LEAST).number;
        let holds = |rows: &&RowsRow| (sm(&rows.least).number..=sm(&rows.most).number).contains(&number);
        let rows = table.rows.iter().find(holds).expect("the last line of the table holds for every capability");
        let link = table.links.iter().find(|link| link.generation == self.link);
        // Rates of the table are of operations, rates of a machine of 10^9 multiply-accumulates a second.
        let (int8, bf16, f32) = (self.int8_tops * 500.0, self.bf16_tflops * 500.0, self.f32_tflops * 1e3);
        let one = f32 * rows.one;
        let ternary = (one, int8 * rows.ternary);
        let attention = |share: f64| (one * rows.attention_one, bf16 * share);
        let mut machine = Machine::guess(Hardware::Cuda(capability.unwrap_or(Sm::LEAST)));
        machine.set_products([
            ternary,
            ternary,
            (one / 2.0, int8 * rows.ternary / 2.0),
            (one / 4.0, int8 * rows.ternary / 4.0),
            (one / 8.0, f32 * rows.elementwise),
            (one / 8.0, f32 * rows.elementwise),
            attention(rows.attention),
            attention(rows.codes),
        ]);
        Card {
            name: self.name,
            capability,
            memory_bytes: self.memory_mib << 20,
            is_desktop: self.desktop,
            driver_bytes: table.driver_mb * 1_000_000,
            link: Link {
                host_gb_per_s: link.expect("the table has every generation").gb_per_s,
                disk_gb_per_s: table.disk_gb_per_s,
                copy_us: table.copy_us,
                is_shared: false,
            },
            machine: Machine {
                read_gb_per_s: self.read_gb_per_s * table.read_share,
                link_gb_per_s: link.expect("the table has every generation").gb_per_s,
                f32_gflop_per_s: f32 * rows.elementwise,
                copy_us: table.copy_us,
                step_us: rows.step_us,
                queued_us: rows.queued_us,
                attention_us: rows.attention_us,
                codes_us: rows.codes_us,
                block_gb_per_s: rows.block_gb_per_s,
                call_us: rows.call_us,
                source: Source::Card(self.name),
                ..machine
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_has_its_numbers_and_its_name() {
        assert_eq!(cards().len(), 14);
        for card in cards() {
            assert_eq!(Card::find(card.name), Some(card), "{}", card.name);
            let machine = card.target().machine;
            assert!(8 << 30 < card.memory_bytes && card.driver_bytes < 1 << 30, "{}", card.name);
            assert!(400.0 < machine.read_gb_per_s && machine.products.iter().all(|rate| rate.one < rate.many * 2.0));
            assert_eq!(machine.source, Source::Card(card.name));
        }
    }

    #[test]
    fn a_driver_s_name_finds_its_card_and_no_other() {
        let found = |name: &str| Card::find(name).map(|card| card.name);
        assert_eq!(found("NVIDIA H100 80GB HBM3"), Some("H100"));
        assert_eq!(found("NVIDIA GeForce RTX 4090"), Some("RTX 4090"));
        assert_eq!(found("rtx4070ti"), Some("RTX 4070 Ti"));
        assert_eq!(found("NVIDIA A100-SXM4-80GB"), Some("A100-80"));
        assert_eq!(found("NVIDIA A100-SXM4-40GB"), Some("A100-40"));
        assert_eq!(found("a10"), Some("A10"));
        for other in [
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA GeForce RTX 4080 SUPER",
            "NVIDIA L40S",
            "NVIDIA H100 PCIe",
            "NVIDIA A100",
            "RTX 2080",
            "",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
    }
}
