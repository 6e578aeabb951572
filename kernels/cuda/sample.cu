// The choice of a token for each row of logits: `kernels::sample`, to the bit.
//
// logits: f32 [n, V]; settings: f32 [n, 4]; draws: u32 [n, 2]; out: i32 [n].
//
// CLUSTER blocks share a row; each has a range of ids, and each of its warps a part of that, so ids ascend with block and warp. Weights are whole
// numbers, whose sums have no order. Where the order by probability is cut is found four bits of the logits' keys at a time: every thread adds up,
// for each of 16 thresholds, what lies above it, and all blocks add their sums. The logits are read anew each time; they stay in the first cache.
// Bound: latency of the sums, about ten of them for each filter.
#include "lib/exact.cuh"
#if 1 < CLUSTER
#include "lib/cluster.cuh"
#endif

typedef unsigned long long u64;
constexpr int WARPS = THREADS / 32, OF_WARP = round_up(ceil_div(V, CLUSTER * WARPS), 32), WAYS = 16;
constexpr float ONE = 0x1p40f;

// A number whose order is that of the logits; zeros have one. 0 is nothing that can be chosen: a logit that is no number, or minus infinity.
__device__ __forceinline__ unsigned key_of(float logit) {
    unsigned bits = __float_as_uint(logit + 0.0f);
    return -__int_as_float(0x7f800000) < logit ? (bits >> 31 ? ~bits : bits | 0x80000000u) : 0;
}

__device__ __forceinline__ u64 sum_of_warp(u64 lane) {
    for (int d = 16; 0 < d; d /= 2) lane += __shfl_xor_sync(0xffffffffu, lane, d);
    return lane;
}

__device__ __forceinline__ int rank_in_cluster() { return CLUSTER == 1 ? 0 : blockIdx.x; }

// `count` sums over all threads of all blocks, in every thread.
template <int count> __device__ __forceinline__ void sum_of_all(u64 (&sums)[count], u64 (*of_warp)[WAYS], u64 *of_block) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < count; i++) {
        sums[i] = sum_of_warp(sums[i]);
        if (lane == 0) of_warp[warp][i] = sums[i];
    }
    __syncthreads();
    if (threadIdx.x < count) {
        u64 sum = 0;
        for (int each = 0; each < WARPS; each++) sum += of_warp[each][threadIdx.x];
        of_block[threadIdx.x] = sum;
    }
#if 1 < CLUSTER
    wait_for_cluster();
#pragma unroll
    for (int i = 0; i < count; i++) {
        sums[i] = 0;
        for (int rank = 0; rank < CLUSTER; rank++) sums[i] += load_of_block(of_block + i, rank);
    }
    wait_for_cluster();
#else
    __syncthreads();
#pragma unroll
    for (int i = 0; i < count; i++) sums[i] = of_block[i];
    __syncthreads();
#endif
}

