// Gradients of attention, in the order of the CPU's rows: `kernels/src/cpu/generic/attention_gradient.rs` has the formulas.
//
// q, dy: NUMBER [n, HEADS, HD]; k, v: NUMBER [SEQS, KV_HEADS, CTX, HD]; seq, pos: i32 [n]; span: i32 [n, 2]; lse, delta: f32 [n, HEADS]. With OF_QUERIES
// out is f32 [n, HEADS, HD] and a block is one head of one token, which meets its keys in runs; else out is f32 [2, SEQS, KV_HEADS, CTX, HD] and a block is
// 32 keys of one KV head of one sequence, which meet all queries, 4 heads at a time. Bound: chains of additions.
#include "lib/scores.cuh"

// What a key counts for a query: p_j and t_j.
struct Weight {
    float part, turn;
};

__device__ __forceinline__ Weight weigh(const NUMBER *query, const NUMBER *pull, const NUMBER *key, const NUMBER *value, float lse, float delta) {
    float scale = __int_as_float(SCALE_BITS), part = exp_exact(dot16(query, key) * scale - lse);
    return Weight{part, part * (dot16(pull, value) - delta) * scale};
}

extern "C" __global__ void __launch_bounds__(THREADS)
KERNEL(const NUMBER *q, const NUMBER *k, const NUMBER *v, const int *seq, const int *pos, const int *span, const NUMBER *dy, const float *lse, const float *delta,
       float *out, int n) {
    wait_for_previous();
    constexpr int GROUP = HEADS / KV_HEADS;
#if OF_QUERIES
    constexpr int OWN = ceil_div(HD, THREADS);
    __shared__ float turns[THREADS];
    int head = blockIdx.x, token = blockIdx.y, sequence = seq[token];
    bool is_known = 0 <= sequence && sequence < SEQS;
    size_t at = (size_t)token * HEADS + head, first_row = (size_t)((is_known ? sequence : 0) * KV_HEADS + head / GROUP) * CTX;
    Ranges seen(pos[token], span[2 * token], span[2 * token + 1]);
    int count = is_known ? count_keys(seen) : 0;
    float sums[OWN] = {};
    for (int first = 0; first < count; first += THREADS) {
        int length = min(THREADS, count - first);
        __syncthreads();
        if (threadIdx.x < length) {
            size_t row = (first_row + key_at(seen, first + threadIdx.x)) * HD;
            turns[threadIdx.x] = weigh(q + at * HD, dy + at * HD, k + row, v + row, lse[at], delta[at]).turn;
        }
        __syncthreads();
        for (int i = 0; i < length; i++) {
            const NUMBER *row = k + (first_row + key_at(seen, first + i)) * HD;
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                int column = threadIdx.x + j * THREADS;
                if (column < HD) sums[j] += turns[i] * widen(row[column]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < OWN; j++)
        if (threadIdx.x + j * THREADS < HD) out[at * HD + threadIdx.x + j * THREADS] = sums[j];
#else
    constexpr int KEYS = 32, SLOTS = THREADS / KEYS, OWN = ceil_div(KEYS * HD, THREADS);
    __shared__ Weight weights[SLOTS][KEYS];
    int sequence = blockIdx.x / KV_HEADS, kv_head = blockIdx.x % KV_HEADS, first = blockIdx.y * KEYS;
    size_t first_row = (size_t)blockIdx.x * CTX + first;
    int keys = min(KEYS, CTX - first), slot = threadIdx.x / KEYS, key = threadIdx.x % KEYS;
    float dk[OWN] = {}, dv[OWN] = {};
    for (int token = 0; token < n; token++) {
        if (seq[token] != sequence) continue;
        Ranges seen(pos[token], span[2 * token], span[2 * token + 1]);
        for (int head = kv_head * GROUP; head < (kv_head + 1) * GROUP; head += SLOTS) {
            int slots = min(SLOTS, (kv_head + 1) * GROUP - head);
            __syncthreads();
            if (slot < slots && key < keys && seen.sees(first + key)) {
                size_t at = (size_t)token * HEADS + head + slot, row = (first_row + key) * HD;
                weights[slot][key] = weigh(q + at * HD, dy + at * HD, k + row, v + row, lse[at], delta[at]);
            }
            __syncthreads();
            for (int i = 0; i < slots; i++) {
                size_t row = ((size_t)token * HEADS + head + i) * HD;
#pragma unroll
                for (int j = 0; j < OWN; j++) {
                    int element = threadIdx.x + j * THREADS, own = element / HD;
                    if (keys <= own || !seen.sees(first + own)) continue;
                    dk[j] += weights[i][own].turn * widen(q[row + element % HD]);
                    dv[j] += weights[i][own].part * widen(dy[row + element % HD]);
                }
            }
        }
    }
    float *of_keys = out + first_row * HD, *of_values = of_keys + (size_t)SEQS * KV_HEADS * CTX * HD;
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        int element = threadIdx.x + j * THREADS;
        if (element < keys * HD) of_keys[element] = dk[j], of_values[element] = dv[j];
    }
#endif
}
