//! The device that an artifact was compiled for, whichever that is.

use std::sync::Arc;
use std::time::Duration;

use ir::plan::Plan;

use super::cpu::{CpuDevice, CpuProgram};
use super::cuda::{CudaDevice, CudaProgram, MemoryUse};
use super::{Device, Ticket, Work};
use crate::artifact::CUDA_TARGETS;
use crate::error::RuntimeError;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// A GPU of NVIDIA's.
    Cuda,
}

impl DeviceKind {
    /// What a plan was made for.
    pub fn of(plan: &Plan) -> Self {
        if plan.target.starts_with(CUDA_TARGETS) { DeviceKind::Cuda } else { DeviceKind::Cpu }
    }

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            DeviceKind::Cpu => "a CPU",
            DeviceKind::Cuda => "a CUDA device",
        }
    }
}

/// A device of any kind.
pub enum AnyDevice {
    /// The CPU.
    Cpu(CpuDevice),
    /// A GPU.
    Cuda(CudaDevice),
}

/// A program of any kind of device.
pub enum AnyProgram {
    /// Of the CPU.
    Cpu(Arc<CpuProgram>),
    /// Of a GPU.
    Cuda(CudaProgram),
}

impl AnyDevice {
    /// The threads of a CPU; 1 for a GPU.
    pub fn threads(&self) -> usize {
        match self {
            AnyDevice::Cpu(device) => device.threads(),
            AnyDevice::Cuda(_) => 1,
        }
    }

    /// Bytes a second that the device reads from its memory.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn read_rate(&mut self) -> Result<f64, RuntimeError> {
        match self {
            AnyDevice::Cpu(device) => device.read_rate(),
            AnyDevice::Cuda(device) => device.copy_rate(),
        }
    }

    /// Bytes a second that streamed weights are copied or read with, with nothing beside it; none if none are streamed.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn link_rate(&mut self) -> Result<Option<f64>, RuntimeError> {
        match self {
            AnyDevice::Cpu(device) => device.link_rate(),
            AnyDevice::Cuda(device) => device.link_rate(),
        }
    }

    /// What is taken of a GPU's memory.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn memory_use(&mut self) -> Result<Option<MemoryUse>, RuntimeError> {
        match self {
            AnyDevice::Cpu(_) => Ok(None),
            AnyDevice::Cuda(device) => device.memory_use().map(Some),
        }
    }

    /// Int8 multiply-accumulates a second on registers; 0 for a GPU, where it is not measured.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn dot_rate(&mut self) -> Result<f64, RuntimeError> {
        match self {
            AnyDevice::Cpu(device) => device.dot_rate(),
            AnyDevice::Cuda(_) => Ok(0.0),
        }
    }
}

impl Device for AnyDevice {
    type Program = AnyProgram;

    fn name(&self) -> String {
        match self {
            AnyDevice::Cpu(device) => device.name(),
            AnyDevice::Cuda(device) => device.name(),
        }
    }

    fn load(&self, works: &[Work]) -> Result<AnyProgram, RuntimeError> {
        match self {
            AnyDevice::Cpu(device) => device.load(works).map(AnyProgram::Cpu),
            AnyDevice::Cuda(device) => device.load(works).map(AnyProgram::Cuda),
        }
    }

    fn run(&mut self, program: &AnyProgram, times: Option<&mut Vec<Duration>>) -> Result<(), RuntimeError> {
        match (self, program) {
            (AnyDevice::Cpu(device), AnyProgram::Cpu(program)) => device.run(program, times),
            (AnyDevice::Cuda(device), AnyProgram::Cuda(program)) => device.run(program, times),
            _ => unreachable!("an executor runs programs on the device that loaded them"),
        }
    }

    fn write_i32(&mut self, offset: u64, values: &[i32]) -> Result<(), RuntimeError> {
        match self {
            AnyDevice::Cpu(device) => device.write_i32(offset, values),
            AnyDevice::Cuda(device) => device.write_i32(offset, values),
        }
    }

    fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), RuntimeError> {
        match self {
            AnyDevice::Cpu(device) => device.copy(from, to, bytes),
            AnyDevice::Cuda(device) => device.copy(from, to, bytes),
        }
    }

    fn queue_read(&mut self, offset: u64, count: usize) -> Result<Ticket, RuntimeError> {
        match self {
            AnyDevice::Cpu(device) => device.queue_read(offset, count),
            AnyDevice::Cuda(device) => device.queue_read(offset, count),
        }
    }

    fn finish_read(&mut self, ticket: Ticket) -> Result<&[i32], RuntimeError> {
        match self {
            AnyDevice::Cpu(device) => device.finish_read(ticket),
            AnyDevice::Cuda(device) => device.finish_read(ticket),
        }
    }

    fn runs_ahead(&self) -> usize {
        match self {
            AnyDevice::Cpu(device) => device.runs_ahead(),
            AnyDevice::Cuda(device) => device.runs_ahead(),
        }
    }

    fn read_f32(&mut self, offset: u64, count: usize) -> Result<&[f32], RuntimeError> {
        match self {
            AnyDevice::Cpu(device) => device.read_f32(offset, count),
            AnyDevice::Cuda(device) => device.read_f32(offset, count),
        }
    }
}
