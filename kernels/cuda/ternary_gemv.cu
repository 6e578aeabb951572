// Ternary matmul for few tokens: out[t, r] = ((acc as f32) * x_scale) * scale[r], acc = sum_c code * x - sum_c x, exact in i32.
//
// x: n records of q8 of K codes, n <= 8 * TOKEN_TILES, or 1 with ONE_TOKEN; w: [M, K] in tiles of 16 x 16, 64 bytes each; scale: f32 [M]; out: f32 [n, M].
//
// Generated code may stand on both sides of the product, so that neither x nor what the product gives goes through memory:
//
//   BEFORE(record, scratch, wait)
//                             of one token: all threads write x, one record, to shared memory, and have met once its codes are written; its numbers are
//                             there when they meet again. CHUNK words of shared memory are theirs. They call wait() before they read what is no
//                             weight. BEFORE_PARAMETERS, instead of x.
//   After                     what the code behind the product reads for a column: After::load(token, column, n, AFTER_ARGUMENTS) ahead of the product,
//                             and store(product, token, column, n, AFTER_ARGUMENTS) behind it. The product is cut into PARTS of M / PARTS columns, of
//                             each of which it takes the one in the same place; a block has rows of each part. AFTER_PARAMETERS, instead of out.
//
// A block is 16 * ROW_BLOCKS rows and all of K. Its warps take steps of 4 tiles in turn; a lane (g = lane / 4, q = lane % 4) loads the words of
// its rows of tile 4 * step + q, 4 of each two row blocks or 2 of each: a load, and neighbouring lanes' are neighbours. All loads of a warp are
// issued before anything else is done, which is what keeps memory busy.
//
// With CLUSTER the blocks of a cluster share the rows, each with a part of the steps, and each has the results of a part of the rows: the others
// send it their sums of these, integers, whose order does not matter.
//
// A word has the codes of 16 columns, column 4i + j in bits 2i of byte j. Masked with 0x03 it is, without a shuffle, what the tensor core takes
// as four rows' neighbours in k, if the activations of columns 4i.. are given in the same place. The order of columns within a product is free
// as long as both sides agree, so a step is two products: planes 0 and 2 (after one shift by 4), and planes 1 and 3 masked with 0x0c, whose
// sum is 4 times too large, which a shift at the end puts right. So 16 weights cost 5 integer instructions whatever the tokens.
//
// Shared memory: the sums, 64 bytes * ROW_BLOCKS for each warp and token, and once more for each token in a cluster; with BEFORE a record and
// 4 * CHUNK bytes more. Bound: memory.
#include "lib/cluster.cuh"
#include "lib/mma.cuh"

constexpr int TILES = ceil_div(K, 16), STEPS = ceil_div(TILES, 4), WARPS = THREADS / 32;
constexpr int ROWS = 16 * ROW_BLOCKS, TOKENS = ONE_TOKEN ? 1 : 8 * TOKEN_TILES, RECORD = round_up(K, 16) + 8;
#ifndef CLUSTER
#define CLUSTER 1
#endif
// Of one block for its rows: 32 registers, or 16 where there are the sums of more tokens.
#ifndef AHEAD
#define AHEAD (16 / ROW_BLOCKS / TOKEN_TILES)
#endif
// Steps of a block, turns of its warps, and how many of these a warp loads at once: all, up to AHEAD.
constexpr int OWN_STEPS = ceil_div(STEPS, CLUSTER);
constexpr int TURNS = ceil_div(OWN_STEPS, WARPS), AT_ONCE = ceil_div(TURNS, ceil_div(TURNS, AHEAD));
// Row blocks of which a lane has neighbouring rows, and so one load for all of them.
constexpr int GROUP = ROW_BLOCKS % 2 == 0 ? 2 : 1, GROUPS = ROW_BLOCKS / GROUP;

#if ROW_BLOCKS % 2 == 0
typedef uint4 Words;
__device__ __forceinline__ unsigned word(uint4 w, int j) { return j == 0 ? w.x : j == 1 ? w.y : j == 2 ? w.z : w.w; }
#else
typedef uint2 Words;
__device__ __forceinline__ unsigned word(uint2 w, int j) { return j == 0 ? w.x : w.y; }
#endif

