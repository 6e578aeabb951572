//! What `tritterc fit` reports, for people and for programs.

use compiler::report::human_bytes;
use compiler::schedule::Tier;
use compiler::schedule::residency::Residency;
use compiler::schedule::tiers::{Choice, Found, Point, Profile, Refusal, bits};
use compiler::training::count::TrainingBytes;
use ir::plan::Certificate;
use serde_json::{Value, json};

use super::device::Device;
use super::{Train, ask};
use crate::model::Named;

/// Bytes as people read them.
pub(crate) fn bytes(bytes: u64) -> String {
    human_bytes(bytes)
}

/// A time as people read it.
fn time(ns: u64) -> String {
    match ns as f64 {
        ns if ns < 1e6 => format!("{:.0} us", ns / 1e3),
        ns if ns < 1e8 => format!("{:.2} ms", ns / 1e6),
        ns if ns < 1e9 => format!("{:.0} ms", ns / 1e6),
        ns => format!("{:.1} s", ns / 1e9),
    }
}

/// What a model is called.
pub(crate) fn name_of(named: &Named) -> String {
    match (ask::spec_of(named), named) {
        (Some(spec), _) => spec.name.clone(),
        (None, Named::Program { path, .. }) => path.display().to_string(),
        (None, _) => String::new(),
    }
}

/// A model on a device.
pub(crate) struct Shown<'a> {
    pub(crate) model: String,
    pub(crate) device: &'a Device,
    pub(crate) profiles: &'a [Profile],
    pub(crate) context: u32,
    pub(crate) pareto: bool,
}

