// Sums of rows by id: out[r] = sum of x[t] over all t with ids[t] = r, in ascending order of t; ids outside are taken as the nearest inside.
//
// x: f32 [n, WIDTH]; ids: i32 [n]; out: f32 [ROWS, WIDTH]. A block is a row of the result, a thread has EACH columns of it. The block reads SPAN ids at a
// time and lists the tokens among them that have its id, in order. Bound: reading x once, or the ids once for each row.
#include "lib/exact.cuh"

constexpr int WARPS = THREADS / 32, WAYS = 8, SPAN = THREADS * WAYS, EACH = ceil_div(WIDTH, THREADS) < 8 ? ceil_div(WIDTH, THREADS) : 8;

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const float *x, const int *ids, float *out, int n) {
    __shared__ int tokens[SPAN], counts[WARPS];
    wait_for_previous();
    const int row = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int first = threadIdx.x; first - (int)threadIdx.x < WIDTH; first += THREADS * EACH) {
        float sums[EACH] = {};
        for (int start = 0; start < n; start += SPAN) {
            // Each warp has ids that follow each other, 32 at a time.
            const int of_warp = start + warp * 32 * WAYS;
            unsigned found[WAYS];
            int count = 0;
#pragma unroll
            for (int way = 0; way < WAYS; way++) {
                int token = of_warp + way * 32 + lane;
                int id = token < n ? min(max(ids[token], 0), ROWS - 1) : -1;
                found[way] = __ballot_sync(0xffffffffu, id == row);
                count += __popc(found[way]);
            }
            if (!__syncthreads_or(count)) continue;
            if (lane == 0) counts[warp] = count;
            __syncthreads();
            int before = 0, all = 0;
            for (int other = 0; other < WARPS; other++) {
                if (other < warp) before += counts[other];
                all += counts[other];
            }
#pragma unroll
            for (int way = 0; way < WAYS; way++) {
                int place = before + __popc(found[way] & ((1u << lane) - 1));
                if (found[way] >> lane & 1) tokens[place] = of_warp + way * 32 + lane;
                before += __popc(found[way]);
            }
            __syncthreads();
#pragma unroll 8
            for (int at = 0; at < all; at++) {
                const float *from = x + (size_t)tokens[at] * WIDTH;
#pragma unroll
                for (int i = 0; i < EACH; i++)
                    if (first + i * THREADS < WIDTH) sums[i] += from[first + i * THREADS];
            }
            // The list is written again.
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (first + i * THREADS < WIDTH) out[(size_t)row * WIDTH + first + i * THREADS] = sums[i];
    }
}