#ifdef BEFORE
#define INPUT BEFORE_PARAMETERS
#else
#define INPUT const u8 *x
#endif

#ifdef AFTER_PARAMETERS
#define OUTPUT AFTER_PARAMETERS
#else
#define OUTPUT float *out
constexpr int PARTS = 1;
#endif

// Rows of a block in each part, and results of a thread.
constexpr int COLUMNS = ROWS / PARTS / CLUSTER, OUTPUTS = ceil_div(COLUMNS * TOKENS, THREADS);
static_assert(PARTS == 1 || CLUSTER == 1 && M % (PARTS * COLUMNS) == 0 && COLUMNS % 16 == 0, "whole row blocks of each part");

#if CLUSTER > 1
#define CLUSTERS __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERS
#endif

extern "C" __global__ void CLUSTERS __launch_bounds__(THREADS, MIN_BLOCKS) KERNEL(INPUT, const u8 *w, const float *scale, OUTPUT, int n) {
    __shared__ int sums[WARPS][TOKENS][ROWS];
#if CLUSTER > 1
    __shared__ int parts[CLUSTER][TOKENS][COLUMNS];
    // Shared memory of a block is there once the block has started.
    asm volatile("barrier.cluster.arrive.relaxed.aligned;");
    int rank = blockIdx.x, row_block = blockIdx.y;
#else
    int rank = 0, row_block = blockIdx.x;
#endif
    int first_column = row_block * COLUMNS * CLUSTER + rank * COLUMNS, first_step = rank * OWN_STEPS;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    // The first of the lane's rows in each group: words of a row block lie 4 bytes apart, row blocks TILES * 64.
    bool has_row[GROUPS];
    const u8 *words[GROUPS];
#pragma unroll
    for (int p = 0; p < GROUPS; p++) {
        constexpr int OF_PART = COLUMNS * CLUSTER;
        int first_row = GROUP * (16 * p + 2 * g), row = first_row / OF_PART * (M / PARTS) + row_block * OF_PART + first_row % OF_PART;
        has_row[p] = row < round_up(M, 16);
        words[p] = w + (size_t)(row / 16) * (TILES * 64) + 4 * (row % 16) + 64 * q + (size_t)first_step * 256;
    }

    // What a thread writes at the end, and the scales of it: weights, so they are fetched with the others.
    auto each_output = [&](auto visit) {
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
            int i = threadIdx.x + o * THREADS, token = i / COLUMNS, column = first_column + i % COLUMNS;
            if (token < TOKENS && token < n && column < M / PARTS) visit(o, token, column);
        }
    };
    float scales[OUTPUTS][PARTS];
    each_output([&](int o, int token, int column) {
#pragma unroll
        for (int part = 0; part < PARTS; part++) scales[o][part] = load_once(scale + part * (M / PARTS) + column);
    });
#ifdef BEFORE
    __shared__ unsigned scratch[CHUNK];
    __shared__ alignas(16) u8 record[RECORD];
    const u8 *x = record;
#endif
#ifdef AFTER_PARAMETERS
    After after[OUTPUTS];
#endif
    auto wait = [&] {
        let_next_start();
        wait_for_inputs();
#ifdef AFTER_PARAMETERS
        each_output([&](int o, int token, int column) { after[o] = After::load(token, column, n, AFTER_ARGUMENTS); });
#endif
    };
    int sum_1[ROW_BLOCKS][TOKEN_TILES][4] = {}, sum_4[ROW_BLOCKS][TOKEN_TILES][4] = {};
