// Dense matmul with q8 weights and few tokens: out[t, r] = ((acc as f32) * x_scale) * w_scale, acc exact in i32.
//
// x: n records of q8 of K codes, n <= TOKENS; w: M records of K codes; out: f32 [n, M]. A warp is ROWS_OF_WARP rows, its lanes are neighbouring
// columns: a load is 256 bytes of a row, and the activations that a lane loads from the first cache serve all rows. Records are aligned to 8
// bytes, so tensor cores would have to be fed with 32 bytes of each of 8 rows at a time, which memory delivers at 60 % of its rate: dense_gemm_q8.cu has
// the copy engine bring whole rows first.
// Bound: memory; from 12 tokens on, dp4a.
#include "lib/mma.cuh"

constexpr int RECORD = round_up(K, 16) + 8, WORDS = (RECORD - 8) / 8, TURNS = ceil_div(WORDS, 32);
// Loads in flight: about 40 registers of them.
constexpr int AT_ONCE = ceil_div(TURNS, ceil_div(TURNS * ROWS_OF_WARP, 20));

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const u8 *x, const u8 *w, float *out, int n) {
    int lane = threadIdx.x % 32, row = (blockIdx.x * (THREADS / 32) + threadIdx.x / 32) * ROWS_OF_WARP;
    const u8 *rows = w + (size_t)row * RECORD + 8 * lane;
    let_next_start();
    int acc[ROWS_OF_WARP][TOKENS] = {};
#pragma unroll 1
    for (int first = 0; first < TURNS; first += AT_ONCE) {
        uint2 codes[ROWS_OF_WARP][AT_ONCE];
#pragma unroll
        for (int r = 0; r < ROWS_OF_WARP; r++)
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                int at = first + i;
                codes[r][i] = uint2{};
                if (row + r < M && 32 * at + lane < WORDS) codes[r][i] = load_once((const uint2 *)(rows + (size_t)r * RECORD + 256 * at));
            }
        if (first == 0) wait_for_inputs();
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            if (n <= t) break;
            const uint2 *activations = (const uint2 *)(x + (size_t)t * RECORD) + 32 * first + lane;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                uint2 a = {};
                if (32 * (first + i) + lane < WORDS) a = activations[32 * i];
#pragma unroll
                for (int r = 0; r < ROWS_OF_WARP; r++) {
                    acc[r][t] = __dp4a((int)codes[r][i].x, (int)a.x, acc[r][t]);
                    acc[r][t] = __dp4a((int)codes[r][i].y, (int)a.y, acc[r][t]);
                }
            }
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        if (n <= t) break;
        float x_scale = *(const float *)(x + (size_t)t * RECORD + (RECORD - 8));
#pragma unroll
        for (int r = 0; r < ROWS_OF_WARP; r++) {
            int sum = __reduce_add_sync(0xffffffffu, acc[r][t]);
            float w_scale = row + r < M ? *(const float *)(w + (size_t)(row + r) * RECORD + (RECORD - 8)) : 0.0f;
            if (lane == 0 && row + r < M) out[(size_t)t * M + row + r] = ((float)sum * x_scale) * w_scale;
        }
    }
}
