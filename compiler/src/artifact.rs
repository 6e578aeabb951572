//! The artifact directory: every file written beside its place, hashed as it is written, and moved there whole.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ir::plan::VERSION;
use ir::plan::manifest::{self, Compilation, Manifest, Part};

use crate::pipeline::Compiled;
use crate::weights::WeightSource;
use crate::weights::file::{self as weights_file, WriteWeightsError};

/// Why an artifact could not be written. Nothing is left behind then.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A file or directory could not be written.
    #[error("cannot write {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The weights could not be made.
    #[error("the weights cannot be packed:\n{0}")]
    Weights(WriteWeightsError),
    /// Nothing was compiled.
    #[error("an artifact is for at least one target")]
    NoTarget,
    /// The targets want other weights.
    #[error(
        "the program for `{other}` is not the one for `{first}`, or packs its weights otherwise, so they cannot share them; compile an artifact \
         for each, or with one --packing"
    )]
    Different {
        /// The first target.
        first: String,
        /// Another one.
        other: String,
    },
    /// One target came twice.
    #[error("`{target}` is there twice; an artifact has one plan for each target")]
    Twice {
        /// The target.
        target: String,
    },
    /// Something that is no artifact stands where the artifact is to be.
    #[error(
        "{path} exists and is no artifact, or holds other files too; remove it, or choose another directory with -o"
    )]
    Occupied {
        /// The directory.
        path: PathBuf,
    },
}

/// Bytes and BLAKE3 of what passes through.
struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hasher.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes an artifact for one target: see [`write_all`].
///
/// # Errors
///
/// As [`write_all`].
pub fn write(
    directory: &Path,
    compiled: &Compiled,
    weights: Option<&dyn WeightSource>,
    tokenizer: Option<&[u8]>,
    progress: &dyn Fn(u64) -> io::Result<()>,
) -> Result<u64, ArtifactError> {
    write_all(directory, std::slice::from_ref(compiled), weights, tokenizer, progress)
}

/// Writes an artifact to `directory`, in place of an artifact that may be there, with what one program was compiled to for at least one target: all
/// read the same weights. Without weights it holds all the rest, to be looked at.
///
/// `progress` is told of every byte of weights; an error of its own ends the writing. Returns the size of all files.
///
/// # Errors
///
/// If targets pack weights differently or come twice, or the disk, the weights or the directory do not allow it.
pub fn write_all(
    directory: &Path,
    compiled: &[Compiled],
    weights: Option<&dyn WeightSource>,
    tokenizer: Option<&[u8]>,
    progress: &dyn Fn(u64) -> io::Result<()>,
) -> Result<u64, ArtifactError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| ArtifactError::Io { path, source }
    };
    let Some((first, others)) = compiled.split_first() else { return Err(ArtifactError::NoTarget) };
    let different = |other: &&Compiled| !other.weights.is_as(&first.weights) || other.program != first.program;
    let named = |compiled: &Compiled| compiled.plan.target.clone();
    if let Some(other) = others.iter().find(different) {
        return Err(ArtifactError::Different { first: named(first), other: named(other) });
    }
    let targets: Vec<Compilation> = compiled
        .iter()
        .enumerate()
        .map(|(position, compiled)| Compilation {
            target: named(compiled),
            folder: if position == 0 { String::new() } else { manifest::folder(&compiled.plan.target) },
        })
        .collect();
    if let Some(twice) = (1..targets.len()).find(|&at| targets[..at].iter().any(|it| it.target == targets[at].target)) {
        return Err(ArtifactError::Twice { target: targets[twice].target.clone() });
    }
    if directory.exists() && !is_replaceable(directory) {
        return Err(ArtifactError::Occupied { path: directory.to_owned() });
    }
    let parent = match directory.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(at(parent))?;
    let temporary = tempfile::Builder::new().prefix(".tritter-").tempdir_in(parent).map_err(at(parent))?;
    let mut writer = Writer { directory: temporary.path(), parts: Vec::new() };
    for (compiled, Compilation { folder, .. }) in compiled.iter().zip(&targets) {
        writer.compiled(compiled, folder)?;
    }
    if let Some(tokenizer) = tokenizer {
        writer.bytes(manifest::TOKENIZER, tokenizer)?;
    }
    if let Some(source) = weights {
        writer.part(manifest::WEIGHTS, &mut |out| {
            weights_file::write(&first.program, &first.weights, source, out, progress)
        })?;
    }
    let Writer { mut parts, .. } = writer;
    parts.sort_by(|left, right| left.file.cmp(&right.file));
    let text = Manifest { version: VERSION, targets, parts: parts.clone() }.to_ron();
    let path = temporary.path().join(manifest::MANIFEST);
    fs::write(&path, &text).map_err(at(&path))?;
    move_into_place(temporary, directory).map_err(at(directory))?;
    Ok(parts.iter().map(|part| part.bytes).sum::<u64>() + text.len() as u64)
}

/// Files that the compiler writes for a target.
const OF_TARGET: [&str; 3] = [manifest::PLAN, manifest::CODE, manifest::REPORT];
/// Files that it writes once.
const OF_ALL: [&str; 3] = [manifest::MANIFEST, manifest::WEIGHTS, manifest::TOKENIZER];