#pragma unroll 1
    for (int first = 0; first < TURNS; first += AT_ONCE) {
        Words codes[AT_ONCE][GROUPS];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int step = (first + i) * WARPS + warp;
#pragma unroll
            for (int p = 0; p < GROUPS; p++) {
                codes[i][p] = Words{};
                bool has_words = has_row[p] && (CLUSTER == 1 || step < OWN_STEPS) && 4 * (first_step + step) + q < TILES;
                if (has_words) codes[i][p] = load_once((const Words *)(words[p] + (size_t)step * 256));
            }
        }
        // Not before: the loads of the next launch would stand in the way of these.
        if (first == 0) {
#ifdef BEFORE
            BEFORE(record, scratch, wait);
#else
            wait();
#endif
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int step = (first + i) * WARPS + warp, tile = 4 * (first_step + step) + q;
            bool has_step = CLUSTER == 1 || step < OWN_STEPS;
            unsigned b[TOKEN_TILES][4] = {};
#pragma unroll
            for (int t = 0; t < TOKEN_TILES; t++) {
                // Records start at multiples of 8.
                const uint2 *from = (const uint2 *)(x + (size_t)(8 * t + g) * RECORD + tile * 16);
                if ((ONE_TOKEN ? g == 0 : 8 * t + g < n) && has_step && tile < TILES) {
                    uint2 low = from[0], high = from[1];
                    b[t][0] = low.x, b[t][1] = low.y, b[t][2] = high.x, b[t][3] = high.y;
                }
            }
#pragma unroll
            for (int h = 0; h < ROW_BLOCKS; h++) {
                unsigned even = word(codes[i][h / GROUP], 2 * (h % GROUP)), odd = word(codes[i][h / GROUP], 2 * (h % GROUP) + 1);
                unsigned even_high = even >> 4, odd_high = odd >> 4;
                constexpr unsigned ONES = 0x03030303, FOURS = 0x0c0c0c0c;
#pragma unroll
                for (int t = 0; t < TOKEN_TILES; t++) {
                    mma_u8s8(sum_1[h][t], even & ONES, odd & ONES, even_high & ONES, odd_high & ONES, b[t][0], b[t][2]);
                    mma_u8s8(sum_4[h][t], even & FOURS, odd & FOURS, even_high & FOURS, odd_high & FOURS, b[t][1], b[t][3]);
                }
            }
        }
    }
    int2 numbers[OUTPUTS];
    auto load_numbers = [&] {
        each_output([&](int o, int token, int) {
            numbers[o] = *(const int2 *)(x + (size_t)token * RECORD + (RECORD - 8));
        });
    };
#ifndef BEFORE
    load_numbers();
#endif
#pragma unroll
    for (int h = 0; h < ROW_BLOCKS; h++)
#pragma unroll
        for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int token = 8 * t + 2 * q + j % 2, r = GROUP * (16 * (h / GROUP) + 2 * g) + 2 * (h % GROUP) + j / 2;
                if (token < TOKENS) sums[warp][token][r] = sum_1[h][t][j] + (sum_4[h][t][j] >> 2);
            }
    __syncthreads();
#if CLUSTER > 1
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    for (int i = threadIdx.x; i < TOKENS * ROWS; i += THREADS) {
        int token = i / ROWS, r = i % ROWS, sum = 0;
#pragma unroll
        for (int each = 0; each < WARPS; each++) sum += sums[each][token][r];
        unsigned own = (unsigned)__cvta_generic_to_shared(&parts[rank][token][r % COLUMNS]), other;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(r / COLUMNS));
        asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(other), "r"(sum) : "memory");
    }
    wait_for_cluster();
#endif
#ifdef BEFORE
    load_numbers();
#endif
    each_output([&](int o, int token, int column) {
        float product[PARTS];
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int acc = -numbers[o].y;
#pragma unroll
#if CLUSTER > 1
            for (int each = 0; each < CLUSTER; each++) acc += parts[each][token][column - first_column];
#else
            for (int each = 0; each < WARPS; each++) acc += sums[each][token][part * COLUMNS + column % COLUMNS];
#endif
            product[part] = ((float)acc * __int_as_float(numbers[o].x)) * scales[o][part];
        }
#ifdef AFTER_PARAMETERS
        after[o].store(product, token, column, n, AFTER_ARGUMENTS);
#else
        out[(size_t)token * M + column] = product[0];
#endif
    });
}
