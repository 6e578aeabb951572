// Attention of few tokens over a long KV cache, on tensor cores; the difference to exact arithmetic is bounded (`kernels::cuda::Accuracy`).
//
// q, out: f32 [n, HEADS, HD]; k, v: caches [seqs, KV_HEADS, CTX] of rows of HD numbers; seq, pos: i32 [n]; span: i32 [n, 2].
//
// A cluster of CLUSTER blocks is one token and GROUP query heads of one KV head, so that keys are read once. Its warps take chunks of STEP keys in
// turn, each warp with copies of its own under way and a softmax of its own; in the end maxima, sums and results are combined, in the order of the
// warps and then of the blocks. No warp waits for another before that.
//
//   scores   [keys, heads] = K . q: keys are the rows of an mma, heads its eight columns. Each q is two bf16 numbers, the nearest and what that leaves
//            over, in two columns: four heads fill an mma, and q loses 2^-17 of itself.
//   weights  exp2 of the scores less a maximum that is raised only when a score is 8 above it, times the scale of the value's record; again as two
//            numbers, transposed in registers.
//   result   [dims, heads] += V . weights: the dims are the rows.
//
// Codes are not decoded but put into the mantissa of 128 (bf16) or 1024 (f16), two with one or two operations, and scale and minimum of a record are
// applied to the score or the weight: q . k = scale * (q . raw) + (minimum - offset * scale) * sum(q), and alike for values. The order of
// dims in an mma is free, so words are taken as they lie.
//
// Shared memory, dynamic: STAGES * WARPS * STEP * (bytes of a key and a value). Bound: reading the cache.
#include "lib/rows.cuh"
#include "lib/copy.cuh"
#include "lib/mask.cuh"

constexpr int WARPS = THREADS / 32, G = HEADS / KV_HEADS;
// The largest part of the heads that share a KV head, up to eight.
constexpr int group_of(int g) { return G % g == 0 ? g : group_of(g - 1); }
constexpr int GROUP = group_of(8), COLUMN_TILES = ceil_div(GROUP, 4);
// Formats of rows.
constexpr int BF16_ROW = 0, Q8_ROW = 1, Q4_ROW = 2;
constexpr int bytes_of(int row) { return row == BF16_ROW ? 2 * HD : row == Q8_ROW ? HD + 8 : HD / 2 + 8; }
constexpr int K_BYTES = bytes_of(K_ROW), V_BYTES = bytes_of(V_ROW), STAGE_BYTES = STEP * (K_BYTES + V_BYTES);
// A row of q4 has four products of 32 dims... of others of 16.
constexpr int K_PRODUCTS = HD / 16, V_PRODUCTS = HD / 16, TILES = STEP / 16;
constexpr float MARGIN = 8.0f;
static_assert(HD % 64 == 0 && STEP % 16 == 0 && CTX % 2 == 0, "records of two keys end at 16 bytes");
static_assert(WARPS * GROUP * HD * 4 <= STAGES * WARPS * STAGE_BYTES, "results of warps replace what was copied");

__device__ __forceinline__ void show_start() { asm volatile("barrier.cluster.arrive.relaxed.aligned;"); }
__device__ __forceinline__ void enter_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void leave_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// A number in the shared memory of another block of the cluster.
__device__ __forceinline__ float read_of(const float *place, int rank) {
    unsigned own = (unsigned)__cvta_generic_to_shared(place), other;
    float value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(other) : "memory");
    return value;
}

