//! The bytes of all generated kernels of one artifact, and where each kernel starts.

use std::collections::HashSet;
use std::sync::Arc;

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::isa::{self, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, FinalizedRelocTarget};
use kernels::{Arch, Isa};

use super::{CodeTarget, EmitError, clif};
use crate::nest::Verified;

/// Kernels start at multiples of this many bytes: a cache line, and more than any constant of theirs asks for.
pub const ALIGNMENT: usize = 64;

/// Machine code that needs no linker. Map `bytes` at a multiple of [`ALIGNMENT`], executable, and call a symbol's offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Code {
    /// The code of all kernels.
    pub bytes: Vec<u8>,
    /// Where each is, in the order of the nests.
    pub symbols: Vec<Symbol>,
    /// What each looks like, in the order of the nests; empty unless asked for.
    pub listings: Vec<Listing>,
}

/// One kernel in [`Code::bytes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// The nest's name.
    pub name: String,
    /// The byte it starts at, where it is also entered.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
}

/// One kernel for reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The nest's name.
    pub name: String,
    /// Cranelift IR before any optimisation.
    pub clif: String,
    /// The machine instructions, as Cranelift writes them.
    pub assembly: String,
}

/// Generates code for `nests`; equal input gives equal bytes. `listings`: whether to keep the texts.
///
/// # Errors
///
/// [`EmitError`] for the first nest without code.
pub fn assemble(nests: &[&Verified], target: CodeTarget, listings: bool) -> Result<Code, EmitError> {
    let isa = target_isa(target)?;
    let padding = match target.arch() {
        Arch::X86_64 => 0xcc, // int3: nobody should get here.
        Arch::Aarch64 => 0,   // udf
    };
    let mut names = HashSet::new();
    let mut code = Code::default();
    for &nest in nests {
        if !names.insert(&nest.name) {
            return Err(EmitError::DuplicateName { name: nest.name.clone() });
        }
        let mut context = Context::for_function(clif::function(nest, target, isa.frontend_config()));
        context.set_disasm(listings);
        let clif = if listings { context.func.display().to_string() } else { String::new() };
        let refused = |reason: String| EmitError::Codegen { nest: nest.name.clone(), target, reason };
        let compiled = context
            .compile(isa.as_ref(), &mut ControlPlane::default())
            .map_err(|error| refused(format!("{}\n{}", error.inner, error.func.display())))?;
        if let Some(relocation) = compiled.buffer.relocs().first() {
            let to = match &relocation.target {
                FinalizedRelocTarget::ExternalName(name) => format!("{name:?}"),
                FinalizedRelocTarget::Func(offset) => format!("offset {offset}"),
            };
            let relocation = format!("{:?} at {} to {to}", relocation.kind, relocation.offset);
            return Err(EmitError::Relocation { nest: nest.name.clone(), target, relocation });
        }
        if ALIGNMENT < compiled.buffer.alignment as usize {
            return Err(refused(format!("it asks for an alignment of {}", compiled.buffer.alignment)));
        }
        code.bytes.resize(code.bytes.len().next_multiple_of(ALIGNMENT), padding);
        let bytes = compiled.buffer.data();
        code.symbols.push(Symbol { name: nest.name.clone(), offset: code.bytes.len() as u64, len: bytes.len() as u64 });
        code.bytes.extend_from_slice(bytes);
        if listings {
            let assembly = compiled.vcode.clone().unwrap_or_default();
            code.listings.push(Listing { name: nest.name.clone(), clif, assembly });
        }
    }
    Ok(code)
}

/// The code generator of a target.
fn target_isa(target: CodeTarget) -> Result<Arc<dyn TargetIsa>, EmitError> {
    let refused = |reason: String| EmitError::Target { target, reason };
    let mut shared = settings::builder();
    let settings = [
        ("opt_level", "speed"),
        ("is_pic", "true"),
        ("enable_verifier", "true"),
        // A row that is kept on the stack may be larger than the page that guards its end.
        ("enable_probestack", "true"),
        ("probestack_strategy", "inline"),
        ("unwind_info", "false"),
    ];
    for (name, value) in settings {
        shared.set(name, value).map_err(|error| refused(error.to_string()))?;
    }
    let mut builder = isa::lookup_by_name(target.arch().name()).map_err(|error| refused(error.to_string()))?;
    // The 512-bit features would only change how 128-bit vectors are handled, to no gain; all that have them have AVX2.
    let features: &[&str] = match target.isa() {
        Isa::Scalar | Isa::Neon => &[],
        Isa::Avx2 | Isa::Avx512Vnni => &["has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_avx", "has_avx2"],
    };
    for feature in features {
        builder.enable(feature).map_err(|error| refused(error.to_string()))?;
    }
    builder.finish(settings::Flags::new(shared)).map_err(|error| refused(error.to_string()))
}
