// Attention of few tokens over a KV cache, with the online softmax of the crate, bit for bit.
//
// q, out: f32 [n, HEADS, HD]; k, v: caches [seqs, CTX, KV_HEADS] of rows of HD numbers; seq, pos: i32 [n]; span: i32 [n, 2].
//
// What the order of the sum fixes is little: scores and exponentials do not depend on each other, and each number of the result is a chain of its
// own. So CLUSTER blocks share a KV head of a token, with GROUP of its query heads, in rounds of CHUNK keys: each computes the scores of its
// share of the keys and writes them into the shared memory of all; then each takes its share of the head dimension, with all keys of the round.
//
//   scores    a warp takes four keys at a time; its lanes are the 32 accumulators of `dot`, and the sums of keys and heads go through the tree together,
//             half as many numbers after each step
//   values    decoded to shared memory, [number][key], for the share of the head dimension
//   softmax   every block for itself: a warp takes a piece of 64 keys of one head
//   result    a thread is one number of one head: one chain of fma over the keys
//
// Blocks whose head is not the first of a group have nothing to do. Shared memory, dynamic: GROUP_MAX * (CHUNK + 4) * 4 for the scores, and as
// much for each number of a share. Bound: latency up to some thousand keys, then the chain, about 5 clocks a key.
#include "lib/rows.cuh"
#include "lib/copy.cuh"

typedef K_ROW<HD> KRow;
typedef V_ROW<HD> VRow;
constexpr int WARPS = THREADS / 32, G = HEADS / KV_HEADS, GROUP = G % 4 == 0 ? 4 : G % 3 == 0 ? 3 : G % 2 == 0 ? 2 : 1;
constexpr int PIECES = CHUNK / 64, OWN_PIECES = PIECES / CLUSTER, LINE = CHUNK + 4, SHARE = ceil_div(HD, CLUSTER);
constexpr int TURNS = ceil_div(HD, 32), KEYS = 4, SUMS = GROUP == 1 ? 4 : GROUP == 2 ? 8 : 16, SUM_SHIFT = GROUP == 1 ? 3 : GROUP == 2 ? 2 : 1;
constexpr bool IS_PLAIN = VRow::BYTES == 4 * HD;
static_assert(PIECES <= 32, "a lane for each piece of a round");
static_assert(SHARE * GROUP <= THREADS || CLUSTER == 1, "a thread for each number of a share");

#if CLUSTER == 1
#define CLUSTERED
__device__ __forceinline__ int rank_in_cluster() { return 0; }
__device__ __forceinline__ void show_start() {}
__device__ __forceinline__ void enter_cluster() {}
__device__ __forceinline__ void leave_cluster() { __syncthreads(); }
#else
#define CLUSTERED __cluster_dims__(CLUSTER, 1, 1)
__device__ __forceinline__ int rank_in_cluster() { return blockIdx.x; }
// That a block runs orders nothing; what it wrote is to be seen by those that leave.
__device__ __forceinline__ void show_start() { asm volatile("barrier.cluster.arrive.relaxed.aligned;"); }
__device__ __forceinline__ void enter_cluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void leave_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
#endif

// Writes a number to the same place in every block of the cluster.
__device__ __forceinline__ void write_all(float *place, float value) {
#if CLUSTER == 1
    *place = value;
#else
    unsigned own = (unsigned)__cvta_generic_to_shared(place), other;
#pragma unroll
    for (int rank = 0; rank < CLUSTER; rank++) {
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(rank));
        asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(other), "f"(value) : "memory");
    }
#endif
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

