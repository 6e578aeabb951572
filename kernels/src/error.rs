//! What can be wrong with a request for a kernel.

use crate::desc::Isa;

/// Why a kernel could not be named or handed out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The text is no kernel name.
    #[error("`{name}` is no kernel name: {problem}; names are `<op>_<operands>_<out>__<isa>__<tile>`")]
    BadName {
        /// The text.
        name: String,
        /// The first rule of the grammar that it breaks.
        problem: String,
    },
    /// The table has no such row: the request is damaged, or from another version.
    #[error("there is no kernel `{name}` in this version")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The kernel is for another architecture than the running one.
    #[error(
        "kernel `{name}` is for {isa} ({arch}), which this program was not built for; compile for this machine, or for `scalar`"
    )]
    Architecture {
        /// The name asked for.
        name: String,
        /// What it needs.
        isa: Isa,
        /// The architecture that has it.
        arch: &'static str,
    },
    /// The running CPU lacks features.
    #[error("kernel `{name}` needs {isa}, and this CPU lacks {}; compile for this machine, or for `scalar`", missing.join(", "))]
    Features {
        /// The name asked for.
        name: String,
        /// What it needs.
        isa: Isa,
        /// The features that are missing.
        missing: Vec<&'static str>,
    },
}
