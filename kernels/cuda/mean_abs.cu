// out[r] = max(mean |w[r, ..]|, least): summed in f64, rounded once. The sum of the CPU's rows runs in ascending order and this one by threads; both are
// within 2^-30 of the true sum for any matrix that there is, so that they round to the same f32 but for a sum that lies that near between two.
//
// w: [n, K]; out: f32 [n]. CLUSTER blocks share a row, each of which has every CLUSTER-th part of THREADS units. Bound: memory, where there are many
// rows; else what a few multiprocessors read.
#include "lib/exact.cuh"
#if 1 < CLUSTER
#include "lib/cluster.cuh"
#endif

extern "C" __global__ void
#if 1 < CLUSTER
__cluster_dims__(CLUSTER, 1, 1)
#endif
__launch_bounds__(THREADS) KERNEL(const WEIGHT *w, float *out, int n) {
    wait_for_previous();
    __shared__ double sums[THREADS / 32];
    const int rank = CLUSTER == 1 ? 0 : blockIdx.x, r = CLUSTER == 1 ? blockIdx.x : blockIdx.y;
    const WEIGHT *row = w + (size_t)r * K;
    double sum = 0.0;
    // Several at a time, where rows begin at whole units of them.
    constexpr int UNIT = 16 / sizeof(WEIGHT);
    int i = rank * THREADS + threadIdx.x;
    if (K % UNIT == 0 && (size_t)w % 16 == 0) {
        struct __align__(16) Unit { WEIGHT values[UNIT]; };
        const Unit *units = (const Unit *)row;
#pragma unroll 8
        for (; i < K / UNIT; i += CLUSTER * THREADS) {
            Unit unit = units[i];
#pragma unroll
            for (int of_unit = 0; of_unit < UNIT; of_unit++) sum += fabsf(widen(unit.values[of_unit]));
        }
    } else {
#pragma unroll 8
        for (; i < K; i += CLUSTER * THREADS) sum += fabsf(widen(row[i]));
    }
    for (int d = 16; 0 < d; d /= 2) sum += __shfl_down_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int warp = 1; warp < THREADS / 32; warp++) sums[0] += sums[warp];
#if 1 < CLUSTER
    wait_for_cluster();
    if (rank == 0 && threadIdx.x == 0) {
        const unsigned long long *place = (const unsigned long long *)sums;
        for (int other = 1; other < CLUSTER; other++) sums[0] += __longlong_as_double((long long)load_of_block(place, other));
    }
#endif
    if (rank == 0 && threadIdx.x == 0) {
        float mean = (float)(sums[0] / (double)K), least = __int_as_float(LEAST_BITS);
        out[r] = mean < least ? least : mean;
    }
#if 1 < CLUSTER
    // Shared memory of a block lasts as long as the block.
    wait_for_cluster();
#endif
}
