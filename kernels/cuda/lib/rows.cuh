// Rows of k numbers as they are stored: f32, bf16, or the records of `ir::packing::RowFormat`.
//
// open: the row at an address. at: one of its numbers, widened. encode: a warp writes one row of f32 as a record.
#include "lib/exact.cuh"

// Where the rows of one head of one sequence lie in a cache [seqs, KV_HEADS, CTX]: that of key 0, and how many rows further that of the next key.
constexpr size_t ROWS_TO_NEXT_KEY = 1;
__device__ __forceinline__ size_t row_of_first_key(int seq, int kv_head) { return ((size_t)seq * KV_HEADS + kv_head) * CTX; }

// The extremes of a row, over all lanes; what is no number is passed over.
__device__ __forceinline__ float largest_warp(float lane) {
    for (int d = 16; 0 < d; d /= 2) lane = fmaxf(lane, __shfl_xor_sync(0xffffffffu, lane, d));
    return lane;
}

__device__ __forceinline__ float smallest_warp(float lane) {
    for (int d = 16; 0 < d; d /= 2) lane = fminf(lane, __shfl_xor_sync(0xffffffffu, lane, d));
    return lane;
}

// The nearest whole number, ties to even, for |x| < 2^22; 0 for what is no number.
__device__ __forceinline__ int whole(float x) {
    float shifted = x + 12582912.0f;
    return shifted == shifted ? (int)(shifted - 12582912.0f) : 0;
}

template <int k> struct RowF32 {
    static constexpr int BYTES = 4 * k;
    const float *numbers;

    __device__ __forceinline__ static RowF32 open(const u8 *row) { return {(const float *)row}; }
    __device__ __forceinline__ float at(int i) const { return numbers[i]; }
    __device__ __forceinline__ static void encode(const float *x, u8 *row) {
        for (int i = threadIdx.x % 32; i < k; i += 32) ((float *)row)[i] = x[i];
    }
};

// The nearest bf16, ties to even. What is no number stays none.
__device__ __forceinline__ bf16 narrow(float x) {
    unsigned bits = __float_as_uint(x);
    return (bf16)(x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40);
}

template <int k> struct RowBf16 {
    static constexpr int BYTES = 2 * k;
    const bf16 *numbers;

    __device__ __forceinline__ static RowBf16 open(const u8 *row) { return {(const bf16 *)row}; }
    __device__ __forceinline__ float at(int i) const { return widen(numbers[i]); }
    __device__ __forceinline__ static void encode(const float *x, u8 *row) {
        for (int i = threadIdx.x % 32; i < k; i += 32) ((bf16 *)row)[i] = narrow(x[i]);
    }
};

// k codes of int8 padded with zeros to 16, then the scale and the sum of the codes: code * scale.
template <int k> struct RowQ8 {
    static constexpr int CODE_BYTES = round_up(k, 16), BYTES = CODE_BYTES + 8;
    const i8 *codes;
    float scale;

    __device__ __forceinline__ static RowQ8 open(const u8 *row) { return {(const i8 *)row, *(const float *)(row + CODE_BYTES)}; }
    __device__ __forceinline__ float at(int i) const { return (float)codes[i] * scale; }
    __device__ __forceinline__ static void encode(const float *x, u8 *row) {
        int lane = threadIdx.x % 32;
        float absmax = 0.0f;
        for (int i = lane; i < k; i += 32) absmax = fmaxf(absmax, fabsf(x[i]));
        absmax = fmaxf(largest_warp(absmax), 1e-5f);
        float factor = 127.0f / absmax;
        int sum = 0;
        for (int i = lane; i < CODE_BYTES; i += 32) {
            int code = i < k ? min(max(whole(x[i] * factor), -128), 127) : 0;
            ((i8 *)row)[i] = (i8)code;
            sum += code;
        }
        sum = sum_warp(sum);
        if (lane == 0) {
            *(float *)(row + CODE_BYTES) = absmax / 127.0f;
            *(int *)(row + CODE_BYTES + 4) = sum;
        }
    }
};

// k codes of 4 bits, the first in the low bits, padded with zeros to 4 bytes, then the scale and the minimum: minimum + code * scale.
template <int k> struct RowQ4 {
    static constexpr int CODE_BYTES = round_up(ceil_div(k, 2), 4), BYTES = CODE_BYTES + 8;
    const u8 *codes;
    float scale, minimum;

    __device__ __forceinline__ static RowQ4 open(const u8 *row) {
        const float *numbers = (const float *)(row + CODE_BYTES);
        return {row, numbers[0], numbers[1]};
    }
    __device__ __forceinline__ float at(int i) const {
        int code = (codes[i / 2] >> (4 * (i % 2))) & 15;
        return minimum + (float)code * scale;
    }
    __device__ __forceinline__ static int code_of(const float *x, int i, float minimum, float scale) {
        return i < k && 0.0f < scale ? whole((x[i] - minimum) / scale) & 15 : 0;
    }
    __device__ __forceinline__ static void encode(const float *x, u8 *row) {
        int lane = threadIdx.x % 32;
        float low = __int_as_float(0x7f800000), high = -__int_as_float(0x7f800000);
        for (int i = lane; i < k; i += 32) {
            low = fminf(low, x[i]);
            high = fmaxf(high, x[i]);
        }
        // The sum makes one zero of two.
        float minimum = smallest_warp(low) + 0.0f, maximum = largest_warp(high);
        float scale = (maximum - minimum) / 15.0f;
        for (int i = lane; i < CODE_BYTES; i += 32)
            row[i] = (u8)(code_of(x, 2 * i, minimum, scale) | code_of(x, 2 * i + 1, minimum, scale) << 4);
        if (lane == 0) {
            ((float *)(row + CODE_BYTES))[0] = scale;
            ((float *)(row + CODE_BYTES))[1] = minimum;
        }
    }
};
