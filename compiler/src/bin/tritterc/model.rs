//! What the word MODEL on a command line means, and the program it gives.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use compiler::Target;
use compiler::weights::Checkpoint;
use ir::packing::TernaryLayout;
use ir::param::{Init, Stored};
use ir::plan::Tuning;
use ir::{DType, Program, Verified};
use models::adapter::Adapters;
use models::decoder::Model;
use models::import::SpecialIds;
use models::spec::{KvFormat, TokenizerKind};
use models::{BuildOptions, HeadFormat, Naming, ParamBinding, Spec};
use tokenizer::Tokenizer;

/// How to build a program from a spec.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct BuildArgs {
    /// Positions that the caches hold [default: the model's, at most 4096].
    #[arg(long, value_name = "N")]
    pub context: Option<u32>,
    /// Format of the key-value cache: exact, halved, 4 bits, or keys in 8 and values in 4 bits [default: the spec's, else f32].
    #[arg(long, value_enum)]
    pub kv: Option<Kv>,
    /// Format of a dense head: as the checkpoint has it, int8, or 4 bits in groups.
    #[arg(long, value_enum, default_value = "stored")]
    pub head: Head,
    /// The most tokens in one call: longer prompts go through in chunks.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub chunk: u32,
    /// Sequences that can be held at a time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub sequences: u32,
    /// The most rows of logits in one call.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub logits: u32,
}

/// A format of the key-value cache.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kv {
    F32,
    Bf16,
    Int4,
    K8v4,
}

impl Kv {
    /// What it is called on a command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kv::F32 => "f32",
            Kv::Bf16 => "bf16",
            Kv::Int4 => "int4",
            Kv::K8v4 => "k8v4",
        }
    }
}

/// A format of the head's weights.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    Stored,
    Int8,
    Int4,
}

impl From<Head> for HeadFormat {
    fn from(head: Head) -> HeadFormat {
        match head {
            Head::Stored => HeadFormat::Stored,
            Head::Int8 => HeadFormat::Int8,
            Head::Int4 => HeadFormat::Int4,
        }
    }
}

impl From<Kv> for KvFormat {
    fn from(kv: Kv) -> KvFormat {
        match kv {
            Kv::F32 => KvFormat::F32,
            Kv::Bf16 => KvFormat::Bf16,
            Kv::Int4 => KvFormat::Int4,
            Kv::K8v4 => KvFormat::K8v4,
        }
    }
}

/// The longest context that is not asked for: caches cost memory, and few need more.
pub(crate) const DEFAULT_CONTEXT: u32 = 4096;