// What the warps before this one have together, in order of their ids, given what each lane of this one has; and what all have.
__device__ __forceinline__ void sum_before(u64 lane, u64 &before, u64 &all, u64 (*of_warp)[WAYS], u64 *of_block) {
    int warp = threadIdx.x / 32;
    u64 own = sum_of_warp(lane);
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warp[warp][0] = own;
    __syncthreads();
    u64 of_own = 0;
    before = all = 0;
    for (int each = 0; each < WARPS; each++) {
        u64 sum = of_warp[each][0];
        of_own += sum;
        if (each < warp) before += sum;
    }
#if 1 < CLUSTER
    if (threadIdx.x == 0) of_block[0] = of_own;
    wait_for_cluster();
    for (int rank = 0; rank < CLUSTER; rank++) {
        u64 sum = load_of_block(of_block, rank);
        all += sum;
        if (rank < rank_in_cluster()) before += sum;
    }
    wait_for_cluster();
#else
    all = of_own;
    __syncthreads();
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS)
#if 1 < CLUSTER
__cluster_dims__(CLUSTER, 1, 1)
#endif
KERNEL(const float *logits, const float *settings, const unsigned *draws, int *out, int n) {
    __shared__ u64 of_warp[WARPS][WAYS], of_block[WAYS];
    wait_for_previous();
    int row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float *own = logits + (size_t)row * V;
    float temperature = settings[4 * row], top_k = settings[4 * row + 1], top_p = settings[4 * row + 2], min_p = settings[4 * row + 3];
    bool is_writer = rank_in_cluster() == 0 && threadIdx.x == 0;
    if (!(0.0f <= temperature)) {
        if (is_writer) out[row] = -1;
        return;
    }
    int first = (rank_in_cluster() * WARPS + warp) * OF_WARP, last = min(first + OF_WARP, V);
    // The largest, and of equals the first: the one whose key and inverted id make the largest number.
    u64 best = 0;
    for (int id = first + lane; id < last; id += 32) {
        unsigned key = key_of(own[id]);
        u64 candidate = (u64)key << 32 | ~(unsigned)id;
        if (key != 0 && best < candidate) best = candidate;
    }
    for (int d = 16; 0 < d; d /= 2) best = max(best, __shfl_xor_sync(0xffffffffu, best, d));
    if (lane == 0) of_warp[warp][0] = best;
    __syncthreads();
    for (int each = 0; each < WARPS; each++) best = max(best, of_warp[each][0]);
#if 1 < CLUSTER
    if (threadIdx.x == 0) of_block[0] = best;
    wait_for_cluster();
    for (int rank = 0; rank < CLUSTER; rank++) best = max(best, load_of_block(of_block, rank));
    wait_for_cluster();
#else
    __syncthreads();
#endif
    if (best == 0 || temperature == 0.0f) {
        if (is_writer) out[row] = best == 0 ? -1 : (int)~(unsigned)best;
        return;
    }
    float largest = own[~(unsigned)best];
    auto weight = [&](float logit) {
        float below = logit == largest ? 0.0f : (logit - largest) / temperature;
        return below == below ? (u64)(exp_exact(below) * ONE) : 0;
    };
    // What is kept: keys above `cut`, and of those with it the first `equals` by their ids.
    unsigned cut = 1;
    u64 equals = ~0ull;
    // Of this warp's ids with the key `cut`, those before the ones of the current step, and all before the warp.
    u64 passed = 0, before = 0;
    auto is_kept = [&](unsigned key) {
        unsigned same = __ballot_sync(0xffffffffu, key == cut);
        u64 rank = before + passed + __popc(same & ((1u << lane) - 1));
        passed += __popc(same);
        return cut < key || (key == cut && rank < equals);
    };
    // Calls `visit` with each id of the warp, whether it is kept, and its logit; all lanes together.
    auto each = [&](auto visit) {
        passed = 0;
        for (int start = first; start < last; start += 32) {
            int id = start + lane;
            float logit = id < last ? own[id] : 0.0f;
            unsigned key = id < last ? key_of(logit) : 0;
            visit(id, key, is_kept(key), logit);
        }
    };
    // Cuts after the fewest, of those that are kept, whose measures add up to `needed`: the key, then how many of those with it.
    auto find = [&](auto measure, u64 needed) {
        unsigned found = 0;
        for (int shift = 28; 0 <= shift; shift -= 4) {
            u64 sums[WAYS] = {};
            each([&](int, unsigned key, bool kept, float logit) {
                if (!kept || (shift < 28 && key >> (shift + 4) != found >> (shift + 4))) return;
                u64 size = measure(logit);
                unsigned way = key >> shift & 15;
#pragma unroll
                for (int i = 0; i < WAYS; i++) sums[i] += i == way ? size : 0;
            });
            sum_of_all(sums, of_warp, of_block);
            unsigned way = 15;
            bool is_found = false;
#pragma unroll
            for (int i = WAYS - 1; 0 <= i; i--) {
                if (!is_found && (i == 0 || needed <= sums[i])) way = i, is_found = true;
                if (!is_found) needed -= sums[i];
            }
            found |= way << shift;
        }
        // Equal logits have equal measures, so that of the logit with this key is the one of each.
        unsigned bits = found >> 31 ? found & 0x7fffffffu : ~found;
        u64 size = max(measure(__uint_as_float(bits)), 1ull), all;
        u64 limit = (needed + size - 1) / size, same = 0;
        u64 kept_before = equals;
        unsigned cut_before = cut;
        cut = found, equals = cut_before == found ? min(limit, kept_before) : limit;
        for (int id = first + lane; id < last; id += 32) same += key_of(own[id]) == cut;
        sum_before(same, before, all, of_warp, of_block);
    };
    if (1.0f <= top_k && top_k < (float)V) {
        u64 there[1] = {};
        each([&](int, unsigned key, bool kept, float) { there[0] += kept; });
        sum_of_all(there, of_warp, of_block);
        if ((u64)top_k < there[0]) find([](float) { return 1ull; }, (u64)top_k);
    }
    if (top_p < 1.0f) {
        u64 total[1] = {};
        each([&](int, unsigned key, bool kept, float logit) { total[0] += kept ? weight(logit) : 0; });
        sum_of_all(total, of_warp, of_block);
        // total * part / 2^32, rounded up; part is at most 2^32.
        u64 part = (u64)(fmaxf(top_p, 0.0f) * 0x1p32f);
        u64 high = __umul64hi(total[0], part), low = total[0] * part;
        u64 needed = (high << 32 | low >> 32) + ((low & 0xffffffffu) != 0);
        find(weight, max(needed, 1ull));
    }
    u64 least = (u64)(fminf(fmaxf(min_p, 0.0f), 1.0f) * ONE), sum = 0, total, start;
    each([&](int, unsigned key, bool kept, float logit) {
        u64 size = kept ? weight(logit) : 0;
        sum += least <= size ? size : 0;
    });
    sum_before(sum, start, total, of_warp, of_block);
    u64 target = __umul64hi(total, (u64)draws[2 * row + 1] << 32 | draws[2 * row]);
    u64 end = start + sum_of_warp(sum);
    if (target < start || end <= target) return;
    // It is one of this warp's.
    each([&](int id, unsigned key, bool kept, float logit) {
        u64 size = kept ? weight(logit) : 0;
        if (size < least) size = 0;
        u64 upto = size;
        for (int d = 1; d < 32; d *= 2) {
            u64 other = __shfl_up_sync(0xffffffffu, upto, d);
            if (d <= lane) upto += other;
        }
        if (start + upto - size <= target && target < start + upto) out[row] = id;
        start += __shfl_sync(0xffffffffu, upto, 31);
    });
}
