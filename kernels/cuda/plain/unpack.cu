// Ternary values as bf16: out[r, c] = w[r, c].
//
// w: tile16 [n, K]; out: bf16 [n, K]. A block is 16 rows of 16 tiles, side by side; a thread has the 16 columns of a tile in one row, which are a word of
// codes and 32 bytes of the result. Bound: writing the result.
#include "lib/exact.cuh"

// The bits of -1, 0 and 1.
__device__ __forceinline__ unsigned value_of(unsigned code) { return code == 1 ? 0u : 0x3f80u | (code == 0) << 15; }

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const u8 *w, bf16 *out, int n) {
    wait_for_previous();
    constexpr int TILES = ceil_div(K, 16);
    int tile = blockIdx.x * 16 + threadIdx.x % 16, row = threadIdx.x / 16;
    int r = blockIdx.y * 16 + row;
    if (TILES <= tile || n <= r) return;
    unsigned codes = *(const unsigned *)(w + ((size_t)blockIdx.y * TILES + tile) * 64 + 4 * row);
    // Column 4 g + j has bits 2 g of byte j.
    auto value = [&](int c) { return value_of(codes >> (8 * (c % 4) + 2 * (c / 4)) & 3); };
    bf16 *own = out + (size_t)r * K + 16 * tile;
    if constexpr (K % 8 == 0) {
        for (int first = 0; first < 16; first += 8) {
            unsigned pairs[4];
#pragma unroll
            for (int pair = 0; pair < 4; pair++) pairs[pair] = value(first + 2 * pair) | value(first + 2 * pair + 1) << 16;
            if (16 * tile + first < K) *(uint4 *)(own + first) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    } else {
        for (int c = 0; c < 16; c++)
            if (16 * tile + c < K) own[c] = (bf16)value(c);
    }
}
