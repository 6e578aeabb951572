// Ternary matmul with f32 activations: four accumulators, column c to accumulator c % 4 in ascending order, then their tree, times scale[r].
//
// x: f32 [n, K]; w: tile16 [M, K]; scale: f32 [M]; out: f32 [n, M]. A block is 16 rows of one token; a thread is one accumulator of a row.
#include "lib/exact.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
KERNEL(const float *x, const u8 *w, const float *scale, float *out, int n) {
    wait_for_previous();
    constexpr int TILES = ceil_div(K, 16);
    int part = threadIdx.x % 4, row = threadIdx.x / 4;
    const float *activations = x + (size_t)blockIdx.y * K;
    const u8 *block = w + (size_t)blockIdx.x * TILES * 64;
    float acc = 0.0f;
    for (int tile = 0; tile < TILES; tile++) {
        int codes = block[tile * 64 + 4 * row + part];
        for (int group = 0; group < 4; group++) {
            int c = 16 * tile + 4 * group + part;
            // Padding multiplies zeros, as on the CPU.
            float activation = c < K ? activations[c] : 0.0f;
            acc = fmaf(activation, (float)((codes >> (2 * group) & 3) - 1), acc);
        }
    }
    float pair = acc + __shfl_down_sync(0xffffffffu, acc, 1);
    float sum = pair + __shfl_down_sync(0xffffffffu, pair, 2);
    int r = blockIdx.x * 16 + row;
    if (part == 0 && r < M) out[(size_t)blockIdx.y * M + r] = sum * scale[r];
}
