// Attention of few tokens over a long KV cache, on tensor cores; the difference to exact arithmetic is bounded (`kernels::cuda::Accuracy`).
//
// q, out: f32 [n, HEADS, HD]; k, v: caches [seqs, KV_HEADS, CTX] of rows of HD numbers; seq, pos: i32 [n]; span: i32 [n, 2].
//
// A cluster of CLUSTER blocks is one token and the GROUP query heads of one KV head, so that keys are read once. Its warps take chunks of STEP keys in
// turn, each warp with copies of its own under way and a softmax of its own; in the end maxima, sums and results are combined, in the order of the
// warps and then of the blocks. No warp waits for another before that.
//
//   scores   [keys, heads] = K . q: keys are the rows of an mma, heads its eight columns. Each q is two numbers in two columns, so four heads fill an mma:
//            for keys of bf16 the nearest bf16 and what that leaves over; for codes the two bytes of a whole number, since codes are bytes, or
//            become bytes with a mask, and their sums with bytes are exact.
//   weights  exp2 of the scores less a maximum that is raised only when a score is 8 above it, times the scale of the value's record; again as two
//            numbers, transposed in registers.
//   result   [dims, heads] += V . weights: the dims are the rows.
//
// Codes are not decoded: scale and minimum of a record are applied to the score or the weight, q . k = scale * (q . codes) + minimum * sum(q). Those of
// values are put into the mantissa of 128, two with one or two operations, and what is too much is subtracted in the end. The order of dims in an mma
// is free, so words are taken as they lie.
//
// A cache is as earlier calls left it but for the rows that this call appends, and positions are inputs: so the first chunks without such rows are
// copied ahead of the wait for the launches before this one.
//
// With APPENDS the kernel does what rope_append.cu does as well, q, new_k, v, cos, sin and seq being as there: a block turns the queries
// of its heads, and the one whose chunk has the token's own key, or the first one if the token does not see it, encodes the new rows and writes them to
// the caches. No block waits for that: that chunk is copied as the cache was, and then the rows are put into the copy. Without OTHERS there is one token;
// with it there may be as many as a warp has lanes, and a warp whose chunk has a row of another one computes that row for itself.
//
// Shared memory, dynamic: STAGES * WARPS * STEP * (bytes of a key and a value). Bound: reading the cache.
#include "lib/attention.cuh"
#include "lib/barrier.cuh"

constexpr int WARPS = THREADS / 32, GROUP = HEADS / KV_HEADS, COLUMN_TILES = ceil_div(GROUP, 4);
// The numbers of the result that a block puts together.
constexpr int SHARE = ceil_div(GROUP * HD, CLUSTER);
constexpr int STAGE_BYTES = STEP * (K_BYTES + V_BYTES);
constexpr int K_PRODUCTS = IS_RECORDS ? HD / 32 : HD / 16, V_PRODUCTS = HD / 16, TILES = STEP / 16;
// The largest whole number that a q becomes: its upper byte is rounded.
constexpr float LARGEST = 127 * 256;
// What codes of values are more than themselves.
constexpr float RAISED = 128.0f;
// By how much a score may be above the maximum, as an exponent of two.
constexpr float MARGIN = 8.0f;
static_assert(STEP % 16 == 0 && GROUP <= 8, "a tile of an mma has 16 keys; registers have sums of eight heads");
static_assert(GROUP * CLUSTER <= THREADS, "a thread for each maximum of each block");
static_assert(WARPS * GROUP * HD * 4 <= STAGES * WARPS * STAGE_BYTES, "results of warps replace what was copied");

__device__ __forceinline__ void show_start() { asm volatile("barrier.cluster.arrive.relaxed.aligned;"); }
__device__ __forceinline__ void enter_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void leave_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Writes a number to the same place in another block of the cluster.
__device__ __forceinline__ void write_to(int rank, float *place, float value) {
    unsigned own = (unsigned)__cvta_generic_to_shared(place), other;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(other), "f"(value) : "memory");
}

