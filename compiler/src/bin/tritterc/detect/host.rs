//! The memory of this machine that is free for a program: what its system says, and what a control group leaves of it.
//!
//! Every system is asked in its own words, files or a tool of its own, and each answer is read by a function of its text.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The memory of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostMemory {
    /// Bytes that there are, for this program.
    pub(crate) total: u64,
    /// Those that may still be taken.
    pub(crate) available: u64,
}

impl HostMemory {
    /// What this machine has; none if its system cannot be asked.
    pub(crate) fn detect() -> Option<Self> {
        match std::env::consts::OS {
            "macos" => of_macos(&output("sysctl", &["-n", "hw.memsize"])?, &output("vm_stat", &[])?),
            "windows" => of_windows(&output("powershell", &["-NoProfile", "-Command", WINDOWS_MEMORY])?),
            _ => {
                let memory = of_meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
                let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
                Some(memory.within(&limits(&groups, &|path| std::fs::read_to_string(path).ok())))
            }
        }
    }

    /// What control groups leave of it.
    fn within(self, limits: &[Limit]) -> Self {
        limits.iter().fold(self, |memory, limit| HostMemory {
            total: memory.total.min(limit.most),
            available: memory.available.min(limit.most.saturating_sub(limit.used)),
        })
    }
}

/// Total and free, in KiB, one a line.
const WINDOWS_MEMORY: &str =
    "$m = Get-CimInstance Win32_OperatingSystem; $m.TotalVisibleMemorySize; $m.FreePhysicalMemory";

/// How many monitors a machine with Windows has.
pub(crate) fn monitors() -> Option<u32> {
    if std::env::consts::OS != "windows" {
        return None;
    }
    let command =
        "(Get-CimInstance -Namespace root/wmi -ClassName WmiMonitorBasicDisplayParams | Measure-Object).Count";
    output("powershell", &["-NoProfile", "-Command", command])?.trim().parse().ok()
}

/// What a tool of the system prints.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// `/proc/meminfo` of Linux.
fn of_meminfo(text: &str) -> Option<HostMemory> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    let total = field("MemTotal")?;
    // Linux before 3.14 does not say what is available.
    let available = field("MemAvailable").or_else(|| Some(field("MemFree")? + field("Cached")?))?;
    Some(HostMemory { total, available: available.min(total) })
}

/// What a control group lets its programs take together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    most: u64,
    used: u64,
}

/// The limits of the groups in `/proc/self/cgroup`, and of those that hold them, where `read` reads a file. Version 2 has one tree of groups, version 1 one
/// for memory; a container may see only its own group, at the root.
fn limits(groups: &str, read: &dyn Fn(&Path) -> Option<String>) -> Vec<Limit> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, most, used, stat, cached) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current", "memory.stat", "inactive_file"),
            _ if controllers.split(',').any(|name| name == "memory") => (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "memory.stat",
                "total_inactive_file",
            ),
            _ => continue,
        };
        let group = PathBuf::from(root).join(path.trim_start_matches('/'));
        for folder in group.ancestors().take_while(|folder| folder.starts_with(root)) {
            let number = |file: &str| read(&folder.join(file))?.trim().parse::<u64>().ok();
            // `max`, or a number near 2^63, stands for no limit.
            let Some(most) = number(most).filter(|most| *most < 1 << 62) else { continue };
            // Pages of files that nobody used of late are given up when memory is wanted.
            let cached = read(&folder.join(stat)).and_then(|text| {
                let value = text.lines().find_map(|line| line.strip_prefix(cached)?.strip_prefix(' '))?;
                value.trim().parse::<u64>().ok()
            });
            let used = number(used).unwrap_or(0).saturating_sub(cached.unwrap_or(0));
            limits.push(Limit { most, used });
        }
    }
    limits
}

