// Attention of few tokens over a KV cache, piece by piece in the order of the crate, bit for bit.
//
// q, out: f32 [n, HEADS, HD]; k, v: caches [seqs, KV_HEADS, CTX] of rows of HD numbers; seq, pos: i32 [n]; span: i32 [n, 2].
//
// What the order of the sum fixes is little: scores and exponentials do not depend on each other, and each number of the result is a chain of its
// own. So CLUSTER blocks share a KV head of a token, with GROUP of its query heads, in rounds of CHUNK keys: each computes the scores of its
// share of the keys and writes them into the shared memory of all; then each takes its share of the head dimension, with all keys of the round.
//
//   scores    a warp takes eight keys at a time; its lanes are the 32 accumulators of `dot`, and the sums of keys and heads go through the tree together,
//             half as many numbers after each step
//   values    to shared memory, for the share of the head dimension: f32 are copied while the scores are computed, others decoded after them
//   softmax   every block for itself: a warp takes a piece of 64 keys of one head, a thread finds how a piece joins those before it
//   result    a thread is one number of one head: a chain of fma over the keys of each piece, one piece after the other
//
// Blocks whose head is not the first of a group have nothing to do. Shared memory, dynamic: GROUP * LINE * 4 bytes for the scores, and WIDTH * 4 for
// each key of a round. Bound: latency up to some hundred keys; then softmax and chain, about 30 clocks a key together.
#include "lib/rows.cuh"
#include "lib/copy.cuh"

typedef K_ROW<HD> KRow;
typedef V_ROW<HD> VRow;
constexpr int WARPS = THREADS / 32, G = HEADS / KV_HEADS, GROUP = G % 4 == 0 ? 4 : G % 3 == 0 ? 3 : G % 2 == 0 ? 2 : 1;
constexpr int PIECES = CHUNK / 64, OWN_PIECES = PIECES / CLUSTER, LINE = CHUNK + 4, SHARE = ceil_div(HD, CLUSTER);
// Numbers of a key in shared memory: four more than there are, so that neighbouring keys are in other banks.
constexpr int WIDTH = round_up(SHARE, 4) + 4;
constexpr int TURNS = ceil_div(HD, 32), KEYS = 8, SUMS = GROUP == 1 ? 8 : GROUP == 2 ? 16 : 32, SUM_SHIFT = GROUP == 1 ? 2 : GROUP == 2 ? 1 : 0;
// Pieces that a warp takes at once.
constexpr int AT_ONCE = 4;
constexpr bool IS_PLAIN = VRow::BYTES == 4 * HD, IN_FOURS = HD % (4 * CLUSTER) == 0;
static_assert(PIECES <= 32, "a lane for each piece of a round");
static_assert(SHARE * GROUP <= THREADS, "a thread for each number of a share");

__device__ __forceinline__ int rank_in_cluster() { return blockIdx.x; }
// That a block runs orders nothing; what it wrote is to be seen by those that leave.
__device__ __forceinline__ void show_start() { asm volatile("barrier.cluster.arrive.relaxed.aligned;"); }
__device__ __forceinline__ void enter_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void leave_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Writes a number to the same place in every block of the cluster.
__device__ __forceinline__ void write_all(float *place, float value) {
    unsigned own = (unsigned)__cvta_generic_to_shared(place), other;
#pragma unroll
    for (int rank = 0; rank < CLUSTER; rank++) {
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(rank));
        asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(other), "f"(value) : "memory");
    }
}

// A choice without a branch.
__device__ __forceinline__ float choose(bool which, float yes, float no) {
    float chosen;
    asm("{ .reg .pred p; setp.ne.s32 p, %3, 0; selp.f32 %0, %1, %2, p; }" : "=f"(chosen) : "f"(yes), "f"(no), "r"((int)which));
    return chosen;
}

