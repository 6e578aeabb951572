//! `tritterc matrix`: for each card the largest model that runs on it, or can be trained there.

use std::process::ExitCode;

use anyhow::Result;
use compiler::report::human_bytes;
use compiler::target::cards::cards;
use models::Spec;
use serde_json::{Value, json};

use crate::fit::{self, Ask, Device, Train};
use crate::model::{BuildArgs, Head, Kv, Named};
use crate::{say, say_json};

/// Prints, for every card of the hardware table, the largest shipped model for inference, QLoRA and full training.
///
/// Sizes are those of plans, of as much of a card as its size leaves. Training is counted, not planned.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  tritterc matrix\n  tritterc matrix --context 32768 --json")]
pub(crate) struct Args {
    /// Positions that the caches hold.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    context: u32,
    /// Format of the key-value cache.
    #[arg(long, value_enum, default_value = "int4")]
    kv: Kv,
    /// Tokens of a training sequence.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// The most tokens of a call: enough to keep any card busy.
const CHUNK: u32 = 512;

/// The largest model of a kind on a card.
struct Largest {
    model: &'static str,
    /// Bytes of the card that it takes.
    device_bytes: u64,
    /// Bytes of host memory, and time of a token, for inference.
    inference: Option<(u64, u64)>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let models: Vec<(&'static str, Named)> =
        shipped_by_size().into_iter().map(|(name, spec)| (name, Named::Spec(Box::new(spec)))).collect();
    let mut rows = Vec::new();
    for card in cards() {
        let device = Device::of_card(card);
        let columns = [
            largest_inference(args, &models, &device, false)?,
            largest_inference(args, &models, &device, true)?,
            largest_training(args, &models, &device, Train::Qlora)?,
            largest_training(args, &models, &device, Train::Full)?,
        ];
        rows.push((device, columns));
    }
    match args.json {
        true => say_json(&json(args, &rows))?,
        false => say(&text(args, &rows))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The shipped specs, by their number of parameters.
pub(crate) fn shipped_by_size() -> Vec<(&'static str, Spec)> {
    let mut specs: Vec<(&'static str, Spec)> =
        models::shipped().iter().filter_map(|(name, text)| Some((*name, models::spec::read(text).ok()?))).collect();
    specs.sort_by_key(|(_, spec)| parameters(spec).unwrap_or(u64::MAX));
    specs
}

/// The number of a model's parameters.
pub(crate) fn parameters(spec: &Spec) -> Option<u64> {
    let args = BuildArgs { context: Some(1), kv: None, head: Head::Stored, chunk: 1, sequences: 1, logits: 1 };
    let built = crate::model::build(&Named::Spec(Box::new(spec.clone())), &args).ok()?;
    Some(built.params.iter().map(ir::param::ParamBinding::elements).sum())
}

/// The largest model that runs; with its layers on the card, or streamed as far as they have to be.
fn largest_inference(
    args: &Args,
    models: &[(&'static str, Named)],
    device: &Device,
    streaming: bool,
) -> Result<Option<Largest>> {
    for (model, named) in models.iter().rev() {
        let ask = Ask {
            logits: None,
            context: Some(args.context),
            sequences: 1,
            kv: vec![args.kv],
            head: Head::Stored,
            chunk: Some(CHUNK),
            prompt: None,
            streaming,
        };
        if !holds(named, args.context) {
            continue;
        }
        let (_, found) = ask.choose(named, device)?;
        if let Ok(found) = found {
            let device_bytes = found.point.device_bytes + device.driver_bytes;
            return Ok(Some(Largest {
                model,
                device_bytes,
                inference: Some((found.point.host_bytes, found.point.token_ns)),
            }));
        }
    }
    Ok(None)
}

fn largest_training(
    args: &Args,
    models: &[(&'static str, Named)],
    device: &Device,
    train: Train,
) -> Result<Option<Largest>> {
    for (model, named) in models.iter().rev().filter(|(_, named)| holds(named, args.tokens)) {
        let device_bytes = fit::count(named, device, args.tokens, train)?.total().saturating_add(device.driver_bytes);
        if device_bytes <= device.usable {
            return Ok(Some(Largest { model, device_bytes, inference: None }));
        }
    }
    Ok(None)
}

/// Whether a model takes sequences of this length.
fn holds(named: &Named, context: u32) -> bool {
    fit::spec_of(named).is_some_and(|spec| context <= spec.context)
}

type Row = (Device, [Option<Largest>; 4]);

fn text(args: &Args, rows: &[Row]) -> String {
    let mut text = format!(
        "The largest shipped model on each card, with what it takes: inference with {} positions in {} caches, with all layers on the card or streamed;\n\
         training with one sequence of {} tokens, which is counted, not planned.\n\n",
        args.context,
        args.kv.name(),
        args.tokens
    );
    text += &format!(
        "{:<12} {:>9}  {:<28} {:<46} {:<20} {:<20}\n",
        "card", "usable", "inference", "streamed", "QLoRA", "full training"
    );
    for (device, columns) in rows {
        let shown: Vec<String> = columns.iter().map(|column| column.as_ref().map_or("-".to_owned(), cell)).collect();
        let usable = human_bytes(device.usable);
        let line = format!(
            "{:<12} {usable:>9}  {:<28} {:<46} {:<20} {:<20}",
            device.name, shown[0], shown[1], shown[2], shown[3]
        );
        text += line.trim_end();
        text.push('\n');
    }
    let foreign: Vec<&str> = cards().iter().filter(|card| card.capability.is_none()).map(|card| card.name).collect();
    text += &format!(
        "\nNo code is generated for {}: planned with the sizes of the kernels for other cards.\n",
        foreign.join(", ")
    );
    text
}

fn cell(largest: &Largest) -> String {
    let Largest { model, device_bytes, inference } = largest;
    let mut cell = format!("{model} {}", human_bytes(*device_bytes));
    if let Some((host_bytes, token_ns)) = inference {
        if 0 < *host_bytes {
            cell += &format!(" + {} host", human_bytes(*host_bytes));
        }
        cell += &format!(", {:.0} tok/s", 1e9 / (*token_ns).max(1) as f64);
    }
    cell
}

fn json(args: &Args, rows: &[Row]) -> Value {
    let column = |largest: &Option<Largest>| match largest {
        None => Value::Null,
        Some(Largest { model, device_bytes, inference: Some((host_bytes, token_ns)) }) => json!({
            "model": model, "device_bytes": device_bytes, "host_bytes": host_bytes, "token_seconds": *token_ns as f64 / 1e9,
        }),
        Some(Largest { model, device_bytes, inference: None }) => {
            json!({ "model": model, "device_bytes": device_bytes, "is_plan": false })
        }
    };
    let cards = rows.iter().map(|(device, [inference, streamed, qlora, full])| {
        json!({
            "card": device.name,
            "usable_bytes": device.usable,
            "inference": column(inference),
            "streamed": column(streamed),
            "qlora": column(qlora),
            "full": column(full),
        })
    });
    let cards: Vec<Value> = cards.collect();
    json!({ "context": args.context, "tokens": args.tokens, "cards": cards })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_in_the_order_of_their_parameters() {
        let sizes: Vec<u64> =
            shipped_by_size().iter().map(|(_, spec)| parameters(spec).expect("it can be built")).collect();
        assert_eq!(sizes.len(), models::shipped().len());
        assert!(sizes.is_sorted() && 69_000_000_000 < sizes[sizes.len() - 1]);
    }
}
