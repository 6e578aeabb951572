// Ternary matmul for few tokens: out[t, r] = ((acc as f32) * x_scale) * scale[r], acc = sum_c code * x - sum_c x, exact in i32.
//
// x: n records of q8 of K codes, n <= 8 * TOKEN_TILES; w: [M, K] in tiles of 16 x 16, 64 bytes each; scale: f32 [M]; out: f32 [n, M].
//
// A block is 16 * ROW_BLOCKS rows and all of K. Its warps take steps of 4 tiles in turn; a lane (g = lane / 4, q = lane % 4) loads the words of
// its 2 * ROW_BLOCKS rows of tile 4 * step + q: one load, and neighbouring lanes' are neighbours. All loads of a warp are issued before anything
// else is done, which is what keeps memory busy.
//
// A word has the codes of 16 columns, column 4i + j in bits 2i of byte j. Masked with 0x03 it is, without a shuffle, what the tensor core takes
// as four rows' neighbours in k, if the activations of columns 4i.. are given in the same place. The order of columns within a product is free
// as long as both sides agree, so a step is two products: planes 0 and 2 (after one shift by 4), and planes 1 and 3 masked with 0x0c, whose
// sum is 4 times too large, which a shift at the end puts right. So 16 weights cost 5 integer instructions whatever the tokens.
//
// Shared memory: the sums of the warps, 512 bytes * ROW_BLOCKS * TOKEN_TILES each. Bound: memory.
#include "lib/mma.cuh"

constexpr int TILES = ceil_div(K, 16), STEPS = ceil_div(TILES, 4), WARPS = THREADS / 32;
constexpr int ROWS = 16 * ROW_BLOCKS, TOKENS = 8 * TOKEN_TILES, RECORD = round_up(K, 16) + 8;
// Steps of a warp, and how many of them it loads at once: all, up to 32 registers of them.
constexpr int TURNS = ceil_div(STEPS, WARPS), AT_ONCE = ceil_div(TURNS, ceil_div(TURNS, 16 / ROW_BLOCKS));

#if ROW_BLOCKS == 2
typedef uint4 Words;
__device__ __forceinline__ unsigned word(uint4 w, int j) { return j == 0 ? w.x : j == 1 ? w.y : j == 2 ? w.z : w.w; }
#else
typedef uint2 Words;
__device__ __forceinline__ unsigned word(uint2 w, int j) { return j == 0 ? w.x : w.y; }
#endif

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
KERNEL(const u8 *x, const u8 *w, const float *scale, float *out, int n) {
    __shared__ int sums[WARPS][TOKENS][ROWS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    // The first row of the lane: words of a row block lie 4 bytes apart, row blocks TILES * 64.
    int row = blockIdx.x * ROWS + 2 * ROW_BLOCKS * g;
    bool has_row = row < round_up(M, 16);
    const u8 *words = w + (size_t)(row / 16) * (TILES * 64) + 4 * (row % 16) + 64 * q;

    // What a thread writes at the end, and the scales of it: weights, so they are fetched with the others.
    constexpr int OUTPUTS = ceil_div(ROWS * TOKENS, THREADS);
    float scales[OUTPUTS];
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        int out_row = blockIdx.x * ROWS + (threadIdx.x + o * THREADS) % ROWS;
        if (threadIdx.x + o * THREADS < ROWS * n && out_row < M) scales[o] = load_once(scale + out_row);
    }
    int sum_1[ROW_BLOCKS][TOKEN_TILES][4] = {}, sum_4[ROW_BLOCKS][TOKEN_TILES][4] = {};
#pragma unroll 1
    for (int first = 0; first < TURNS; first += AT_ONCE) {
        Words codes[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int step = (first + i) * WARPS + warp;
            codes[i] = Words{};
            if (has_row && 4 * step + q < TILES) codes[i] = load_once((const Words *)(words + (size_t)step * 256));
        }
        if (first == 0) {
            // Not before: the loads of the next launch would stand in the way of these.
            let_next_start();
            wait_for_inputs();
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int tile = 4 * ((first + i) * WARPS + warp) + q;
            unsigned b[TOKEN_TILES][4] = {};
#pragma unroll
            for (int t = 0; t < TOKEN_TILES; t++) {
                // Records start at multiples of 8.
                const uint2 *from = (const uint2 *)(x + (size_t)(8 * t + g) * RECORD + tile * 16);
                if (8 * t + g < n && tile < TILES) {
                    uint2 low = __ldg(from), high = __ldg(from + 1);
                    b[t][0] = low.x, b[t][1] = low.y, b[t][2] = high.x, b[t][3] = high.y;
                }
            }
#pragma unroll
            for (int h = 0; h < ROW_BLOCKS; h++) {
                unsigned even = word(codes[i], 2 * h), odd = word(codes[i], 2 * h + 1);
                unsigned even_high = even >> 4, odd_high = odd >> 4;
                constexpr unsigned ONES = 0x03030303, FOURS = 0x0c0c0c0c;
#pragma unroll
                for (int t = 0; t < TOKEN_TILES; t++) {
                    mma_u8s8(sum_1[h][t], even & ONES, odd & ONES, even_high & ONES, odd_high & ONES, b[t][0], b[t][2]);
                    mma_u8s8(sum_4[h][t], even & FOURS, odd & FOURS, even_high & FOURS, odd_high & FOURS, b[t][1], b[t][3]);
                }
            }
        }
    }
    int2 numbers[OUTPUTS];
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        int token = (threadIdx.x + o * THREADS) / ROWS;
        if (token < n) numbers[o] = __ldg((const int2 *)(x + (size_t)token * RECORD + (RECORD - 8)));
    }
#pragma unroll
    for (int h = 0; h < ROW_BLOCKS; h++)
#pragma unroll
        for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int token = 8 * t + 2 * q + j % 2, r = 2 * ROW_BLOCKS * g + 2 * h + j / 2;
                sums[warp][token][r] = sum_1[h][t][j] + (sum_4[h][t][j] >> 2);
            }
    __syncthreads();
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        int i = threadIdx.x + o * THREADS, token = i / ROWS, r = i % ROWS, out_row = blockIdx.x * ROWS + r;
        if (n <= token || M <= out_row) continue;
        int acc = -numbers[o].y;
#pragma unroll
        for (int each = 0; each < WARPS; each++) acc += sums[each][token][r];
        out[(size_t)token * M + out_row] = ((float)acc * __int_as_float(numbers[o].x)) * scales[o];
    }
}
