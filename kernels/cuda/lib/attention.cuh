// What rows of attention on tensor cores share: formats of caches, the tiles that tokens see, copies and decoding of tiles, exponentials, products.
#include "lib/rows.cuh"
#include "lib/copy.cuh"
#include "lib/mask.cuh"

// Formats of rows, K_ROW and V_ROW; both are records, or none is.
constexpr int BF16_ROW = 0, Q8_ROW = 1, Q4_ROW = 2;
constexpr int bytes_of(int row) { return row == BF16_ROW ? 2 * HD : row == Q8_ROW ? HD + 8 : HD / 2 + 8; }
constexpr int K_BYTES = bytes_of(K_ROW), V_BYTES = bytes_of(V_ROW);
constexpr bool IS_RECORDS = K_ROW != BF16_ROW;
static_assert(HD % 64 == 0 && CTX % 2 == 0 && ROWS_TO_NEXT_KEY == 1, "the records of two keys are whole units of a copy");

__device__ __forceinline__ float exp2_near(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two numbers as bf16, the first in the low half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ __forceinline__ float low_bf16(unsigned both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high_bf16(unsigned both) { return __uint_as_float(both & 0xffff0000u); }

// d[16, 8] += a[16, 16] * b[16, 8]. Lane (g = lane / 4, q = lane % 4) has a[g][2q..], a[g + 8][2q..], a[g][8 + 2q..], a[g + 8][8 + 2q..]; b[2q..][g],
// b[8 + 2q..][g]; d[g][2q..], d[g + 8][2q..].
__device__ __forceinline__ void mma_bf16(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// The same for sums that begin with it.
__device__ __forceinline__ void first_mma_bf16(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(0.0f));
}
// Four matrices of 8x8 numbers of 16 bits, lane l having the address of a row of matrix l / 8; of each, two of row l / 4, or of column l / 4.
__device__ __forceinline__ void load_matrices(unsigned (&a)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(from));
}
__device__ __forceinline__ void load_transposed(unsigned (&a)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(from));
}

// The tiles of a block in order, the same for every warp.
template <int KEYS> struct Tiles {
    const int4 *ranges;
    const int *seqs;
    int rows, first_row, last_row, seq, tile, early_stop, late_first, late_stop, start, stop;

    __device__ __forceinline__ Tiles(const int4 *ranges, const int *seqs, int rows)
        : ranges(ranges), seqs(seqs), rows(rows), first_row(0), last_row(0), seq(0), tile(0), early_stop(0), late_first(0), late_stop(0), start(0), stop(0) {}

    // Goes to the next tile; whether there is one.
    __device__ __forceinline__ bool next(bool &is_other) {
        is_other = false;
        tile++;
        if (early_stop <= tile && tile < late_first) tile = late_first;
        while (late_stop <= tile) {
            if (rows <= last_row) return false;
            open_sequence();
            is_other = true;
        }
        return true;
    }

    // Whether some token of the sequence sees this key of the tile, or a later and an earlier one.
    __device__ __forceinline__ bool has_key(int key) const { return start <= tile * KEYS + key && tile * KEYS + key < stop; }

    // The next tokens of one sequence, and what keys they see.
    __device__ __forceinline__ void open_sequence() {
        int lane = threadIdx.x % 32;
        first_row = last_row, seq = seqs[first_row], last_row = rows;
        int head_low = 0x7fffffff, head_high = 0, tail_low = 0x7fffffff, tail_high = 0;
        for (int row = first_row + lane; row < rows; row += 32)
            if (seqs[row] != seq) {
                last_row = row;
                break;
            }
        last_row = __reduce_min_sync(0xffffffffu, last_row);
        for (int row = first_row + lane; row < last_row; row += 32) {
            int4 range = ranges[row];
            if (range.x < range.y) head_low = min(head_low, range.x), head_high = max(head_high, range.y);
            if (range.z < range.w) tail_low = min(tail_low, range.z), tail_high = max(tail_high, range.w);
        }
        head_low = __reduce_min_sync(0xffffffffu, head_low), head_high = __reduce_max_sync(0xffffffffu, head_high);
        tail_low = __reduce_min_sync(0xffffffffu, tail_low), tail_high = __reduce_max_sync(0xffffffffu, tail_high);
        start = min(head_low, tail_low), stop = max(head_high, tail_high);
        // Tiles of both, those of the one that starts earlier first, and none twice.
        bool is_head_early = head_low <= tail_low;
        int early_low = is_head_early ? head_low : tail_low, early_high = is_head_early ? head_high : tail_high;
        int late_low = is_head_early ? tail_low : head_low, late_high = is_head_early ? tail_high : head_high;
        tile = early_low / KEYS;
        early_stop = early_low < early_high ? ceil_div(early_high, KEYS) : tile;
        late_first = late_low < late_high ? max(late_low / KEYS, early_stop) : early_stop;
        late_stop = late_low < late_high ? max(ceil_div(late_high, KEYS), late_first) : early_stop;
    }
};