/// An artifact may be replaced, and so may an empty directory; one that holds a file of somebody else's may not, for it would be lost.
fn is_replaceable(directory: &Path) -> bool {
    let is_own = |entry: &fs::DirEntry| {
        OF_ALL.iter().any(|own| entry.file_name() == *own) || is_of_target(entry) || is_folder_of_target(entry)
    };
    let is_empty = || fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
    let is_artifact = directory.join(manifest::MANIFEST).is_file();
    is_empty() || (is_artifact && has_only(directory, &is_own))
}

/// Whether a folder has nothing but what `is_own` says.
fn has_only(folder: &Path, is_own: &dyn Fn(&fs::DirEntry) -> bool) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| is_own(&entry))))
}

/// One of the files of a target, or the folder of its kernels.
fn is_of_target(entry: &fs::DirEntry) -> bool {
    let is_kernel = |entry: &fs::DirEntry| {
        let name = entry.file_name().into_string();
        name.is_ok_and(|name| manifest::is_kernel_file(&format!("{}{name}", manifest::CUBINS)))
    };
    OF_TARGET.iter().any(|own| entry.file_name() == *own)
        || (entry.file_name() == manifest::CUBINS.trim_end_matches('/') && has_only(&entry.path(), &is_kernel))
}

/// The folder of a target beyond the first.
fn is_folder_of_target(entry: &fs::DirEntry) -> bool {
    let is_name = entry.file_name().into_string().is_ok_and(|name| manifest::is_folder(&format!("{name}/")));
    is_name && entry.path().join(manifest::PLAN).is_file() && has_only(&entry.path(), &is_of_target)
}

/// Writes one file beside its place and moves it there whole, so that nobody meets half of it.
///
/// # Errors
///
/// If the disk or the place does not allow it.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ArtifactError> {
    let io = |source| ArtifactError::Io { path: path.to_owned(), source };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tritter-");
    // Temporary files are private; this one is as readable as what the user makes otherwise.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(parent).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

fn move_into_place(temporary: tempfile::TempDir, directory: &Path) -> io::Result<()> {
    set_readable(temporary.path())?;
    if directory.exists() {
        // Renaming onto a directory that has files fails, so the old one steps aside first. It is kept until the new one is in its place.
        let parent = temporary.path().parent().unwrap_or(Path::new("."));
        let aside = tempfile::Builder::new().prefix(".tritter-old-").tempdir_in(parent)?;
        let old = aside.path().join("artifact");
        fs::rename(directory, &old)?;
        if let Err(error) = fs::rename(temporary.path(), directory) {
            fs::rename(&old, directory)?;
            return Err(error);
        }
    } else {
        fs::rename(temporary.path(), directory)?;
    }
    // The directory is where it belongs, so there is nothing to clean up.
    let _ = temporary.keep();
    Ok(())
}

/// Temporary directories are private; an artifact is as readable as what the user makes otherwise.
#[cfg(unix)]
fn set_readable(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn set_readable(_: &Path) -> io::Result<()> {
    Ok(())
}

struct Writer<'a> {
    directory: &'a Path,
    parts: Vec<Part>,
}

impl Writer<'_> {
    /// All files of a target.
    fn compiled(&mut self, compiled: &Compiled, folder: &str) -> Result<(), ArtifactError> {
        let make = |name: &str| {
            let path = self.directory.join(name);
            fs::create_dir(&path).map_err(|source| ArtifactError::Io { path, source })
        };
        if !folder.is_empty() {
            make(folder)?;
        }
        if compiled.cuda.is_empty() {
            self.bytes(&format!("{folder}{}", manifest::CODE), &compiled.code.bytes)?;
        } else {
            make(&format!("{folder}{}", manifest::CUBINS))?;
        }
        for kernel in &compiled.cuda {
            self.bytes(&format!("{folder}{}", manifest::cuda_source(&kernel.name)), kernel.source.as_bytes())?;
            self.bytes(&format!("{folder}{}", manifest::cubin(&kernel.name)), &kernel.cubin)?;
        }
        self.bytes(&format!("{folder}{}", manifest::PLAN), compiled.plan.to_ron().as_bytes())?;
        self.bytes(&format!("{folder}{}", manifest::REPORT), compiled.report.to_string().as_bytes())
    }

    fn bytes(&mut self, file: &str, bytes: &[u8]) -> Result<(), ArtifactError> {
        self.part(file, &mut |out| out.write_all(bytes).map_err(WriteWeightsError::Io))
    }

    fn part(
        &mut self,
        file: &str,
        content: &mut dyn FnMut(&mut dyn Write) -> Result<(), WriteWeightsError>,
    ) -> Result<(), ArtifactError> {
        let path = self.directory.join(file);
        let io = |source| ArtifactError::Io { path: path.clone(), source };
        let out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(io)?);
        let mut out = Hashing { inner: out, hasher: blake3::Hasher::new(), bytes: 0 };
        content(&mut out).map_err(|error| match error {
            WriteWeightsError::Io(source) => io(source),
            other => ArtifactError::Weights(other),
        })?;
        out.flush().map_err(io)?;
        out.inner.get_ref().sync_all().map_err(io)?;
        let blake3 = out.hasher.finalize().to_hex().to_string();
        self.parts.push(Part { file: file.to_owned(), bytes: out.bytes, blake3 });
        Ok(())
    }
}
