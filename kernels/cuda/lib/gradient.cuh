// What rows of attention's gradients on tensor cores share: tiles of 64 rows of bf16, what is seen of a run of keys, products of a fragment.
#define K_ROW BF16_ROW
#define V_ROW BF16_ROW
#include "lib/attention.cuh"

// Rows of a tile, keys or queries, and bytes of one.
constexpr int LINES = 64, TILE_BYTES = LINES * 2 * HD;
constexpr float LOG2_E = 1.4426950408889634f;

// What is known of a piece of code as it is compiled.
template <bool is_so> struct Flag {
    static constexpr bool value = is_so;
};

// The place of 16 bytes of a tile: a line, and a part of 8 dims.
__device__ __forceinline__ unsigned part_of(int line, int part) { return part / 8 * (LINES * 128) + line * 128 + ((part % 8) ^ (line % 8)) * 16; }

// The keys that a token sees, none if its sequence is not the one that is asked for.
__device__ __forceinline__ int4 ranges_of(bool is_own, int position, const int *span) {
    Ranges seen(position, span[0], span[1]);
    return is_own ? int4{seen.head_start, seen.head_end, seen.tail_start, seen.tail_end} : int4{0, 0, 0, 0};
}

// Whether the ranges have all, or some, of so many keys.
__device__ __forceinline__ bool sees_all(int4 range, int first, int keys) {
    return (range.x <= first && first + keys <= range.y) || (range.z <= first && first + keys <= range.w);
}
__device__ __forceinline__ bool sees_some(int4 range, int first, int keys) {
    return (range.x < first + keys && first < range.y && range.x < range.y) || (range.z < first + keys && first < range.w && range.z < range.w);
}

// Where a lane's row of the four matrices of 16 rows of a tile is, `line` a multiple of 16: of the first 16 dims, and of others. Dims of a line are moved
// by the line's number alone, so that from one sixteen to another no more than two bits change.
__device__ __forceinline__ unsigned rows_at(unsigned tile, int line) {
    int lane = threadIdx.x % 32;
    return tile + part_of(line + lane % 8 + lane / 16 * 8, lane / 8 % 2);
}
__device__ __forceinline__ unsigned columns_at(unsigned tile, int line) {
    int lane = threadIdx.x % 32;
    return tile + part_of(line + lane % 16, lane / 16);
}
__device__ __forceinline__ unsigned sixteen_dims(unsigned at, int sixteen) { return (at ^ sixteen % 4 * 32) + sixteen / 4 * (LINES * 128); }

// d (+)= sixteen rows times sixteen of a tile.
__device__ __forceinline__ void multiply(float (&d)[2][4], const unsigned (&a)[4], const unsigned (&b)[4], bool is_first) {
    if (is_first) {
        first_mma_bf16(d[0], a[0], a[1], a[2], a[3], b[0], b[1]);
        first_mma_bf16(d[1], a[0], a[1], a[2], a[3], b[2], b[3]);
    } else {
        mma_bf16(d[0], a[0], a[1], a[2], a[3], b[0], b[1]);
        mma_bf16(d[1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
}

// What such a product gave, rounded, as the left operand of the next one.
__device__ __forceinline__ void as_operand(unsigned (&a)[4], const float (&d)[2][4]) {
    a[0] = pack_bf16(d[0][0], d[0][1]), a[1] = pack_bf16(d[0][2], d[0][3]);
    a[2] = pack_bf16(d[1][0], d[1][1]), a[3] = pack_bf16(d[1][2], d[1][3]);
}

// result += a * (sixteen rows of a tile, from `line` on), over the columns of heads.
template <int SIXTEENS>
__device__ __forceinline__ void add_product(float (&result)[SIXTEENS][HD / 8][4], const unsigned (&a)[SIXTEENS][4], unsigned tile, int line) {
    unsigned at = columns_at(tile, line);
#pragma unroll
    for (int i = 0; i < HD / 16; i++) {
        unsigned b[4];
        load_transposed(b, sixteen_dims(at, i));
#pragma unroll
        for (int sixteen = 0; sixteen < SIXTEENS; sixteen++) {
            mma_bf16(result[sixteen][2 * i], a[sixteen][0], a[sixteen][1], a[sixteen][2], a[sixteen][3], b[0], b[1]);
            mma_bf16(result[sixteen][2 * i + 1], a[sixteen][0], a[sixteen][1], a[sixteen][2], a[sixteen][3], b[2], b[3]);
        }
    }
}

// d = left * (sixteen rows of a tile, from `line` on, exchanged with its columns).
template <int SIXTEENS>
__device__ __forceinline__ void product_of_rows(float (&d)[SIXTEENS][2][4], const unsigned (&left)[SIXTEENS][HD / 16][4], unsigned tile, int line) {
    unsigned at = rows_at(tile, line);
#pragma unroll
    for (int i = 0; i < HD / 16; i++) {
        unsigned b[4];
        load_matrices(b, sixteen_dims(at, i));
#pragma unroll
        for (int sixteen = 0; sixteen < SIXTEENS; sixteen++) multiply(d[sixteen], left[sixteen][i], b, i == 0);
    }
}
