// Attention of many tokens; the difference to exact arithmetic is bounded (`kernels::cuda::Accuracy`).
//
// q, out: f32 [n, HEADS, HD]; k, v: caches [seqs, KV_HEADS, CTX] of rows of HD numbers; seq, pos: i32 [n]; span: i32 [n, 2].
//
// A block is one query head of 64 tokens, 16 for each of its warps, which have their queries in registers. Keys and values come in tiles of 64 keys, bf16
// as they are, records decoded and rounded to bf16, while the tile before is worked on. Tiles that no token of the block sees are passed over, and only
// tiles that some token does not see whole are masked. Tokens of other sequences than the current one see nothing of it, and the sequences of a
// block come one after the other.
//
// Shared memory, dynamic: for bf16 two keys and two values of 64 keys; for records one of each, and as many records. Bound: the rate of mma.
#include "lib/attention.cuh"

constexpr int TOKENS = 64, KEYS = 64, TILE_BYTES = KEYS * 2 * HD, STAGES = IS_RECORDS ? 1 : 2;
constexpr int V_AT = STAGES * TILE_BYTES, RAW_AT = 2 * STAGES * TILE_BYTES;
static_assert(THREADS == 128, "a warp for each 16 tokens");

// The place of 16 bytes of a tile: a line, and a part of 8 dims.
__device__ __forceinline__ unsigned part_of(int line, int part) { return part / 8 * (KEYS * 128) + line * 128 + ((part % 8) ^ (line % 8)) * 16; }

extern "C" __global__ void __launch_bounds__(THREADS)
KERNEL(const float *q, const u8 *k, const u8 *v, const int *__restrict__ seq, const int *__restrict__ pos,
       const int *__restrict__ span, float *__restrict__ out, int n) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ int4 ranges[TOKENS];
    __shared__ int seqs[TOKENS];
    unsigned base = (unsigned)__cvta_generic_to_shared(shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4, head = blockIdx.x, kv_head = head / (HEADS / KV_HEADS);
    // Those that see most come first.
    int token_0 = (int)(gridDim.y - 1 - blockIdx.y) * TOKENS, rows = min(TOKENS, n - token_0);
    wait_for_inputs();
    let_next_start();
    if (threadIdx.x < rows) {
        int token = token_0 + threadIdx.x;
        Ranges own(pos[token], span[2 * token], span[2 * token + 1]);
        ranges[threadIdx.x] = int4{own.head_start, own.head_end, own.tail_start, own.tail_end};
        seqs[threadIdx.x] = seq[token];
    }
    __syncthreads();

    // Starts the copies of a tile: of bf16 to its stage, of records to where they are decoded from.
    Tiles<KEYS> tiles(ranges, seqs, rows);
    auto fetch = [&](int stage) {
        size_t first_row = row_of_first_key(tiles.seq, kv_head);
        if (!IS_RECORDS) {
            copy_tile(base + stage * TILE_BYTES, k + first_row * K_BYTES, tiles);
            copy_tile(base + V_AT + stage * TILE_BYTES, v + first_row * V_BYTES, tiles);
            end_copies();
        } else {
            copy_records<K_BYTES>(base + RAW_AT, k + first_row * K_BYTES, tiles);
            copy_records<V_BYTES>(base + RAW_AT + KEYS * K_BYTES, v + first_row * V_BYTES, tiles);
        }
    };
    bool is_other, has_tile = tiles.next(is_other);
    if (has_tile) fetch(0);

    unsigned query[HD / 16][4];
    int rows_of[2] = {16 * warp + g, 16 * warp + g + 8};
#pragma unroll
    for (int i = 0; i < HD / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float *two = q + ((size_t)(token_0 + min(rows_of[j % 2], rows - 1)) * HEADS + head) * HD + 16 * i + 8 * (j / 2) + 2 * c;
            query[i][j] = pack_bf16(two[0], two[1]);
        }

    const float minus_infinity = __int_as_float(0xff800000);
    // Scores are in units whose power of two is the exponential.
    float scale = __int_as_float(SCALE_BITS) * 1.4426950408889634f;
    float result[HD / 8][4] = {}, most[2] = {minus_infinity, minus_infinity}, sum[2] = {};
    int4 own[2] = {};
    int stage = 0;
#pragma unroll 1
    while (has_tile) {
        // The tile that is worked on; `tiles` goes on to the next one.
        int first = tiles.tile * KEYS;
        if (is_other)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int row = min(rows_of[i], rows - 1);
                own[i] = tiles.first_row <= row && row < tiles.last_row ? ranges[row] : int4{0, 0, 0, 0};
            }
        wait_for_copies<0>();
        __syncthreads();
        if (IS_RECORDS) {
            // A thread decodes the key or the value.
            int key = threadIdx.x % KEYS;
            if (threadIdx.x < KEYS) decode_record<K_ROW, KEYS>(base, base + RAW_AT, key, tiles.has_key(key));
            else decode_record<V_ROW, KEYS>(base + V_AT, base + RAW_AT + KEYS * K_BYTES, key, tiles.has_key(key));
            __syncthreads();
        }
        has_tile = tiles.next(is_other);
        if (has_tile) fetch(IS_RECORDS ? 0 : stage ^ 1);
        unsigned k_at = base + stage * TILE_BYTES, v_at = k_at + V_AT;
        if (!IS_RECORDS) stage ^= 1;

        float s[KEYS / 8][4] = {};
#pragma unroll
        for (int i = 0; i < HD / 16; i++)
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                unsigned b[4];
                load_matrices(b, k_at + part_of(16 * j + lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2));
                mma_bf16(s[2 * j], query[i][0], query[i][1], query[i][2], query[i][3], b[0], b[1]);
                mma_bf16(s[2 * j + 1], query[i][0], query[i][1], query[i][2], query[i][3], b[2], b[3]);
            }
        bool is_whole = true;
