//! From groups to calls: a row of the kernel table where one fits, generated code for the rest.

pub mod cpu;
pub mod cuda;
pub mod nest;
