//! How aarch64 code runs on another machine: as a program of its own, without any library, under qemu's user emulation.

use std::io::{Read, Seek, Write as _};
use std::process::Command;

use tritter_compiler::emit::{Code, CodeTarget, assemble};
use tritter_compiler::nest::Verified;

const EMULATOR: &str = "qemu-aarch64";

/// Where the program lies in memory.
const BASE: u64 = 0x40_0000;

/// Bytes of the ELF header, of the one program header, and padding.
const HEADERS: usize = 128;

/// Bytes of the start-up instructions; the numbers they load follow.
const INSTRUCTIONS: usize = 64;

/// Whether the emulator is installed.
pub(crate) fn is_available() -> bool {
    Command::new(EMULATOR).arg("--version").output().is_ok()
}

/// The buffers after the code for `target` has run over the units `0..units`. Buffers have no alignment and stand between guard bytes.
pub(crate) fn run_code(nest: &Verified, target: CodeTarget, buffers: &[Vec<u8>], dims: &[i64]) -> Vec<Vec<u8>> {
    let code = assemble(&[nest], target, false).unwrap();
    let units = nest.units(dims).unwrap();
    let (program, places, memory) = program(&code, buffers, dims, units);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nest");
    std::fs::write(&path, program).unwrap();
    let mut executable = Command::new("chmod");
    assert!(executable.arg("+x").arg(&path).status().unwrap().success());
    let mut output = tempfile::tempfile().unwrap();
    let status = Command::new(EMULATOR).arg(&path).stdout(output.try_clone().unwrap()).status().unwrap();
    assert!(status.success(), "{status}\n{}", **nest);
    output.flush().unwrap();
    output.rewind().unwrap();
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), memory.len());

    let mut guards = memory;
    for (place, buffer) in places.iter().zip(buffers) {
        guards[*place..place + buffer.len()].copy_from_slice(&bytes[*place..place + buffer.len()]);
    }
    assert_eq!(guards, bytes, "a guard byte was overwritten");
    places.iter().zip(buffers).map(|(place, buffer)| bytes[*place..place + buffer.len()].to_vec()).collect()
}

/// A static program that calls the first kernel of `code` and writes the memory of the buffers to its standard output; with it the place of
/// each buffer in that memory, and the memory before.
fn program(code: &Code, buffers: &[Vec<u8>], dims: &[i64], units: i64) -> (Vec<u8>, Vec<usize>, Vec<u8>) {
    let mut memory = vec![0xA5; 16];
    let mut places = Vec::new();
    for (at, buffer) in buffers.iter().enumerate() {
        memory.resize(memory.len() + 16 + at % 7, 0xA5);
        places.push(memory.len());
        memory.extend_from_slice(buffer);
    }
    memory.resize(memory.len() + 64, 0xA5);

    // The parts after the instructions and their numbers, in this order.
    let code_start = (HEADERS + INSTRUCTIONS + 7 * 8).next_multiple_of(64);
    let args_start = (code_start + code.bytes.len()).next_multiple_of(16);
    let dims_start = args_start + 8 * buffers.len();
    let memory_start = dims_start + 8 * dims.len();
    let address = |offset: usize| BASE + offset as u64;

    let numbers = [
        address(args_start),
        address(dims_start),
        0,
        units as u64,
        address(code_start) + code.symbols[0].offset,
        address(memory_start),
        memory.len() as u64,
    ];
    // ldr x<register>, <number>: relative to the instruction.
    let load = |at: usize, register: u32, number: usize| {
        let distance = (INSTRUCTIONS + 8 * number - 4 * at) as u32 / 4;
        0x5800_0000 | distance << 5 | register
    };
    let instructions = [
        load(0, 0, 0),
        load(1, 1, 1),
        load(2, 2, 2),
        load(3, 3, 3),
        load(4, 9, 4),
        0xd63f_0120, // blr x9
        load(6, 1, 5),
        load(7, 2, 6),
        0xd280_0020, // mov x0, 1: standard output
        0xd280_0808, // mov x8, 64: write
        0xd400_0001, // svc 0
        0xd280_0000, // mov x0, 0
        0xd280_0ba8, // mov x8, 93: exit
        0xd400_0001, // svc 0
    ];

    let size = (memory_start + memory.len()) as u64;
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend_from_slice(&[2, 0, 183, 0, 1, 0, 0, 0]); // executable, aarch64
    for field in [address(HEADERS), 64, 0] {
        file.extend_from_slice(&field.to_le_bytes());
    }
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]); // one segment: read, write, execute
    for field in [0, BASE, BASE, size, size, 0x1_0000] {
        file.extend_from_slice(&field.to_le_bytes());
    }
    file.resize(HEADERS, 0);
    file.extend(instructions.iter().flat_map(|instruction| instruction.to_le_bytes()));
    file.resize(HEADERS + INSTRUCTIONS, 0);
    file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    file.resize(code_start, 0);
    file.extend_from_slice(&code.bytes);
    file.resize(args_start, 0);
    file.extend(places.iter().flat_map(|place| address(memory_start + place).to_le_bytes()));
    file.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
    file.extend_from_slice(&memory);
    (file, places, memory)
}
