// KV append: cache[seq[t], pos[t], h] = encode(x[t, h]).
//
// x: f32, token t at element t * X_STRIDE, [KV_HEADS, HD] each; seq, pos: i32 [n]; cache: [SEQS, KV_HEADS, CTX] of rows of HD numbers. A warp
// has one head of one token. A token whose place is outside the cache is skipped.
#include "lib/rows.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const float *x, const int *seq, const int *pos, u8 *cache, int n) {
    wait_for_previous();
    typedef ROW<HD> Row;
    int head = blockIdx.x, token = blockIdx.y * (THREADS / 32) + threadIdx.x / 32;
    if (n <= token) return;
    int s = seq[token], p = pos[token];
    if (s < 0 || SEQS <= s || p < 0 || CTX <= p) return;
    Row::encode(x + (size_t)token * X_STRIDE + head * HD, cache + (row_of_first_key(s, head) + p * ROWS_TO_NEXT_KEY) * Row::BYTES);
}
