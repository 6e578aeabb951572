//! How much of a card may be used where nobody can be asked how much is free.
//!
//! `(total - OS - 0.3) x 0.9 - 1.0` GiB: what the system's display takes, 0.3 for a driver's context, a tenth for fragmentation and 1.0 for what else runs.

use super::GIB;

/// What draws on a screen, and so takes memory of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Desktop {
    /// Windows, with so many monitors.
    Windows { monitors: u32 },
    /// macOS.
    MacOs,
    /// A Wayland compositor.
    Wayland,
    /// An X server.
    X11,
    /// Nothing.
    Headless,
}

impl Desktop {
    /// What this machine has. Linux says so in the environment of a session.
    pub(crate) fn detect() -> Self {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        Self::of(std::env::consts::OS, is_set("WAYLAND_DISPLAY"), is_set("DISPLAY"), super::host::monitors())
    }

    /// What a system is taken to have. Where the monitors of Windows cannot be counted there are taken to be three.
    fn of(os: &str, wayland: bool, x11: bool, monitors: Option<u32>) -> Self {
        match os {
            "windows" => Desktop::Windows { monitors: monitors.unwrap_or(3) },
            "macos" => Desktop::MacOs,
            _ if wayland => Desktop::Wayland,
            _ if x11 => Desktop::X11,
            _ => Desktop::Headless,
        }
    }

    /// GiB of a card that it takes.
    fn gib(self) -> f64 {
        match self {
            // 0.5 with one monitor, 1.5 with three or more.
            Desktop::Windows { monitors } => 0.5 + 0.5 * f64::from(monitors.clamp(1, 3) - 1),
            Desktop::MacOs => 0.8,
            Desktop::Wayland => 0.5,
            Desktop::X11 => 0.4,
            Desktop::Headless => 0.1,
        }
    }
}

/// Bytes of a card with `total` bytes that may be used.
pub(crate) fn usable(total: u64, desktop: Desktop) -> u64 {
    let gib = (total as f64 / GIB - desktop.gib() - 0.3) * 0.9 - 1.0;
    (gib.max(0.0) * GIB) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_gives_the_sizes_that_are_known() {
        let gib = |total: u64, desktop| (usable(total << 30, desktop) as f64 / GIB * 100.0).round() / 100.0;
        assert_eq!(gib(16, Desktop::Wayland), 12.68);
        assert_eq!(gib(16, Desktop::X11), 12.77);
        assert_eq!(gib(16, Desktop::Headless), 13.04);
        assert_eq!(gib(24, Desktop::Windows { monitors: 1 }), 19.88);
        assert_eq!(gib(24, Desktop::Windows { monitors: 3 }), 18.98);
        assert_eq!(gib(80, Desktop::Headless), 70.64);
        assert_eq!(gib(1, Desktop::MacOs), 0.0);
    }

    #[test]
    fn a_system_has_the_desktop_that_it_says() {
        assert_eq!(Desktop::of("linux", true, true, None), Desktop::Wayland);
        assert_eq!(Desktop::of("linux", false, true, None), Desktop::X11);
        assert_eq!(Desktop::of("linux", false, false, None), Desktop::Headless);
        assert_eq!(Desktop::of("macos", false, false, None), Desktop::MacOs);
        assert_eq!(Desktop::of("windows", false, false, Some(2)), Desktop::Windows { monitors: 2 });
        assert_eq!(Desktop::of("windows", false, false, None), Desktop::Windows { monitors: 3 });
    }
}
