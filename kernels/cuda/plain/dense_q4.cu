// Dense matmul with 4-bit weights in groups: 16 accumulators and one for the minima, in the order that the crate defines.
//
// x: n records of q8 of K codes; w: [M, K / GROUP] records of q4 of GROUP codes; out: f32 [n, M]. Half a warp is one row of one token; its
// lanes are the accumulators: lane l has the columns c with c % 64 / 4 == l. Bound: memory.
#include "lib/exact.cuh"

// Two bytes of codes, low nibble first, as the four bytes of a word.
__device__ __forceinline__ int spread(unsigned codes) {
    return (int)((codes & 0xf) | (codes & 0xf0) << 4 | (codes & 0xf00) << 8 | (codes & 0xf000) << 12);
}

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const u8 *x, const u8 *w, float *out, int n) {
    wait_for_previous();
    constexpr int CODE_BYTES = round_up(K, 16), RECORD = CODE_BYTES + 8, GROUPS = K / GROUP, GROUP_BYTES = GROUP / 2 + 8;
    int lane = threadIdx.x % 16, r = blockIdx.x * (THREADS / 16) + threadIdx.x / 16;
    const u8 *activations = x + (size_t)blockIdx.y * RECORD;
    // Rows beyond the last compute it again, because the whole warp takes part in the sums.
    const u8 *row = w + (size_t)(r < M ? r : M - 1) * GROUPS * GROUP_BYTES;
    float acc = 0.0f, low = 0.0f;
    for (int g = 0; g < GROUPS; g++) {
        const u8 *record = row + g * GROUP_BYTES;
        int dot = 0, sum = 0;
        for (int c = 4 * lane; c < GROUP; c += 64) {
            int codes = spread(*(const unsigned short *)(record + c / 2));
            int a = *(const int *)(activations + g * GROUP + c);
            dot = __dp4a(codes, a, dot);
            sum = __dp4a(0x01010101, a, sum);
        }
        for (int d = 8; 0 < d; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
        const float *numbers = (const float *)(record + GROUP / 2);
        acc = fmaf((float)dot, numbers[0], acc);
        low = fmaf(numbers[1], (float)sum, low);
    }
    for (int d = 8; 0 < d; d /= 2) acc = acc + __shfl_down_sync(0xffffffffu, acc, d, 16);
    float x_scale = *(const float *)(activations + CODE_BYTES);
    if (lane == 0 && r < M) out[(size_t)blockIdx.y * M + r] = (acc + low) * x_scale;
}
