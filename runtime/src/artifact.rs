//! Opens an artifact: reads every file, confirms that nothing is missing, damaged or foreign, and maps the weights.
//!
//! Everything is confirmed before anything runs, and all problems are reported at once. The generated code is copied out of its file, and
//! the small files are read whole, so what was checked is what is used. The weights are mapped, not copied.

mod check;
mod target;

pub(crate) use check::CUDA as CUDA_TARGETS;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use ir::plan::manifest::{self, Compilation, Manifest, Part};
use ir::plan::{Home, Placement, Plan, ReadError};
use memmap2::{Mmap, MmapMut};

use crate::device::any::DeviceKind;
use crate::device::reader::{Pieces, ReadAt};
use crate::error::{ArtifactProblem, RuntimeError};

/// Bytes that are hashed between two reports of progress: some milliseconds.
const HASH_CHUNK: usize = 8 << 20;

/// An artifact that was read and checked.
#[derive(Debug)]
pub struct Artifact {
    /// Its directory.
    pub dir: PathBuf,
    /// What to do.
    pub plan: Plan,
    /// The weights.
    pub weights: WeightMap,
    /// Generated machine code of a CPU.
    pub code: Vec<u8>,
    /// The cubins of a GPU, by their files.
    pub cubins: BTreeMap<String, Vec<u8>>,
    /// The tokenizer's file, if there is one.
    pub tokenizer: Option<Vec<u8>>,
    /// Bytes of the files that were read: those of the target, and of all.
    pub bytes: u64,
}

impl Artifact {
    /// The directory that it was read from.
    pub(crate) fn dir(&self) -> PathBuf {
        self.weights.path().parent().map_or_else(PathBuf::new, Path::to_owned)
    }