// The tree of `dot` for several sums together. While there are several, lanes of the upper half go on with the second half of them; in the end lane l
// has the sum whose number is in its upper bits.
template <int left, int d> __device__ __forceinline__ void add_up(float (&sums)[SUMS], int lane) {
    if constexpr (left == 1) sums[0] = sums[0] + __shfl_xor_sync(0xffffffffu, sums[0], d);
    else {
        bool is_upper = (lane & d) != 0;
#pragma unroll
        for (int i = 0; i < left / 2; i++) {
            float kept = choose(is_upper, sums[i + left / 2], sums[i]), sent = choose(is_upper, sums[i], sums[i + left / 2]);
            sums[i] = kept + __shfl_xor_sync(0xffffffffu, sent, d);
        }
    }
    if constexpr (1 < d) add_up<(1 < left ? left / 2 : 1), d / 2>(sums, lane);
}

__device__ __forceinline__ float largest_in_warp(float most) {
#pragma unroll
    for (int d = 16; 0 < d; d /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, most, d);
        most = most < other ? other : most;
    }
    return most;
}

// The visible keys: the two ranges of `ir::mask::Mask::ranges`, clipped to the cache and cut at multiples of 64.
struct Pieces {
    int head_start, head_end, head_count, tail_start, tail_end, tail_count;

