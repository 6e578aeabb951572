// The gradient of attention in many queries; the difference to exact arithmetic is bounded (`kernels::cuda::accuracy`).
//
// q, dy: bf16 [n, HEADS, HD]; k, v: bf16 [SEQS, KV_HEADS, CTX, HD]; seq, pos: i32 [n]; span: i32 [n, 2]; lse, delta: f32 [n, HEADS]; out: f32 [n, HEADS, HD].
//
// A block is one query head of TOKENS tokens. Each of its 4 warps has the queries of 16 or 32 of them, the gradients of their results and the sums of the
// result in registers, and meets the keys of a tile 16 at a time: scores and products with the values from the tiles as they are, then, rounded to
// bf16 where they lie, times the keys. Tiles come and are passed over as in attention_prefill.cu, and so are 16 keys that no token of a warp sees.
//
// Shared memory, dynamic: two tiles of 64 keys and of as many values. Bound: the rate of mma.
#include "lib/gradient.cuh"

// Tokens of a warp, in sixteens: where heads are short registers have room for 2, but then for half as many warps.
constexpr int SIXTEENS = ROWS / 64, TOKENS = 64 * SIXTEENS, KEYS = LINES, V_AT = 2 * TILE_BYTES;
static_assert(THREADS == 128 && ROWS == 64 * SIXTEENS, "4 warps");

