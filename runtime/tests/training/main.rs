//! Runs of training, with a trainer of a few numbers: data, checkpoints, and what happens when something goes wrong.

extern crate tritter_runtime as runtime;

mod toy;
mod broken;
mod shards;
mod batches;
mod config;
mod checkpoints;
mod runs;
mod killed;
mod cli;
#[path = "../common/mod.rs"]
mod common;
