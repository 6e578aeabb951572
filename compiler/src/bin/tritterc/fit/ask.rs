//! What is asked for, and the plans of every form that it may take.

use anyhow::{Result, bail};
use compiler::Target;
use compiler::schedule::tiers::{Choice, Format, Found, Limits, Nearest, Offers, Profile, Refusal, Workload, choose};
use compiler::schedule::{Residency, Tier};
use compiler::{Planned, PlanningOptions};
use ir::packing::TernaryLayout;
use ir::plan::{Budget, Certificate};
use models::Spec;
use models::spec::KvFormat;

use super::device::Device;
use super::show;
use crate::matrix;
use crate::model::{self, BuildArgs, Built, Head, Kv, Named};
use crate::opt::{self, Packing};

/// Sizes of a call that are tried where none is asked for: larger ones are faster and take more scratch.
const CHUNKS_OF_GPU: [u32; 4] = [64, 256, 512, 2048];
const CHUNKS_OF_CPU: [u32; 2] = [64, 256];

/// The prompt that the time to the first token is of, where none is asked for and the context allows it.
const PROMPT: u32 = 512;

/// What a model is to do. What is empty is chosen.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) context: Option<u32>,
    pub(crate) sequences: u32,
    pub(crate) kv: Vec<Kv>,
    pub(crate) head: Head,
    pub(crate) chunk: Option<u32>,
    /// Rows of logits of a call; as many as compiling has by default if nothing is said.
    pub(crate) logits: Option<u32>,
    pub(crate) prompt: Option<u32>,
    /// Whether layers may be streamed.
    pub(crate) streaming: bool,
}

impl Ask {
    /// The positions that a model's caches hold.
    pub(crate) fn context_of(&self, named: &Named) -> u32 {
        self.context.unwrap_or_else(|| {
            spec_of(named).map_or(model::DEFAULT_CONTEXT, |spec| spec.context.min(model::DEFAULT_CONTEXT))
        })
    }

    /// The profiles of a model: one for each format that is offered.
    pub(crate) fn profiles(&self, named: &Named, target: &Target) -> Result<Vec<Profile>> {
        let context = self.context_of(named);
        let prompt = self.prompt.unwrap_or(PROMPT).clamp(1, context.max(1));
        let most = context.saturating_mul(self.sequences).max(1);
        let mut chunks: Vec<u32> = match (self.chunk, target.isa()) {
            (Some(chunk), _) => vec![chunk],
            (None, Some(_)) => CHUNKS_OF_CPU.to_vec(),
            (None, None) => CHUNKS_OF_GPU.to_vec(),
        };
        // Tokens of all sequences have to fit a call.
        for chunk in &mut chunks {
            *chunk = (*chunk).max(self.sequences).min(most);
        }
        chunks.dedup();
        let kvs: Vec<Option<Kv>> = match (&self.kv[..], spec_of(named)) {
            ([], _) | (_, None) => vec![None],
            (kvs, Some(_)) => kvs.iter().copied().map(Some).collect(),
        };
        let mut profiles = Vec::new();
        for &packing in packings(target) {
            for &kv in &kvs {
                for &chunk in &chunks {
                    let built = model::build(named, &self.build_args(kv, chunk))?;
                    let format = Format { packing: layout_of(packing), kv: kv_name(named, kv), chunk };
                    let planned = plan(&built, target, packing, Residency::default(), Budget::default())?;
                    let profile = Profile::new(format, &planned, Workload { prompt, sequences: self.sequences });
                    if !profiles.contains(&profile) {
                        profiles.push(profile);
                    }
                }
            }
        }
        Ok(profiles)
    }

    fn build_args(&self, kv: Option<Kv>, chunk: u32) -> BuildArgs {
        let logits = self.logits.unwrap_or(LOGITS).max(self.sequences);
        BuildArgs { context: self.context, kv, head: self.head, chunk, sequences: self.sequences, logits }
    }