extern "C" __global__ void __launch_bounds__(THREADS)
KERNEL(const u8 *q, const u8 *k, const u8 *v, const int *seq, const int *pos, const int *span, const u8 *dy,
       const float *lse, const float *delta, float *__restrict__ out, int n) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ int4 ranges[TOKENS];
    __shared__ int seqs[TOKENS];
    unsigned base = (unsigned)__cvta_generic_to_shared(shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4, head = blockIdx.x, kv_head = head / (HEADS / KV_HEADS);
    // Those that see most come first.
    int token_0 = (int)(gridDim.y - 1 - blockIdx.y) * TOKENS, rows = min(TOKENS, n - token_0);
    wait_for_previous();
    if (threadIdx.x < rows) {
        int token = token_0 + threadIdx.x, sequence = seq[token];
        bool is_known = 0 <= sequence && sequence < SEQS;
        ranges[threadIdx.x] = ranges_of(is_known, pos[token], span + 2 * token);
        seqs[threadIdx.x] = is_known ? sequence : 0;
    }
    __syncthreads();

    Tiles<KEYS> tiles(ranges, seqs, rows);
    auto fetch = [&](int stage) {
        size_t first_row = row_of_first_key(tiles.seq, kv_head);
        copy_tile(base + stage * TILE_BYTES, k + first_row * K_BYTES, tiles);
        copy_tile(base + V_AT + stage * TILE_BYTES, v + first_row * V_BYTES, tiles);
        end_copies();
    };
    bool is_other, has_tile = tiles.next(is_other);
    if (has_tile) fetch(0);

    auto row_of = [&](int sixteen, int i) { return 16 * SIXTEENS * warp + 16 * sixteen + 8 * i + g; };
    unsigned query[SIXTEENS][HD / 16][4], pull[SIXTEENS][HD / 16][4];
    float own_lse[SIXTEENS][2], own_delta[SIXTEENS][2];
#pragma unroll
    for (int sixteen = 0; sixteen < SIXTEENS; sixteen++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            size_t row = (size_t)(token_0 + min(row_of(sixteen, j % 2), rows - 1)) * HEADS + head;
            if (j < 2) own_lse[sixteen][j] = lse[row] * LOG2_E, own_delta[sixteen][j] = delta[row];
#pragma unroll
            for (int i = 0; i < HD / 16; i++) {
                size_t at = row * (2 * HD) + 2 * (16 * i + 8 * (j / 2) + 2 * c);
                query[sixteen][i][j] = *(const unsigned *)(q + at), pull[sixteen][i][j] = *(const unsigned *)(dy + at);
            }
        }

    // Scores are in units whose power of two is the exponential.
    const float minus_infinity = __int_as_float(0xff800000);
    float scale = __int_as_float(SCALE_BITS), scale_2 = scale * LOG2_E;
    float result[SIXTEENS][HD / 8][4] = {};
    int4 own[SIXTEENS][2] = {};
    int stage = 0;
#pragma unroll 1
    while (has_tile) {
        // The tile that is worked on; `tiles` goes on to the next one.
        int first = tiles.tile * KEYS;
        if (is_other)
#pragma unroll
            for (int row = 0; row < 2 * SIXTEENS; row++) {
                int at = min(row_of(row / 2, row % 2), rows - 1);
                own[row / 2][row % 2] = tiles.first_row <= at && at < tiles.last_row ? ranges[at] : int4{0, 0, 0, 0};
            }
        wait_for_copies<0>();
        __syncthreads();
        has_tile = tiles.next(is_other);
        if (has_tile) fetch(stage ^ 1);
        unsigned k_at = base + stage * TILE_BYTES, v_at = k_at + V_AT;
        stage ^= 1;

        bool is_whole = true;
#pragma unroll
        for (int row = 0; row < 2 * SIXTEENS; row++) is_whole = is_whole && sees_all(own[row / 2][row % 2], first, KEYS);
        is_whole = __all_sync(0xffffffffu, is_whole);
        // Sixteen keys, some of which some rows do not see.
        auto meet = [&](int j, auto is_masked) {
            int key_0 = first + 16 * j;
            float s[SIXTEENS][2][4], e[SIXTEENS][2][4];
            product_of_rows(s, query, k_at, 16 * j);
            product_of_rows(e, pull, v_at, 16 * j);
            if constexpr (is_masked.value) {
#pragma unroll
                for (int i = 0; i < 8 * SIXTEENS; i++) {
                    int sixteen = i / 8, next = i % 8;
                    if (!sees_some(own[sixteen][next % 4 / 2], key_0 + 8 * (next / 4) + 2 * c + next % 2, 1)) s[sixteen][next / 4][next % 4] = minus_infinity;
                }
            }
            unsigned turns[SIXTEENS][4];
#pragma unroll
            for (int sixteen = 0; sixteen < SIXTEENS; sixteen++) {
#pragma unroll
                for (int next = 0; next < 8; next++) {
                    int i = next % 4 / 2;
                    float &score = s[sixteen][next / 4][next % 4];
                    float part = exp2_near(fmaf(score, scale_2, -own_lse[sixteen][i]));
                    score = part * (e[sixteen][next / 4][next % 4] - own_delta[sixteen][i]);
                }
                as_operand(turns[sixteen], s[sixteen]);
            }
            add_product(result, turns, k_at, 16 * j);
        };
        if (is_whole)
#pragma unroll 1
            for (int j = 0; j < KEYS / 16; j++) meet(j, Flag<false>{});
        else
#pragma unroll 1
            for (int j = 0; j < KEYS / 16; j++) {
                bool is_seen = false;
#pragma unroll
                for (int row = 0; row < 2 * SIXTEENS; row++) is_seen = is_seen || sees_some(own[row / 2][row % 2], first + 16 * j, 16);
                if (__any_sync(0xffffffffu, is_seen)) meet(j, Flag<true>{});
            }
    }
#pragma unroll
    for (int row = 0; row < 2 * SIXTEENS; row++) {
        int sixteen = row / 2, i = row % 2, at = row_of(sixteen, i);
        if (rows <= at) continue;
        float *to = out + ((size_t)(token_0 + at) * HEADS + head) * HD + 2 * c;
#pragma unroll
        for (int j = 0; j < HD / 8; j++) to[8 * j] = result[sixteen][j][2 * i] * scale, to[8 * j + 1] = result[sixteen][j][2 * i + 1] * scale;
    }
}