    /// Opens the artifact in `dir`: of its targets, if it has several, the best one that this machine has, on the kind of device that `wanted` names.
    /// It holds machine code, so it must come from someone you would run a program of.
    ///
    /// `progress` is told how many bytes of how many are read.
    ///
    /// # Errors
    ///
    /// If the manifest or the plan cannot be read, [`RuntimeError::NoTarget`] if none of several targets is here, and [`RuntimeError::Artifact`] with
    /// all problems of all files otherwise.
    pub fn open(
        dir: &Path,
        wanted: Option<DeviceKind>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, RuntimeError> {
        let path = dir.join(manifest::MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(RuntimeError::io("read", &path))?;
        let mut manifest = Manifest::from_ron(&text).map_err(|source| RuntimeError::Read { path, source })?;

        let mut problems = Vec::new();
        let names: Vec<&str> = manifest.targets.iter().map(|compilation| compilation.target.as_str()).collect();
        let chosen = target::choose(&names, wanted)?;
        let folder = match manifest.targets.get(chosen) {
            Some(Compilation { folder, .. }) if manifest::is_folder(folder) => folder.clone(),
            Some(Compilation { folder, .. }) => {
                problems.push(ArtifactProblem::FileName { file: folder.clone() });
                String::new()
            }
            None => String::new(),
        };
        // What the other targets have is not read. Names are those within the folder from here on.
        let others: Vec<String> =
            manifest.targets.iter().map(|it| it.folder.clone()).filter(|it| *it != folder).collect();
        let is_of_all = |part: &Part| [manifest::WEIGHTS, manifest::TOKENIZER].contains(&part.file.as_str());
        manifest.parts.retain(|part| {
            let is_others = |other: &String| !other.is_empty() && part.file.starts_with(other.as_str());
            is_of_all(part) || (part.file.starts_with(&folder) && !others.iter().any(is_others))
        });
        let place = |part: &Part| if is_of_all(part) { dir.to_owned() } else { dir.join(&folder) };
        let places: Vec<PathBuf> = manifest.parts.iter().map(place).collect();
        for part in manifest.parts.iter_mut().filter(|part| !is_of_all(part)) {
            part.file = part.file[folder.len()..].to_owned();
        }
        // A GPU's code is in cubins, whatever the plan will say of them.
        let has_cubins = manifest.parts.iter().any(|part| manifest::is_cubin(&part.file));
        for file in [manifest::PLAN, manifest::CODE, manifest::WEIGHTS] {
            if manifest.part(file).is_none() && !(file == manifest::CODE && has_cubins) {
                problems.push(ArtifactProblem::NotListed { file });
            }
        }
        let total = manifest.parts.iter().map(|part| part.bytes).fold(0, u64::saturating_add);
        let mut done = 0;
        let (mut plan, mut code, mut tokenizer, mut weights) = (None, Vec::new(), None, None);
        let mut cubins = BTreeMap::new();
        for (part, place) in manifest.parts.iter().zip(&places) {
            let contents = match read_part(place, part, &mut |bytes| progress(done + bytes, total)) {
                Ok(contents) => contents,
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            };
            done = done.saturating_add(part.bytes);
            match (part.file.as_str(), contents) {
                (manifest::PLAN, Contents::Read(bytes)) => plan = Some(bytes),
                (manifest::CODE, Contents::Read(bytes)) => code = bytes,
                (file, Contents::Read(bytes)) if manifest::is_cubin(file) => {
                    cubins.insert(file.to_owned(), bytes);
                }
                (manifest::TOKENIZER, Contents::Read(bytes)) => tokenizer = Some(bytes),
                (manifest::WEIGHTS, Contents::Mapped(map, file)) => weights = Some((map, file)),
                (manifest::WEIGHTS, Contents::Read(_)) => {
                    problems.push(ArtifactProblem::Header { message: "the file is empty".to_owned() });
                }
                _ => {}
            }
        }

        let plan = match plan.map(String::from_utf8) {
            None => None,
            Some(Err(_)) => {
                problems.push(ArtifactProblem::NotText { file: manifest::PLAN.to_owned() });
                None
            }
            // A plan that cannot be read is reported for itself only if its file is as it was written; else the damage is the cause.
            Some(Ok(text)) => match Plan::from_ron(&text) {
                Ok(plan) => Some(plan),
                Err(source) if problems.is_empty() || matches!(source, ReadError::Version { .. }) => {
                    return Err(RuntimeError::Read { path: dir.join(&folder).join(manifest::PLAN), source });
                }
                Err(_) => None,
            },
        };
        if let Some(plan) = &plan {
            check::target(plan, &mut problems);
            check::interface(plan, &mut problems);
            check::sizes(plan, &mut problems);
            let code_bytes = manifest.part(manifest::CODE).map_or(0, |part| part.bytes);
            check::kernels(plan, code_bytes, &|file| manifest.part(file).is_some(), &mut problems);
            check::copies(plan, &mut problems);
        }
        let data_start = weights.as_ref().and_then(|(map, _)| check::weights(map, plan.as_ref(), &mut problems));
        match (plan, weights, data_start) {
            (Some(plan), Some((map, file)), Some(data_start)) if problems.is_empty() => {
                let weights = WeightMap {
                    map: Some(map),
                    data_start,
                    file: Some((file, data_start)),
                    path: dir.join(manifest::WEIGHTS),
                };
                Ok(Self { dir: dir.into(), plan, weights, code, cubins, tokenizer, bytes: total })
            }
            _ => Err(RuntimeError::Artifact { dir: dir.into(), problems }),
        }
    }
}

/// A file of the artifact.
enum Contents {
    Read(Vec<u8>),
    /// What was hashed, mapped, and its file: later readings are of the same one, whatever its name comes to mean.
    Mapped(Mmap, Arc<WatchedFile>),
}

fn read_part(dir: &Path, part: &Part, progress: &mut dyn FnMut(u64)) -> Result<Contents, ArtifactProblem> {
    let name = || part.file.clone();
    let is_plain = Path::new(&part.file).components().eq([std::path::Component::Normal(part.file.as_ref())]);
    if !is_plain && !manifest::is_kernel_file(&part.file) {
        return Err(ArtifactProblem::FileName { file: name() });
    }
    let path = dir.join(&part.file);
    let unreadable = |error: std::io::Error| ArtifactProblem::Unreadable { file: name(), message: error.to_string() };
    let file = File::open(&path).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?.len();
    if found != part.bytes {
        return Err(ArtifactProblem::Size { file: name(), expected: part.bytes, found });
    }
    let mut hasher = blake3::Hasher::new();
    let contents = if part.file == manifest::WEIGHTS && 0 < found {
        let map = map(&file).map_err(unreadable)?;
        let file = Arc::new(WatchedFile::new(file).map_err(unreadable)?);
        // Read, not looked at through the map, whose pages would count as this program's memory.
        let mut buffer = vec![0; HASH_CHUNK];
        let mut done = 0;
        while done < part.bytes {
            let count = usize::try_from(part.bytes - done).unwrap_or(HASH_CHUNK).min(HASH_CHUNK);
            file.fill_at(done, &mut buffer[..count]).map_err(|(_, error)| unreadable(error))?;
            hasher.update(&buffer[..count]);
            done += count as u64;
            progress(done);
        }
        Contents::Mapped(map, file)
    } else {
        let bytes = std::fs::read(&path).map_err(unreadable)?;
        for (number, chunk) in bytes.chunks(HASH_CHUNK).enumerate() {
            hasher.update(chunk);
            progress((number * HASH_CHUNK + chunk.len()) as u64);
        }
        Contents::Read(bytes)
    };
    let found = hasher.finalize().to_hex();
    if !found.as_str().eq_ignore_ascii_case(&part.blake3) {
        return Err(ArtifactProblem::Hash { file: name(), expected: part.blake3.clone(), found: found.to_string() });
    }
    Ok(contents)
}

/// A file that is read again later, and must be as it was then.
#[derive(Debug)]
pub(crate) struct WatchedFile {
    file: File,
    bytes: u64,
    modified: Option<SystemTime>,
}

impl WatchedFile {
    fn new(file: File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { bytes: metadata.len(), modified: metadata.modified().ok(), file })
    }

    /// Confirms that nobody has written to it since, as far as the system says when that was.
    fn check(&self) -> std::io::Result<()> {
        let metadata = self.file.metadata()?;
        let is_same = metadata.len() == self.bytes && metadata.modified().ok() == self.modified;
        let changed = || std::io::Error::new(std::io::ErrorKind::InvalidData, "it was changed since it was opened");
        if is_same { Ok(()) } else { Err(changed()) }
    }
}

impl ReadAt for Arc<WatchedFile> {
    fn read_at(&self, offset: u64, to: &mut [u8]) -> std::io::Result<usize> {
        let count = ReadAt::read_at(&self.file, offset, to)?;
        // A file that lost its end has another length, too; that it ended says more.
        if count != 0 {
            self.check()?;
        }
        Ok(count)
    }
}

/// Maps a file: weights, and tokens to train on.
pub(crate) fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read, as plain bytes that may have any value. Whoever changes or shortens the file of a running model breaks
    // that model's results or ends its process with a bus error, but no value that Rust relies on: what says where things are is read once.
    let map = unsafe { Mmap::map(file) }?;
    // A hint: some systems can map large pages of a file, and then fewer addresses have to be translated.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

/// Bytes that the system can still give, if it says so.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Memory of zeros, on huge pages where the system has them.
fn anonymous(bytes: usize) -> std::io::Result<MmapMut> {
    let map = MmapMut::map_anon(bytes.max(1))?;
    // A hint that a system may not know.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

/// For each segment that stays on the device, where it begins there, and its bytes among all weights.
pub(crate) fn resident_segments(placement: &Placement) -> impl Iterator<Item = (u64, Range<usize>)> {
    placement.segments.iter().filter_map(|segment| match segment.home {
        Home::Device(at) => Some((at, segment.offset as usize..(segment.offset + segment.bytes) as usize)),
        Home::Host | Home::Slot(_) => None,
    })
}

/// Where the weights of a running model are read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightPages {
    /// The file, mapped: several processes share it, and opening copies nothing.
    #[default]
    Mapped,
    /// A copy in memory of its own, on huge pages where the system has them.
    Copied,
}

/// The weights' data, read-only.
#[derive(Debug)]
pub struct WeightMap {
    map: Option<Mmap>,
    /// Where the data starts in the map.
    data_start: usize,
    /// The file that was checked, and where the data starts in it.
    file: Option<(Arc<WatchedFile>, usize)>,
    path: PathBuf,
}

impl WeightMap {
    /// No weights.
    pub fn empty() -> Self {
        Self { map: None, data_start: 0, file: None, path: PathBuf::new() }
    }