// Lane l has the row l / 4 of 8x8 numbers of 16 bits, two of them; then it has the column.
__device__ __forceinline__ unsigned transpose_8x8(unsigned two) {
    unsigned turned;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(two));
    return turned;
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
__device__ __forceinline__ void store_word(unsigned to, unsigned word) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(word) : "memory"); }

#ifdef APPENDS
constexpr int HALF = HD / 2, PARTS = HALF / 32, ROWS = GROUP + 2, TURNS = ceil_div(ROWS, WARPS);
// Numbers between two queries that put what lanes read at once, parts of four heads, into different banks.
constexpr int GAP = K_ROW == BF16_ROW ? 8 : K_ROW == Q8_ROW ? 16 : 4;

template <int row> struct RowOf : RowBf16<HD> {};
template <> struct RowOf<Q8_ROW> : RowQ8<HD> {};
template <> struct RowOf<Q4_ROW> : RowQ4<HD> {};

// A warp encodes a row, and writes it to its place in the cache.
template <int row> __device__ __forceinline__ void append(const float *x, unsigned (&record)[bytes_of(row) / 4], u8 *place) {
    static_assert(RowOf<row>::BYTES == sizeof(record), "a row of the cache");
    __syncwarp();
    RowOf<row>::encode(x, (u8 *)record);
    __syncwarp();
#pragma unroll
    for (int i = threadIdx.x % 32; i < bytes_of(row) / 4; i += 32) ((unsigned *)place)[i] = record[i];
}

// A warp replaces a row of what it copied.
template <int row> __device__ __forceinline__ void replace(unsigned rows, int slot, const unsigned (&record)[bytes_of(row) / 4]) {
#pragma unroll
    for (int i = threadIdx.x % 32; i < bytes_of(row) / 4; i += 32)
        store_word(rows + slot * bytes_of(row) + (row == BF16_ROW ? ((i / 4) ^ (slot % 8)) * 16 + i % 4 * 4 : 4 * i), record[i]);
}
#endif

