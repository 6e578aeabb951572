// Attention over a KV cache for few tokens, piece by piece in the order that the crate defines.
//
// q, out: f32 [n, HEADS, HD]; k, v: caches [seqs, KV_HEADS, CTX] of rows of HD numbers; seq, pos: i32 [n]; span: i32 [n, 2]. A block is one
// query head of one token. It takes the visible keys SPAN at a time, which are up to 16 tiles of 64:
//
//   scores    a warp takes eight keys at once; its lanes are the accumulators of `dot`
//   softmax   a warp takes a tile; how a tile joins those before it is found by a thread
//   values    a thread has a number of the result and adds the values of all keys in ascending order, while all threads fetch the next ones
//
// So all that the order makes sequential is one fma a key. Bound: latency, and the L2 rate of one multiprocessor.
#include "lib/rows.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
KERNEL(const float *q, const u8 *k, const u8 *v, const int *seq, const int *pos, const int *span, float *out, int n) {
    wait_for_previous();
    typedef K_ROW<HD> KRow;
    typedef V_ROW<HD> VRow;
    constexpr int TILE = 64, TILES = 16, SPAN = TILE * TILES, WARPS = THREADS / 32, KEYS = 8;
    constexpr int PARTS = ceil_div(HD, 32), NUMBERS = ceil_div(HD, THREADS);
    // Keys whose values lie in shared memory at once, twice: 16 KiB each for heads of 128.
    constexpr int STAGE = HD <= 128 ? 32 : 16, FETCH = ceil_div(STAGE * HD, THREADS);
    constexpr unsigned window = (unsigned)WINDOW, sinks = (unsigned)SINKS;
    const float minus_infinity = __int_as_float(0xff800000);
    __shared__ float weights[SPAN];
    __shared__ float tile_largest[TILES], tile_sum[TILES], tile_keep[TILES], tile_gain[TILES];
    __shared__ float staged[2][STAGE * HD];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int head = blockIdx.x, token = blockIdx.y, kv_head = head / (HEADS / KV_HEADS);
    const float *query = q + ((size_t)token * HEADS + head) * HD;
    float *result = out + ((size_t)token * HEADS + head) * HD;
    const u8 *keys = k + row_of_first_key(seq[token], kv_head) * KRow::BYTES;
    const u8 *values = v + row_of_first_key(seq[token], kv_head) * VRow::BYTES;
    const float scale = __int_as_float(SCALE_BITS);
    float own[PARTS];
    for (int part = 0; part < PARTS; part++) own[part] = 32 * part + lane < HD ? query[32 * part + lane] : 0.0f;

    // The two ranges of `ir::mask::Mask::ranges`, clipped to the cache.
    const int position = pos[token];
    const unsigned first = (unsigned)max(span[2 * token], 0), reach = (unsigned)max(span[2 * token + 1], 0);
    const unsigned end = (unsigned)position + 1;
    const unsigned window_start = window == 0 || end < window ? 0 : end - window;
    const unsigned sinks_end = window == 0 ? 0 : min(first + min(sinks, 0xffffffffu - first), end);
    const unsigned head_end = max(max(reach, sinks_end), first), tail_start = max(window_start, head_end);

    float acc[NUMBERS] = {}, part[NUMBERS] = {};
    float largest = minus_infinity, sum = 0.0f;
    bool sees_any = false;
#pragma unroll 1
    for (int range = 0; range < 2; range++) {
        int start = (int)min(range == 0 ? first : tail_start, (unsigned)CTX);
        int range_end = (int)min(range == 0 ? head_end : max(end, tail_start), (unsigned)CTX);
        if (position < 0) range_end = 0;
        for (; start < range_end;) {
            const int base = start / TILE * TILE, stop = min(range_end, base + SPAN), tiles = ceil_div(stop - base, TILE);
            sees_any = true;
            // Slots without a key.
            for (int slot = threadIdx.x; slot < start - base; slot += THREADS) weights[slot] = minus_infinity;
            for (int slot = stop - base + threadIdx.x; slot < tiles * TILE; slot += THREADS) weights[slot] = minus_infinity;

#pragma unroll 1
            for (int key = start + KEYS * warp; key < stop; key += KEYS * WARPS) {
                float dots[KEYS];
#pragma unroll
                for (int next = 0; next < KEYS; next++) {
                    // Keys beyond the last compute it again.
                    KRow row = KRow::open(keys + (size_t)min(key + next, stop - 1) * ROWS_TO_NEXT_KEY * KRow::BYTES);
                    float dot = 0.0f;
#pragma unroll
                    for (int part = 0; part < PARTS; part++)
                        if (HD % 32 == 0 || 32 * part + lane < HD) dot = fmaf(own[part], row.at(32 * part + lane), dot);
                    dots[next] = dot;
                }
#pragma unroll
                for (int next = 0; next < KEYS; next++) {
                    float dot = sum_tree(dots[next]);
                    if (lane == 0 && key + next < stop) weights[key + next - base] = dot * scale;
                }
            }
            __syncthreads();

#pragma unroll 1
            for (int tile = warp; tile < tiles; tile += WARPS) {
                float low = weights[tile * TILE + lane], high = weights[tile * TILE + lane + 32];
                float most = low < high ? high : low;
                for (int d = 16; 0 < d; d /= 2) {
                    float other = __shfl_xor_sync(0xffffffffu, most, d);
                    most = most < other ? other : most;
                }
                low = exp_exact(low - most), high = exp_exact(high - most);
                weights[tile * TILE + lane] = low;
                weights[tile * TILE + lane + 32] = high;
                float total = sum_tree(low + high);
                if (lane == 0) {
                    tile_largest[tile] = most;
                    tile_sum[tile] = total;
                }
            }
            __syncthreads();
            if (threadIdx.x < tiles) {
                float before = largest;
#pragma unroll 1
                for (int earlier = 0; earlier < threadIdx.x; earlier++) before = before < tile_largest[earlier] ? tile_largest[earlier] : before;
                float own_largest = tile_largest[threadIdx.x], now = before < own_largest ? own_largest : before;
                tile_keep[threadIdx.x] = exp_exact(before - now);
                tile_gain[threadIdx.x] = exp_exact(own_largest - now);
            }

            // The values of a stage, whose number counts from `base`, on their way: in registers until the stage before the one before is done.
            float even[FETCH], odd[FETCH];
            auto fetch = [&](float(&to)[FETCH], int stage) {
                if (stop <= base + stage * STAGE) return;
#pragma unroll
                for (int i = 0; i < FETCH; i++) {
                    int e = threadIdx.x + i * THREADS, key = base + stage * STAGE + e / HD;
                    if (e < STAGE * HD && start <= key && key < stop)
                        to[i] = VRow::open(values + (size_t)key * ROWS_TO_NEXT_KEY * VRow::BYTES).at(e % HD);
                }
            };
            auto keep = [&](const float(&from)[FETCH], int stage) {
#pragma unroll
                for (int i = 0; i < FETCH; i++)
                    if (threadIdx.x + i * THREADS < STAGE * HD) staged[stage % 2][threadIdx.x + i * THREADS] = from[i];
            };
            const int first_stage = (start - base) / STAGE;
            fetch(even, first_stage);
            fetch(odd, first_stage + 1);
            __syncthreads();
#pragma unroll 1
            for (int tile = 0; tile < tiles; tile++) {
                largest = largest < tile_largest[tile] ? tile_largest[tile] : largest;
                sum = fmaf(sum, tile_keep[tile], tile_sum[tile] * tile_gain[tile]);
            }
            // One stage: what `mine` holds goes to shared memory, is replaced by the values of two stages on, and is added meanwhile.
            auto add_stage = [&](float(&mine)[FETCH], int stage) {
                keep(mine, stage);
                __syncthreads();
                fetch(mine, stage + 2);
                int from = max(start - base, stage * STAGE), to = min(stop - base, (stage + 1) * STAGE);
                bool ends = stop <= base + (stage + 1) * STAGE || (stage + 1) * STAGE % TILE == 0;
                const float *rows = staged[stage % 2];
                for (int i = 0; i < NUMBERS; i++) {
                    int d = threadIdx.x + i * THREADS;
                    if (HD <= d) break;
                    if (from == stage * STAGE && to == (stage + 1) * STAGE) {
#pragma unroll 8
                        for (int key = 0; key < STAGE; key++)
                            part[i] = fmaf(weights[stage * STAGE + key], rows[key * HD + d], part[i]);
                    } else {
                        for (int key = from; key < to; key++)
                            part[i] = fmaf(weights[key], rows[(key - stage * STAGE) * HD + d], part[i]);
                    }
                    if (ends) {
                        const int tile = stage * STAGE / TILE;
                        acc[i] = fmaf(acc[i], tile_keep[tile], part[i] * tile_gain[tile]);
                        part[i] = 0.0f;
                    }
                }
            };
#pragma unroll 1
            for (int stage = first_stage; base + stage * STAGE < stop; stage += 2) {
                add_stage(even, stage);
                if (base + (stage + 1) * STAGE < stop) add_stage(odd, stage + 1);
            }
            __syncthreads();
            start = stop;
        }
    }
    const float factor = sees_any ? 1.0f / sum : 0.0f;
    for (int i = 0; i < NUMBERS; i++)
        if (threadIdx.x + i * THREADS < HD) result[threadIdx.x + i * THREADS] = acc[i] * factor;
}
