//! CUDA C becomes a cubin: NVRTC, NVIDIA's compiler as a library, loaded when it is asked for.
//!
//! Nothing of CUDA is linked, so a compiler without NVRTC still compiles for CPUs. Where to look is a value, [`Search`]: this library reads
//! no environment. A program must be whole in itself (it includes nothing), and one compilation depends only on its text, the architecture and the
//! version of NVRTC.
//!
//! Every program is compiled with `--fmad=false`: numerics are part of the contract of a kernel, so a fused multiply-add is written where
//! one is meant.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

/// Where NVRTC may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// The library itself, or the folder that has it. If given, no other place is tried.
    pub explicit: Option<PathBuf>,
    /// The root of an installed toolkit, as `CUDA_HOME` has it.
    pub cuda_home: Option<PathBuf>,
    /// Folders `site-packages` that may have the wheel `nvidia-cuda-nvrtc`.
    pub site_packages: Vec<PathBuf>,
}

/// What the library is called, the newest version first.
const FILE_NAMES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
} else {
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
};

impl Search {
    /// Every file to try, the best first. Bare names are left to the loader, which has paths of its own.
    pub fn candidates(&self) -> Vec<PathBuf> {
        let below = |folder: &Path| FILE_NAMES.iter().map(|name| folder.join(name)).collect::<Vec<_>>();
        if let Some(path) = &self.explicit {
            let mut candidates = vec![path.clone()];
            candidates.extend(below(path));
            return candidates;
        }
        let mut folders = Vec::new();
        if let Some(home) = &self.cuda_home {
            folders.extend(
                ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "bin/x64", "bin"]
                    .map(|each| home.join(each)),
            );
        }
        for site in &self.site_packages {
            folders.extend(
                ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cu13/bin/x86_64"].map(|each| site.join(each)),
            );
        }
        let mut candidates: Vec<PathBuf> = folders.iter().flat_map(|folder| below(folder)).collect();
        candidates.extend(FILE_NAMES.iter().map(PathBuf::from));
        candidates
    }
}

/// Why there is no cubin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NvrtcError {
    /// The library is nowhere.
    #[error(
        "NVRTC, which compiles CUDA C, was not found. Give its path, set CUDA_HOME, put it where the loader looks, or install the Python \
         wheel `nvidia-cuda-nvrtc`. Tried:{}",
        .tried.iter().map(|(path, problem)| format!("\n  {}: {problem}", path.display())).collect::<String>()
    )]
    NotFound {
        /// Every file that was tried, and what was wrong with it.
        tried: Vec<(PathBuf, String)>,
    },
    /// This version of the library is too old for the architecture.
    #[error("NVRTC {version} ({}) does not know {arch}; it knows {}", .path.display(), .known.join(", "))]
    Architecture {
        /// What was asked for.
        arch: String,
        /// The library's version.
        version: Version,
        /// The library.
        path: PathBuf,
        /// What it knows.
        known: Vec<String>,
    },
    /// The program was refused. Always a bug in tritter.
    #[error("internal error: {rejection}")]
    Rejected {
        /// What, and why.
        rejection: Box<Rejection>,
    },
    /// The library failed for a reason that is not the program's.
    #[error("NVRTC failed in {call}: {reason}")]
    Failed {
        /// The function.
        call: &'static str,
        /// What the library calls it.
        reason: String,
    },
}

/// A program that was refused, with all that a person needs to find out why. Whoever reports it writes both texts to files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The program's name.
    pub name: String,
    /// The architecture it was compiled for.
    pub arch: String,
    /// All that the compiler printed.
    pub log: String,
    /// The program.
    pub source: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.log.lines().filter(|line| line.contains("error"));
        let first = errors.chain(self.log.lines()).next().unwrap_or("no log");
        write!(f, "NVRTC rejected `{}` for {}: {first}", self.name, self.arch)
    }
}

/// The version of NVRTC, which is that of its toolkit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// As 13 in 13.0.
    pub major: u32,
    /// As 0 in 13.0.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Machine code for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    /// The ELF file that the driver loads.
    pub bytes: Vec<u8>,
    /// What each kernel uses, in the order of the log.
    pub kernels: Vec<Resources>,
    /// All that the compiler printed; warnings are in it.
    pub log: String,
}

/// What one kernel uses of a multiprocessor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The kernel's name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory of a block that are fixed in the program.
    pub shared_bytes: u32,
    /// Bytes of a thread's local memory, spills included.
    pub stack_bytes: u32,
    /// Bytes that a thread stores because registers ran out.
    pub spill_store_bytes: u32,
    /// Bytes that a thread loads because registers ran out.
    pub spill_load_bytes: u32,
}

