// Sums of rows by id: out[r] = sum of x[t] over all t with ids[t] = r, in ascending order of t; ids outside are taken as the nearest inside.
//
// x: f32 [n, WIDTH]; ids: i32 [n]; out: f32 [ROWS, WIDTH]. A block is a row of the result. Bound: reading the ids, once for each row.
#include "lib/exact.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const float *x, const int *ids, float *out, int n) {
    wait_for_previous();
    int row = blockIdx.x;
    for (int i = threadIdx.x; i < WIDTH; i += THREADS) {
        float sum = 0.0f;
        for (int token = 0; token < n; token++)
            if (min(max(ids[token], 0), ROWS - 1) == row) sum += x[(size_t)token * WIDTH + i];
        out[(size_t)row * WIDTH + i] = sum;
    }
}