// Starts a warp's copies of STEP rows of bf16, of which those from `from` to `to` are seen: what no one sees need not be numbers, and becomes zeros.
// Parts of 16 bytes are moved so that columns are in different banks.
__device__ __forceinline__ void copy_rows(unsigned place, const u8 *rows, int first, int from, int to) {
    constexpr int PARTS = HD / 8;
    const u8 *start = rows + (size_t)first * (2 * HD);
#pragma unroll
    for (int i = 0; i < STEP * PARTS / 32; i++) {
        int unit = threadIdx.x % 32 + 32 * i, key = unit / PARTS, part = unit % PARTS;
        bool is_there = from <= first + key && first + key < to;
        copy_16(place + key * (2 * HD) + (part ^ (key % 8)) * 16, is_there ? start + 16 * unit : rows, is_there);
    }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
#ifdef APPENDS
KERNEL(const float *q, const float *new_k, const float *new_v, const float *cos, const float *sin, const int *__restrict__ seq,
       const int *__restrict__ pos, const int *__restrict__ span, u8 *k, u8 *v, float *out, int n) {
    __shared__ __align__(16) float rows[ROWS][HD + GAP];
    __shared__ __align__(16) unsigned k_record[K_BYTES / 4], v_record[V_BYTES / 4];
#ifdef OTHERS
    __shared__ __align__(16) float other_row[WARPS][HD];
    __shared__ __align__(16) unsigned other_k[WARPS][K_BYTES / 4], other_v[WARPS][V_BYTES / 4];
#endif
#else
KERNEL(const float *q, const u8 *k, const u8 *v, const int *__restrict__ seq, const int *__restrict__ pos,
       const int *__restrict__ span, float *__restrict__ out, int n) {
#endif
    extern __shared__ __align__(128) u8 shared[];
    __shared__ unsigned long long barriers[WARPS * STAGES];
    __shared__ float warp_largest[WARPS][GROUP], warp_sum[WARPS][GROUP];
    // Of each block: what it has for this block's share of the result, and its maxima and sums.
    __shared__ float parts[CLUSTER][SHARE], largest_of[CLUSTER][GROUP], total_of[CLUSTER][GROUP];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4, rank = blockIdx.x, head = blockIdx.y * GROUP, token = blockIdx.z;
    show_start();
    size_t first_row = row_of_first_key(seq[token], blockIdx.y);
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

    // A warp's chunks, STAGES of them at first, and a stage is filled again once it is read. Records are copied as they lie, by the copy engine.
    unsigned own = (unsigned)__cvta_generic_to_shared(shared) + warp * STAGES * STAGE_BYTES;
    unsigned barrier = (unsigned)__cvta_generic_to_shared(barriers + warp * STAGES);
    if (IS_RECORDS) {
        if (lane < STAGES) make_barrier(barrier + 8 * lane, 1), show_barriers();
        __syncwarp();
    }
    auto fetch = [&](int at, int stage) {
        unsigned place = own + stage * STAGE_BYTES;
        if (at < chunks && IS_RECORDS) {
            int first, from, to;
            chunk_at(at, first, from, to);
            if (lane == 0) {
                int count = min(STEP, CTX - first);
                arrive_and_expect(barrier + 8 * stage, count * (K_BYTES + V_BYTES));
                copy_bytes(place, keys + (size_t)first * K_BYTES, count * K_BYTES, barrier + 8 * stage);
                copy_bytes(place + STEP * K_BYTES, values + (size_t)first * V_BYTES, count * V_BYTES, barrier + 8 * stage);
            }
        }
        if (at < chunks && !IS_RECORDS) {
            int first, from, to;
            chunk_at(at, first, from, to);
            copy_rows(place, keys, first, from, to);
            copy_rows(place + STEP * K_BYTES, values, first, from, to);
        }
        if (!IS_RECORDS) end_copies();
    };
    constexpr int STRIDE = CLUSTER * WARPS;
    // Neighbouring chunks are in different blocks, so that few keys are on many multiprocessors.
    int mine = warp * CLUSTER + rank;
#ifdef APPENDS
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) fetch(mine + stage * STRIDE, stage);
#ifdef OTHERS
    // Lane l has the place of token l, if it is another one of the sequence.
    bool is_other = lane < n && lane != token && seq[lane] == seq[token] && 0 <= seq[token] && seq[token] < SEQS;
    int other_place = is_other ? pos[lane] : -1;
#endif
    wait_for_inputs();
    let_next_start();
    // A warp has a row or a few: the new key, the new value, the queries. All are loaded before one is turned.
    float low[TURNS][PARTS], high[TURNS][PARTS], cosine[PARTS], sine[PARTS];
#pragma unroll
    for (int j = 0; j < PARTS; j++) {
        int i = 32 * j + lane;
        cosine[j] = cos[(size_t)token * HALF + i], sine[j] = sin[(size_t)token * HALF + i];
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            int row = warp + turn * WARPS;
            const float *x = row == 0   ? new_k + (size_t)token * K_STRIDE + blockIdx.y * HD
                             : row == 1 ? new_v + (size_t)token * V_STRIDE + blockIdx.y * HD
                                        : q + (size_t)token * Q_STRIDE + (head + min(row - 2, GROUP - 1)) * HD;
            low[turn][j] = x[i], high[turn][j] = x[i + HALF];
        }
    }
    int place = pos[token];
    bool is_head = ranges.head_start <= place && place < ranges.head_end;
    int at_chunk = is_head ? place / STEP - head_first : ranges.sees(place) ? head_chunks + place / STEP - tail_first : 0;
    bool appends = 0 <= seq[token] && seq[token] < SEQS && 0 <= place && place < CTX && at_chunk % CLUSTER == rank;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        int row = warp + turn * WARPS;
        if (ROWS <= row || (row < 2 && !appends)) continue;
#pragma unroll
        for (int j = 0; j < PARTS; j++) {
            float x = low[turn][j], y = high[turn][j];
            rows[row][32 * j + lane] = row == 1 ? x : x * cosine[j] - y * sine[j];
            rows[row][32 * j + lane + HALF] = row == 1 ? y : y * cosine[j] + x * sine[j];
        }
        if (row == 0) append<K_ROW>(rows[0], k_record, k + (first_row + place) * K_BYTES);
        if (row == 1) append<V_ROW>(rows[1], v_record, v + (first_row + place) * V_BYTES);
    }
    __syncthreads();
    const float *queries = rows[2];
    constexpr int TO_NEXT_QUERY = HD + GAP;