impl Resources {
    /// Whether registers ran out.
    pub fn spills(&self) -> bool {
        0 < self.spill_store_bytes + self.spill_load_bytes
    }
}

/// NVRTC, loaded.
#[derive(Debug)]
pub struct Nvrtc {
    api: Api,
    path: PathBuf,
    version: Version,
    architectures: Vec<u32>,
}

impl Nvrtc {
    /// Loads the first library that can be.
    ///
    /// # Errors
    ///
    /// [`NvrtcError::NotFound`] with all places if there is none.
    pub fn load(search: &Search) -> Result<Self, NvrtcError> {
        let mut tried = Vec::new();
        for path in search.candidates() {
            // The loader's message for a missing file is the same for each, and long.
            if path.components().count() != 1 && !path.is_file() {
                tried.push((path, "no such file".to_owned()));
                continue;
            }
            match Api::load(&path) {
                Ok(api) => return Self::new(api, path),
                Err(problem) => tried.push((path, problem)),
            }
        }
        Err(NvrtcError::NotFound { tried })
    }

    fn new(mut api: Api, path: PathBuf) -> Result<Self, NvrtcError> {
        let version = api.version()?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            api.load_builtins(folder, version);
        }
        let architectures = api.architectures()?;
        Ok(Self { api, path, version, architectures })
    }

    /// The file it was loaded from, or the name that the loader found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Compiles a program, called `name` in messages, for an architecture such as `sm_90a`.
    ///
    /// # Errors
    ///
    /// If the library is too old for the architecture, or refuses the program.
    pub fn compile(&self, name: &str, source: &str, arch: &str) -> Result<Cubin, NvrtcError> {
        self.check_architecture(arch)?;
        let rejected = |log: String| {
            let rejection = Rejection { name: name.to_owned(), arch: arch.to_owned(), log, source: source.to_owned() };
            NvrtcError::Rejected { rejection: Box::new(rejection) }
        };
        let text =
            |text: &str| CString::new(text).map_err(|error| rejected(format!("a text with a zero byte: {error}")));
        let options = [
            format!("--gpu-architecture={arch}"),
            "--std=c++17".to_owned(),
            "--fmad=false".to_owned(),
            // Device code is all there is here; and what a kernel uses is read from the log.
            "--device-as-default-execution-space".to_owned(),
            "--ptxas-options=-v".to_owned(),
        ];
        let options = options.iter().map(|option| text(option)).collect::<Result<Vec<_>, _>>()?;
        let program = Program::new(&self.api, &text(source)?, &text(name)?)?;
        let outcome = program.compile(&options);
        let log = program.log()?;
        match outcome {
            Ok(()) => Ok(Cubin { bytes: program.cubin()?, kernels: read_resources(&log), log }),
            Err(NvrtcError::Failed { .. }) if !log.trim().is_empty() => Err(rejected(log)),
            Err(error) => Err(error),
        }
    }

    fn check_architecture(&self, arch: &str) -> Result<(), NvrtcError> {
        let digits = arch.strip_prefix("sm_").map(|rest| rest.trim_end_matches(['a', 'f']));
        let number: Option<u32> = digits.and_then(|digits| digits.parse().ok());
        if number.is_some_and(|number| self.architectures.contains(&number)) {
            return Ok(());
        }
        let known = self.architectures.iter().map(|number| format!("sm_{number}")).collect();
        Err(NvrtcError::Architecture { arch: arch.to_owned(), version: self.version, path: self.path.clone(), known })
    }
}

/// What the assembler's messages say about each kernel:
///
/// ```text
/// ptxas info    : Compiling entry function 'name' for 'sm_90a'
/// ptxas info    : Function properties for name
/// ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 12 registers, used 1 barriers, 400 bytes smem
/// ```
///
/// Functions that were not inlined have properties of their own, after those of the kernel.
fn read_resources(log: &str) -> Vec<Resources> {
    let mut kernels: Vec<Resources> = Vec::new();
    let mut is_kernel = false;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or(rest).to_owned();
            kernels.push(Resources { kernel, ..Resources::default() });
        }
        let Some(last) = kernels.last_mut() else { continue };
        if let Some((_, function)) = line.split_once("Function properties for ") {
            is_kernel = function.trim() == last.kernel;
        }
        if is_kernel && line.contains("bytes stack frame") {
            last.stack_bytes = number_before(line, " bytes stack frame");
            last.spill_store_bytes = number_before(line, " bytes spill stores");
            last.spill_load_bytes = number_before(line, " bytes spill loads");
        }
        if line.contains(": Used ") {
            last.registers = number_before(line, " registers");
            last.shared_bytes = number_before(line, " bytes smem");
        }
    }
    kernels
}

