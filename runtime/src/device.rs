//! What the executor needs of a device: to hold a program's memory, and to run a list of launches in order.
//!
//! A device is made from an opened artifact and owns the weights, the slab and the code. The executor resolves a phase of the plan for the
//! sizes of a call into [`Work`], which [`Device::load`] turns into the device's own form once; calls of the same sizes run that again.

pub mod any;
pub mod cpu;
pub mod cuda;
pub(crate) mod reader;

use std::time::Duration;

use ir::plan::KernelId;

use crate::error::RuntimeError;

/// A byte that kernels read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Of the weights that stay on the device.
    Resident(u64),
    /// Of the weights that stay in the host's memory, counted from the start of all weights.
    Host(u64),
    /// Of the slab.
    Slab(u64),
}

/// One thing to do. Each starts when all before it are done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Compute all units of a kernel's grid.
    Launch {
        /// The kernel of the plan.
        kernel: KernelId,
        /// Its units along each axis; at least 1. A CPU's kernels have one axis, the first.
        grid: [u64; 3],
        /// Its pointers.
        args: Vec<Place>,
        /// Its sizes.
        dims: Vec<i64>,
    },
    /// Copy bytes.
    Copy {
        /// Source.
        from: Place,
        /// Destination, in the slab.
        to: u64,
        /// How many; at least 1.
        bytes: u64,
    },
    /// Go on when a piece of the streamed weights is in its slot.
    Await {
        /// Which.
        piece: usize,
    },
    /// A piece is needed no more in this call: its slot is free for the next.
    Release {
        /// Which.
        piece: usize,
    },
}

/// Integers that a device was asked to read: see [`Device::queue_read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The number of the reading, counted from 0.
    pub(crate) number: u64,
    /// How many integers.
    pub(crate) count: usize,
}

/// How many readings may be under way: the one before them is forgotten.
pub const READINGS: u64 = 4;

impl Ticket {
    /// Confirms that the reading is one of the last, of `queued` in all.
    fn expect_kept(self, queued: u64) {
        let Ticket { number, .. } = self;
        assert!(number < queued && queued <= number + READINGS, "reading {number} of {queued} is forgotten");
    }
}

/// Something that runs programs.
///
/// Programs are trusted, as artifacts are: that the places and dims of a launch fit its kernel was promised by the compiler, and a device
/// confirms only that the places are inside their address spaces.
pub trait Device {
    /// A list of work in the device's own form. It keeps alive what it points to.
    type Program;

    /// What it is, for reports.
    fn name(&self) -> String;

    /// Prepares work to be run any number of times.
    ///
    /// # Errors
    ///
    /// If the device cannot take it.
    ///
    /// # Panics
    ///
    /// If a place is outside its address space or a kernel is not in the plan: the executor has checked both.
    fn load(&self, works: &[Work]) -> Result<Self::Program, RuntimeError>;

    /// Does all the work in order, after what was written before. With `times`, returns when it is done and appends how long each took; without, a
    /// GPU may still work, and what reads or writes next waits for it.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Panicked`] if a kernel did not return; the device can be used further, what is in the slab cannot. [`RuntimeError::Cuda`]
    /// if a GPU failed, which cannot be used further.
    fn run(&mut self, program: &Self::Program, times: Option<&mut Vec<Duration>>) -> Result<(), RuntimeError>;

    /// Writes integers to the slab.
    ///
    /// # Errors
    ///
    /// If a GPU failed.
    ///
    /// # Panics
    ///
    /// If they leave it.
    fn write_i32(&mut self, offset: u64, values: &[i32]) -> Result<(), RuntimeError>;

    /// Queues a copy within the slab, after what was written and run before.
    ///
    /// # Errors
    ///
    /// If a GPU failed.
    ///
    /// # Panics
    ///
    /// If a region leaves it.
    fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), RuntimeError>;

    /// Queues the reading of integers of the slab as they are when all before is done, and does not wait for it.
    ///
    /// # Errors
    ///
    /// If a GPU failed.
    ///
    /// # Panics
    ///
    /// If they leave it.
    fn queue_read(&mut self, offset: u64, count: usize) -> Result<Ticket, RuntimeError>;

    /// The integers of a reading, once it is done.
    ///
    /// # Errors
    ///
    /// If a GPU failed.
    ///
    /// # Panics
    ///
    /// If [`READINGS`] others were queued since.
    fn finish_read(&mut self, ticket: Ticket) -> Result<&[i32], RuntimeError>;

    /// How many calls had best be queued beyond the one whose result is waited for: none where a call does its work at once.
    fn runs_ahead(&self) -> usize;

    /// Reads floats of the slab, which stay until the next call.
    ///
    /// # Errors
    ///
    /// If a GPU failed.
    ///
    /// # Panics
    ///
    /// If they leave it, or `offset` is not a multiple of 4.
    fn read_f32(&mut self, offset: u64, count: usize) -> Result<&[f32], RuntimeError>;
}