extern "C" __global__ void CLUSTERED __launch_bounds__(THREADS, 2)
KERNEL(const float *__restrict__ q, const u8 *__restrict__ k, const u8 *__restrict__ v, const int *__restrict__ seq, const int *__restrict__ pos,
       const int *__restrict__ span, float *__restrict__ out, int n) {
    extern __shared__ __align__(16) float shared[];
    float *scores = shared, *values = shared + GROUP * LINE;
    __shared__ float largest_of[GROUP][PIECES], shrink_of[GROUP][PIECES], sum_of[GROUP][PIECES], largest[GROUP], total[GROUP];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, rank = rank_in_cluster(), head = blockIdx.y, token = blockIdx.z;
    if (head % GROUP != 0) return;
    show_start();
    wait_for_inputs();
    let_next_start();
    size_t stride = (size_t)KV_HEADS, first_row = (size_t)seq[token] * CTX * KV_HEADS + head / G;
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

    // The numbers of the result that this thread has: one, or several if a block has the whole head.
    constexpr int CHAINS = ceil_div(SHARE * GROUP, THREADS);
    float acc[CHAINS] = {};
    int all = pieces.all();
    // All blocks have started, so that their shared memory may be written.
    leave_cluster();
#pragma unroll 1
    for (int first = 0; first < all; first += PIECES) {
        int count = min(PIECES, all - first);
        // Values of this block's share of the head dimension: f32 arrive while the scores are computed, the others are decoded after them.
        if (IS_PLAIN) {
#pragma unroll 4
            for (int at = threadIdx.x; at < count * 64 * SHARE; at += THREADS) {
                int slot = at / SHARE, d = rank * SHARE + at % SHARE, base, from, to;
                pieces.get(first + slot / 64, base, from, to);
                int key = base + slot % 64;
                const u8 *number = v + (first_row + stride * (size_t)key) * VRow::BYTES + 4 * d;
                if (from <= key && key < to && d < HD) copy_4((unsigned)__cvta_generic_to_shared(values + at % SHARE * LINE + slot), number);
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
#pragma unroll 16
                for (int d = 0; d < SHARE; d++)
                    if (rank * SHARE + d < HD) values[d * LINE + slot] = row.at(rank * SHARE + d);
            }
        }
        end_copies();
        wait_for_copies<0>();
        enter_cluster();
        leave_cluster();
        // Largest scores of the pieces.
        for (int at = warp; at < GROUP * count; at += WARPS) {
            int h = at / count, piece = at % count;
            const float *line = scores + h * LINE + piece * 64;
            float low = line[lane], high = line[lane + 32], most = low < high ? high : low;
#pragma unroll
            for (int d = 16; 0 < d; d /= 2) {
                float other = __shfl_xor_sync(0xffffffffu, most, d);
                most = most < other ? other : most;
            }
            if (lane == 0) largest_of[h][piece] = most;
        }
        __syncthreads();
        // Exponentials, and what they add up to.
        for (int at = warp; at < GROUP * count; at += WARPS) {
            int h = at / count, piece = at % count;
            float *line = scores + h * LINE + piece * 64;
            float before = largest[h];
            float earlier = lane < piece ? largest_of[h][lane] : minus_infinity;
#pragma unroll
            for (int d = 16; 0 < d; d /= 2) {
                float other = __shfl_xor_sync(0xffffffffu, earlier, d);
                earlier = earlier < other ? other : earlier;
            }
            before = before < earlier ? earlier : before;
            float now = before < largest_of[h][piece] ? largest_of[h][piece] : before;
            float low = exp_exact(line[lane] - now), high = exp_exact(line[lane + 32] - now);
            line[lane] = low, line[lane + 32] = high;
            float sum = sum_tree(low + high);
            if (lane == 0) sum_of[h][piece] = sum, shrink_of[h][piece] = exp_exact(before - now);
        }
        __syncthreads();
        if (threadIdx.x < GROUP) {
            int h = threadIdx.x;
            float most = largest[h], sum = total[h];
            for (int piece = 0; piece < count; piece++) {
                most = most < largest_of[h][piece] ? largest_of[h][piece] : most;
                sum = fmaf(sum, shrink_of[h][piece], sum_of[h][piece]);
            }
            largest[h] = most, total[h] = sum;
        }
        // Chains.
#pragma unroll
        for (int c = 0; c < CHAINS; c++) {
            int chain = threadIdx.x + c * THREADS, h = chain / SHARE, d = chain % SHARE;
            if (GROUP <= h || HD <= rank * SHARE + d) continue;
            const float *weights = scores + h * LINE, *numbers = values + d * LINE;
#pragma unroll 1
            for (int piece = 0; piece < count; piece++) {
                int base, from, to;
                pieces.get(first + piece, base, from, to);
                float shrink = shrink_of[h][piece];
                if (shrink != 1.0f) acc[c] = acc[c] * shrink;
                if (to - from == 64) {
#pragma unroll
                    for (int slot = piece * 64; slot < piece * 64 + 64; slot += 4) {
                        float4 p = *(const float4 *)(weights + slot), x = *(const float4 *)(numbers + slot);
                        acc[c] = fmaf(p.x, x.x, acc[c]);
                        acc[c] = fmaf(p.y, x.y, acc[c]);
                        acc[c] = fmaf(p.z, x.z, acc[c]);
                        acc[c] = fmaf(p.w, x.w, acc[c]);
                    }
                } else {
#pragma unroll 8
                    for (int slot = piece * 64 + from - base; slot < piece * 64 + to - base; slot++) acc[c] = fmaf(weights[slot], numbers[slot], acc[c]);
                }
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