__device__ __forceinline__ float exp2_near(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two numbers as bf16 or f16, the first in the low half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ __forceinline__ unsigned pack_f16(float low, float high) {
    unsigned both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
__device__ __forceinline__ float low_bf16(unsigned both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high_bf16(unsigned both) { return __uint_as_float(both & 0xffff0000u); }
__device__ __forceinline__ float nearest_f16(float x) {
    float y;
    asm("{ .reg .f16 h; cvt.rn.f16.f32 h, %1; cvt.f32.f16 %0, h; }" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float nearest_bf16(float x) { return low_bf16(pack_bf16(x, 0.0f)); }

// d[16, 8] += a[16, 16] * b[16, 8]. Lane (g = lane / 4, q = lane % 4) has a[g][2q..], a[g + 8][2q..], a[g][8 + 2q..], a[g + 8][8 + 2q..]; b[2q..][g],
// b[8 + 2q..][g]; d[g][2q..], d[g + 8][2q..].
__device__ __forceinline__ void mma_bf16(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_f16(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Lane l has the row l / 4 of 8x8 numbers of 16 bits, two of them; then it has the column.
__device__ __forceinline__ unsigned transpose_8x8(unsigned two) {
    unsigned turned;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(two));
    return turned;
}
__device__ __forceinline__ void load_matrices(unsigned (&a)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(from));
}
__device__ __forceinline__ void load_transposed(unsigned (&a)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(from));
}
__device__ __forceinline__ unsigned load_word(unsigned from) {
    unsigned word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from));
    return word;
}
__device__ __forceinline__ float load_float(unsigned from) { return __uint_as_float(load_word(from)); }

// Codes j and j + 4 of eight, each added to 128.
template <int j> __device__ __forceinline__ unsigned codes_of(unsigned word) {
    unsigned two;
    asm("lop3.b32 %0, %1, 0x000f000f, 0x43004300, 0xea;" : "=r"(two) : "r"(word >> (4 * j)));
    return two;
}
// Bytes of a selection, of a word of signed codes whose sign bits are turned, each added to 1152.
template <unsigned which> __device__ __forceinline__ unsigned bytes_of_word(unsigned word) { return __byte_perm(word, 0x64646464u, which); }

// What raw codes are more than the codes themselves.
constexpr float K_OFFSET = K_ROW == Q8_ROW ? 1152.0f : 128.0f, V_OFFSET = 128.0f;

// Starts a warp's copies of the rows of STEP keys, of which those from `from` to `to` are seen.
template <int BYTES> __device__ __forceinline__ void copy_rows(unsigned place, const u8 *rows, int first, int from, int to) {
    constexpr int UNITS = STEP * BYTES / 16;
    const u8 *start = rows + (size_t)first * BYTES;
#pragma unroll
    for (int i = 0; i < ceil_div(UNITS, 32); i++) {
        int unit = threadIdx.x % 32 + 32 * i;
        if (UNITS % 32 != 0 && UNITS <= unit) continue;
        if (BYTES == 2 * HD) {
            // What no one sees need not be numbers. Parts of 16 bytes are moved so that columns are in different banks.
            constexpr int PARTS = HD / 8;
            int key = unit / PARTS, part = unit % PARTS;
            bool is_there = from <= first + key && first + key < to;
            copy_16(place + key * BYTES + (part ^ (key % 8)) * 16, is_there ? start + 16 * unit : rows, is_there);
        } else {
            bool is_there = 16 * unit < (CTX - first) * BYTES;
            copy_16(place + 16 * unit, is_there ? start + 16 * unit : rows, is_there);
        }
    }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
KERNEL(const float *__restrict__ q, const u8 *__restrict__ k, const u8 *__restrict__ v, const int *__restrict__ seq, const int *__restrict__ pos,
       const int *__restrict__ span, float *__restrict__ out, int n) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ float warp_largest[WARPS][GROUP], warp_sum[WARPS][GROUP], largest[GROUP], total[GROUP];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4, rank = blockIdx.x, head = blockIdx.y, token = blockIdx.z;
    if (head % GROUP != 0) return;
    show_start();
    wait_for_inputs();
    let_next_start();
    size_t first_row = row_of_first_key(seq[token], head / G);
    const u8 *keys = k + first_row * K_BYTES, *values = v + first_row * V_BYTES;
    Ranges ranges(pos[token], span[2 * token], span[2 * token + 1]);
    int head_first = ranges.head_start / STEP, head_chunks = ranges.head_end <= ranges.head_start ? 0 : ceil_div(ranges.head_end, STEP) - head_first;
    int tail_first = ranges.tail_start / STEP, tail_chunks = ranges.tail_end <= ranges.tail_start ? 0 : ceil_div(ranges.tail_end, STEP) - tail_first;
    // Both ranges may have keys of one chunk, which is then taken twice, with other keys.
    int chunks = head_chunks + tail_chunks;
    auto chunk_at = [&](int at, int &first, int &from, int &to) {
        bool is_head = at < head_chunks;
        first = (is_head ? head_first + at : tail_first + at - head_chunks) * STEP;
        from = is_head ? ranges.head_start : ranges.tail_start, to = is_head ? ranges.head_end : ranges.tail_end;
    };

    // A warp's chunks, STAGES - 1 of them ahead.
    unsigned own = (unsigned)__cvta_generic_to_shared(shared) + warp * STAGES * STAGE_BYTES;
    auto fetch = [&](int at, int stage) {
        if (at < chunks) {
            int first, from, to;
            chunk_at(at, first, from, to);
            copy_rows<K_BYTES>(own + stage * STAGE_BYTES, keys, first, from, to);
            copy_rows<V_BYTES>(own + stage * STAGE_BYTES + STEP * K_BYTES, values, first, from, to);
        }
        end_copies();
    };
    constexpr int STRIDE = CLUSTER * WARPS;
    // Neighbouring chunks are in different blocks, so that few keys are on many multiprocessors.
    int mine = warp * CLUSTER + rank;
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) fetch(mine + stage * STRIDE, stage);

    // The queries as second operands: column g is head g % 4 of a tile, the nearest numbers for g < 4, else what they leave over. q of the q8 rows are
    // f16, moved to the middle of its range by a power of two.
    const float *queries = q + ((size_t)token * HEADS + head) * HD;
    constexpr bool IS_F16 = K_ROW == Q8_ROW;
    unsigned query[COLUMN_TILES][K_PRODUCTS][2];
    float query_sum[COLUMN_TILES][2], unit_of[COLUMN_TILES][2];
#pragma unroll
    for (int tile = 0; tile < COLUMN_TILES; tile++) {
        int h = 4 * tile + g % 4;
        bool is_rest = 4 <= g;
        const float *numbers = queries + min(h, GROUP - 1) * HD;
        float factor = 1.0f, unit = 1.0f;
        if (IS_F16) {
            float absmax = 0.0f;
            for (int i = c; i < HD; i += 4) absmax = fmaxf(absmax, fabsf(numbers[i]));
            absmax = fmaxf(absmax, __shfl_xor_sync(0xffffffffu, absmax, 1));
            absmax = fmaxf(absmax, __shfl_xor_sync(0xffffffffu, absmax, 2));
            int exponent = min(max((int)(__float_as_uint(absmax) >> 23), 27), 227);
            unit = __uint_as_float((unsigned)exponent << 23), factor = __uint_as_float((unsigned)(254 - exponent) << 23);
        }
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < K_PRODUCTS; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                // The dims that the keys have in these places.
                int first, second;
                if (K_ROW == Q4_ROW) first = 8 * (c + 4 * (i / 2)) + 2 * (i % 2) + half, second = first + 4;
                else if (K_ROW == Q8_ROW) first = 4 * (c + 4 * i) + 2 * half, second = first + 1;
                else first = 16 * i + 2 * c + 8 * half, second = first + 1;
                float low = h < GROUP ? numbers[first] * factor : 0.0f, high = h < GROUP ? numbers[second] * factor : 0.0f;
                float near_low = IS_F16 ? nearest_f16(low) : nearest_bf16(low), near_high = IS_F16 ? nearest_f16(high) : nearest_bf16(high);
                if (is_rest) {
                    low = low - near_low, high = high - near_high;
                    near_low = IS_F16 ? nearest_f16(low) : nearest_bf16(low), near_high = IS_F16 ? nearest_f16(high) : nearest_bf16(high);
                }
                query[tile][i][half] = IS_F16 ? pack_f16(near_low, near_high) : pack_bf16(near_low, near_high);
                sum = sum + near_low, sum = sum + near_high;
            }
        // Sums of columns, of both parts together, for the two columns that this lane's scores are of.
        sum = sum + __shfl_xor_sync(0xffffffffu, sum, 1);
        sum = sum + __shfl_xor_sync(0xffffffffu, sum, 2);
        sum = sum + __shfl_xor_sync(0xffffffffu, sum, 16);
#pragma unroll
        for (int next = 0; next < 2; next++) {
            int from_lane = 4 * ((2 * c + next) % 4);
            query_sum[tile][next] = __shfl_sync(0xffffffffu, sum, from_lane), unit_of[tile][next] = __shfl_sync(0xffffffffu, unit, from_lane);
        }
    }

    const float minus_infinity = __int_as_float(0xff800000);
    // Scores are in units whose power of two is the exponential.
    float scale = __int_as_float(SCALE_BITS) * 1.4426950408889634f;
    float acc[COLUMN_TILES][V_PRODUCTS][4] = {};
    float most[COLUMN_TILES][2], sum[COLUMN_TILES][2] = {}, low_sum[COLUMN_TILES][2] = {}, weight_sum[COLUMN_TILES][2] = {};
#pragma unroll
    for (int tile = 0; tile < COLUMN_TILES; tile++) most[tile][0] = most[tile][1] = minus_infinity;

#pragma unroll 1
    for (int at = mine, turn = 0; at < chunks; at += STRIDE, turn = turn + 1 == STAGES ? 0 : turn + 1) {
        wait_for_copies<STAGES - 2>();
        __syncwarp();
        fetch(at + (STAGES - 1) * STRIDE, turn == 0 ? STAGES - 1 : turn - 1);
        unsigned k_at = own + turn * STAGE_BYTES, v_at = k_at + STEP * K_BYTES;
        int first, from, to;
        chunk_at(at, first, from, to);
        float s[TILES][COLUMN_TILES][4] = {};
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            unsigned row = k_at + (16 * t + g) * K_BYTES;
            if (K_ROW == BF16_ROW) {
#pragma unroll
                for (int i = 0; i < K_PRODUCTS; i++) {
                    unsigned a[4];
                    load_matrices(a, k_at + (16 * t + lane % 16) * K_BYTES + ((2 * i + lane / 16) ^ (lane % 8)) * 16);
#pragma unroll
                    for (int tile = 0; tile < COLUMN_TILES; tile++) mma_bf16(s[t][tile], a[0], a[1], a[2], a[3], query[tile][i][0], query[tile][i][1]);
                }
            } else if (K_ROW == Q8_ROW) {
#pragma unroll
                for (int i = 0; i < K_PRODUCTS; i++) {
                    unsigned upper = load_word(row + 4 * (c + 4 * i)) ^ 0x80808080u, lower = load_word(row + 8 * K_BYTES + 4 * (c + 4 * i)) ^ 0x80808080u;
#pragma unroll
                    for (int tile = 0; tile < COLUMN_TILES; tile++)
                        mma_f16(s[t][tile], bytes_of_word<0x4140>(upper), bytes_of_word<0x4140>(lower), bytes_of_word<0x4342>(upper),
                                bytes_of_word<0x4342>(lower), query[tile][i][0], query[tile][i][1]);
                }
            } else {
#pragma unroll
                for (int i = 0; i < K_PRODUCTS / 2; i++) {
                    unsigned upper = load_word(row + 4 * (c + 4 * i)), lower = load_word(row + 8 * K_BYTES + 4 * (c + 4 * i));
#pragma unroll
                    for (int tile = 0; tile < COLUMN_TILES; tile++) {
                        mma_bf16(s[t][tile], codes_of<0>(upper), codes_of<0>(lower), codes_of<1>(upper), codes_of<1>(lower), query[tile][2 * i][0],
                                 query[tile][2 * i][1]);
                        mma_bf16(s[t][tile], codes_of<2>(upper), codes_of<2>(lower), codes_of<3>(upper), codes_of<3>(lower), query[tile][2 * i + 1][0],
                                 query[tile][2 * i + 1][1]);
                    }
                }
            }
        }
        // Of what the products are to scores: both parts of q, the numbers of the record, the mask.
        bool is_above = false;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int slot = 16 * t + 8 * half + g, key = first + slot;
                bool is_visible = from <= key && key < to;
                float k_scale = 1.0f, k_low = 0.0f;
                if (K_ROW != BF16_ROW) {
                    unsigned numbers = k_at + slot * K_BYTES + K_BYTES - 8;
                    k_scale = load_float(numbers);
                    k_low = fmaf(-K_OFFSET, k_scale, K_ROW == Q4_ROW ? load_float(numbers + 4) : 0.0f);
                }
#pragma unroll
                for (int tile = 0; tile < COLUMN_TILES; tile++)
#pragma unroll
                    for (int next = 0; next < 2; next++) {
                        float &score = s[t][tile][2 * half + next];
                        score = score + __shfl_xor_sync(0xffffffffu, score, 2);
                        if (K_ROW != BF16_ROW) score = fmaf(k_scale, score, k_low * query_sum[tile][next]);
                        if (IS_F16) score = score * unit_of[tile][next];
                        score = is_visible ? score * scale : minus_infinity;
                        is_above = is_above || most[tile][next] + MARGIN < score;
                    }
            }
        if (__any_sync(0xffffffffu, is_above)) {
#pragma unroll
            for (int tile = 0; tile < COLUMN_TILES; tile++)
#pragma unroll
                for (int next = 0; next < 2; next++) {
                    float now = most[tile][next];
#pragma unroll
                    for (int t = 0; t < TILES; t++) now = fmaxf(now, fmaxf(s[t][tile][next], s[t][tile][2 + next]));
#pragma unroll
                    for (int d = 4; d < 32; d *= 2) now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, d));
                    float shrink = exp2_near(most[tile][next] - now);
                    most[tile][next] = now;
                    sum[tile][next] *= shrink, low_sum[tile][next] *= shrink, weight_sum[tile][next] *= shrink;