/// A target with the rates of a tuning file, if one is given.
pub(crate) fn tuned(target: &Target, tuning: Option<&Path>) -> Result<Target> {
    let Some(path) = tuning else { return Ok(target.clone()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let tuning = Tuning::from_ron(&text).map_err(|errors| anyhow!("{}:\n{errors}", path.display()))?;
    target.clone().with_tuning(&tuning).with_context(|| path.display().to_string())
}

/// A model as named on a command line, before it is built.
pub(crate) enum Named {
    /// A spec without weights.
    Spec(Box<Spec>),
    /// A checkpoint.
    Checkpoint {
        spec: Box<Spec>,
        naming: Naming,
        special: SpecialIds,
        checkpoint: Checkpoint,
        directory: PathBuf,
        surplus: Vec<String>,
    },
    /// A program in the text form.
    Program { text: String, path: PathBuf },
}

/// A program, and where its weights come from.
pub(crate) struct Built {
    pub program: Verified<Program>,
    pub params: Vec<ParamBinding>,
    /// Those of adapters, which come from a file of their own.
    pub adapters: Vec<ParamBinding>,
    pub context: u32,
    pub sequences: u32,
}

/// Finds out what MODEL means.
pub(crate) fn find(model: &str) -> Result<Named> {
    let path = Path::new(model);
    if path.is_dir() {
        return open_checkpoint(path);
    }
    if path.is_file() {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        return match path.extension().and_then(|extension| extension.to_str()) {
            Some("ron") => {
                let spec = models::spec::read(&text)
                    .map_err(|errors| anyhow!("{}: the spec has errors\n{errors}", path.display()))?;
                Ok(Named::Spec(Box::new(spec)))
            }
            Some("tri") => Ok(Named::Program { text, path: path.to_owned() }),
            _ => bail!("{} is neither a checkpoint directory, nor a .ron spec, nor a .tri program", path.display()),
        };
    }
    match models::find_shipped(model) {
        Some(text) => {
            let spec = models::spec::read(text)
                .map_err(|errors| anyhow!("internal error: the shipped spec {model}:\n{errors}"))?;
            Ok(Named::Spec(Box::new(spec)))
        }
        None => {
            let names: Vec<&str> = models::shipped().iter().map(|(name, _)| *name).collect();
            bail!("there is no file, directory or shipped spec `{model}`; shipped specs: {}", names.join(", "))
        }
    }
}

fn open_checkpoint(directory: &Path) -> Result<Named> {
    let config = directory.join("config.json");
    let config = std::fs::read_to_string(&config).with_context(|| {
        format!("cannot read {}; a checkpoint is a directory with config.json and safetensors", config.display())
    })?;
    let checkpoint = Checkpoint::open(directory).map_err(|errors| anyhow!(lines(&errors)))?;
    let imported = models::import::import(&config, &checkpoint.headers())
        .map_err(|errors| anyhow!("{} cannot be imported:\n{errors}", directory.display()))?;
    let mut spec = imported.spec;
    if spec.name.is_empty() {
        spec.name = directory.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    }
    Ok(Named::Checkpoint {
        spec: Box::new(spec),
        naming: imported.naming,
        special: imported.special,
        checkpoint,
        directory: directory.to_owned(),
        surplus: imported.surplus,
    })
}

/// One item a line.
pub(crate) fn lines<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Builds the program of a model.
pub(crate) fn build(named: &Named, args: &BuildArgs) -> Result<Built> {
    build_adapted(named, args, None)
}

/// The same with adapters, if there are any.
pub(crate) fn build_adapted(named: &Named, args: &BuildArgs, adapters: Option<&Adapters>) -> Result<Built> {
    let (spec, naming) = match named {
        Named::Spec(spec) => (spec, Naming::Own),
        Named::Checkpoint { spec, naming, .. } => (spec, *naming),
        Named::Program { path, .. } if adapters.is_some() => {
            bail!("{} is a program; adapters stand beside a model", path.display())
        }
        Named::Program { text, path } => {
            let program = parse(text, path)?;
            let (sequences, context) = cache_size(&program).unwrap_or((args.sequences, args.context.unwrap_or(1)));
            return Ok(Built { params: params_of(&program), adapters: Vec::new(), program, context, sequences });
        }
    };
    let context = args.context.unwrap_or(spec.context.min(DEFAULT_CONTEXT));
    let chunk = args.chunk.min(context.saturating_mul(args.sequences).max(1));
    let options = BuildOptions {
        context,
        sequences: args.sequences,
        chunk,
        logits: args.logits.min(chunk),
        kv: args.kv.map_or(spec.kv, KvFormat::from),
        head: args.head.into(),
        naming,
    };
    let model = match adapters {
        Some(adapters) => models::decoder::build_adapted(spec, &options, adapters),
        None => models::build(spec, &options),
    };
    let Model { program, params, adapters } =
        model.map_err(|error| anyhow!("`{}` cannot be built: {error}", spec.name))?;
    Ok(Built { program, params, adapters, context, sequences: args.sequences })
}

/// Sequences and positions of a program's caches, if it has any.
fn cache_size(program: &Program) -> Option<(u32, u32)> {
    let states = program.graphs.iter().flat_map(|graph| graph.states().map(|(state, _)| graph.ty(state)));
    let mut caches = states.filter_map(|ty| match ty.shape.dims() {
        [sequences, _, context, _] => sequences.as_const().zip(context.as_const()),
        _ => None,
    });
    let (sequences, context) = caches.next()?;
    Some((u32::try_from(sequences).ok()?, u32::try_from(context).ok()?))
}

/// The parameters of a program that no spec describes: what their types say, to be filled with random numbers.
fn params_of(program: &Program) -> Vec<ParamBinding> {
    let mut params: Vec<ParamBinding> = Vec::new();
    for graph in &program.graphs {
        for (id, key) in graph.params() {
            if params.iter().any(|param| *param.key == **key) {
                continue;
            }
            let ty = graph.ty(id).clone();
            let (stored, init) = match ty.dtype {
                DType::T2 => (Stored::Ternary(TernaryLayout::RowMajor4), Init::Ternary),
                _ => (
                    Stored::Float,
                    Init::Normal { std: 1.0 / (ty.shape.last_const().unwrap_or(1).max(1) as f32).sqrt() },
                ),
            };
            let rounds = u32::try_from(program.rounds(&graph.name)).unwrap_or(u32::MAX);
            params.push(ParamBinding { key: key.to_string(), source: key.to_string(), rounds, ty, stored, init });
        }
    }
    params
}

/// A program from its text, with every error under its line.
pub(crate) fn parse(text: &str, path: &Path) -> Result<Verified<Program>> {
    let (program, map) =
        ir::text::parse_with_positions(text).map_err(|errors| anyhow!("{}:\n{}", path.display(), errors.show(text)))?;
    let errors = ir::verify::check(&program);
    if !errors.is_empty() {
        let notes: Vec<_> = errors.iter().map(|error| (map.locate(&program, error), error.cause.to_string())).collect();
        bail!("{} is not well formed:\n{}", path.display(), ir::text::show(text, &notes));
    }
    ir::verify(program).map_err(|errors| anyhow!("{} is not well formed:\n{errors}", path.display()))
}

/// The program that MODEL means.
pub(crate) fn program(model: &str, args: &BuildArgs) -> Result<Verified<Program>> {
    Ok(build(&find(model)?, args)?.program)
}

/// The tokenizer file of the artifact, if the model has a tokenizer: the checkpoint's own, or the bytes of a spec that says so.
pub(crate) fn tokenizer(named: &Named) -> Result<Option<Vec<u8>>> {
    let (spec, special, directory) = match named {
        Named::Checkpoint { spec, special, directory, .. } => (spec, special.clone(), Some(directory)),
        Named::Spec(spec) => (spec, SpecialIds::default(), None),
        Named::Program { .. } => return Ok(None),
    };
    let path = directory.map(|directory| directory.join("tokenizer.json")).filter(|path| path.exists());
    let tokenizer = match (path, spec.tokenizer) {
        (Some(path), _) => {
            let json = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let read = Tokenizer::from_hugging_face(&json, special.bos, &special.eos);
            read.map_err(|error| anyhow!("{} cannot be used: {error}", path.display()))?
        }
        (None, TokenizerKind::Bytes) => Tokenizer::bytes(),
        (None, _) => return Ok(None),
    };
    Ok(Some(tokenizer.to_json().into_bytes()))
}
