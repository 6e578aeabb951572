// Ternary matmul with q8 activations: out[t, r] = ((sum_k code * x - sum_k x) as f32 * x_scale[t]) * scale[r].
//
// x: n records of q8 of K codes; w: tile16 [M, K]; scale: f32 [M]; out: f32 [n, M]. A block is 16 rows of one token: its 4 warps share the
// tiles of the row block, a warp taking two neighbouring tiles at a time, 128 bytes in one load; a lane has one row of one tile, 16 products
// by four dp4a. The sums are exact in any order. Bound: memory for one token; weights come from the caches for the others.
#include "lib/exact.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
KERNEL(const u8 *x, const u8 *w, const float *scale, float *out, int n) {
    wait_for_previous();
    constexpr int CODE_BYTES = round_up(K, 16), RECORD = CODE_BYTES + 8, TILES = CODE_BYTES / 16, WARPS = THREADS / 32;
    __shared__ int sums[WARPS][16];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane % 16;
    const u8 *record = x + (size_t)blockIdx.y * RECORD;
    const u8 *block = w + (size_t)blockIdx.x * TILES * 64;
    int sum = 0;
    for (int tile = 2 * warp + lane / 16; tile < TILES; tile += 2 * WARPS) {
        unsigned codes = *(const unsigned *)(block + tile * 64 + 4 * row);
        const int *activations = (const int *)(record + tile * 16);
        for (int group = 0; group < 4; group++)
            sum = __dp4a((int)(codes >> (2 * group) & 0x03030303u), activations[group], sum);
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 16);
    if (lane < 16) sums[warp][row] = sum;
    __syncthreads();
    int r = blockIdx.x * 16 + threadIdx.x;
    if (threadIdx.x < 16 && r < M) {
        int acc = 0;
        for (int other = 0; other < WARPS; other++) acc += sums[other][threadIdx.x];
        float x_scale = *(const float *)(record + CODE_BYTES);
        acc -= *(const int *)(record + CODE_BYTES + 4);
        out[(size_t)blockIdx.y * M + r] = ((float)acc * x_scale) * scale[r];
    }
}
