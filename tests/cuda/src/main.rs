//! Conformance and speed of the CUDA kernels, as one program that a GPU machine runs alone: it carries their sources, and needs NVRTC and a driver.
//!
//! ```text
//! tritter-cuda conform [--only TEXT]      every row against the scalar row, bit for bit, or within its bound
//! tritter-cuda bench [--only TEXT]        time in graphs with a cold L2, beside the read rate of the same run
//! tritter-cuda resources [--arch sm_90a]  registers, spills and shared memory of each row; needs no GPU
//! ```

mod gpu;
mod case;
mod bound;
mod rope;
mod gradient;
mod check;
mod bench;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use compiler::emit::nvrtc::{Cubin, Nvrtc, Search};
use kernels::cuda::{CUDA_TABLE, CudaKernelDesc, Sm, Specialised};

use crate::gpu::Gpu;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Only rows whose name has one of these texts in it.
    #[arg(long, global = true, value_delimiter = ',')]
    only: Vec<String>,
    /// NVRTC: the library or its folder. Otherwise CUDA_HOME and the loader's path.
    #[arg(long, global = true)]
    nvrtc: Option<PathBuf>,
    /// A folder `site-packages` that may have the wheel of NVRTC.
    #[arg(long, global = true)]
    site_packages: Vec<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Every row against the scalar row.
    Conform {
        /// One of several processes that share the programs: 0/3, 1/3 and 2/3 together are all of them.
        #[arg(long, default_value = "0/1")]
        part: check::Part,
    },
    /// Times.
    Bench {
        /// Other geometries of the rows too.
        #[arg(long)]
        explore: bool,
    },
    /// What each row uses, for the sizes of a 2B model.
    Resources {
        #[arg(long, default_value = "sm_90a")]
        arch: String,
        /// A folder for their sources and their code.
        #[arg(long)]
        save: Option<PathBuf>,
    },
}

/// NVRTC and the architecture to compile for.
pub(crate) struct Compiler {
    nvrtc: Nvrtc,
    sm: Sm,
    /// The last program and its code: cases that differ in the tokens alone follow each other.
    last: RefCell<Option<(String, Cubin)>>,
}

impl Compiler {
    /// Machine code of a specialisation.
    pub(crate) fn compile(&self, special: &Specialised) -> Result<Cubin> {
        let source = special.source();
        let mut last = self.last.borrow_mut();
        if let Some((_, cubin)) = last.as_ref().filter(|(known, _)| *known == source) {
            return Ok(cubin.clone());
        }
        let cubin = self.nvrtc.compile(&special.label(), &source, &self.sm.to_string())?;
        *last = Some((source, cubin.clone()));
        Ok(cubin)
    }

    fn new(nvrtc: Nvrtc, sm: Sm) -> Self {
        Self { nvrtc, sm, last: RefCell::new(None) }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let search = Search {
        explicit: arguments.nvrtc.clone(),
        cuda_home: std::env::var_os("CUDA_HOME").map(PathBuf::from),
        site_packages: arguments.site_packages.clone(),
    };
    let nvrtc = Nvrtc::load(&search)?;
    let is_wanted = |desc: &&'static CudaKernelDesc| {
        arguments.only.is_empty() || arguments.only.iter().any(|text| desc.name.contains(text.as_str()))
    };
    match &arguments.command {
        Command::Resources { arch, save } => {
            let sm = arch.parse().ok().with_context(|| format!("no architecture `{arch}`"))?;
            let compiler = Compiler::new(nvrtc, sm);
            CUDA_TABLE
                .iter()
                .filter(is_wanted)
                .filter(|desc| desc.requires.compiles_for(sm))
                .try_for_each(|desc| resources(&compiler, desc, save.as_deref()))
        }
        Command::Conform { part } => {
            let (gpu, compiler) = open(nvrtc)?;
            let mut failures = 0;
            for desc in CUDA_TABLE.iter().filter(is_wanted).filter(|desc| desc.requires.compiles_for(compiler.sm)) {
                match check::conform(&gpu, &compiler, desc, *part) {
                    Ok(check::Conformance { cases, worst: None }) => println!("{}: {cases} cases agree", desc.name),
                    Ok(check::Conformance { cases, worst: Some(worst) }) => {
                        println!("{}: {cases} cases within their bound, at most {worst:.3} of it", desc.name);
                    }
                    Err(error) => {
                        failures += 1;
                        println!("{}: FAILED: {error:#}", desc.name);
                    }
                }
            }
            if 0 < failures {
                bail!("{failures} rows failed");
            }
            Ok(())
        }
        Command::Bench { explore } => {
            let (gpu, compiler) = open(nvrtc)?;
            let rows: Vec<_> =
                CUDA_TABLE.iter().filter(is_wanted).filter(|desc| desc.requires.compiles_for(compiler.sm)).collect();
            bench::run(&gpu, &compiler, &rows, *explore)
        }
    }
}

/// The GPU, and a compiler for the best architecture that it runs.
fn open(nvrtc: Nvrtc) -> Result<(Gpu, Compiler)> {
    let gpu = Gpu::open()?;
    let (major, minor) = gpu.capability()?;
    let best = Sm::ALL.into_iter().filter(|sm| sm.runs_on(major, minor)).max();
    let sm = best.with_context(|| format!("no kernel runs on compute capability {major}.{minor}"))?;
    println!("{}, compute capability {major}.{minor}, {sm}, NVRTC {}", gpu.name()?, nvrtc.version());
    Ok((gpu, Compiler::new(nvrtc, sm)))
}

fn resources(compiler: &Compiler, desc: &'static CudaKernelDesc, save: Option<&Path>) -> Result<()> {
    let takes = |hd: i64| (desc.takes)(&|name| if name == "hd" { hd } else { bench::typical(name) });
    let hd = [bench::typical("hd"), 64].into_iter().find(|&hd| takes(hd)).unwrap_or(128);
    let special = Specialised::new(desc, |name| Some(if name == "hd" { hd } else { bench::typical(name) }));
    let cubin = compiler.compile(&special)?;
    if let Some(folder) = save {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        std::fs::write(folder.join(format!("{}.cu", desc.name)), special.source())?;
        std::fs::write(folder.join(format!("{}.cubin", desc.name)), &cubin.bytes)?;
    }
    // What the assembler has to say beyond its usual lines.
    for line in cubin.log.lines().filter(|line| ["warning", "wgmma"].iter().any(|word| line.contains(word))) {
        println!("{line}");
    }
    for each in cubin.kernels {
        println!(
            "{}: {} registers, {} + {} bytes shared, {} stack, {} + {} spilled",
            special.label(),
            each.registers,
            each.shared_bytes,
            special.shared_bytes().unwrap_or(0),
            each.stack_bytes,
            each.spill_store_bytes,
            each.spill_load_bytes
        );
    }
    Ok(())
}