    __device__ __forceinline__ Pieces(int position, int first_key, int reach_key) {
        constexpr unsigned window = (unsigned)WINDOW, sinks = (unsigned)SINKS, ctx = (unsigned)CTX;
        unsigned first = (unsigned)max(first_key, 0), reach = (unsigned)max(reach_key, 0), last = (unsigned)position + 1;
        unsigned window_start = window == 0 || last < window ? 0 : last - window;
        unsigned sinks_end = window == 0 ? 0 : min(first + min(sinks, 0xffffffffu - first), last);
        unsigned head_stop = max(max(reach, sinks_end), first), start = max(window_start, head_stop);
        head_start = (int)min(first, ctx), head_end = position < 0 ? 0 : (int)min(head_stop, ctx);
        tail_start = (int)min(start, ctx), tail_end = position < 0 ? 0 : (int)min(max(last, start), ctx);
        head_count = head_end <= head_start ? 0 : (head_end + 63) / 64 - head_start / 64;
        tail_count = tail_end <= tail_start ? 0 : (tail_end + 63) / 64 - tail_start / 64;
    }
    __device__ __forceinline__ int all() const { return head_count + tail_count; }
    // The first key of the 64 that a piece is of, and the visible ones.
    __device__ __forceinline__ void get(int piece, int &base, int &from, int &to) const {
        bool is_head = piece < head_count;
        int start = is_head ? head_start : tail_start;
        base = (start / 64 + piece - (is_head ? 0 : head_count)) * 64;
        from = max(start, base), to = min(is_head ? head_end : tail_end, base + 64);
    }
};

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 2)
KERNEL(const float *q, const u8 *k, const u8 *v, const int *__restrict__ seq, const int *__restrict__ pos,
       const int *__restrict__ span, float *__restrict__ out, int n) {
    extern __shared__ __align__(16) float shared[];
    float *scores = shared, *values = shared + GROUP * LINE;
    __shared__ float largest_of[GROUP][PIECES], keep_of[GROUP][PIECES], gain_of[GROUP][PIECES], sum_of[GROUP][PIECES], largest[GROUP], total[GROUP];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, rank = rank_in_cluster(), head = blockIdx.y, token = blockIdx.z;
    if (head % GROUP != 0) return;
    show_start();
    wait_for_inputs();
    let_next_start();
    size_t stride = ROWS_TO_NEXT_KEY, first_row = row_of_first_key(seq[token], head / G);
    Pieces pieces(pos[token], span[2 * token], span[2 * token + 1]);
    const float minus_infinity = __int_as_float(0xff800000);
    float scale = __int_as_float(SCALE_BITS);
    const float *queries = q + ((size_t)token * HEADS + head) * HD;
    float query[GROUP][TURNS];
#pragma unroll
    for (int h = 0; h < GROUP; h++)
#pragma unroll
        for (int i = 0; i < TURNS; i++) query[h][i] = lane + 32 * i < HD ? queries[h * HD + lane + 32 * i] : 0.0f;
    if (threadIdx.x < GROUP) largest[threadIdx.x] = minus_infinity, total[threadIdx.x] = 0.0f;

    // The numbers of the result that this thread has: one, unless a share is larger than a block.
    constexpr int CHAINS = ceil_div(SHARE * GROUP, THREADS);
    float acc[CHAINS] = {};
    int all = pieces.all();
    // All blocks have started, so that their shared memory may be written.
    leave_cluster();
#pragma unroll 1
    for (int first = 0; first < all; first += PIECES) {
        int count = min(PIECES, all - first);
        // Values of this block's share of the head dimension.
        if (IS_PLAIN) {
            constexpr int PARTS = IN_FOURS ? SHARE / 4 : SHARE;
#pragma unroll 2
            for (int at = threadIdx.x; at < count * 64 * PARTS; at += THREADS) {
                int slot = at / PARTS, i = at % PARTS * (IN_FOURS ? 4 : 1), base, from, to;
                pieces.get(first + slot / 64, base, from, to);
                int key = base + slot % 64;
                const u8 *number = v + (first_row + stride * (size_t)key) * VRow::BYTES + 4 * (rank * SHARE + i);
                unsigned place = (unsigned)__cvta_generic_to_shared(values + slot * WIDTH + i);
                bool is_there = from <= key && key < to && rank * SHARE + i < HD;
                if (is_there && IN_FOURS) copy_16(place, number, true);
                if (is_there && !IN_FOURS) copy_4(place, number);
            }
        }
        // Scores of this block's pieces; a slot that is not visible has none.
#pragma unroll 1
        for (int at = warp * KEYS; at < OWN_PIECES * 64; at += WARPS * KEYS) {
            int piece = at / 64 * CLUSTER + rank, base, from, to;
            if (count <= piece) break;
            pieces.get(first + piece, base, from, to);
            int key = base + at % 64;
            float sums[SUMS] = {};
#pragma unroll
            for (int i = 0; i < KEYS; i++) {
                // A key that is not visible may not be there; some other is read in its place.
                KRow row = KRow::open(k + (first_row + stride * (size_t)min(max(key + i, from), to - 1)) * KRow::BYTES);
#pragma unroll
                for (int j = 0; j < TURNS; j++) {
                    if (HD <= lane + 32 * j) continue;
                    float number = row.at(lane + 32 * j);
#pragma unroll
                    for (int h = 0; h < GROUP; h++) sums[h * KEYS + i] = fmaf(query[h][j], number, sums[h * KEYS + i]);
                }
            }
            add_up<SUMS, 16>(sums, lane);
            int mine = lane >> SUM_SHIFT, h = mine / KEYS, i = mine % KEYS;
            if (lane % (1 << SUM_SHIFT) == 0 && h < GROUP) {
                bool is_visible = from <= key + i && key + i < to;
                write_all(scores + h * LINE + piece * 64 + at % 64 + i, is_visible ? sums[0] * scale : minus_infinity);
            }
        }
        if (!IS_PLAIN) {
#pragma unroll 2
            for (int slot = threadIdx.x; slot < count * 64; slot += THREADS) {
                int base, from, to;
                pieces.get(first + slot / 64, base, from, to);
                // A key that is not visible may not be there; some other is read in its place.
                int key = min(max(base + slot % 64, from), to - 1);
                VRow row = VRow::open(v + (first_row + stride * (size_t)key) * VRow::BYTES);
#pragma unroll 4
                for (int i = 0; i < SHARE; i += 4) {
                    float four[4];
#pragma unroll
                    for (int j = 0; j < 4; j++) four[j] = rank * SHARE + i + j < HD ? row.at(rank * SHARE + i + j) : 0.0f;
                    *(float4 *)(values + slot * WIDTH + i) = float4{four[0], four[1], four[2], four[3]};
                }
            }
        }
        end_copies();
        wait_for_copies<0>();
        enter_cluster();
        leave_cluster();
        // Largest scores of the pieces, exponentials, and what they add up to. A warp takes several pieces at once, since each is a chain of shuffles.
        int tasks = GROUP * count;
        for (int begin = warp; begin < tasks; begin += WARPS * AT_ONCE) {
            float low[AT_ONCE], high[AT_ONCE], most[AT_ONCE], sum[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                int at = begin + i * WARPS;
                const float *line = scores + at / count * LINE + at % count * 64;
                low[i] = at < tasks ? line[lane] : 0.0f, high[i] = at < tasks ? line[lane + 32] : 0.0f;
                most[i] = largest_in_warp(low[i] < high[i] ? high[i] : low[i]);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                low[i] = exp_exact(low[i] - most[i]), high[i] = exp_exact(high[i] - most[i]);
                sum[i] = sum_tree(low[i] + high[i]);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                int at = begin + i * WARPS;
                if (tasks <= at) continue;
                int h = at / count, piece = at % count;
                float *line = scores + h * LINE + piece * 64;
                line[lane] = low[i], line[lane + 32] = high[i];
                if (lane == 0) largest_of[h][piece] = most[i], sum_of[h][piece] = sum[i];
            }
        }
        __syncthreads();
        if (threadIdx.x < tasks) {
            int h = threadIdx.x / count, piece = threadIdx.x % count;
            float before = largest[h];
            for (int earlier = 0; earlier < piece; earlier++) before = before < largest_of[h][earlier] ? largest_of[h][earlier] : before;
            float now = before < largest_of[h][piece] ? largest_of[h][piece] : before;
            keep_of[h][piece] = exp_exact(before - now), gain_of[h][piece] = exp_exact(largest_of[h][piece] - now);
        }
        __syncthreads();
        if (threadIdx.x < GROUP) {
            int h = threadIdx.x;
            float most = largest[h], sum = total[h];
            for (int piece = 0; piece < count; piece++) {
                most = most < largest_of[h][piece] ? largest_of[h][piece] : most;
                sum = fmaf(sum, keep_of[h][piece], sum_of[h][piece] * gain_of[h][piece]);
            }
            largest[h] = most, total[h] = sum;
        }
        // Chains.
#pragma unroll
        for (int c = 0; c < CHAINS; c++) {
            int chain = threadIdx.x + c * THREADS, h = chain / SHARE, d = chain % SHARE;
            if (GROUP <= h || HD <= rank * SHARE + d) continue;
            const float *weights = scores + h * LINE, *numbers = values + d;
#pragma unroll 1
            for (int piece = 0; piece < count; piece++) {
                int base, from, to;
                pieces.get(first + piece, base, from, to);
                float part = 0.0f;
                if (to - from == 64) {
#pragma unroll
                    for (int slot = piece * 64; slot < piece * 64 + 64; slot += 4) {
                        float4 p = *(const float4 *)(weights + slot);
                        const float *x = numbers + slot * WIDTH;
                        part = fmaf(p.x, x[0], part);
                        part = fmaf(p.y, x[WIDTH], part);
                        part = fmaf(p.z, x[2 * WIDTH], part);
                        part = fmaf(p.w, x[3 * WIDTH], part);
                    }
                } else {
#pragma unroll 8
                    for (int slot = piece * 64 + from - base; slot < piece * 64 + to - base; slot++) part = fmaf(weights[slot], numbers[slot * WIDTH], part);
                }
                acc[c] = fmaf(acc[c], keep_of[h][piece], part * gain_of[h][piece]);
            }
        }
        // Nobody writes the next scores while another reads these.
        if (first + PIECES < all) {
            enter_cluster();
            leave_cluster();
        }
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < CHAINS; c++) {
        int chain = threadIdx.x + c * THREADS, h = chain / SHARE, d = rank * SHARE + chain % SHARE;
        if (h < GROUP && d < HD) out[((size_t)token * HEADS + head + h) * HD + d] = acc[c] * (0 < all ? 1.0f / total[h] : 0.0f);
    }
}
