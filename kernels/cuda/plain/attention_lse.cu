// The log of the sum of the exponentials of a query's scores, in the order of the CPU's rows: `kernels/src/cpu/generic/attention_gradient.rs` has the
// formulas.
//
// q: NUMBER [n, HEADS, HD]; k: NUMBER [SEQS, KV_HEADS, CTX, HD]; seq, pos: i32 [n]; span: i32 [n, 2]; out: f32 [n, HEADS]. A block is one head of one
// token, and a thread of it one key of a run of 64. Bound: chains of additions.
#include "lib/scores.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
KERNEL(const NUMBER *q, const NUMBER *k, const int *seq, const int *pos, const int *span, float *out, int n) {
    __shared__ float run[THREADS];
    wait_for_previous();
    int head = blockIdx.x, token = blockIdx.y, sequence = seq[token];
    bool is_known = 0 <= sequence && sequence < SEQS;
    const NUMBER *query = q + ((size_t)token * HEADS + head) * HD;
    const NUMBER *keys = k + (size_t)((is_known ? sequence : 0) * KV_HEADS + head / (HEADS / KV_HEADS)) * CTX * HD;
    Ranges seen(pos[token], span[2 * token], span[2 * token + 1]);
    int count = is_known ? count_keys(seen) : 0;
    float scale = __int_as_float(SCALE_BITS), largest = __int_as_float(0xff800000), sum = 0.0f;
    for (int first = 0; first < count; first += THREADS) {
        int length = min(THREADS, count - first);
        bool has_key = threadIdx.x < length;
        __syncthreads();
        if (has_key) run[threadIdx.x] = dot16(query, keys + (size_t)key_at(seen, first + threadIdx.x) * HD) * scale;
        __syncthreads();
        float before = largest, added = 0.0f;
        for (int i = 0; i < length; i++) largest = largest < run[i] ? run[i] : largest;
        float own = has_key ? exp_exact(run[threadIdx.x] - largest) : 0.0f;
        __syncthreads();
        run[threadIdx.x] = own;
        __syncthreads();
        for (int i = 0; i < length; i++) added += run[i];
        sum = sum * exp_exact(before - largest) + added;
    }
    if (threadIdx.x == 0) out[(size_t)token * HEADS + head] = count == 0 ? 0.0f : largest + ln_exact(sum);
}