    /// What running a model in a chosen way takes, proved by its plan to be within the budget.
    pub(crate) fn certificate(&self, named: &Named, device: &Device, choice: &Choice) -> Result<Certificate> {
        let kv = KVS.into_iter().find(|kv| kv.name() == choice.kv);
        let built = model::build(named, &self.build_args(kv, choice.chunk))?;
        let packing = packing_of(choice.packing);
        let budget = Budget {
            overhead_bytes: device.driver_bytes,
            device_bytes: Some(device.usable),
            host_bytes: device.host_bytes,
        };
        Ok(Certificate::of(&plan(&built, &device.target, packing, choice.residency, budget)?.plan))
    }

    /// What is offered beyond formats.
    fn offers(&self, device: &Device) -> Offers {
        match (self.streaming, device.is_cpu()) {
            (false, _) => Offers::resident(),
            (true, true) => Offers::streaming(vec![Tier::Disk]),
            (true, false) if device.host_bytes.is_some() => Offers::streaming(vec![Tier::Host, Tier::Disk]),
            (true, false) => Offers::streaming(vec![Tier::Host]),
        }
    }

    /// The fastest way to run a model on a device, and the profiles that it was chosen from.
    pub(crate) fn choose(&self, named: &Named, device: &Device) -> Result<(Vec<Profile>, Result<Found, Refusal>)> {
        let profiles = self.profiles(named, &device.target)?;
        let found = choose(&profiles, &self.offers(device), device.link, limits(device));
        Ok((profiles, found))
    }

    /// The fastest way to run a model on a device with its weights packed in one way, if one is given.
    ///
    /// # Errors
    ///
    /// If none fits: with what would.
    pub(crate) fn choose_packed(&self, named: &Named, device: &Device, packing: Option<Packing>) -> Result<Found> {
        let mut profiles = self.profiles(named, &device.target)?;
        profiles.retain(|profile| packing.is_none_or(|packing| layout_of(packing) == profile.format.packing));
        match choose(&profiles, &self.offers(device), device.link, limits(device)) {
            Ok(found) => Ok(found),
            Err(mut refusal) => {
                refusal.nearest = self.nearest(named, device);
                bail!("{} on {}: {refusal}", show::name_of(named), device.name)
            }
        }
    }

    /// Whether there is any way to run a model on a device: if there is one, there is one with the smallest calls.
    fn fits(&self, named: &Named, device: &Device) -> bool {
        let chunk = self.chunk.unwrap_or(if device.is_cpu() { CHUNKS_OF_CPU[0] } else { CHUNKS_OF_GPU[0] });
        let smallest = Ask { chunk: Some(chunk), ..self.clone() };
        smallest.choose(named, device).is_ok_and(|(_, found)| found.is_ok())
    }

    /// What else would fit, the most like what was asked for first.
    pub(crate) fn nearest(&self, named: &Named, device: &Device) -> Vec<Nearest> {
        let mut nearest = Vec::new();
        // What cannot be built that way is no suggestion.
        let mut attempt = |instead: String, ask: &Ask, named: &Named| {
            let found = if ask.fits(named, device) { ask.choose(named, device).ok() } else { None };
            let found = found.and_then(|(_, found)| found.ok());
            if let Some(found) = &found {
                nearest.push(Nearest { instead, point: found.point.clone() });
            }
            found.is_some()
        };
        // Streaming changes no result, so it comes first and goes with all that follows.
        let (base, prefix) = match self.streaming {
            true => (self.clone(), String::new()),
            false => (Ask { streaming: true, ..self.clone() }, "without --resident, ".to_owned()),
        };
        if !self.streaming && attempt("without --resident".to_owned(), &base, named) {
            return nearest;
        }
        if 1 < self.sequences {
            attempt(format!("{prefix}--sequences 1"), &Ask { sequences: 1, ..base.clone() }, named);
        }
        let Some(spec) = spec_of(named) else { return nearest };
        let is_asked = |kv: Kv| self.kv.contains(&kv) || self.kv.is_empty() && KvFormat::from(kv) == spec.kv;
        let others = [Kv::Bf16, Kv::K8v4, Kv::Int4].into_iter().filter(|&kv| !is_asked(kv));
        let smaller = |kv: Kv| Ask { kv: vec![kv], ..base.clone() };
        let has_format =
            others.into_iter().any(|kv| attempt(format!("{prefix}--kv {}", kv.name()), &smaller(kv), named));
        // The longest power of two that fits, as things are and with the smallest caches. What fits a context fits shorter ones.
        let mut contexts = |ask: &Ask, prefix: &str| {
            let most = self.context_of(named);
            let powers: Vec<u32> = (8..32).map(|power| 1 << power).filter(|&context: &u32| context < most).collect();
            let at = |context: u32| Ask { context: Some(context), ..ask.clone() };
            let fits = |context: &u32| at(*context).fits(named, device);
            let longest = powers.partition_point(fits).checked_sub(1).map(|index| powers[index]);
            if let Some(context) = longest {
                attempt(format!("{prefix}--context {context}"), &at(context), named);
            }
        };
        contexts(&base, &prefix);
        if !has_format && !is_asked(Kv::Int4) {
            contexts(&smaller(Kv::Int4), &format!("{prefix}--kv int4 "));
        }
        // The largest smaller model with as long a context.
        let size = |spec: &Spec| matrix::parameters(spec).unwrap_or(u64::MAX);
        let (own, context) = (size(spec), self.context_of(named));
        let models = matrix::shipped_by_size().into_iter().rev();
        for (name, other) in models.filter(|(_, other)| size(other) < own && context <= other.context) {
            let ask = Ask { context: Some(context), ..self.clone() };
            if attempt(format!("{name} instead"), &ask, &Named::Spec(Box::new(other))) {
                break;
            }
        }
        nearest
    }
}

