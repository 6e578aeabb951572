// Dense matmul with q8 weights and activations: out[t, r] = ((acc as f32) * x_scale) * w_scale, acc exact in i32.
//
// x: n records of K codes; w: M records of K codes; out: f32 [n, M]. A warp is one row of one token. Bound: memory.
#include "lib/exact.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const u8 *x, const u8 *w, float *out, int n) {
    wait_for_previous();
    constexpr int CODE_BYTES = round_up(K, 16), RECORD = CODE_BYTES + 8;
    int lane = threadIdx.x % 32, r = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (M <= r) return;
    const u8 *activations = x + (size_t)blockIdx.y * RECORD;
    const u8 *row = w + (size_t)r * RECORD;
    int acc = 0;
    // Records start at multiples of 8 bytes; the codes' padding is zero.
#pragma unroll 4
    for (int c = 8 * lane; c < CODE_BYTES; c += 8 * 32) {
        int2 a = *(const int2 *)(activations + c), b = *(const int2 *)(row + c);
        acc = __dp4a(a.y, b.y, __dp4a(a.x, b.x, acc));
    }
    acc = sum_warp(acc);
    float x_scale = *(const float *)(activations + CODE_BYTES), w_scale = *(const float *)(row + CODE_BYTES);
    if (lane == 0) out[(size_t)blockIdx.y * M + r] = ((float)acc * x_scale) * w_scale;
}
