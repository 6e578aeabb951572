// The other way through ternary weights: out[t, c] = sum over r of (x[t, r] * scale[r]) * w[r, c], in ascending order of r.
//
// x: f32 [n, M]; w: tile16 [M, K]; scale: f32 [M]; out: f32 [n, K]. A block is THREADS columns of 8 tokens; a thread is a column.
#include "lib/exact.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
KERNEL(const float *x, const u8 *w, const float *scale, float *out, int n) {
    wait_for_previous();
    constexpr int TOKENS = 8, TILES = ceil_div(K, 16);
    __shared__ float scaled[TOKENS][THREADS];
    int c = blockIdx.x * THREADS + threadIdx.x, first = blockIdx.y * TOKENS;
    // Columns beyond the last read its codes, and write nothing.
    int column = min(c, K - 1);
    const u8 *codes = w + (size_t)(column / 16) * 64 + column % 4;
    int shift = 2 * (column % 16 / 4);
    float sums[TOKENS] = {};
    for (int start = 0; start < M; start += THREADS) {
        int own = start + threadIdx.x;
        for (int t = 0; t < TOKENS; t++)
            scaled[t][threadIdx.x] = first + t < n && own < M ? x[(size_t)(first + t) * M + own] * scale[own] : 0.0f;
        __syncthreads();
        for (int r = start; r < min(start + THREADS, M); r++) {
            float value = (float)((codes[(size_t)(r / 16) * TILES * 64 + 4 * (r % 16)] >> shift & 3) - 1);
            for (int t = 0; t < TOKENS; t++) sums[t] = fmaf(scaled[t][r - start], value, sums[t]);
        }
        __syncthreads();
    }
    for (int t = 0; t < TOKENS; t++)
        if (c < K && first + t < n) out[(size_t)(first + t) * K + c] = sums[t];
}