/// The number that ends where `unit` starts; 0 if there is none.
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.split_once(unit).map_or("", |(before, _)| before);
    let digits = before.rsplit(|each: char| !each.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// `nvrtcResult`: 0 is success.
type Status = c_int;
/// `nvrtcProgram`.
type Handle = *mut c_void;

/// The functions of the library. Their types are those of `nvrtc.h`, which are the same since version 11.2.
#[derive(Debug)]
struct Api {
    get_error_string: unsafe extern "C" fn(Status) -> *const c_char,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    num_supported_archs: unsafe extern "C" fn(*mut c_int) -> Status,
    supported_archs: unsafe extern "C" fn(*mut c_int) -> Status,
    create_program: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy_program: unsafe extern "C" fn(*mut Handle) -> Status,
    compile_program: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
    log: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    /// The library that the compiler's own headers are in, where it had to be loaded by hand.
    _builtins: Option<Library>,
    /// Last, so that it is unloaded after everything else.
    _library: Library,
}

/// Fills the struct of functions: a field, and the symbol it is.
macro_rules! functions {
    ($library:expr, $($field:ident = $symbol:literal),*) => {
        Api {
            $($field: {
                // SAFETY: the symbol is a function of this type in every version of the library, and is not called after the library
                // is unloaded, because the struct owns both.
                let symbol = unsafe { $library.get($symbol) };
                *symbol.map_err(|error| error.to_string())?
            },)*
            _builtins: None,
            _library: $library,
        }
    };
}

impl Api {
    fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: what runs when NVRTC is loaded is its own set-up, which has no preconditions.
        let library = unsafe { Library::new(path) }.map_err(|error| error.to_string())?;
        Ok(functions!(
            library,
            get_error_string = b"nvrtcGetErrorString\0",
            version = b"nvrtcVersion\0",
            num_supported_archs = b"nvrtcGetNumSupportedArchs\0",
            supported_archs = b"nvrtcGetSupportedArchs\0",
            create_program = b"nvrtcCreateProgram\0",
            destroy_program = b"nvrtcDestroyProgram\0",
            compile_program = b"nvrtcCompileProgram\0",
            log_size = b"nvrtcGetProgramLogSize\0",
            log = b"nvrtcGetProgramLog\0",
            cubin_size = b"nvrtcGetCUBINSize\0",
            cubin = b"nvrtcGetCUBIN\0"
        ))
    }

    /// The library opens a second one by its bare name, which the loader does not find in a Python wheel's folder unless it is loaded
    /// already. If that fails here, the first compilation says so.
    fn load_builtins(&mut self, folder: &Path, version: Version) {
        let path = folder.join(format!("libnvrtc-builtins.so.{version}"));
        if path.is_file() {
            // SAFETY: it holds data for NVRTC; loading it has no preconditions.
            self._builtins = unsafe { Library::new(path) }.ok();
        }
    }

    fn check(&self, call: &'static str, status: Status) -> Result<(), NvrtcError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: any number is allowed.
        let text = unsafe { (self.get_error_string)(status) };
        let reason = if text.is_null() {
            format!("status {status}")
        } else {
            // SAFETY: the library returns a text that ends in zero and lives as long as the library.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(NvrtcError::Failed { call, reason })
    }

    fn version(&self) -> Result<Version, NvrtcError> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are places for a number.
        let status = unsafe { (self.version)(&raw mut major, &raw mut minor) };
        self.check("nvrtcVersion", status)?;
        Ok(Version { major: major.unsigned_abs(), minor: minor.unsigned_abs() })
    }

    fn architectures(&self) -> Result<Vec<u32>, NvrtcError> {
        let mut count = 0;
        // SAFETY: it is a place for a number.
        let status = unsafe { (self.num_supported_archs)(&raw mut count) };
        self.check("nvrtcGetNumSupportedArchs", status)?;
        let mut numbers = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: there is room for as many numbers as the library said.
        let status = unsafe { (self.supported_archs)(numbers.as_mut_ptr()) };
        self.check("nvrtcGetSupportedArchs", status)?;
        Ok(numbers.into_iter().map(c_int::unsigned_abs).collect())
    }
}

/// One compilation.
struct Program<'a> {
    api: &'a Api,
    handle: Handle,
}