/// The formats of caches.
const KVS: [Kv; 4] = [Kv::F32, Kv::Bf16, Kv::Int4, Kv::K8v4];

/// Rows of logits of a call: as many as `tritterc compile` has by default.
const LOGITS: u32 = 64;

/// The limits of a device.
pub(crate) fn limits(device: &Device) -> Limits {
    Limits {
        device_bytes: device.usable,
        driver_bytes: device.driver_bytes,
        // The memory of a CPU is that of its host.
        host_bytes: device.host_bytes.filter(|_| !device.is_cpu()).unwrap_or(u64::MAX),
    }
}

/// The plan of a program with its weights packed in one way.
pub(crate) fn plan(
    built: &Built,
    target: &Target,
    packing: Packing,
    residency: Residency,
    budget: Budget,
) -> Result<Planned> {
    let options = PlanningOptions {
        rewrite: opt::rewrite_options(true, None, packing),
        context: u64::from(built.context),
        sequences: u64::from(built.sequences),
        residency,
        budget,
    };
    Ok(compiler::plan(&built.program, target, &options)?)
}

pub(crate) fn spec_of(named: &Named) -> Option<&Spec> {
    match named {
        Named::Spec(spec) | Named::Checkpoint { spec, .. } => Some(spec),
        Named::Program { .. } => None,
    }
}

/// The packings that a target's kernels take.
fn packings(target: &Target) -> &'static [Packing] {
    match target.isa() {
        Some(_) => &[Packing::TwoBit, Packing::Base3],
        None => &[Packing::TwoBit],
    }
}

/// How a packing is called on a command line.
pub(crate) fn packing_of(layout: TernaryLayout) -> Packing {
    match layout {
        TernaryLayout::Tile16Base3 => Packing::Base3,
        TernaryLayout::RowMajor4 | TernaryLayout::Blocks4 | TernaryLayout::Tile16 => Packing::TwoBit,
    }
}

fn layout_of(packing: Packing) -> TernaryLayout {
    match packing {
        Packing::Base3 => TernaryLayout::Tile16Base3,
        Packing::Auto | Packing::TwoBit => TernaryLayout::Tile16,
    }
}

/// The name of the caches' format, as `--kv` takes it.
fn kv_name(named: &Named, kv: Option<Kv>) -> String {
    match (kv, spec_of(named)) {
        (Some(kv), _) => kv.name().to_owned(),
        (None, Some(spec)) => {
            KVS.into_iter().find(|&kv| KvFormat::from(kv) == spec.kv).map_or("f32", Kv::name).to_owned()
        }
        (None, None) => "declared".to_owned(),
    }
}
