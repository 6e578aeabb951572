//! The kernel that no op calls: streamed weights are unpacked by it where they arrive.

/// What unpacks the parcels that streamed weights travel in, see `ir::plan::transit`.
pub struct UnpackParcel;

impl UnpackParcel {
    /// Its entry.
    pub const NAME: &'static str = "unpack_parcel";
    /// Threads of a block.
    pub const THREADS: u32 = 256;
    /// Blocks of a launch, whatever the parcel: two for each multiprocessor of most devices, so that others find room beside them.
    pub const BLOCKS: u32 = 256;

    /// The text to be compiled.
    pub fn source() -> String {
        let text = include_str!("../../cuda/unpack_parcel.cu");
        format!("#define KERNEL {}\nconstexpr int THREADS = {};\n\n{text}", Self::NAME, Self::THREADS)
    }
}