impl<'a> Program<'a> {
    fn new(api: &'a Api, source: &CStr, name: &CStr) -> Result<Self, NvrtcError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the texts end in zero, and the library copies them; there are no headers.
        let status = unsafe {
            (api.create_program)(&raw mut handle, source.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        };
        api.check("nvrtcCreateProgram", status)?;
        Ok(Self { api, handle })
    }

    fn compile(&self, options: &[CString]) -> Result<(), NvrtcError> {
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).expect("there are a handful of options");
        // SAFETY: the program is alive, and there are as many texts that end in zero as the count says.
        let status = unsafe { (self.api.compile_program)(self.handle, count, pointers.as_ptr()) };
        self.api.check("nvrtcCompileProgram", status)
    }

    fn log(&self) -> Result<String, NvrtcError> {
        let bytes = self.read("nvrtcGetProgramLog", self.api.log_size, self.api.log)?;
        Ok(String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(&bytes)).into_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        self.read("nvrtcGetCUBIN", self.api.cubin_size, self.api.cubin)
    }

    fn read(
        &self,
        call: &'static str,
        size_of: unsafe extern "C" fn(Handle, *mut usize) -> Status,
        get: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, NvrtcError> {
        let mut size = 0;
        // SAFETY: the program is alive, and this is a place for a size.
        let status = unsafe { size_of(self.handle, &raw mut size) };
        self.api.check(call, status)?;
        let mut bytes = vec![0_u8; size];
        // SAFETY: the program is alive, and there is room for as many bytes as the library said.
        let status = unsafe { get(self.handle, bytes.as_mut_ptr().cast()) };
        self.api.check(call, status)?;
        Ok(bytes)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the program is alive and is not used after this. A failure leaks it, and nothing else.
        let _ = unsafe { (self.api.destroy_program)(&raw mut self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explicit_path_is_the_only_place() {
        let search = Search {
            explicit: Some("/opt/nvrtc".into()),
            cuda_home: Some("/usr/local/cuda".into()),
            ..Search::default()
        };
        let candidates = search.candidates();
        assert_eq!(candidates[0], Path::new("/opt/nvrtc"));
        assert!(candidates.iter().all(|path| path.starts_with("/opt/nvrtc")), "{candidates:?}");
    }

    #[test]
    fn toolkit_comes_before_wheel_and_the_loader_last() {
        let search = Search { explicit: None, cuda_home: Some("/cuda".into()), site_packages: vec!["/site".into()] };
        let candidates = search.candidates();
        let first = |start: &str| candidates.iter().position(|path| path.starts_with(start)).unwrap();
        assert!(first("/cuda") < first("/site"));
        assert_eq!(candidates.last().unwrap(), Path::new(FILE_NAMES.last().unwrap()));
    }

    #[test]
    fn a_missing_library_names_every_place() {
        let search = Search { explicit: Some("/nowhere/at/all".into()), ..Search::default() };
        let error = Nvrtc::load(&search).unwrap_err();
        let NvrtcError::NotFound { tried } = &error else { panic!("{error}") };
        assert_eq!(tried.len(), 1 + FILE_NAMES.len());
        let text = error.to_string();
        assert!(tried.iter().all(|(path, _)| text.contains(path.to_str().unwrap())), "{text}");
        assert!(text.contains("CUDA_HOME") && text.contains("nvidia-cuda-nvrtc"), "{text}");
    }

    #[test]
    fn resources_are_those_of_kernels_and_not_of_their_functions() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
ptxas         .     16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for helper
ptxas         .     99 bytes stack frame, 99 bytes spill stores, 99 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 400 bytes smem
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, 372 bytes cmem[0]
";
        let first = Resources {
            kernel: "first".to_owned(),
            registers: 12,
            shared_bytes: 400,
            stack_bytes: 16,
            spill_store_bytes: 4,
            spill_load_bytes: 8,
        };
        let second = Resources { kernel: "second".to_owned(), registers: 255, ..Resources::default() };
        assert!(first.spills() && !second.spills());
        assert_eq!(read_resources(log), [first, second]);
    }

    #[test]
    fn a_rejection_leads_with_the_first_error() {
        let rejection = Rejection {
            name: "k".to_owned(),
            arch: "sm_80".to_owned(),
            log: "k(1): warning: unused\nk(2): error: expected a \";\"\n".to_owned(),
            source: String::new(),
        };
        assert_eq!(rejection.to_string(), "NVRTC rejected `k` for sm_80: k(2): error: expected a \";\"");
    }
}
