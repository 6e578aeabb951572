// Dense matmul: out[t, r] = dot(x_t, w_r), where the lanes of a warp are the 32 accumulators of `dot`.
//
// x: f32 [n, K]; w: f32 or bf16 [M, K]; out: f32 [n, M]. A warp is one row of one token. Bound: memory.
#include "lib/exact.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const float *x, const WEIGHT *w, float *out, int n) {
    wait_for_previous();
    int lane = threadIdx.x % 32, r = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (M <= r) return;
    const float *activations = x + (size_t)blockIdx.y * K;
    const WEIGHT *row = w + (size_t)r * K;
    float acc = 0.0f;
#pragma unroll 8
    for (int c = lane; c < K; c += 32) acc = fmaf(activations[c], widen(row[c]), acc);
    acc = sum_tree(acc);
    if (lane == 0) out[(size_t)blockIdx.y * M + r] = acc;
}