#else
    // The first row of the sequence that this call appends.
    int fresh = CTX;
    for (int other = 0; other < n; other++)
        if (seq[other] == seq[token]) fresh = min(fresh, pos[other]);
    auto is_old = [&](int at) {
        int first, from, to;
        chunk_at(at, first, from, to);
        return chunks <= at || first + STEP <= fresh;
    };
    int early = 0;
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++)
        if (early == stage && is_old(mine + stage * STRIDE)) fetch(mine + stage * STRIDE, stage), early++;
    wait_for_inputs();
    let_next_start();
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++)
        if (early <= stage) fetch(mine + stage * STRIDE, stage);
    const float *queries = q + ((size_t)token * HEADS + head) * HD;
    constexpr int TO_NEXT_QUERY = HD;
#endif

    // The queries as second operands: column g is head g % 4 of a tile, the upper part for g < 4, else the lower one.
    unsigned query[COLUMN_TILES][K_PRODUCTS][2];
    // Of the two columns that this lane's scores are of: what a product counts in units of the exponent, and the sum of the queries in them.
    float scale = __int_as_float(SCALE_BITS) * 1.4426950408889634f, unit[COLUMN_TILES][2], query_sum[COLUMN_TILES][2];
#pragma unroll
    for (int tile = 0; tile < COLUMN_TILES; tile++) {
        int h = 4 * tile + g % 4;
        bool is_upper = g < 4;
        const float *numbers = queries + min(h, GROUP - 1) * TO_NEXT_QUERY;
        if (!IS_RECORDS) {
#pragma unroll
            for (int i = 0; i < K_PRODUCTS; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float low = numbers[16 * i + 2 * c + 8 * half], high = numbers[16 * i + 2 * c + 8 * half + 1];
                    unsigned both = pack_bf16(low, high);
                    query[tile][i][half] = is_upper ? both : pack_bf16(low - low_bf16(both), high - high_bf16(both));
                }
            unit[tile][0] = unit[tile][1] = scale, query_sum[tile][0] = query_sum[tile][1] = 0.0f;
        } else {
            // The numbers of the dims that the keys have in this lane's places.
            float x[K_PRODUCTS][2][4], absmax = 1e-30f, zero = 0.0f;
#pragma unroll
            for (int i = 0; i < K_PRODUCTS * 8; i++) {
                int product = i / 8, half = i / 4 % 2, j = i % 4;
                float number = numbers[K_ROW == Q4_ROW ? 8 * (c + 4 * product) + 2 * j + half : 4 * (c + 8 * product + 4 * half) + j];
                x[product][half][j] = number, absmax = fmaxf(absmax, fabsf(number)), zero = fmaf(number, 0.0f, zero);
            }
#pragma unroll
            for (int d = 1; d < 4; d *= 2) {
                absmax = fmaxf(absmax, __shfl_xor_sync(0xffffffffu, absmax, d));
                zero = zero + __shfl_xor_sync(0xffffffffu, zero, d);
            }
            float factor = LARGEST / absmax;
            int sum = 0;
#pragma unroll
            for (int i = 0; i < K_PRODUCTS; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    query[tile][i][half] = 0;
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        int number = __float2int_rn(x[i][half][j] * factor), upper = (number + 128) >> 8;
                        query[tile][i][half] |= (unsigned)((is_upper ? upper : number) & 255) << (8 * j);
                        sum += number;
                    }
                }
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
#pragma unroll
            for (int next = 0; next < 2; next++) {
                // What is no number, or infinite, makes none of everything.
                float own_unit = (absmax / LARGEST + zero) * scale;
                int from_lane = 4 * ((2 * c + next) % 4);
                unit[tile][next] = __shfl_sync(0xffffffffu, own_unit, from_lane);
                query_sum[tile][next] = __shfl_sync(0xffffffffu, (float)sum, from_lane) * unit[tile][next];
            }
        }
    }

    const float minus_infinity = __int_as_float(0xff800000);
    // How a lane's product and that of the other column of its head are put together.
    int own_factor = c < 2 ? 256 : 1, other_factor = c < 2 ? 1 : 256;
    float acc[COLUMN_TILES][V_PRODUCTS][4] = {};
    float most[COLUMN_TILES][2], sum[COLUMN_TILES][2] = {}, low_sum[COLUMN_TILES][2] = {}, weight_sum[COLUMN_TILES][2] = {};