/// `sysctl -n hw.memsize` and `vm_stat` of macOS.
fn of_macos(memsize: &str, vm_stat: &str) -> Option<HostMemory> {
    let total = memsize.trim().parse().ok()?;
    let page: u64 = vm_stat.split_once("page size of ")?.1.split_whitespace().next()?.parse().ok()?;
    let pages = |name: &str| {
        let line = vm_stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().trim_end_matches('.').parse::<u64>().ok()
    };
    let free = pages("Pages free")? + pages("Pages inactive")? + pages("Pages speculative").unwrap_or(0);
    Some(HostMemory { total, available: free.saturating_mul(page).min(total) })
}

/// What [`WINDOWS_MEMORY`] prints.
fn of_windows(text: &str) -> Option<HostMemory> {
    let mut kib = text.split_whitespace().map(|number| number.parse::<u64>().ok());
    let (total, available) = (kib.next()??, kib.next()??);
    Some(HostMemory { total: total.checked_mul(1024)?, available: available.checked_mul(1024)?.min(total * 1024) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24684084 kB\nMemFree:         8599364 kB\nMemAvailable:   23811392 kB\nBuffers:          131524 kB\nCached:         14535756 kB\n";

    #[test]
    fn linux_says_what_is_available() {
        let memory = of_meminfo(MEMINFO).unwrap();
        assert_eq!(memory, HostMemory { total: 24_684_084 * 1024, available: 23_811_392 * 1024 });
        let old = MEMINFO.replace("MemAvailable:   23811392 kB\n", "");
        assert_eq!(of_meminfo(&old).unwrap().available, (8_599_364 + 14_535_756) * 1024);
        assert_eq!(of_meminfo("MemTotal: lots"), None);
    }

    #[test]
    fn the_tightest_control_group_counts() {
        let files = |files: &'static [(&'static str, &'static str)]| {
            move |path: &Path| {
                files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
            }
        };
        // Version 2, in a unit of a slice.
        let read = files(&[
            ("/sys/fs/cgroup/user.slice/a.service/memory.max", "8589934592\n"),
            ("/sys/fs/cgroup/user.slice/a.service/memory.current", "3221225472\n"),
            ("/sys/fs/cgroup/user.slice/a.service/memory.stat", "anon 5\ninactive_file 1073741824\n"),
            ("/sys/fs/cgroup/user.slice/memory.max", "max\n"),
        ]);
        let found = limits("0::/user.slice/a.service\n", &read);
        assert_eq!(found, [Limit { most: 8 << 30, used: 2 << 30 }]);
        let memory = HostMemory { total: 16 << 30, available: 10 << 30 }.within(&found);
        assert_eq!(memory, HostMemory { total: 8 << 30, available: 6 << 30 });

        // Version 1, with other controllers and without a limit of the innermost group.
        let read = files(&[
            ("/sys/fs/cgroup/memory/box/1/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1073741824\n"),
            ("/sys/fs/cgroup/memory/box/memory.usage_in_bytes", "536870912\n"),
        ]);
        let groups = "9:name=systemd:/\n8:pids:/\n4:cpuset,memory:/box/1\n0::/\n";
        assert_eq!(limits(groups, &read), [Limit { most: 1 << 30, used: 1 << 29 }]);
        assert_eq!(limits("damaged", &read), []);
    }

    #[test]
    fn macos_counts_pages_that_can_be_had() {
        let vm_stat = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:                               12345.\nPages active:                            400000.\nPages inactive:                          390000.\nPages speculative:                         5000.\nPages wired down:                        120000.\n";
        let memory = of_macos("17179869184\n", vm_stat).unwrap();
        assert_eq!(memory, HostMemory { total: 16 << 30, available: (12_345 + 390_000 + 5_000) * 16_384 });
        assert_eq!(of_macos("17179869184", "nothing"), None);
    }

    #[test]
    fn windows_says_it_in_kib() {
        let memory = of_windows("33457152\r\n21400332\r\n").unwrap();
        assert_eq!(memory, HostMemory { total: 33_457_152 * 1024, available: 21_400_332 * 1024 });
        assert_eq!(of_windows("33457152"), None);
    }
}
