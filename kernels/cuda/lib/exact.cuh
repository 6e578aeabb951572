// The arithmetic that every kernel shares with the CPU, bit for bit: see the numerics in the documentation of the crate.
#include "lib/launch.cuh"

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short bf16; // The bits; a bf16 is the upper half of an f32.

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(bf16 bits) { return __uint_as_float((unsigned)bits << 16); }

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

// The tree of `dot`: lane l adds lane l + d, for d = 16, 8, 4, 2, 1. The sum is in lane 0; other lanes hold something else.
__device__ __forceinline__ float sum_tree(float lane) {
    for (int d = 16; 0 < d; d /= 2) lane = lane + __shfl_down_sync(0xffffffffu, lane, d);
    return lane;
}

// A sum of integers, in every lane.
__device__ __forceinline__ int sum_warp(int lane) {
    for (int d = 16; 0 < d; d /= 2) lane += __shfl_xor_sync(0xffffffffu, lane, d);
    return lane;
}

// `kernels::math::exp_f32`: the same operations with the same constants.
__device__ __forceinline__ float exp_exact(float x) {
    float y = x < -104.0f ? -104.0f : x;
    y = 89.0f < y ? 89.0f : y;
    float n = rintf(y * 0x1.715476p+0f);
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -355.0f / 512.0f, y));
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3982e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 5e-1f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    // 2^n need not be a normal number, so it is applied in two halves.
    int whole = (int)n, half = whole >> 1;
    return (p * __int_as_float((half + 127) << 23)) * __int_as_float((whole - half + 127) << 23);
}