#pragma unroll
    for (int tile = 0; tile < COLUMN_TILES; tile++) most[tile][0] = most[tile][1] = minus_infinity;

#pragma unroll 1
    for (int at = mine, turn = 0, parity = 0; at < chunks; at += STRIDE) {
        if (IS_RECORDS) wait_for(barrier + 8 * turn, parity);
        else wait_for_copies<STAGES - 1>(), __syncwarp();
        unsigned k_at = own + turn * STAGE_BYTES, v_at = k_at + STEP * K_BYTES;
        int first, from, to;
        chunk_at(at, first, from, to);
        float s[TILES][COLUMN_TILES][4] = {};
        int products[TILES][COLUMN_TILES][4] = {};
#ifdef APPENDS
        // What the token does not see need not be numbers, and stays as it was copied.
        if (appends && max(first, from) <= place && place < min(first + STEP, to)) {
            replace<K_ROW>(k_at, place - first, k_record), replace<V_ROW>(v_at, place - first, v_record);
            // The copy engine fills this stage again.
            show_to_products();
            __syncwarp();
        }
#endif
#ifdef OTHERS
        unsigned others = __ballot_sync(0xffffffffu, max(first, from) <= other_place && other_place < min(first + STEP, to));
#pragma unroll 1
        while (others != 0) {
            int other = __ffs(others) - 1, slot = __shfl_sync(0xffffffffu, other_place, other) - first;
            others &= others - 1;
            const float *x = new_k + (size_t)other * K_STRIDE + blockIdx.y * HD;
#pragma unroll
            for (int i = lane; i < HALF; i += 32) {
                float low = x[i], high = x[i + HALF], cosine = cos[(size_t)other * HALF + i], sine = sin[(size_t)other * HALF + i];
                other_row[warp][i] = low * cosine - high * sine, other_row[warp][i + HALF] = high * cosine + low * sine;
            }
            __syncwarp();
            RowOf<K_ROW>::encode(other_row[warp], (u8 *)other_k[warp]);
            RowOf<V_ROW>::encode(new_v + (size_t)other * V_STRIDE + blockIdx.y * HD, (u8 *)other_v[warp]);
            __syncwarp();
            replace<K_ROW>(k_at, slot, other_k[warp]), replace<V_ROW>(v_at, slot, other_v[warp]);
            show_to_products();
            __syncwarp();
        }
#endif
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            unsigned row = k_at + (16 * t + g) * K_BYTES + 4 * c;
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
                    unsigned a0 = load_word(row + 32 * i), a1 = load_word(row + 32 * i + 8 * K_BYTES);
                    unsigned a2 = load_word(row + 32 * i + 16), a3 = load_word(row + 32 * i + 16 + 8 * K_BYTES);
#pragma unroll
                    for (int tile = 0; tile < COLUMN_TILES; tile++) mma_s8s8(products[t][tile], a0, a1, a2, a3, query[tile][i][0], query[tile][i][1]);
                }
            } else {
                constexpr unsigned LOW = 0x0f0f0f0fu;
#pragma unroll
                for (int i = 0; i < K_PRODUCTS; i++) {
                    unsigned upper = load_word(row + 16 * i), lower = load_word(row + 16 * i + 8 * K_BYTES);
#pragma unroll
                    for (int tile = 0; tile < COLUMN_TILES; tile++)
                        mma_u8s8(products[t][tile], upper & LOW, lower & LOW, upper >> 4 & LOW, lower >> 4 & LOW, query[tile][i][0], query[tile][i][1]);
                }
            }
        }
        // Of what the products are to scores, in units whose power of two is the exponential: both parts of q, the numbers of the record, the mask.
        bool is_above = false;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int slot = 16 * t + 8 * half + g, key = first + slot;
                bool is_visible = from <= key && key < to;
                unsigned numbers = k_at + slot * K_BYTES + K_BYTES - 8;
                float k_scale = IS_RECORDS ? load_float(numbers) : 1.0f, k_low = K_ROW == Q4_ROW ? load_float(numbers + 4) : 0.0f;
