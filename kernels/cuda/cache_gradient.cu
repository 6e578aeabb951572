// The gradients of attention in its keys and values; the difference to exact arithmetic is bounded (`kernels::cuda::accuracy`).
//
// q, dy: bf16 [n, HEADS, HD]; k, v: bf16 [SEQS, KV_HEADS, CTX, HD]; seq, pos: i32 [n]; span: i32 [n, 2]; lse, delta: f32 [n, HEADS];
// out: f32 [2, SEQS, KV_HEADS, CTX, HD].
//
// A block is KEYS keys of one KV head of one sequence. Each of its 4 warps has 16 or 32 of the keys, their values and the sums of both gradients in
// registers, and meets the queries of a tile of 64 tokens 16 at a time: keys times queries are the scores the other way round, which, once they are
// weights and rounded to bf16, are where a left operand has to be. The heads of a group come one after the other for each tile.
//
// Which tiles have a token that sees one of the keys is found out first, by going through all tokens. Those tiles come while the one before is worked on,
// and 16 queries none of which sees a key of a warp are passed over. Sums run over tokens, then heads, in ascending order: no result depends on when
// a block runs.
//
// Shared memory, dynamic: two tiles of queries and of as many gradients; static: a bit for each 64 of MOST_TOKENS. Bound: the rate of mma.
#include "lib/gradient.cuh"

// Keys of a warp, in sixteens. With 2, where heads are short, registers run out.
constexpr int SIXTEENS = ROWS / 64, KEYS = 64 * SIXTEENS, GROUP = HEADS / KV_HEADS, DY_AT = 2 * TILE_BYTES, WORDS = MOST_TOKENS / LINES / 32;
static_assert(THREADS == 128 && ROWS == 64 * SIXTEENS, "4 warps");

// The tokens of a tile, as they lie in memory: two of them, one of which is worked on.
struct __align__(8) Tokens {
    int seq[LINES], pos[LINES], span[2 * LINES];
    float lse[LINES], delta[LINES];
};

extern "C" __global__ void __launch_bounds__(THREADS)
KERNEL(const u8 *q, const u8 *k, const u8 *v, const int *seq, const int *pos, const int *span, const u8 *dy, const float *lse, const float *delta,
       float *__restrict__ out, int n) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ unsigned tiles[WORDS];
    __shared__ Tokens tokens[2];
    __shared__ int4 ranges[LINES];
    unsigned base = (unsigned)__cvta_generic_to_shared(shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
    int sequence = blockIdx.x / KV_HEADS, kv_head = blockIdx.x % KV_HEADS, key_0 = blockIdx.y * KEYS, warp_key = key_0 + 16 * SIXTEENS * warp;
    wait_for_previous();

    unsigned key[SIXTEENS][HD / 16][4], value[SIXTEENS][HD / 16][4];
    size_t first_row = row_of_first_key(sequence, kv_head);
#pragma unroll
    for (int sixteen = 0; sixteen < SIXTEENS; sixteen++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int own = warp_key + 16 * sixteen + g + 8 * (j % 2);
#pragma unroll
            for (int i = 0; i < HD / 16; i++) {
                size_t at = (first_row + own) * (2 * HD) + 2 * (16 * i + 8 * (j / 2) + 2 * c);
                key[sixteen][i][j] = own < CTX ? *(const unsigned *)(k + at) : 0, value[sixteen][i][j] = own < CTX ? *(const unsigned *)(v + at) : 0;
            }
        }

    // A warp looks at 32 tiles, 8 at a time.
    for (int word = warp; word < ceil_div(n, 32 * LINES); word += THREADS / 32) {
        unsigned found = 0;
        for (int first = 0; first < 32; first += 8) {
            int token_0 = (32 * word + first) * LINES + lane, own[16];
#pragma unroll
            for (int i = 0; i < 16; i++) own[i] = token_0 + 32 * i < n ? seq[token_0 + 32 * i] : -1;
            bool is_own = false;
#pragma unroll
            for (int i = 0; i < 16; i++) is_own = is_own || own[i] == sequence;
            if (!__any_sync(0xffffffffu, is_own)) continue;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                int token = token_0 + 32 * i;
                bool is_seen = own[i] == sequence && sees_some(ranges_of(true, pos[token], span + 2 * token), key_0, KEYS);
                if (__any_sync(0xffffffffu, is_seen)) found |= 1u << (first + i / 2);
            }
        }
        if (lane == 0) tiles[word] = found;
    }
    __syncthreads();
    // The next tile that is to be met, from `tile` on.
    auto next_tile = [&](int tile) {
        while (tile < ceil_div(n, LINES)) {
            unsigned rest = tiles[tile / 32] >> (tile % 32);
            if (rest != 0) return tile + __ffs(rest) - 1;
            tile = (tile / 32 + 1) * 32;
        }
        return -1;
    };
    auto fetch = [&](int stage, int tile, int head) {
        constexpr int PARTS = HD / 8, AT_ONCE = THREADS / PARTS;
        int part = threadIdx.x % PARTS, token_0 = tile * LINES;
#pragma unroll
        for (int i = 0; i < LINES; i += AT_ONCE) {
            int line = threadIdx.x / PARTS + i;
            bool is_there = token_0 + line < n;
            size_t from = is_there ? ((size_t)(token_0 + line) * HEADS + head) * (2 * HD) + part * 16 : 0;
            unsigned to = base + stage * TILE_BYTES + part_of(line, part);
            copy_16(to, q + from, is_there);
            copy_16(to + DY_AT, dy + from, is_there);
        }
        Tokens &to = tokens[stage];
        int line = threadIdx.x % LINES, token = token_0 + line;
        if (token < n && threadIdx.x < LINES) {
            copy_4((unsigned)__cvta_generic_to_shared(to.seq + line), seq + token);
            copy_4((unsigned)__cvta_generic_to_shared(to.pos + line), pos + token);
            copy_4((unsigned)__cvta_generic_to_shared(to.lse + line), lse + (size_t)token * HEADS + head);
        } else if (token < n) {
            copy_4((unsigned)__cvta_generic_to_shared(to.span + 2 * line), span + 2 * token);
            copy_4((unsigned)__cvta_generic_to_shared(to.span + 2 * line + 1), span + 2 * token + 1);
            copy_4((unsigned)__cvta_generic_to_shared(to.delta + line), delta + (size_t)token * HEADS + head);
        } else if (threadIdx.x < LINES) {
            // What nobody sees is taken as a number too.
            to.lse[line] = to.delta[line] = 0.0f;
        }
        end_copies();
    };
    int tile = next_tile(0), head = 0, stage = 0;
    if (0 <= tile) fetch(0, tile, kv_head * GROUP);

    // Scores are in units whose power of two is the exponential.
    const float minus_infinity = __int_as_float(0xff800000);
    float scale = __int_as_float(SCALE_BITS), scale_2 = scale * LOG2_E;
    float dk[SIXTEENS][HD / 8][4] = {}, dv[SIXTEENS][HD / 8][4] = {};
