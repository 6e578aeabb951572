// out[r] = max(mean |w[r, ..]|, least): summed in f64, rounded once. The sum of the CPU's rows runs in ascending order and this one by threads; both are
// within 2^-30 of the true sum for any matrix that there is, so that they round to the same f32 but for a sum that lies that near between two.
//
// w: [n, K]; out: f32 [n]. A block is a row. Bound: memory, where there are many rows.
#include "lib/exact.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const WEIGHT *w, float *out, int n) {
    wait_for_previous();
    __shared__ double sums[THREADS];
    const WEIGHT *row = w + (size_t)blockIdx.x * K;
    double sum = 0.0;
    for (int i = threadIdx.x; i < K; i += THREADS) sum += fabsf(widen(row[i]));
    sums[threadIdx.x] = sum;
    for (int width = THREADS / 2; 0 < width; width /= 2) {
        __syncthreads();
        if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
    }
    if (threadIdx.x == 0) {
        float mean = (float)(sums[0] / (double)K), least = __int_as_float(LEAST_BITS);
        out[blockIdx.x] = mean < least ? least : mean;
    }
}
