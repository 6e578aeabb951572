//! The fastest way to run a model within a budget, or why there is none.

use std::fmt;

use super::cost::Point;
use super::front::Front;
use super::{Offers, Profile, Report, search};
use crate::report::human_bytes;
use crate::target::Link;

/// How much memory there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the device that may be used.
    pub device_bytes: u64,
    /// Those of them that its driver takes.
    pub driver_bytes: u64,
    /// Bytes of host memory that may be pinned.
    pub host_bytes: u64,
}

impl Limits {
    /// Whether a point is within them.
    pub fn hold(self, point: &Point) -> bool {
        self.needed(point) <= self.device_bytes && point.host_bytes <= self.host_bytes
    }

    /// Bytes of the device that a point takes, with what the driver does.
    pub fn needed(self, point: &Point) -> u64 {
        point.device_bytes.saturating_add(self.driver_bytes)
    }
}

/// What was found within the limits.
#[derive(Clone, Debug)]
pub struct Found {
    /// The fastest: of the least time for the prompt and as many tokens after it. Of equally fast ones that with the fewest bytes of the host, so that
    /// nothing is streamed that has room.
    pub point: Point,
    /// All that nothing else is better than, within the limits or not.
    pub front: Front<Point>,
    /// How the search went.
    pub report: Report,
}

/// Something else that would fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// What to ask for instead.
    pub instead: String,
    /// What that would give.
    pub point: Point,
}

/// Nothing that was offered is within the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The limits.
    pub limits: Limits,
    /// What takes the fewest bytes of the device.
    pub least: Option<Box<Point>>,
    /// What would fit, the most like what was asked for first.
    pub nearest: Vec<Nearest>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limits { device_bytes, host_bytes, .. } = self.limits;
        write!(f, "it does not fit into {}", human_bytes(device_bytes))?;
        if let Some(least) = &self.least {
            write!(f, ": it takes {} at least", human_bytes(self.limits.needed(least)))?;
            if host_bytes < least.host_bytes {
                let [needed, there] = [least.host_bytes, host_bytes].map(human_bytes);
                write!(f, ", with {needed} of host memory, of which there are {there}")?;
            }
        }
        for (position, Nearest { instead, point }) in self.nearest.iter().enumerate() {
            let head = if position == 0 { "\nwhat would fit:" } else { "" };
            write!(f, "{head}\n  {instead}: {}", human_bytes(self.limits.needed(point)))?;
            if 0 < point.host_bytes {
                write!(f, " and {} beside it", human_bytes(point.host_bytes))?;
            }
            write!(f, ", {:.2} ms a token", point.token_ns as f64 / 1e6)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// The fastest schedule within the limits, of all that the profiles and offers allow.
///
/// # Errors
///
/// If none is within them. What would fit is for the caller to find: it knows which other programs there are.
pub fn choose(profiles: &[Profile], offers: &Offers, link: Link, limits: Limits) -> Result<Found, Refusal> {
    let (front, report) = search(profiles, offers, link);
    let within = front.points().iter().filter(|point| limits.hold(point));
    let tokens = profiles.first().map_or(1, |profile| u64::from(profile.prompt));
    let time = |point: &Point| point.first_ns.saturating_add(point.token_ns.saturating_mul(tokens));
    let key = |point: &&Point| (time(point), point.host_bytes, point.device_bytes);
    let fastest = within.min_by_key(key).cloned();
    match fastest {
        Some(point) => Ok(Found { point, front, report }),
        None => {
            let within_host = |point: &&Point| point.host_bytes <= limits.host_bytes;
            let bytes = |point: &&Point| point.device_bytes;
            let least = front.points().iter().filter(within_host).min_by_key(bytes);
            let least = least.or_else(|| front.points().iter().min_by_key(bytes)).cloned().map(Box::new);
            Err(Refusal { limits, least, nearest: Vec::new() })
        }
    }
}
