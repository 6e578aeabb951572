// Gradients of attention over f32 caches, in the order of the CPU's rows: `kernels/src/cpu/generic/attention_gradient.rs` has the formulas.
//
// q, dy: f32 [n, HEADS, HD]; k, v: f32 [SEQS, KV_HEADS, CTX, HD]; seq, pos: i32 [n]; span: i32 [n, 2]. With OF_QUERIES out is of the shape of q and a
// block is one head of one token; else out is of the shape of k, the gradient of the values if OF_VALUES and of the keys if not, and a block is one KV
// head of one sequence, which goes through all tokens. Bound: chains of additions.
#include "lib/mask.cuh"

#if OF_QUERIES
#define OF_VALUES 0
#endif

// What the keys count for one query: p_j and t_j.
__shared__ float parts[CTX], turns[CTX];

// `dot` of the CPU's rows: 16 partial sums, added in pairs of halves.
__device__ __forceinline__ float dot16(const float *left, const float *right) {
    float lanes[16] = {};
#pragma unroll
    for (int i = 0; i < HD; i++) lanes[i % 16] += left[i] * right[i];
#pragma unroll
    for (int width = 8; 0 < width; width /= 2)
#pragma unroll
        for (int lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

// Computes them, by all threads of a block.
__device__ __forceinline__ void weigh(const Ranges &seen, const float *query, const float *pull, const float *keys, const float *values) {
    __shared__ float total, mean;
    float scale = __int_as_float(SCALE_BITS);
    __syncthreads();
    for (int key = threadIdx.x; key < CTX; key += THREADS)
        if (seen.sees(key)) {
            parts[key] = dot16(query, keys + (size_t)key * HD) * scale;
            turns[key] = dot16(pull, values + (size_t)key * HD);
        }
    __syncthreads();
    // A maximum is the same in any order.
    float largest = __int_as_float(0xff800000);
    for (int key = seen.head_start; key < seen.head_end; key++) largest = largest < parts[key] ? parts[key] : largest;
    for (int key = seen.tail_start; key < seen.tail_end; key++) largest = largest < parts[key] ? parts[key] : largest;
    __syncthreads();
    for (int key = threadIdx.x; key < CTX; key += THREADS)
        if (seen.sees(key)) parts[key] = exp_exact(parts[key] - largest);
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.0f;
        for (int key = seen.head_start; key < seen.head_end; key++) sum += parts[key];
        for (int key = seen.tail_start; key < seen.tail_end; key++) sum += parts[key];
        total = sum;
    }
    __syncthreads();
    for (int key = threadIdx.x; key < CTX; key += THREADS)
        if (seen.sees(key)) parts[key] = parts[key] / total;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.0f;
        for (int key = seen.head_start; key < seen.head_end; key++) sum += parts[key] * turns[key];
        for (int key = seen.tail_start; key < seen.tail_end; key++) sum += parts[key] * turns[key];
        mean = sum;
    }
    __syncthreads();
    for (int key = threadIdx.x; key < CTX; key += THREADS)
        if (seen.sees(key)) turns[key] = parts[key] * (turns[key] - mean) * scale;
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS)
KERNEL(const float *q, const float *k, const float *v, const int *seq, const int *pos, const int *span, const float *dy, float *out, int n) {
    wait_for_previous();
#if OF_QUERIES
    int head = blockIdx.x, token = blockIdx.y, sequence = seq[token];
    size_t row = ((size_t)token * HEADS + head) * HD;
    bool is_known = 0 <= sequence && sequence < SEQS;
    size_t first = (size_t)((is_known ? sequence : 0) * KV_HEADS + head / (HEADS / KV_HEADS)) * CTX * HD;
    Ranges seen(pos[token], span[2 * token], span[2 * token + 1]);
    if (is_known) weigh(seen, q + row, dy + row, k + first, v + first);
    for (int i = threadIdx.x; i < HD; i += THREADS) {
        float sum = 0.0f;
        if (is_known) {
            for (int key = seen.head_start; key < seen.head_end; key++) sum += turns[key] * k[first + (size_t)key * HD + i];
            for (int key = seen.tail_start; key < seen.tail_end; key++) sum += turns[key] * k[first + (size_t)key * HD + i];
        }
        out[row + i] = sum;
    }
#else
    constexpr int GROUP = HEADS / KV_HEADS;
    int sequence = blockIdx.x / KV_HEADS, kv_head = blockIdx.x % KV_HEADS;
    size_t first = (size_t)blockIdx.x * CTX * HD;
    float *own = out + first;
    for (int i = threadIdx.x; i < CTX * HD; i += THREADS) own[i] = 0.0f;
    for (int token = 0; token < n; token++) {
        if (seq[token] != sequence) continue;
        Ranges seen(pos[token], span[2 * token], span[2 * token + 1]);
        for (int head = kv_head * GROUP; head < (kv_head + 1) * GROUP; head++) {
            size_t row = ((size_t)token * HEADS + head) * HD;
            weigh(seen, q + row, dy + row, k + first, v + first);
            const float *factors = OF_VALUES ? parts : turns, *added = (OF_VALUES ? dy : q) + row;
            // An element belongs to one thread in all turns of this loop.
            for (int i = threadIdx.x; i < CTX * HD; i += THREADS)
                if (seen.sees(i / HD)) own[i] += factors[i / HD] * added[i % HD];
        }
    }
#endif
}