#pragma unroll
                for (int tile = 0; tile < COLUMN_TILES; tile++)
#pragma unroll
                    for (int next = 0; next < 2; next++) {
                        float &score = s[t][tile][2 * half + next];
                        if (IS_RECORDS) {
                            int product = products[t][tile][2 * half + next];
                            product = product * own_factor + __shfl_xor_sync(0xffffffffu, product, 2) * other_factor;
                            score = fmaf((float)product * unit[tile][next], k_scale, k_low * query_sum[tile][next]);
                        } else score = (score + __shfl_xor_sync(0xffffffffu, score, 2)) * unit[tile][next];
                        score = is_visible ? score : minus_infinity;
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
        fetch(at + STAGES * STRIDE, turn);
        turn++;
        if (turn == STAGES) turn = 0, parity ^= 1;
    }
    if (!IS_RECORDS) wait_for_copies<0>();
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
            float shift = V_ROW == BF16_ROW ? 0.0f : fmaf(-RAISED, weight_sum[tile][next], low_sum[tile][next]);
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
    // All blocks have started, so that their shared memory may be written.
    leave_cluster();
    for (int at = threadIdx.x; at < GROUP * HD; at += THREADS) {
        float number = results[at];
        for (int i = 1; i < WARPS; i++) number = number + results[i * GROUP * HD + at];
        write_to(at / SHARE, &parts[rank][at % SHARE], number);
    }
    if (threadIdx.x < GROUP * CLUSTER) {
        int h = threadIdx.x % GROUP, to = threadIdx.x / GROUP;
        float here = minus_infinity, count = 0.0f;
        for (int i = 0; i < WARPS; i++) here = fmaxf(here, warp_largest[i][h]);
        for (int i = 0; i < WARPS; i++) count = count + (warp_largest[i][h] == minus_infinity ? 0.0f : warp_sum[i][h] * exp2_near(warp_largest[i][h] - here));
        write_to(to, &largest_of[rank][h], here), write_to(to, &total_of[rank][h], count);
    }
    enter_cluster();
    leave_cluster();
    for (int i = threadIdx.x; i < SHARE; i += THREADS) {
        int at = rank * SHARE + i, h = at / HD;
        if (GROUP * HD <= at) break;
        float here = minus_infinity, number = 0.0f, count = 0.0f;
#pragma unroll
        for (int from = 0; from < CLUSTER; from++) here = fmaxf(here, largest_of[from][h]);
#pragma unroll
        for (int from = 0; from < CLUSTER; from++) {
            float shrink = largest_of[from][h] == minus_infinity ? 0.0f : exp2_near(largest_of[from][h] - here);
            number = fmaf(parts[from][i], shrink, number), count = fmaf(total_of[from][h], shrink, count);
        }
        out[((size_t)token * HEADS + head) * HD + at] = 0 < chunks ? number / count : 0.0f;
    }
}