#pragma unroll 1
    while (0 <= tile) {
        wait_for_copies<0>();
        __syncthreads();
        const Tokens &of = tokens[stage];
        bool is_whole = true;
        if (threadIdx.x < LINES) {
            bool is_own = tile * LINES + (int)threadIdx.x < n && of.seq[threadIdx.x] == sequence;
            int4 own = ranges_of(is_own, of.pos[threadIdx.x], of.span + 2 * threadIdx.x);
            ranges[threadIdx.x] = own, is_whole = sees_all(own, key_0, KEYS);
        }
        is_whole = __syncthreads_and(is_whole);
        unsigned q_at = base + stage * TILE_BYTES, dy_at = q_at + DY_AT;
        head++;
        if (head == GROUP) head = 0, tile = next_tile(tile + 1);
        stage ^= 1;
        if (0 <= tile) fetch(stage, tile, kv_head * GROUP + head);

        // Sixteen queries, some of which do not see some keys.
        auto meet = [&](int j, auto is_masked) {
            float s[SIXTEENS][2][4], e[SIXTEENS][2][4];
            product_of_rows(s, key, q_at, 16 * j);
            product_of_rows(e, value, dy_at, 16 * j);
            if constexpr (is_masked.value) {
#pragma unroll
                for (int next = 0; next < 4; next++) {
                    int4 seen = ranges[16 * j + 8 * (next / 2) + 2 * c + next % 2];
#pragma unroll
                    for (int i = 0; i < 2 * SIXTEENS; i++)
                        if (!sees_some(seen, warp_key + g + 8 * i, 1)) s[i / 2][next / 2][next % 2 + 2 * (i % 2)] = minus_infinity;
                }
            }
#pragma unroll
            for (int eight = 0; eight < 2; eight++) {
                int line = 16 * j + 8 * eight + 2 * c;
                float2 own_lse = *(const float2 *)(of.lse + line), own_delta = *(const float2 *)(of.delta + line);
#pragma unroll
                for (int i = 0; i < 4 * SIXTEENS; i++) {
                    float &score = s[i / 4][eight][i % 4], &product = e[i / 4][eight][i % 4];
                    score = exp2_near(fmaf(score, scale_2, -LOG2_E * (i % 2 == 0 ? own_lse.x : own_lse.y)));
                    product = score * (product - (i % 2 == 0 ? own_delta.x : own_delta.y));
                }
            }
            unsigned parts[SIXTEENS][4], turns[SIXTEENS][4];
#pragma unroll
            for (int sixteen = 0; sixteen < SIXTEENS; sixteen++) as_operand(parts[sixteen], s[sixteen]), as_operand(turns[sixteen], e[sixteen]);
            add_product(dv, parts, dy_at, 16 * j);
            add_product(dk, turns, q_at, 16 * j);
        };
        if (is_whole)
#pragma unroll 1
            for (int j = 0; j < LINES / 16; j++) meet(j, Flag<false>{});
        else
#pragma unroll 1
            for (int j = 0; j < LINES / 16; j++)
                if (__any_sync(0xffffffffu, sees_some(ranges[16 * j + lane % 16], warp_key, 16 * SIXTEENS))) meet(j, Flag<true>{});
    }
    float *of_keys = out + first_row * HD, *of_values = of_keys + (size_t)SEQS * KV_HEADS * CTX * HD;
#pragma unroll
    for (int row = 0; row < 2 * SIXTEENS; row++) {
        int sixteen = row / 2, i = row % 2, own = warp_key + 16 * sixteen + g + 8 * i;
        if (CTX <= own) continue;
#pragma unroll
        for (int j = 0; j < HD / 8; j++)
#pragma unroll
            for (int next = 0; next < 2; next++) {
                size_t at = (size_t)own * HD + 8 * j + 2 * c + next;
                of_keys[at] = dk[sixteen][j][2 * i + next] * scale, of_values[at] = dv[sixteen][j][2 * i + next];
            }
    }
}
