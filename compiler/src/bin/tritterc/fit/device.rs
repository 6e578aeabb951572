//! The device that a model is to fit, and how much of its memory there is.

use anyhow::{Context, Result, bail};
use compiler::Target;
use compiler::target::cards::{self, cards};
use compiler::target::{Card, Link};
use kernels::Sm;

use crate::detect::{Desktop, Gpu, HostMemory, formula, gpu};

/// A device to plan for.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    /// What it is called.
    pub(crate) name: String,
    /// What plans are made for.
    pub(crate) target: Target,
    /// How weights get there.
    pub(crate) link: Link,
    /// Bytes of it that may be used, the driver's included.
    pub(crate) usable: u64,
    /// How that is known.
    pub(crate) basis: String,
    /// What its driver takes.
    pub(crate) driver_bytes: u64,
    /// Bytes of host memory that may be pinned; none if that is not known.
    pub(crate) host_bytes: Option<u64>,
}

/// Which device is meant.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    /// A card of the table.
    Card(String),
    /// The CPU of this machine.
    Cpu,
    /// What this machine has: its GPU, or else its CPU.
    Here,
}

impl Device {
    /// Finds the device.
    pub(crate) fn find(wanted: &Wanted) -> Result<Self> {
        match wanted {
            Wanted::Card(name) => known_card(name).map(Self::of_card),
            Wanted::Cpu => Self::of_cpu(),
            // The one with the most room.
            Wanted::Here => match gpu::gpus().into_iter().max_by_key(|gpu| gpu.free) {
                Some(gpu) => Self::of_gpu(&gpu, HostMemory::detect()),
                None => Self::of_cpu(),
            },
        }
    }

    /// A card that may be anywhere: what may be used of it follows from its size.
    pub(crate) fn of_card(card: &Card) -> Self {
        let desktop = if card.is_desktop { Desktop::Wayland } else { Desktop::Headless };
        let note = if card.capability.is_none() { "; no code can be generated for it" } else { "" };
        Self {
            name: card.name.to_owned(),
            target: card.target(),
            link: card.link,
            usable: formula::usable(card.memory_bytes, desktop),
            basis: format!("what a card of {} MiB leaves with {}{note}", card.memory_bytes >> 20, screen(desktop)),
            driver_bytes: card.driver_bytes,
            host_bytes: None,
        }
    }

    /// A GPU of this machine.
    fn of_gpu(gpu: &Gpu, host: Option<HostMemory>) -> Result<Self> {
        let card = Card::find(&gpu.name);
        let (major, minor) = gpu.capability;
        let capability = Sm::ALL.into_iter().rev().find(|sm| sm.runs_on(major, minor));
        let (usual_link, usual_driver_bytes) = cards::usual();
        let target = match (card, capability) {
            (Some(card), _) => card.target(),
            (None, Some(sm)) => Target::cuda(sm),
            (None, None) => {
                bail!("{} has compute capability {major}.{minor}, for which there are no kernels", gpu.name)
            }
        };
        let least = formula::usable(gpu.total, Desktop::detect());
        let others = if gpu.free < least { "; other programs use much of it" } else { "" };
        Ok(Self {
            name: gpu.name.clone(),
            target,
            link: card.map_or(usual_link, |card| card.link),
            usable: gpu.free,
            basis: format!("free now, of {} MiB{others}", gpu.total >> 20),
            driver_bytes: card.map_or(usual_driver_bytes, |card| card.driver_bytes),
            host_bytes: host.map(|host| host.available),
        })
    }

    /// What a compilation is for, of which so much may be used.
    pub(crate) fn of_target(target: &Target, card: Option<&Card>, usable: u64, host_bytes: Option<u64>) -> Self {
        let (usual_link, usual_driver_bytes) = cards::usual();
        let driver_bytes = card.map_or(usual_driver_bytes, |card| card.driver_bytes);
        Self {
            name: card.map_or_else(|| target.to_string(), |card| card.name.to_owned()),
            target: target.clone(),
            link: if target.isa().is_some() { cards::disk() } else { card.map_or(usual_link, |card| card.link) },
            usable,
            basis: "as asked for".to_owned(),
            driver_bytes: if target.isa().is_some() { 0 } else { driver_bytes },
            host_bytes,
        }
    }

    /// The CPU of this machine.
    fn of_cpu() -> Result<Self> {
        let Some(HostMemory { total, available }) = HostMemory::detect() else {
            bail!("this system does not say how much memory it has; give --budget")
        };
        let target = Target::native();
        Ok(Self {
            name: format!("this CPU ({target})"),
            target,
            link: cards::disk(),
            usable: available,
            basis: format!("available now, of {} MiB", total >> 20),
            driver_bytes: 0,
            host_bytes: None,
        })
    }

    /// Whether it is a CPU, to whose memory weights are streamed from a disk.
    pub(crate) fn is_cpu(&self) -> bool {
        self.target.isa().is_some()
    }
}

/// The card of a name.
pub(crate) fn known_card(name: &str) -> Result<&'static Card> {
    let names = || cards().iter().map(|card| card.name).collect::<Vec<_>>().join(", ");
    Card::find(name).with_context(|| format!("no card `{name}` is known; known are {}", names()))
}

fn screen(desktop: Desktop) -> &'static str {
    if desktop == Desktop::Headless { "no screen" } else { "a screen" }
}
