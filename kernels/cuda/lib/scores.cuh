// What exact rows of the gradients of attention share: the keys of a query by number, dot products, the logarithm.
#include "lib/mask.cuh"

// `kernels::math::ln_f32`: the same operations with the same constants.
__device__ __forceinline__ float ln_exact(float x) {
    int bits = __float_as_int(x);
    float half = __int_as_float((bits & 0x007fffff) | 0x3f000000);
    bool is_low = half < 0x1.6a09e6p-1f;
    float e = (float)((bits >> 23) - 126 - (is_low ? 1 : 0)), f = (is_low ? half + half : half) - 1.0f;
    float p = 7.0376836e-2f;
    p = p * f + -1.151461e-1f;
    p = p * f + 1.1676998e-1f;
    p = p * f + -1.2420141e-1f;
    p = p * f + 1.4249323e-1f;
    p = p * f + -1.6668058e-1f;
    p = p * f + 2.0000715e-1f;
    p = p * f + -2.4999994e-1f;
    p = p * f + 3.333333e-1f;
    float square = f * f;
    float ln = (f + (((p * f) * square + e * -2.1219444e-4f) - square * 0.5f)) + e * (355.0f / 512.0f);
    return x < __int_as_float(0x7f800000) ? ln : x;
}

// How many keys a query sees, and which is the one at `i`, in ascending order.
__device__ __forceinline__ int count_keys(const Ranges &seen) { return seen.head_end - seen.head_start + seen.tail_end - seen.tail_start; }
__device__ __forceinline__ int key_at(const Ranges &seen, int i) {
    int of_head = seen.head_end - seen.head_start;
    return i < of_head ? seen.head_start + i : seen.tail_start + i - of_head;
}

// `dot` of the CPU's rows: 16 partial sums, added in pairs of halves.
__device__ __forceinline__ float dot16(const NUMBER *left, const NUMBER *right) {
    float lanes[16] = {};
#pragma unroll
    for (int i = 0; i < HD; i++) lanes[i % 16] += widen(left[i]) * widen(right[i]);
#pragma unroll
    for (int width = 8; 0 < width; width /= 2)
#pragma unroll
        for (int lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
    return lanes[0];
}
