//! The manifest: which files an artifact has, and what is in them.

use serde::{Deserialize, Serialize};

use super::{ReadError, VERSION};

/// The manifest's own file name.
pub const MANIFEST: &str = "manifest.ron";
/// The file of the [`super::Plan`].
pub const PLAN: &str = "plan.ron";
/// The file of the generated machine code.
pub const CODE: &str = "cpu.bin";
/// The folder of the kernels of a CUDA target: for each a cubin, and the source that it was compiled from.
pub const CUBINS: &str = "kernels/";
/// The file of the packed weights.
pub const WEIGHTS: &str = "weights.safetensors";
/// The file of the tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// What the compiler did and why, for people.
pub const REPORT: &str = "report.txt";

/// The list of an artifact's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`] of the build that wrote it.
    pub version: u32,
    /// The targets that it was compiled for, the first of which has its files beside the manifest. Weights and tokenizer are of all.
    pub targets: Vec<Compilation>,
    /// All other files, in order of their names.
    pub parts: Vec<Part>,
}

/// What an artifact has for one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compilation {
    /// The target, as its plan names it.
    pub target: String,
    /// What stands before the names of its files: nothing, or the name of a folder with a slash. See [`folder`].
    pub folder: String,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name in the directory.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// Its BLAKE3 hash, in hexadecimal.
    pub blake3: String,
}

/// The cubin of a kernel, by the kernel's name.
pub fn cubin(kernel: &str) -> String {
    format!("{CUBINS}{kernel}.cubin")
}

/// The source that a kernel's cubin was compiled from, by the kernel's name.
pub fn cuda_source(kernel: &str) -> String {
    format!("{CUBINS}{kernel}.cu")
}

/// The folder of the files of a target beyond the first: its name with a `-` for all but letters, digits and `_`, and a slash.
pub fn folder(target: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    target.chars().map(plain).chain(['/']).collect()
}

/// Whether a name is that of a folder that [`folder`] gives, or empty: that of the first target.
pub fn is_folder(name: &str) -> bool {
    name.is_empty() || name.strip_suffix('/').is_some_and(|stem| !stem.is_empty() && folder(stem) == name)
}

/// Whether a name is that of a cubin: a plain name in [`CUBINS`].
pub fn is_cubin(file: &str) -> bool {
    file.ends_with(".cubin") && is_kernel_file(file)
}

/// Whether a name is that of a file in [`CUBINS`]: letters, digits, `_`, and one of the two endings.
pub fn is_kernel_file(file: &str) -> bool {
    let stem = file.strip_prefix(CUBINS).and_then(|file| file.strip_suffix(".cubin").or(file.strip_suffix(".cu")));
    stem.is_some_and(|stem| !stem.is_empty() && stem.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
}

impl Manifest {
    /// The manifest as RON.
    pub fn to_ron(&self) -> String {
        let config = ron::ser::PrettyConfig::new().depth_limit(2).indentor("  ");
        let mut text =
            ron::ser::to_string_pretty(self, config).expect("manifests are plain data, which always serialises");
        text.push('\n');
        text
    }

    /// Reads a manifest.
    ///
    /// # Errors
    ///
    /// If it is of another version or damaged.
    pub fn from_ron(text: &str) -> Result<Self, ReadError> {
        #[derive(Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        let syntax = |error: ron::error::SpannedError| ReadError::Syntax {
            line: error.span.start.line,
            col: error.span.start.col,
            message: error.code.to_string(),
        };
        let VersionOnly { version } = ron::from_str(text).map_err(syntax)?;
        if version != VERSION {
            return Err(ReadError::Version { found: version });
        }
        ron::from_str(text).map_err(syntax)
    }

    /// The part of this name.
    pub fn part(&self, file: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.file == file)
    }
}
