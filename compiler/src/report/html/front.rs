//! Schedules of memory that none is better than in every respect: time of a token over bytes of the device.

use super::markup::{Markup, Px, human_ns};
use super::timeline::marks;
use crate::report::human_bytes;

const WIDTH: f64 = 1240.0;
const HEIGHT: f64 = 380.0;
/// Room for the axes.
const LEFT: f64 = 84.0;
const BOTTOM: f64 = 46.0;

/// A way to run the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontPoint {
    /// What it is, for people.
    pub label: String,
    /// Nanoseconds of a token.
    pub token_ns: u64,
    /// Nanoseconds to the first token.
    pub first_token_ns: u64,
    /// Bytes of the device's memory.
    pub device_bytes: u64,
    /// Bytes of the host's memory.
    pub host_bytes: u64,
    /// Whether it is the one that was compiled.
    pub is_chosen: bool,
}

impl FrontPoint {
    fn describe(&self) -> String {
        format!(
            "{}{}\n{} a token\n{} to the first token\n{} of the device\n{} of the host",
            self.label,
            if self.is_chosen { " (chosen)" } else { "" },
            human_ns(self.token_ns),
            human_ns(self.first_token_ns),
            human_bytes(self.device_bytes),
            human_bytes(self.host_bytes)
        )
    }
}

/// The points, drawn and listed in the order in which they are given.
pub(super) fn front(out: &mut Markup, points: &[FrontPoint]) {
    let most = |of: &dyn Fn(&FrontPoint) -> u64| points.iter().map(of).max().unwrap_or(0).max(1);
    // From 0, with room above the largest, so that distances are true.
    let bytes = most(&|point| point.device_bytes);
    let time = most(&|point| point.token_ns);
    let (bytes, time) = (bytes.saturating_add(bytes / 16), time.saturating_add(time / 16));
    let x = |value: u64| LEFT + value as f64 / bytes as f64 * (WIDTH - LEFT - 12.0);
    let y = |value: u64| (HEIGHT - BOTTOM) * (1.0 - value as f64 / time as f64);
    let view = format!("0 0 {} {}", Px(WIDTH), Px(HEIGHT));
    out.element("svg", &[("class", &"front"), ("viewBox", &view), ("role", &"img"), ("aria-label", &"front")], |out| {
        for at in marks(bytes) {
            let place = Px(x(at));
            out.empty("line", &[("class", &"grid"), ("x1", &place), ("x2", &place), ("y1", &"0"), ("y2", &Px(y(0)))]);
            out.leaf("text", &[("class", &"mark"), ("x", &place), ("y", &Px(y(0) + 17.0))], human_bytes(at));
        }
        for at in marks(time) {
            let place = Px(y(at));
            out.empty(
                "line",
                &[("class", &"grid"), ("x1", &Px(LEFT)), ("x2", &Px(WIDTH)), ("y1", &place), ("y2", &place)],
            );
            out.leaf("text", &[("class", &"address"), ("x", &Px(LEFT - 8.0)), ("y", &Px(y(at) + 4.0))], human_ns(at));
        }
        out.leaf(
            "text",
            &[("class", &"mark"), ("x", &Px(x(bytes / 2))), ("y", &Px(HEIGHT - 6.0))],
            "bytes of the device",
        );
        for point in points {
            let class = if point.is_chosen { "point chosen" } else { "point" };
            let radius = if point.is_chosen { "8" } else { "5" };
            let (cx, cy) = (Px(x(point.device_bytes)), Px(y(point.token_ns)));
            out.shape("circle", &[("class", &class), ("cx", &cx), ("cy", &cy), ("r", &radius)], point.describe());
        }
    });
    out.element("table", &[("class", &"points")], |out| {
        out.element("tr", &[], |out| {
            for head in ["schedule", "a token", "first token", "device", "host"] {
                out.leaf("th", &[], head);
            }
        });
        for point in points {
            let class = if point.is_chosen { "chosen" } else { "" };
            out.element("tr", &[("class", &class)], |out| {
                out.leaf("td", &[], &point.label);
                for number in [
                    human_ns(point.token_ns),
                    human_ns(point.first_token_ns),
                    human_bytes(point.device_bytes),
                    human_bytes(point.host_bytes),
                ] {
                    out.leaf("td", &[("class", &"number")], number);
                }
            });
        }
    });
}