    /// The bytes of all tensors: offsets in the plan count from its start, which is aligned to [`ir::plan::ALIGNMENT`].
    pub fn data(&self) -> &[u8] {
        self.map.as_ref().map_or(&[], |map| &map[self.data_start..])
    }

    /// The same weights in memory of their own, on huge pages where the system has them: a token reads every page of the weights, and one
    /// translation of an address then serves 2 MiB instead of 4 KiB. The file is let go.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Memory`] if the system has no room for them beside what is in use.
    pub fn copied(self) -> Result<Self, RuntimeError> {
        let Some(map) = &self.map else { return Ok(self) };
        let data = &map[self.data_start..];
        let bytes = data.len() as u64;
        let error = |source| RuntimeError::Memory { bytes, purpose: "a copy of the weights", source };
        // Systems promise more than they have, so what is there is asked for first.
        if available_bytes().is_some_and(|available| available < bytes) {
            return Err(error(std::io::ErrorKind::OutOfMemory.into()));
        }
        let mut copy = anonymous(data.len()).map_err(error)?;
        copy[..data.len()].copy_from_slice(data);
        let copy = copy.make_read_only().map_err(error)?;
        Ok(Self { map: Some(copy), data_start: 0, file: self.file, path: self.path })
    }

    /// The part of the weights that stays on the device, in memory of its own.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Memory`] if the system has no room for it.
    pub(crate) fn resident(&self, placement: &Placement) -> Result<Mmap, RuntimeError> {
        let bytes = placement.resident_bytes;
        let error = |source| RuntimeError::Memory { bytes, purpose: "the weights that stay in memory", source };
        if available_bytes().is_some_and(|available| available < bytes) {
            return Err(error(std::io::ErrorKind::OutOfMemory.into()));
        }
        let length = usize::try_from(bytes).map_err(|_| error(std::io::ErrorKind::OutOfMemory.into()))?;
        let mut copy = anonymous(length).map_err(error)?;
        let Some((file, start)) = &self.file else { return copy.make_read_only().map_err(error) };
        for (at, segment) in resident_segments(placement) {
            let to = &mut copy[at as usize..][..segment.len()];
            let read = file.fill_at((start + segment.start) as u64, to);
            read.map_err(|(_, source)| source).map_err(RuntimeError::io("read", &self.path))?;
        }
        copy.make_read_only().map_err(error)
    }

    /// What the weights are read from piece by piece; none if there are no weights.
    pub(crate) fn pieces(&self, placement: &Placement) -> Option<Pieces> {
        let (file, start) = self.file.as_ref()?;
        let places = placement.pieces().map(|(segment, _)| (*start as u64 + segment.offset, segment.bytes as usize));
        Some(Pieces { file: Box::new(Arc::clone(file)), path: self.path.clone(), places: places.collect() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