#pragma unroll
        for (int i = 0; i < 2; i++)
            is_whole = is_whole && ((own[i].x <= first && first + KEYS <= own[i].y) || (own[i].z <= first && first + KEYS <= own[i].w));
        if (!__all_sync(0xffffffffu, is_whole))
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int4 range = own[i / 2];
                    int key = first + 8 * j + 2 * c + i % 2;
                    bool is_visible = (range.x <= key && key < range.y) || (range.z <= key && key < range.w);
                    s[j][i] = is_visible ? s[j][i] : minus_infinity;
                }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float now = most[i];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) now = fmaxf(now, fmaxf(s[j][2 * i], s[j][2 * i + 1]));
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
            // A row that has seen nothing yet has no maximum.
            float shift = now == minus_infinity ? 0.0f : now * scale, shrink = exp2_near(fmaf(most[i], scale, -shift));
            most[i] = now, sum[i] = sum[i] * shrink;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int next = 2 * i; next < 2 * i + 2; next++) s[j][next] = exp2_near(fmaf(s[j][next], scale, -shift)), sum[i] = sum[i] + s[j][next];
#pragma unroll
            for (int j = 0; j < HD / 8; j++) result[j][2 * i] *= shrink, result[j][2 * i + 1] *= shrink;
        }
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++) {
            unsigned a0 = pack_bf16(s[2 * i][0], s[2 * i][1]), a1 = pack_bf16(s[2 * i][2], s[2 * i][3]);
            unsigned a2 = pack_bf16(s[2 * i + 1][0], s[2 * i + 1][1]), a3 = pack_bf16(s[2 * i + 1][2], s[2 * i + 1][3]);
#pragma unroll
            for (int j = 0; j < HD / 16; j++) {
                unsigned b[4];
                load_transposed(b, v_at + part_of(16 * i + lane % 16, 2 * j + lane / 16));
                mma_bf16(result[2 * j], a0, a1, a2, a3, b[0], b[1]);
                mma_bf16(result[2 * j + 1], a0, a1, a2, a3, b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float total = sum[i];
        total = total + __shfl_xor_sync(0xffffffffu, total, 1);
        total = total + __shfl_xor_sync(0xffffffffu, total, 2);
        // A row that sees no key has the sum 0.
        float factor = total == 0.0f ? 0.0f : 1.0f / total;
        if (rows <= rows_of[i]) continue;
        float *to = out + ((size_t)(token_0 + rows_of[i]) * HEADS + head) * HD + 2 * c;
#pragma unroll
        for (int j = 0; j < HD / 8; j++) to[8 * j] = result[j][2 * i] * factor, to[8 * j + 1] = result[j][2 * i + 1] * factor;
    }
}