impl Shown<'_> {
    /// The profile of all that a choice keeps on the device.
    fn profile(&self, choice: &Choice) -> &Profile {
        let is_it = |profile: &&Profile| {
            let format = &profile.format;
            (format.packing, &format.kv, format.chunk) == (choice.packing, &choice.kv, choice.chunk)
        };
        self.profiles.iter().find(is_it).expect("choices are made from the profiles")
    }

    /// How a point runs, in words.
    fn how(&self, choice: &Choice) -> String {
        let Residency { streamed, split, slots, host_embedding, source, packs_copies } = choice.residency;
        let layers = self.profile(choice).layers;
        let source = match source {
            Tier::Host => "host memory",
            Tier::Disk => "disk",
        };
        let mut how = match streamed {
            0 => "all layers on the device".to_owned(),
            1.. => {
                let pieces = if split == 1 { "whole".to_owned() } else { format!("in {split} pieces each") };
                let packing = if packs_copies { " in 1.6 bits" } else { "" };
                format!(
                    "{streamed} of {layers} layers streamed from {source}{packing}, {pieces}, through {slots} slots"
                )
            }
        };
        if host_embedding {
            how += if self.device.is_cpu() {
                "; embedding table read in its file"
            } else {
                "; embedding table in host memory"
            };
        }
        how
    }

    pub(crate) fn text(&self, found: &Found, certificate: &Certificate) -> String {
        let Found { point, front, report } = found;
        let Point { token_ns, first_ns, choice, .. } = point;
        let profile = self.profile(choice);
        let sequences = u64::from(profile.sequences);
        let of = if sequences == 1 { String::new() } else { format!(" of {sequences} sequences") };
        let mut text = format!(
            "{} fits {}: {} of {} ({})\n",
            self.model,
            self.device.name,
            bytes(certificate.device_bytes()),
            bytes(self.device.usable),
            self.device.basis
        );
        text += &format!("  {}\n", self.how(choice));
        text += &format!(
            "  {} positions{of}, {} caches, {} weights, calls of up to {} tokens\n\n",
            self.context,
            choice.kv,
            packings(choice),
            choice.chunk
        );
        let rate = sequences as f64 * 1e9 / (*token_ns).max(1) as f64;
        text += &format!(
            "token     {:>10}   {rate:.1} tokens/s{of}, behind a prompt of {}\n",
            time(*token_ns),
            profile.prompt
        );
        text += &format!("prompt    {:>10}   {} tokens, to the first token\n", time(*first_ns), profile.prompt);
        text += &format!("times are predicted for {}\n\n", self.device.target.machine);
        for allocation in &certificate.device {
            text += &format!("{:>12}  {}\n", bytes(allocation.bytes), allocation.name);
        }
        // On a CPU there is no other memory.
        for allocation in &certificate.host {
            text += &format!("{:>12}  in host memory: {}\n", bytes(allocation.bytes), allocation.name);
        }
        text += &format!("\nschedule  {choice}\n");
        if self.pareto {
            text += &self.table(found);
        }
        text += &format!("{} schedules that no other is as good as in everything; {report}\n", front.points().len());
        text
    }

    /// The front, for people: what is worse in everything but the last digits is left out.
    fn table(&self, found: &Found) -> String {
        let limits = ask::limits(self.device);
        let mut text = format!("\n{:>10} {:>10} {:>10} {:>10}  fits  how\n", "token", "prompt", "device", "host");
        let points = found.front.points();
        // A few dozen lines can be read: those of each time of a token with the fewest bytes, thinned out.
        let mut least = u64::MAX;
        let mut shown: Vec<&Point> = Vec::new();
        for point in points {
            if point.device_bytes < least {
                least = point.device_bytes;
                shown.push(point);
            }
        }
        let step = shown.len().div_ceil(LINES).max(1);
        let last = shown.len().saturating_sub(1);
        for (index, point) in shown.iter().enumerate() {
            if index % step == 0 || index == last || **point == found.point {
                text += &format!(
                    "{:>10} {:>10} {:>10} {:>10}  {:<4}  {}{}\n",
                    time(point.token_ns),
                    time(point.first_ns),
                    bytes(point.device_bytes.saturating_add(self.device.driver_bytes)),
                    bytes(point.host_bytes),
                    if limits.hold(point) { "yes" } else { "no" },
                    self.how(&point.choice),
                    format_args!(", {} caches, calls of {}", point.choice.kv, point.choice.chunk)
                );
            }
        }
        text + "\n"
    }

    fn point_json(&self, point: &Point) -> Value {
        let Choice { residency, packing, streamed_packing, kv, chunk } = &point.choice;
        let Residency { streamed, split, slots, host_embedding, source, packs_copies } = *residency;
        let sequences = f64::from(self.profile(&point.choice).sequences);
        json!({
            "device_bytes": point.device_bytes.saturating_add(self.device.driver_bytes),
            "host_bytes": point.host_bytes,
            "token_seconds": point.token_ns as f64 / 1e9,
            "tokens_per_s": sequences * 1e9 / point.token_ns.max(1) as f64,
            "first_token_seconds": point.first_ns as f64 / 1e9,
            "streamed_layers": streamed,
            "split": split,
            "slots": slots,
            "source": if source == Tier::Host { "host" } else { "disk" },
            "host_embedding": host_embedding,
            "copy_packing": if packs_copies { "1.6bit" } else { "2bit" },
            "packing": bits(*packing),
            "streamed_packing": bits(*streamed_packing),
            "kv": kv,
            "chunk": chunk,
            "schedule": point.choice.to_string(),
        })
    }

    fn head_json(&self, fits: bool) -> serde_json::Map<String, Value> {
        let Value::Object(head) = json!({
            "model": self.model,
            "device": self.device.name,
            "target": self.device.target.to_string(),
            "machine": self.device.target.machine.to_string(),
            "fits": fits,
            "context": self.context,
            "budget_bytes": self.device.usable,
            "budget_basis": self.device.basis,
            "driver_bytes": self.device.driver_bytes,
        }) else {
            unreachable!("the macro makes what it is given")
        };
        head
    }

    pub(crate) fn json(&self, found: &Found, certificate: &Certificate) -> Value {
        let mut value = self.head_json(true);
        let profile = self.profile(&found.point.choice);
        if let Value::Object(point) = self.point_json(&found.point) {
            value.extend(point);
        }
        value.insert("prompt".to_owned(), profile.prompt.into());
        value.insert("sequences".to_owned(), profile.sequences.into());
        value.insert("layers".to_owned(), profile.layers.into());
        value.insert("device_bytes".to_owned(), certificate.device_bytes().into());
        value.insert("host_bytes".to_owned(), certificate.host_bytes().into());
        let parts = certificate.device.iter().map(|one| (one.name.clone(), one.bytes.into()));
        value.insert("device_parts".to_owned(), Value::Object(parts.collect()));
        value.insert("exact".to_owned(), found.report.is_exact.into());
        if self.pareto {
            let front = found.front.points().iter().map(|point| self.point_json(point));
            value.insert("front".to_owned(), front.collect());
        }
        Value::Object(value)
    }

    pub(crate) fn refusal_json(&self, refusal: &Refusal) -> Value {
        let mut value = self.head_json(false);
        let driver = self.device.driver_bytes;
        let sizes = |point: &Point| {
            json!({
                "device_bytes": point.device_bytes.saturating_add(driver),
                "host_bytes": point.host_bytes,
                "token_seconds": point.token_ns as f64 / 1e9,
                "schedule": point.choice.to_string(),
            })
        };
        value.insert("least".to_owned(), refusal.least.as_deref().map_or(Value::Null, sizes));
        let nearest =
            refusal.nearest.iter().map(|nearest| json!({ "instead": nearest.instead, "plan": sizes(&nearest.point) }));
        value.insert("nearest".to_owned(), nearest.collect());
        Value::Object(value)
    }
}