#pragma unroll
                    for (int i = 0; i < V_PRODUCTS; i++) acc[tile][i][next] *= shrink, acc[tile][i][2 + next] *= shrink;
                }
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            // Weights as second operands.
            unsigned weights[COLUMN_TILES][2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int slot = 16 * t + 8 * half + g, key = first + slot;
                bool is_visible = from <= key && key < to;
                float v_scale = 1.0f, v_low = 0.0f;
                if (V_ROW != BF16_ROW) {
                    unsigned numbers = v_at + slot * V_BYTES + V_BYTES - 8;
                    v_scale = is_visible ? load_float(numbers) : 0.0f, v_low = is_visible ? load_float(numbers + 4) : 0.0f;
                }
#pragma unroll
                for (int tile = 0; tile < COLUMN_TILES; tile++) {
                    float weight[2];
#pragma unroll
                    for (int next = 0; next < 2; next++) {
                        float p = exp2_near(s[t][tile][2 * half + next] - most[tile][next]);
                        sum[tile][next] += p;
                        if (V_ROW != BF16_ROW) low_sum[tile][next] = fmaf(p, v_low, low_sum[tile][next]);
                        weight[next] = p * v_scale;
                    }
                    unsigned both = pack_bf16(weight[0], weight[1]);
                    unsigned rest = pack_bf16(weight[0] - low_bf16(both), weight[1] - high_bf16(both));
                    both = c < 2 ? both : rest;
                    if (V_ROW != BF16_ROW) weight_sum[tile][0] += low_bf16(both), weight_sum[tile][1] += high_bf16(both);
                    weights[tile][half] = transpose_8x8(both);
                }
            }
            if (V_ROW == BF16_ROW) {
#pragma unroll
                for (int i = 0; i < V_PRODUCTS; i++) {
                    unsigned a[4];
                    load_transposed(a, v_at + (16 * t + lane % 8 + lane / 16 * 8) * V_BYTES + ((2 * i + lane / 8 % 2) ^ (lane % 8)) * 16);
#pragma unroll
                    for (int tile = 0; tile < COLUMN_TILES; tile++) mma_bf16(acc[tile][i], a[0], a[1], a[2], a[3], weights[tile][0], weights[tile][1]);
                }
            } else {
#pragma unroll
                for (int i = 0; i < V_PRODUCTS / 4; i++) {
                    // Eight dims of four keys, then two keys of four dims in each.
                    unsigned row = v_at + (16 * t + 2 * c) * V_BYTES + 4 * (g + 8 * i);
                    unsigned w0 = load_word(row), w1 = load_word(row + V_BYTES), w2 = load_word(row + 8 * V_BYTES), w3 = load_word(row + 9 * V_BYTES);
                    unsigned low_0 = __byte_perm(w0, w1, 0x5410), high_0 = __byte_perm(w0, w1, 0x7632);
                    unsigned low_1 = __byte_perm(w2, w3, 0x5410), high_1 = __byte_perm(w2, w3, 0x7632);
#pragma unroll
                    for (int tile = 0; tile < COLUMN_TILES; tile++) {
                        unsigned b0 = weights[tile][0], b1 = weights[tile][1];
                        mma_bf16(acc[tile][4 * i], codes_of<0>(low_0), codes_of<0>(high_0), codes_of<0>(low_1), codes_of<0>(high_1), b0, b1);
                        mma_bf16(acc[tile][4 * i + 1], codes_of<1>(low_0), codes_of<1>(high_0), codes_of<1>(low_1), codes_of<1>(high_1), b0, b1);
                        mma_bf16(acc[tile][4 * i + 2], codes_of<2>(low_0), codes_of<2>(high_0), codes_of<2>(low_1), codes_of<2>(high_1), b0, b1);
                        mma_bf16(acc[tile][4 * i + 3], codes_of<3>(low_0), codes_of<3>(high_0), codes_of<3>(low_1), codes_of<3>(high_1), b0, b1);
                    }
                }
            }
        }
        // All lanes have read this stage before it is filled again.
        __syncwarp();
    }
    wait_for_copies<0>();
    // Maxima and sums of the warp.