// Starts 128 threads' copies of a tile of bf16 rows: lines of 128 bytes (64 dims), one block of lines after the other, the parts of a line moved so that those
// of neighbouring lines are in different banks; tensor cores of Hopper know this as a swizzle. What no one sees need not be numbers, and becomes zeros.
template <int KEYS> __device__ __forceinline__ void copy_tile(unsigned place, const u8 *rows, const Tiles<KEYS> &tiles) {
    constexpr int PARTS = HD / 8, AT_ONCE = 128 / PARTS;
    int part = threadIdx.x % PARTS, key = threadIdx.x / PARTS;
    const u8 *from = rows + (size_t)(tiles.tile * KEYS + key) * (2 * HD) + part * 16;
    unsigned line = place + part / 8 * (KEYS * 128) + key * 128;
#pragma unroll
    for (int i = 0; i < KEYS; i += AT_ONCE) {
        bool is_there = tiles.has_key(key + i);
        copy_16(line + i * 128 + ((part % 8) ^ ((key + i) % 8)) * 16, is_there ? from + i * (2 * HD) : rows, is_there);
    }
}

// Starts 128 threads' copies of the records of a tile.
template <int BYTES, int KEYS> __device__ __forceinline__ void copy_records(unsigned place, const u8 *rows, const Tiles<KEYS> &tiles) {
    constexpr int UNITS = KEYS * BYTES / 16;
    int first = tiles.tile * KEYS;
    const u8 *from = rows + (size_t)first * BYTES;
#pragma unroll
    for (int i = 0; i < ceil_div(UNITS, 128); i++) {
        int unit = threadIdx.x + 128 * i;
        if (UNITS % 128 != 0 && UNITS <= unit) continue;
        bool is_there = 16 * unit < (CTX - first) * BYTES;
        copy_16(place + 16 * unit, is_there ? from + 16 * unit : rows, is_there);
    }
    end_copies();
}

__device__ __forceinline__ uint2 load_two(unsigned from) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from));
    return v;
}

// Codes j and j + 4 of eight, decoded.
template <int j> __device__ __forceinline__ void decode_codes(float (&x)[8], unsigned word, float scale, float low) {
    unsigned two;
    // In the mantissa of a bf16 a code is added to 128.
    asm("lop3.b32 %0, %1, 0x000f000f, 0x43004300, 0xea;" : "=r"(two) : "r"(word >> (4 * j)));
    x[j] = fmaf(__uint_as_float(two << 16), scale, low), x[j + 4] = fmaf(__uint_as_float(two & 0xffff0000u), scale, low);
}

// Decodes the record of a key into a tile, rounded to bf16.
template <int row, int KEYS> __device__ __forceinline__ void decode_record(unsigned place, unsigned raw, int key, bool is_seen) {
    unsigned from = raw + key * bytes_of(row), line = place + key * 128;
    uint2 numbers = load_two(from + bytes_of(row) - 8);
    float scale = is_seen ? __uint_as_float(numbers.x) : 0.0f, low = is_seen ? fmaf(-128.0f, scale, __uint_as_float(numbers.y)) : 0.0f;
    auto write = [&](int part, const float (&x)[8]) {
        unsigned to = line + part / 8 * (KEYS * 128) + ((part % 8) ^ (key % 8)) * 16;
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(pack_bf16(x[0], x[1])), "r"(pack_bf16(x[2], x[3])),
                     "r"(pack_bf16(x[4], x[5])), "r"(pack_bf16(x[6], x[7]))
                     : "memory");
    };
#pragma unroll 4
    for (int i = 0; i < (row == Q4_ROW ? HD / 16 : HD / 8); i++) {
        uint2 words = load_two(from + 8 * i);
        float x[8];
        if (row == Q4_ROW) {
            decode_codes<0>(x, words.x, scale, low), decode_codes<1>(x, words.x, scale, low);
            decode_codes<2>(x, words.x, scale, low), decode_codes<3>(x, words.x, scale, low);
            write(2 * i, x);
            decode_codes<0>(x, words.y, scale, low), decode_codes<1>(x, words.y, scale, low);
            decode_codes<2>(x, words.y, scale, low), decode_codes<3>(x, words.y, scale, low);
            write(2 * i + 1, x);
        } else {
            // In the mantissa of 2^23 a code, its sign bit turned, is added to 2^23 + 128.
#pragma unroll
            for (int j = 0; j < 8; j++) {
                unsigned word = (j < 4 ? words.x : words.y) ^ 0x80808080u;
                x[j] = (__uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540u | j % 4)) - 8388736.0f) * scale;
            }
            write(i, x);
        }
    }
}