/// Lines of a table that is still read.
const LINES: usize = 40;

fn packings(choice: &Choice) -> String {
    match choice.packing == choice.streamed_packing {
        true => bits(choice.packing).to_owned(),
        false => format!("{} and, streamed, {}", bits(choice.packing), bits(choice.streamed_packing)),
    }
}

/// What training would take on a device.
pub(crate) struct Training<'a> {
    pub(crate) model: String,
    pub(crate) device: &'a Device,
    pub(crate) tokens: u32,
    pub(crate) train: Train,
    pub(crate) bytes: TrainingBytes,
}

impl Training<'_> {
    fn needed(&self) -> u64 {
        self.bytes.total().saturating_add(self.device.driver_bytes)
    }

    pub(crate) fn fits(&self) -> bool {
        self.needed() <= self.device.usable
    }

    fn method(&self) -> &'static str {
        match self.train {
            Train::Qlora => "QLoRA",
            Train::Full => "full training",
        }
    }

    pub(crate) fn text(&self) -> String {
        let TrainingBytes { weights, trained, gradients, optimizer, activations } = self.bytes;
        let verdict = if self.fits() { "fits" } else { "does not fit" };
        let mut text = format!(
            "{} of {} {verdict} {}: {} of {} ({})\n  sequences of {} tokens, one at a time\n  a count, not a plan: there are no training plans yet\n\n",
            self.method(),
            self.model,
            self.device.name,
            bytes(self.needed()),
            bytes(self.device.usable),
            self.device.basis,
            self.tokens
        );
        let rows = [
            ("driver", self.device.driver_bytes),
            ("packed weights", weights),
            ("trained parameters", trained),
            ("gradients", gradients),
            ("optimizer", optimizer),
            ("activations", activations),
        ];
        for (what, size) in rows {
            text += &format!("{:>12}  {what}\n", bytes(size));
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let TrainingBytes { weights, trained, gradients, optimizer, activations } = self.bytes;
        json!({
            "model": self.model,
            "device": self.device.name,
            "method": self.method(),
            "is_plan": false,
            "fits": self.fits(),
            "tokens": self.tokens,
            "budget_bytes": self.device.usable,
            "device_bytes": self.needed(),
            "driver_bytes": self.device.driver_bytes,
            "weight_bytes": weights,
            "trained_bytes": trained,
            "gradient_bytes": gradients,
            "optimizer_bytes": optimizer,
            "activation_bytes": activations,
        })
    }
}
