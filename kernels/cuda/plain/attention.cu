// Attention over a KV cache, piece by piece in the order that the crate defines.
//
// q, out: f32 [n, HEADS, HD]; k, v: caches [seqs, KV_HEADS, CTX] of rows of HD numbers; seq, pos: i32 [n]; span: i32 [n, 2]. A block is one
// query head of one token. For each piece of visible keys between multiples of 64, the warps share the keys for the scores, a lane being an
// accumulator of `dot`; then each thread has some numbers of the result and adds all values of the piece to them.
// Blocks are small, for many tokens to be on the device at once. Bound: the caches' rate.
#include "lib/rows.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
KERNEL(const float *q, const u8 *k, const u8 *v, const int *seq, const int *pos, const int *span, float *out, int n) {
    wait_for_previous();
    typedef K_ROW<HD> KRow;
    typedef V_ROW<HD> VRow;
    constexpr int TILE = 64, WARPS = THREADS / 32, NUMBERS = ceil_div(HD, THREADS);
    constexpr unsigned window = (unsigned)WINDOW, sinks = (unsigned)SINKS;
    __shared__ float weights[TILE];
    __shared__ float keep_by, gain_by, total;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int head = blockIdx.x, token = blockIdx.y, kv_head = head / (HEADS / KV_HEADS);
    const float *query = q + ((size_t)token * HEADS + head) * HD;
    float *result = out + ((size_t)token * HEADS + head) * HD;
    const u8 *keys = k + row_of_first_key(seq[token], kv_head) * KRow::BYTES;
    const u8 *values = v + row_of_first_key(seq[token], kv_head) * VRow::BYTES;
    float scale = __int_as_float(SCALE_BITS);

    // The two ranges of `ir::mask::Mask::ranges`, clipped to the cache.
    int position = pos[token];
    unsigned first = (unsigned)max(span[2 * token], 0), reach = (unsigned)max(span[2 * token + 1], 0);
    unsigned end = (unsigned)position + 1;
    unsigned window_start = window == 0 || end < window ? 0 : end - window;
    unsigned sinks_end = window == 0 ? 0 : min(first + min(sinks, 0xffffffffu - first), end);
    unsigned head_end = max(max(reach, sinks_end), first), tail_start = max(window_start, head_end);
    int starts[2] = {(int)min(first, (unsigned)CTX), (int)min(tail_start, (unsigned)CTX)};
    int ends[2] = {(int)min(head_end, (unsigned)CTX), (int)min(max(end, tail_start), (unsigned)CTX)};
    if (position < 0) ends[0] = ends[1] = 0;

    float acc[NUMBERS] = {};
    float largest = __int_as_float(0xff800000), sum = 0.0f; // Those of warp 0 count.
    bool sees_any = false;
    for (int range = 0; range < 2; range++) {
        for (int start = starts[range]; start < ends[range];) {
            int base = start / TILE * TILE, stop = min(ends[range], base + TILE);
            sees_any = true;
            for (int slot = threadIdx.x; slot < TILE; slot += THREADS) weights[slot] = __int_as_float(0xff800000);
            __syncthreads();
            for (int key = start + warp; key < stop; key += WARPS) {
                KRow row = KRow::open(keys + (size_t)key * ROWS_TO_NEXT_KEY * KRow::BYTES);
                float dot = 0.0f;
                for (int i = lane; i < HD; i += 32) dot = fmaf(query[i], row.at(i), dot);
                dot = sum_tree(dot);
                if (lane == 0) weights[key - base] = dot * scale;
            }
            __syncthreads();
            if (warp == 0) {
                float s_low = weights[lane], s_high = weights[lane + 32];
                float tile_largest = s_low < s_high ? s_high : s_low;
                for (int d = 16; 0 < d; d /= 2) {
                    float other = __shfl_xor_sync(0xffffffffu, tile_largest, d);
                    tile_largest = tile_largest < other ? other : tile_largest;
                }
                float p_low = exp_exact(s_low - tile_largest), p_high = exp_exact(s_high - tile_largest);
                weights[lane] = p_low;
                weights[lane + 32] = p_high;
                float tile_sum = __shfl_sync(0xffffffffu, sum_tree(p_low + p_high), 0);
                float new_largest = largest < tile_largest ? tile_largest : largest;
                float keep = exp_exact(largest - new_largest), gain = exp_exact(tile_largest - new_largest);
                sum = fmaf(sum, keep, tile_sum * gain);
                largest = new_largest;
                if (lane == 0) {
                    keep_by = keep;
                    gain_by = gain;
                    total = sum;
                }
            }
            __syncthreads();
            float keep = keep_by, gain = gain_by;
            for (int i = 0; i < NUMBERS; i++) {
                int d = threadIdx.x + i * THREADS;
                float tile = 0.0f;
                if (d < HD)
#pragma unroll 8
                    for (int key = start; key < stop; key++) {
                        VRow row = VRow::open(values + (size_t)key * ROWS_TO_NEXT_KEY * VRow::BYTES);
                        tile = fmaf(weights[key - base], row.at(d), tile);
                    }
                acc[i] = fmaf(acc[i], keep, tile * gain);
            }
            __syncthreads();
            start = stop;
        }
    }
    float factor = sees_any ? 1.0f / total : 0.0f;
    for (int i = 0; i < NUMBERS; i++)
        if (threadIdx.x + i * THREADS < HD) result[threadIdx.x + i * THREADS] = acc[i] * factor;
}
