// The log of the sum of the exponentials of the scores of many queries; the difference to exact arithmetic is bounded (`kernels::cuda::accuracy`).
//
// q: bf16 [n, HEADS, HD]; k: bf16 [SEQS, KV_HEADS, CTX, HD]; seq, pos: i32 [n]; span: i32 [n, 2]; out: f32 [n, HEADS].
//
// As in attention_prefill.cu, without the values: a block is one query head of ROWS tokens, 16 for each of its warps. With 32, what a warp reads of a tile
// of 64 keys would serve two products, but fewer warps would be at work. The next tile comes while one is worked on.
//
// Shared memory, dynamic: two tiles of keys. Bound: the rate of mma.
#include "lib/gradient.cuh"

constexpr int SIXTEENS = ROWS / 64, TOKENS = 64 * SIXTEENS, KEYS = LINES;
static_assert(THREADS == 128 && ROWS == 64 * SIXTEENS, "4 warps");

extern "C" __global__ void __launch_bounds__(THREADS)
KERNEL(const u8 *q, const u8 *k, const int *seq, const int *pos, const int *span, float *__restrict__ out, int n) {
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
        copy_tile(base + stage * TILE_BYTES, k + row_of_first_key(tiles.seq, kv_head) * K_BYTES, tiles);
        end_copies();
    };
    bool is_other, has_tile = tiles.next(is_other);
    if (has_tile) fetch(0);

    auto row_of = [&](int sixteen, int i) { return 16 * SIXTEENS * warp + 16 * sixteen + 8 * i + g; };
    unsigned query[SIXTEENS][HD / 16][4];
#pragma unroll
    for (int sixteen = 0; sixteen < SIXTEENS; sixteen++)
#pragma unroll
        for (int i = 0; i < HD / 16; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                size_t row = (size_t)(token_0 + min(row_of(sixteen, j % 2), rows - 1)) * HEADS + head;
                query[sixteen][i][j] = *(const unsigned *)(q + row * (2 * HD) + 2 * (16 * i + 8 * (j / 2) + 2 * c));
            }

    const float minus_infinity = __int_as_float(0xff800000);
    // Scores are in units whose power of two is the exponential.
    float scale = __int_as_float(SCALE_BITS) * LOG2_E;
    float most[SIXTEENS][2], sum[SIXTEENS][2] = {};
    int4 own[SIXTEENS][2] = {};
#pragma unroll
    for (int sixteen = 0; sixteen < SIXTEENS; sixteen++) most[sixteen][0] = most[sixteen][1] = minus_infinity;
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
        unsigned k_at = base + stage * TILE_BYTES;
        stage ^= 1;

        bool is_whole = true, is_seen = false;
#pragma unroll
        for (int row = 0; row < 2 * SIXTEENS; row++) {
            int4 range = own[row / 2][row % 2];
            is_whole = is_whole && sees_all(range, first, KEYS);
            is_seen = is_seen || sees_some(range, first, KEYS);
        }
        if (!__any_sync(0xffffffffu, is_seen)) continue;
        is_whole = __all_sync(0xffffffffu, is_whole);

        // By sixteens of keys and eights of these.
        float s[SIXTEENS][KEYS / 16][2][4];
#pragma unroll
        for (int i = 0; i < HD / 16; i++)
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                unsigned b[4];
                load_matrices(b, sixteen_dims(rows_at(k_at, 16 * j), i));
#pragma unroll
                for (int sixteen = 0; sixteen < SIXTEENS; sixteen++) multiply(s[sixteen][j], query[sixteen][i], b, i == 0);
            }
        if (!is_whole)
#pragma unroll
            for (int sixteen = 0; sixteen < SIXTEENS; sixteen++)
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (!sees_some(own[sixteen][i / 2], first + 8 * j + 2 * c + i % 2, 1)) s[sixteen][j / 2][j % 2][i] = minus_infinity;
#pragma unroll
        for (int row = 0; row < 2 * SIXTEENS; row++) {
            int sixteen = row / 2, i = row % 2;
            float now = most[sixteen][i];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) now = fmaxf(now, fmaxf(s[sixteen][j / 2][j % 2][2 * i], s[sixteen][j / 2][j % 2][2 * i + 1]));
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
            // A row that has seen nothing yet has no maximum.
            float shift = now == minus_infinity ? 0.0f : now * scale;
            float total = sum[sixteen][i] * exp2_near(fmaf(most[sixteen][i], scale, -shift));
            most[sixteen][i] = now;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int next = 2 * i; next < 2 * i + 2; next++) total = total + exp2_near(fmaf(s[sixteen][j / 2][j % 2][next], scale, -shift));
            sum[sixteen][i] = total;
        }
    }
#pragma unroll
    for (int row = 0; row < 2 * SIXTEENS; row++) {
        float total = sum[row / 2][row % 2];
        total = total + __shfl_xor_sync(0xffffffffu, total, 1);
        total = total + __shfl_xor_sync(0xffffffffu, total, 2);
        int at = row_of(row / 2, row % 2);
        // A row that sees no key has the sum 0.
        float lse = total == 0.0f ? 0.0f : (most[row / 2][row % 2] * scale + log2f(total)) * 0.6931471805599453f;
        if (c == 0 && at < rows) out[(size_t)(token_0 + at) * HEADS + head] = lse;
    }
}
