// RoPE of q and k, and append of the rotated k and of v: with h = HD / 2 and i < h, in a head x of q or k,
//   rotated[i] = x[i] * cos[i] - x[i + h] * sin[i],  rotated[i + h] = x[i + h] * cos[i] + x[i] * sin[i],
// and k_cache[seq[t], head, pos[t]] = encode(rotated k), v_cache[seq[t], head, pos[t]] = encode(v).
//
// q, k, v: f32, token t at element t * Q_STRIDE, K_STRIDE, V_STRIDE, heads of HD numbers side by side: HEADS of q, KV_HEADS of k and v. cos, sin: f32
// [n, HD / 2]; seq, pos: i32 [n]; rotated: f32 [n, HEADS, HD]; caches: [SEQS, KV_HEADS, CTX] of rows of HD numbers. A token whose place is outside the
// caches is not appended.
// A block is TOKENS tokens and one KV head with the heads of q that share it, GROUP + 2 rows for a token. As many warps share a token as there are of
// them, and each loads all its rows before it stores one: that is fast for one token, whose rows have more warps than one, and for many.
// Shared memory: a row for each warp, where encode finds it.
// Bound: memory.
#include "lib/rows.cuh"

constexpr int HALF = HD / 2, PARTS = ceil_div(HALF, 32), WARPS = THREADS / 32, WARPS_OF_TOKEN = WARPS / TOKENS;
constexpr int GROUP = HEADS / KV_HEADS, ROWS_OF_TOKEN = GROUP + 2, TURNS = ceil_div(ROWS_OF_TOKEN, WARPS_OF_TOKEN);
// Rows in flight: up to 24 registers of them, so that many warps fit as well.
constexpr int MOST = PARTS < 12 ? 12 / PARTS : 1, AT_ONCE = TURNS < MOST ? TURNS : MOST;

// Stores a head, turned or as it is.
__device__ __forceinline__ void put(float *to, const float *low, const float *high, const float *cosine, const float *sine, bool is_turned) {
#pragma unroll
    for (int j = 0; j < PARTS; j++) {
        int i = 32 * j + threadIdx.x % 32;
        if (i < HALF) {
            to[i] = is_turned ? low[j] * cosine[j] - high[j] * sine[j] : low[j];
            to[i + HALF] = is_turned ? high[j] * cosine[j] + low[j] * sine[j] : high[j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const float *q, const float *k, const float *v, const float *cos, const float *sin,
                                                             const int *seq, const int *pos, float *rotated, u8 *k_cache, u8 *v_cache, int n) {
    wait_for_previous();
    typedef K_ROW<HD> KRow;
    typedef V_ROW<HD> VRow;
    __shared__ float rows[WARPS][HD];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv_head = blockIdx.x;
    int token = blockIdx.y * TOKENS + warp / WARPS_OF_TOKEN, first = warp % WARPS_OF_TOKEN;
    if (n <= token || ROWS_OF_TOKEN <= first) return;
    int s = seq[token], p = pos[token];
    bool has_place = 0 <= s && s < SEQS && 0 <= p && p < CTX;
    float cosine[PARTS], sine[PARTS];
#pragma unroll
    for (int j = 0; j < PARTS; j++) {
        int i = 32 * j + lane;
        cosine[j] = i < HALF ? cos[(size_t)token * HALF + i] : 0.0f;
        sine[j] = i < HALF ? sin[(size_t)token * HALF + i] : 0.0f;
    }
#pragma unroll 1
    for (int turn = 0; turn < TURNS; turn += AT_ONCE) {
        float low[AT_ONCE][PARTS], high[AT_ONCE][PARTS];
#pragma unroll
        for (int a = 0; a < AT_ONCE; a++) {
            int row = first + (turn + a) * WARPS_OF_TOKEN;
            const float *x = row < GROUP    ? q + (size_t)token * Q_STRIDE + (kv_head * GROUP + row) * HD
                             : row == GROUP ? k + (size_t)token * K_STRIDE + kv_head * HD
                                            : v + (size_t)token * V_STRIDE + kv_head * HD;
#pragma unroll
            for (int j = 0; j < PARTS; j++) {
                int i = 32 * j + lane;
                bool is_there = row < ROWS_OF_TOKEN && i < HALF;
                low[a][j] = is_there ? x[i] : 0.0f;
                high[a][j] = is_there ? x[i + HALF] : 0.0f;
            }
        }
#pragma unroll
        for (int a = 0; a < AT_ONCE; a++) {
            int row = first + (turn + a) * WARPS_OF_TOKEN;
            if (row < GROUP) {
                put(rotated + ((size_t)token * HEADS + kv_head * GROUP + row) * HD, low[a], high[a], cosine, sine, true);
            } else if (row < ROWS_OF_TOKEN && has_place) {
                put(rows[warp], low[a], high[a], cosine, sine, row == GROUP);
                __syncwarp();
                size_t place = row_of_first_key(s, kv_head) + p * ROWS_TO_NEXT_KEY;
                if (row == GROUP) KRow::encode(rows[warp], k_cache + place * KRow::BYTES);
                else VRow::encode(rows[warp], v_cache + place * VRow::BYTES);
                __syncwarp();
            }
        }
    }
}
