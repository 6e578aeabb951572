//! Rows of a KV cache as they are stored, and as numbers.

use std::marker::PhantomData;

use ir::DType;
use ir::packing::RowFormat;

use crate::cpu::lanes::Lanes;

/// One row of a cache, `hd` numbers, as it is stored.
pub(crate) trait CacheRow: Copy {
    /// Whether the row is f32 as it lies.
    const IS_F32: bool;

    /// Bytes of one row.
    fn bytes(hd: usize) -> usize;

    /// The row at `row`.
    ///
    /// # Safety
    ///
    /// A row of `hd` numbers of this format lies there.
    unsafe fn open(row: *const u8, hd: usize) -> Self;

    /// The numbers `at..at + 32`; `at` is a multiple of 32.
    ///
    /// # Safety
    ///
    /// `at + 32 <= hd`, and the CPU has the features of `L`.
    unsafe fn block<L: Lanes>(self, at: usize) -> L::Block;

    /// The number at `at`.
    ///
    /// # Safety
    ///
    /// `at < hd`.
    unsafe fn number(self, at: usize) -> f32;
}

/// A row of f32.
#[derive(Clone, Copy)]
pub(crate) struct F32Row(*const f32);

impl CacheRow for F32Row {
    const IS_F32: bool = true;

    #[inline(always)]
    fn bytes(hd: usize) -> usize {
        4 * hd
    }

    #[inline(always)]
    unsafe fn open(row: *const u8, _hd: usize) -> Self {
        Self(row.cast())
    }

    #[inline(always)]
    unsafe fn block<L: Lanes>(self, at: usize) -> L::Block {
        // SAFETY: as the caller promises.
        unsafe { L::load(self.0.add(at)) }
    }

    #[inline(always)]
    unsafe fn number(self, at: usize) -> f32 {
        // SAFETY: as the caller promises.
        unsafe { *self.0.add(at) }
    }
}

/// A row of bf16.
#[derive(Clone, Copy)]
pub(crate) struct Bf16Row(*const u16);

impl CacheRow for Bf16Row {
    const IS_F32: bool = false;

    #[inline(always)]
    fn bytes(hd: usize) -> usize {
        2 * hd
    }

    #[inline(always)]
    unsafe fn open(row: *const u8, _hd: usize) -> Self {
        Self(row.cast())
    }

    #[inline(always)]
    unsafe fn block<L: Lanes>(self, at: usize) -> L::Block {
        // SAFETY: as the caller promises.
        unsafe { L::load_bf16(self.0.add(at)) }
    }

    #[inline(always)]
    unsafe fn number(self, at: usize) -> f32 {
        // SAFETY: as the caller promises.
        f32::from_bits(u32::from(unsafe { *self.0.add(at) }) << 16)
    }
}

/// A q8 record: `code * scale`.
#[derive(Clone, Copy)]
pub(crate) struct Q8Row {
    codes: *const u8,
    scale: f32,
}

impl CacheRow for Q8Row {
    const IS_F32: bool = false;

    fn bytes(hd: usize) -> usize {
        RowFormat::new(DType::Q8, hd).expect("q8 is a row format").stride()
    }

    #[inline(always)]
    unsafe fn open(row: *const u8, hd: usize) -> Self {
        // SAFETY: the codes, padded to 16, are followed by the scale.
        let scale = unsafe { row.add(hd.next_multiple_of(16)).cast::<f32>().read_unaligned() };
        Self { codes: row, scale }
    }

    #[inline(always)]
    unsafe fn block<L: Lanes>(self, at: usize) -> L::Block {
        // SAFETY: as the caller promises.
        unsafe { L::mul(L::load_i8(self.codes.add(at)), L::splat(self.scale)) }
    }

    #[inline(always)]
    unsafe fn number(self, at: usize) -> f32 {
        // SAFETY: as the caller promises.
        let code = unsafe { *self.codes.add(at) };
        f32::from(code as i8) * self.scale
    }
}

/// A q4 record: `minimum + code * scale`.
#[derive(Clone, Copy)]
pub(crate) struct Q4Row {
    codes: *const u8,
    scale: f32,
    minimum: f32,
}

impl CacheRow for Q4Row {
    const IS_F32: bool = false;

    fn bytes(hd: usize) -> usize {
        RowFormat::new(DType::Q4, hd).expect("q4 is a row format").stride()
    }

    #[inline(always)]
    unsafe fn open(row: *const u8, hd: usize) -> Self {
        // SAFETY: the codes, padded to 4 bytes, are followed by the scale and the minimum.
        unsafe {
            let numbers = row.add(hd.div_ceil(2).next_multiple_of(4));
            let scale = numbers.cast::<f32>().read_unaligned();
            let minimum = numbers.add(4).cast::<f32>().read_unaligned();
            Self { codes: row, scale, minimum }
        }
    }

    #[inline(always)]
    unsafe fn block<L: Lanes>(self, at: usize) -> L::Block {
        // SAFETY: as the caller promises; two codes share a byte.
        unsafe {
            // Two roundings, as the format is defined.
            let scaled = L::mul(L::load_u4(self.codes.add(at / 2)), L::splat(self.scale));
            L::add(L::splat(self.minimum), scaled)
        }
    }

    #[inline(always)]
    unsafe fn number(self, at: usize) -> f32 {
        // SAFETY: as the caller promises.
        let byte = unsafe { *self.codes.add(at / 2) };
        self.minimum + f32::from((byte >> (4 * (at % 2))) & 15) * self.scale
    }
}

/// Rows of a cache, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct CacheRows<R> {
    pub(crate) first: *const u8,
    pub(crate) stride: usize,
    hd: usize,
    format: PhantomData<R>,
}

impl<R: CacheRow> CacheRows<R> {
    #[inline(always)]
    pub(crate) fn new(first: *const u8, stride: usize, hd: usize) -> Self {
        Self { first, stride, hd, format: PhantomData }
    }

    /// # Safety
    ///
    /// There is such a row.
    #[inline(always)]
    pub(crate) unsafe fn row(self, index: usize) -> R {
        // SAFETY: as the caller promises.
        unsafe { R::open(self.first.add(index * self.stride), self.hd) }
    }

    /// The rows from one on.
    ///
    /// # Safety
    ///
    /// There is such a row.
    #[inline(always)]
    pub(crate) unsafe fn from(self, index: usize) -> Self {
        // SAFETY: as the caller promises.
        Self { first: unsafe { self.first.add(index * self.stride) }, ..self }
    }
}
