// Dense matmul with bf16 weights and few tokens: out[t, r] = dot(x_t, w_r), in the order that the crate defines.
//
// x: f32 [n, K]; w: bf16 [M, K]; out: f32 [n, M]. A block is TOKENS tokens, and a warp 8 rows; a lane (g = lane / 4, q = lane % 4) has the accumulators 8q..
// of row g: it loads 8 neighbouring weights, and four lanes 64 bytes. A block's activations are in shared memory, a piece of PIECE columns at a
// time: TOKENS * PIECE * 4 bytes. Bound: memory for one token; for more, the activations' way from shared memory.
#include "lib/mma.cuh"

constexpr int WHOLE = K / 32 * 32, PIECE = 4096 / TOKENS, AT_ONCE = TOKENS == 1 ? 8 : 4;

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const float *x, const bf16 *w, float *out, int n) {
    __shared__ __align__(16) float part[TOKENS][PIECE];
    int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    int row = (blockIdx.x * (THREADS / 32) + threadIdx.x / 32) * 8 + g;
    x += (size_t)blockIdx.y * TOKENS * K;
    out += (size_t)blockIdx.y * TOKENS * M;
    n = min(n - (int)blockIdx.y * TOKENS, TOKENS);
    // Rows beyond the last compute it again.
    const bf16 *weights = w + (size_t)(row < M ? row : M - 1) * K + 8 * q;
    // Rows of a multiple of 8 columns start where 16 bytes can be loaded.
    constexpr bool IS_ALIGNED = K % 8 == 0;
    float acc[TOKENS][8] = {};
    let_next_start();
    wait_for_inputs();
#pragma unroll 1
    for (int piece = 0; piece < WHOLE; piece += PIECE) {
        int columns = min(PIECE, WHOLE - piece);
        __syncthreads();
        for (int token = 0; token < n; token++)
            for (int col = threadIdx.x; col < columns; col += THREADS) part[token][col] = x[(size_t)token * K + piece + col];
        __syncthreads();
#pragma unroll 1
        for (int first = 0; first < columns; first += 32 * AT_ONCE) {
            uint4 codes[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (first + 32 * i < columns) {
                    const bf16 *from = weights + piece + first + 32 * i;
                    if (IS_ALIGNED) codes[i] = load_once((const uint4 *)from);
                    else {
                        codes[i].x = from[0] | (unsigned)from[1] << 16, codes[i].y = from[2] | (unsigned)from[3] << 16;
                        codes[i].z = from[4] | (unsigned)from[5] << 16, codes[i].w = from[6] | (unsigned)from[7] << 16;
                    }
                }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (first + 32 * i < columns) {
                    unsigned pairs[4] = {codes[i].x, codes[i].y, codes[i].z, codes[i].w};
#pragma unroll
                    for (int t = 0; t < TOKENS; t++) {
                        if (n <= t) break;
                        const float4 *from = (const float4 *)&part[t][first + 32 * i + 8 * q];
                        float4 a = from[0], b = from[1];
                        float numbers[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
                        for (int j = 0; j < 8; j++) {
                            float weight = __uint_as_float(j % 2 == 0 ? pairs[j / 2] << 16 : pairs[j / 2] & 0xffff0000u);
                            acc[t][j] = fmaf(numbers[j], weight, acc[t][j]);
                        }
                    }
                }
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (WHOLE + 8 * q + j < K && t < n) acc[t][j] = fmaf(x[(size_t)t * K + WHOLE + 8 * q + j], widen(weights[WHOLE + j]), acc[t][j]);
        // The tree: distances 16 and 8 are 2 and 1 lanes, the others are in the lane.
#pragma unroll
        for (int j = 0; j < 8; j++) acc[t][j] = acc[t][j] + __shfl_down_sync(0xffffffffu, acc[t][j], 2, 4);
#pragma unroll
        for (int j = 0; j < 8; j++) acc[t][j] = acc[t][j] + __shfl_down_sync(0xffffffffu, acc[t][j], 1, 4);
#pragma unroll
        for (int d = 4; 0 < d; d /= 2)
#pragma unroll
            for (int j = 0; j < d; j++) acc[t][j] = acc[t][j] + acc[t][j + d];
        if (q == 0 && row < M && t < n) out[(size_t)t * M + row] = acc[t][0];
    }
}