#pragma unroll
    for (int tile = 0; tile < COLUMN_TILES; tile++)
#pragma unroll
        for (int next = 0; next < 2; next++) {
#pragma unroll
            for (int d = 4; d < 32; d *= 2) {
                sum[tile][next] += __shfl_xor_sync(0xffffffffu, sum[tile][next], d);
                low_sum[tile][next] += __shfl_xor_sync(0xffffffffu, low_sum[tile][next], d);
                weight_sum[tile][next] += __shfl_xor_sync(0xffffffffu, weight_sum[tile][next], d);
            }
            weight_sum[tile][next] += __shfl_xor_sync(0xffffffffu, weight_sum[tile][next], 2);
            int h = 4 * tile + 2 * c + next;
            if (g == 0 && c < 2 && h < GROUP) warp_largest[warp][h] = most[tile][next], warp_sum[warp][h] = sum[tile][next];
        }
    // No warp needs what was copied any more.
    __syncthreads();
    float *results = (float *)shared;
#pragma unroll
    for (int tile = 0; tile < COLUMN_TILES; tile++)
#pragma unroll
        for (int next = 0; next < 2; next++) {
            int h = 4 * tile + 2 * c + next;
            // A block's maximum, and by how much this warp's part shrinks; a warp without keys has none.
            float largest_here = minus_infinity;
            if (h < GROUP)
                for (int i = 0; i < WARPS; i++) largest_here = fmaxf(largest_here, warp_largest[i][h]);
            float shrink = most[tile][next] == minus_infinity ? 0.0f : exp2_near(most[tile][next] - largest_here);
            float shift = V_ROW == BF16_ROW ? 0.0f : fmaf(-V_OFFSET, weight_sum[tile][next], low_sum[tile][next]);
#pragma unroll
            for (int i = 0; i < V_PRODUCTS; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float both = acc[tile][i][2 * half + next];
                    both = both + __shfl_xor_sync(0xffffffffu, both, 2);
                    int d = V_ROW == BF16_ROW ? 16 * i + 8 * half + g : 8 * (g + 8 * (i / 4)) + i % 4 + 4 * half;
                    if (c < 2 && h < GROUP) results[(warp * GROUP + h) * HD + d] = (both + shift) * shrink;
                }
        }
    __syncthreads();
    // The block's numbers, in place of those of its first warp.
    for (int at = threadIdx.x; at < GROUP * HD; at += THREADS) {
        float number = results[at];
        for (int i = 1; i < WARPS; i++) number = number + results[i * GROUP * HD + at];
        results[at] = number;
    }
    if (threadIdx.x < GROUP) {
        int h = threadIdx.x;
        float here = minus_infinity, count = 0.0f;
        for (int i = 0; i < WARPS; i++) here = fmaxf(here, warp_largest[i][h]);
        for (int i = 0; i < WARPS; i++) count = count + (warp_largest[i][h] == minus_infinity ? 0.0f : warp_sum[i][h] * exp2_near(warp_largest[i][h] - here));
        largest[h] = here, total[h] = count;
    }
    leave_cluster();
    enter_cluster();
    leave_cluster();
    // Each block has its share of the result.
    constexpr int SHARE = ceil_div(GROUP * HD, CLUSTER);
    for (int i = threadIdx.x; i < SHARE; i += THREADS) {
        int at = rank * SHARE + i, h = at / HD;
        if (GROUP * HD <= at) break;
        float most_of[CLUSTER], here = minus_infinity;
#pragma unroll
        for (int from = 0; from < CLUSTER; from++) most_of[from] = read_of(&largest[h], from), here = fmaxf(here, most_of[from]);
        float number = 0.0f, count = 0.0f;
#pragma unroll
        for (int from = 0; from < CLUSTER; from++) {
            float shrink = most_of[from] == minus_infinity ? 0.0f : exp2_near(most_of[from] - here);
            number = fmaf(read_of(&results[at], from), shrink, number), count = fmaf(read_of(&total[h], from), shrink, count);
        }
        out[((size_t)token * HEADS + head) * HD + at] = 0 < chunks ? number / count : 0.0f;
    }
    // No block ends while another reads it.
    enter_cluster();
    leave_cluster();
}
