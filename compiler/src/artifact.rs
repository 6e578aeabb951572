//! The artifact directory: every file written beside its place, hashed as it is written, and moved there whole.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ir::plan::VERSION;
use ir::plan::manifest::{self, Manifest, Part};

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

/// Writes an artifact to `directory`, in place of an artifact that may be there. Without weights it holds all the rest, to be looked at.
///
/// `progress` is told of every byte of weights; an error of its own ends the writing. Returns the size of all files.
///
/// # Errors
///
/// If the disk, the weights or the directory do not allow it.
pub fn write(
    directory: &Path,
    compiled: &Compiled,
    weights: Option<&dyn WeightSource>,
    tokenizer: Option<&[u8]>,
    progress: &dyn Fn(u64) -> io::Result<()>,
) -> Result<u64, ArtifactError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| ArtifactError::Io { path, source }
    };
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

    if compiled.cuda.is_empty() {
        writer.part(manifest::CODE, &mut |out| out.write_all(&compiled.code.bytes).map_err(WriteWeightsError::Io))?;
    } else {
        let path = temporary.path().join(manifest::CUBINS);
        fs::create_dir(&path).map_err(at(&path))?;
    }
    for kernel in &compiled.cuda {
        let contents = [
            (manifest::cuda_source(&kernel.name), kernel.source.as_bytes()),
            (manifest::cubin(&kernel.name), kernel.cubin.as_slice()),
        ];
        for (file, bytes) in contents {
            writer.part(&file, &mut |out| out.write_all(bytes).map_err(WriteWeightsError::Io))?;
        }
    }
    writer.part(manifest::PLAN, &mut |out| {
        out.write_all(compiled.plan.to_ron().as_bytes()).map_err(WriteWeightsError::Io)
    })?;
    let report = compiled.report.to_string();
    writer.part(manifest::REPORT, &mut |out| out.write_all(report.as_bytes()).map_err(WriteWeightsError::Io))?;
    if let Some(tokenizer) = tokenizer {
        writer.part(manifest::TOKENIZER, &mut |out| out.write_all(tokenizer).map_err(WriteWeightsError::Io))?;
    }
    if let Some(source) = weights {
        writer.part(manifest::WEIGHTS, &mut |out| {
            weights_file::write(&compiled.program, &compiled.weights, source, out, progress)
        })?;
    }
    let Writer { mut parts, .. } = writer;
    parts.sort_by(|left, right| left.file.cmp(&right.file));
    let text = Manifest { version: VERSION, parts: parts.clone() }.to_ron();
    let path = temporary.path().join(manifest::MANIFEST);
    fs::write(&path, &text).map_err(at(&path))?;
    move_into_place(temporary, directory).map_err(at(directory))?;
    Ok(parts.iter().map(|part| part.bytes).sum::<u64>() + text.len() as u64)
}

/// An artifact may be replaced, and so may an empty directory; one that holds a file of somebody else's may not, for it would be lost.
fn is_replaceable(directory: &Path) -> bool {
    const OWN: [&str; 6] =
        [manifest::MANIFEST, manifest::PLAN, manifest::CODE, manifest::WEIGHTS, manifest::TOKENIZER, manifest::REPORT];
    let is_kernel = |entry: io::Result<fs::DirEntry>| {
        let name = entry.ok().and_then(|entry| entry.file_name().into_string().ok());
        name.is_some_and(|name| manifest::is_kernel_file(&format!("{}{name}", manifest::CUBINS)))
    };
    let is_kernels = |entry: &fs::DirEntry| {
        entry.file_name() == manifest::CUBINS.trim_end_matches('/')
            && fs::read_dir(entry.path()).is_ok_and(|mut entries| entries.all(is_kernel))
    };
    let is_own = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| OWN.iter().any(|own| entry.file_name() == *own) || is_kernels(&entry))
    };
    let is_empty = || fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
    let is_artifact = directory.join(manifest::MANIFEST).is_file();
    is_empty() || (is_artifact && fs::read_dir(directory).is_ok_and(|mut entries| entries.all(is_own)))
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
            tensors @ WriteWeightsError::Tensors(_) => ArtifactError::Weights(tensors),
        })?;
        out.flush().map_err(io)?;
        out.inner.get_ref().sync_all().map_err(io)?;
        let blake3 = out.hasher.finalize().to_hex().to_string();
        self.parts.push(Part { file: file.to_owned(), bytes: out.bytes, blake3 });
        Ok(())
    }
}
