//! Is every CUDA row a program that NVRTC takes, for every architecture, without running out of registers or shared memory?
//!
//! NVRTC is where `TRITTER_NVRTC` says (the library or its folder), below `CUDA_HOME`, or where the loader finds it; without it the tests say that they
//! are skipped. No GPU is needed.

use std::path::PathBuf;

use compiler::emit::cuda::{CudaError, assemble};
use compiler::emit::nvrtc::{Nvrtc, NvrtcError, Search};
use ir::entity::Id;
use ir::plan::KernelId;
use kernels::cuda::{CUDA_TABLE, CudaKernelDesc, Sm, Specialised};
use tritter_tests::binary::Program::Tritterc;

#[test]
fn rows_compile_for_sm_80() {
    compile_all("sm_80");
}

#[test]
fn rows_compile_for_sm_86() {
    compile_all("sm_86");
}

#[test]
fn rows_compile_for_sm_89() {
    compile_all("sm_89");
}

#[test]
fn rows_compile_for_sm_90a() {
    compile_all("sm_90a");
}

#[test]
fn rows_compile_for_sm_100() {
    compile_all("sm_100");
}

#[test]
fn rows_compile_for_sm_120() {
    compile_all("sm_120");
}

/// Kernels around which code is generated differ from model to model, and none runs out of registers: small and wide ones, with the norms of BitNet and of
/// the original Tritter; and programs that have each found a fault of them.
#[test]
fn whole_models_compile_without_spills() {
    if nvrtc().is_none() {
        return;
    }
    let directory = tempfile::tempdir().expect("a folder for temporary files");
    let out = directory.path().join("out").display().to_string();
    // Where it is elsewhere, the compiler finds it as the test does.
    let explicit = std::env::var("TRITTER_NVRTC").ok();
    let nvrtc = explicit.iter().flat_map(|path| ["--nvrtc", path]);
    let target: Vec<&str> = ["--target", "cuda:sm_90a", "--target", "cuda:sm_80"].into_iter().chain(nvrtc).collect();
    for model in ["125m", "bitnet-2b-4t", "7b", "33b", "70b"] {
        Tritterc.succeed(&[&["compile", model, "-o", &out, "--chunk", "16"], &target[..]].concat());
    }
    // Where a multiprocessor has the same registers and the compiler another opinion.
    let newest = ["compile", "bitnet-2b-4t", "-o", &out, "--chunk", "16", "--target", "cuda:sm_120"];
    Tritterc.succeed(&[&newest[..], &target[4..]].concat());
    let programs =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/fused")).expect("a folder of programs");
    let programs: Vec<String> = programs.map(|entry| entry.expect("a file").path().display().to_string()).collect();
    assert!(!programs.is_empty());
    for program in &programs {
        Tritterc.succeed(&[&["compile", program, "-o", &out], &target[..]].concat());
    }
}

/// 255 registers do not hold 512 sums that are all used again, whatever the order.
#[test]
fn a_kernel_that_spills_is_refused_unless_it_is_allowed_to() {
    let Some(nvrtc) = nvrtc() else { return };
    let source = "extern \"C\" __global__ void __launch_bounds__(1024) KERNEL(float *x) {\n    float sums[512];\n#pragma unroll\n    \
                  for (int i = 0; i < 512; i++) sums[i] = x[i * 1024 + threadIdx.x];\n    __syncthreads();\n#pragma unroll\n    \
                  for (int i = 0; i < 512; i++) x[threadIdx.x * 512 + (i * 7) % 512] = sums[i] * sums[(i + 255) % 512];\n}\n";
    let row = kernels::cuda::find_cuda("ternary_gemv_q8xt2_f32__sm80__r16t1").expect("a row of the table");
    let desc: &'static CudaKernelDesc =
        Box::leak(Box::new(CudaKernelDesc { tokens: row.tokens.clone(), source, defines: &[], fuses: None, ..*row }));
    let special = [(KernelId::new(0), Specialised::new(desc, |_| Some(64)))];
    let sm: Sm = "sm_90a".parse().expect("a known architecture");
    let refused = assemble(&[], &special, &[], false, sm, &nvrtc, false);
    let Err(CudaError::Spills { kernels, .. }) = &refused else { panic!("{refused:?}") };
    assert!(kernels[0].1.spills() && kernels[0].0 == special[0].1.label(), "{kernels:?}");
    assert!(assemble(&[], &special, &[], true, sm, &nvrtc, true).is_ok());
}

/// NVRTC, or why there is none.
fn nvrtc() -> Option<Nvrtc> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let search = Search { explicit: path("TRITTER_NVRTC"), cuda_home: path("CUDA_HOME"), site_packages: Vec::new() };
    match Nvrtc::load(&search) {
        Ok(nvrtc) => Some(nvrtc),
        Err(error @ NvrtcError::NotFound { .. }) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn compile_all(arch: &str) {
    let sm: Sm = arch.parse().expect("a known architecture");
    let Some(nvrtc) = nvrtc() else { return };
    let rows: Vec<&CudaKernelDesc> = CUDA_TABLE.iter().filter(|desc| desc.requires.compiles_for(sm)).collect();
    assert!(!rows.is_empty());
    // What unpacks streamed weights is no row: no op calls it.
    let mut found: Vec<String> =
        assemble(&[], &[], &[], true, sm, &nvrtc, false).err().map(|error| error.to_string()).into_iter().collect();
    for desc in rows {
        // Sizes of a model, and ones that no tile divides.
        for sizes in [model, ragged] {
            if !(desc.takes)(&sizes) {
                continue;
            }
            let special = Specialised::new(desc, |dim| Some(sizes(dim)));
            let cubin = match nvrtc.compile(&special.label(), &special.source(), arch) {
                Ok(cubin) => cubin,
                Err(error) => {
                    found.push(error.to_string());
                    continue;
                }
            };
            assert_eq!(cubin.kernels.len(), 1, "{}: a program is one kernel", special.label());
            let used = &cubin.kernels[0];
            assert_eq!(used.kernel, desc.name);
            // Plain rows are for any device and any sizes, and not for speed.
            if used.spills() && !desc.is_plain() {
                found.push(format!("{} for {arch}: {used:?}", special.label()));
            }
            let shared = u64::from(used.shared_bytes) + special.shared_bytes().expect("all sizes are known");
            if shared_limit(sm) < shared {
                found.push(format!("{} for {arch}: {shared} bytes of shared memory", special.label()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Bytes of shared memory that a block may have.
fn shared_limit(sm: Sm) -> u64 {
    match sm.number {
        80 => 163 << 10,
        90 | 100 => 227 << 10,
        _ => 99 << 10,
    }
}

fn model(dim: &str) -> i64 {
    match dim {
        "k" => 2560,
        "m" => 13824,
        "heads" => 20,
        "kv_heads" => 5,
        "hd" | "group" | "x_stride" => 128,
        "q_stride" | "k_stride" | "v_stride" => 3840,
        "scale_bits" => i64::from(128_f32.sqrt().recip().to_bits()),
        "ctx" => 4096,
        "v" => 128_256,
        "seqs" => 1,
        _ => 0,
    }
}

fn ragged(dim: &str) -> i64 {
    match dim {
        "k" => 331,
        "m" => 67,
        "heads" => 7,
        "kv_heads" => 7,
        "hd" => 45,
        "group" => 64,
        "x_stride" => 400,
        "ctx" => 77,
        "v" => 331,
        "window" => 33,
        "sinks" => 3,
        "seqs" => 2,
        _ => 0,
    }
}
