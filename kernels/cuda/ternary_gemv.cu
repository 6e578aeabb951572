// Ternary matmul for few tokens: out[t, r] = ((acc as f32) * x_scale) * scale[r], acc = sum_c code * x - sum_c x, exact in i32.
//
// x: n records of q8 of K codes, n <= 8 * TOKEN_TILES, or 1 with ONE_TOKEN; w: [M, K] in tiles of 16 x 16, 64 bytes each; scale: f32 [M]; out: f32 [n, M].
//
// Generated code may stand on both sides of the product of one token, so that neither x nor what the product gives goes through memory:
//
//   BEFORE(record, scratch, wait)
//                             all threads write x, one record, to shared memory; CHUNK words of it are theirs. They call wait() before they read what
//                             is no weight. BEFORE_PARAMETERS, instead of x.
//   After                     what the code behind the product reads for a column: After::load(column, n, AFTER_ARGUMENTS) ahead of the product, and
//                             store(product, column, n, AFTER_ARGUMENTS) behind it. The product is cut into PARTS of M / PARTS columns, of each of
//                             which it takes the one in the same place; a block has a row block of each part. AFTER_PARAMETERS, instead of out.
//
// A block is 16 * ROW_BLOCKS rows and all of K. Its warps take steps of 4 tiles in turn; a lane (g = lane / 4, q = lane % 4) loads the words of
// its 2 * ROW_BLOCKS rows of tile 4 * step + q: one load, and neighbouring lanes' are neighbours. All loads of a warp are issued before anything
// else is done, which is what keeps memory busy.
//
// A word has the codes of 16 columns, column 4i + j in bits 2i of byte j. Masked with 0x03 it is, without a shuffle, what the tensor core takes
// as four rows' neighbours in k, if the activations of columns 4i.. are given in the same place. The order of columns within a product is free
// as long as both sides agree, so a step is two products: planes 0 and 2 (after one shift by 4), and planes 1 and 3 masked with 0x0c, whose
// sum is 4 times too large, which a shift at the end puts right. So 16 weights cost 5 integer instructions whatever the tokens.
//
// Shared memory: the sums of the warps, 64 bytes * ROW_BLOCKS for each token. Bound: memory.
#include "lib/mma.cuh"

constexpr int TILES = ceil_div(K, 16), STEPS = ceil_div(TILES, 4), WARPS = THREADS / 32;
constexpr int ROWS = 16 * ROW_BLOCKS, TOKENS = ONE_TOKEN ? 1 : 8 * TOKEN_TILES, RECORD = round_up(K, 16) + 8;
// Steps of a warp, and how many of them it loads at once: all, up to 32 registers of them.
constexpr int TURNS = ceil_div(STEPS, WARPS), AT_ONCE = ceil_div(TURNS, ceil_div(TURNS, 16 / ROW_BLOCKS));

// From shared memory where they were computed, else through the first cache.
template <class T> __device__ __forceinline__ T load_activations(const T *from) {
#ifdef BEFORE
    return *from;
#else
    return __ldg(from);
#endif
}

#if ROW_BLOCKS == 2
typedef uint4 Words;
__device__ __forceinline__ unsigned word(uint4 w, int j) { return j == 0 ? w.x : j == 1 ? w.y : j == 2 ? w.z : w.w; }
#else
typedef uint2 Words;
__device__ __forceinline__ unsigned word(uint2 w, int j) { return j == 0 ? w.x : w.y; }
#endif

#ifdef BEFORE
#define INPUT BEFORE_PARAMETERS
constexpr int SCRATCH = CHUNK;
#else
#define INPUT const u8 *x
constexpr int SCRATCH = 0;
#endif

// The row of the product that row r of a block is.
#ifdef AFTER_PARAMETERS
static_assert(ONE_TOKEN && ROW_BLOCKS == PARTS && M % PARTS == 0 && (PARTS == 1 || M / PARTS % 16 == 0), "a row block of each part");
__device__ __forceinline__ int row_of(int r) { return r / 16 * (M / PARTS) + blockIdx.x * 16 + r % 16; }
#define OUTPUT AFTER_PARAMETERS
#else
__device__ __forceinline__ int row_of(int r) { return blockIdx.x * ROWS + r; }
#define OUTPUT float *out
#endif

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) KERNEL(INPUT, const u8 *w, const float *scale, OUTPUT, int n) {
    constexpr int SUMS = WARPS * TOKENS * ROWS;
    __shared__ unsigned scratch[SCRATCH < SUMS ? SUMS : SCRATCH];
    int(*sums)[TOKENS][ROWS] = (int(*)[TOKENS][ROWS])scratch;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    // The first row of the lane: words of a row block lie 4 bytes apart, row blocks TILES * 64.
    int row = row_of(2 * ROW_BLOCKS * g);
    bool has_row = row < round_up(M, 16);
    const u8 *words = w + (size_t)(row / 16) * (TILES * 64) + 4 * (row % 16) + 64 * q;

    // What a thread writes at the end, and the scales of it: weights, so they are fetched with the others.
    constexpr int OUTPUTS = ceil_div(ROWS * TOKENS, THREADS);
    float scales[OUTPUTS];
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        int out_row = row_of((threadIdx.x + o * THREADS) % ROWS);
        if (threadIdx.x + o * THREADS < ROWS * (ONE_TOKEN ? 1 : n) && out_row < M) scales[o] = load_once(scale + out_row);
    }
#ifdef BEFORE
    __shared__ alignas(16) u8 record[RECORD];
    const u8 *x = record;
#endif
#ifdef AFTER_PARAMETERS
    After after;
    int column = blockIdx.x * 16 + threadIdx.x;
    bool has_column = threadIdx.x < 16 && column < M / PARTS;
#endif
    auto wait = [&] {
        let_next_start();
        wait_for_inputs();
#ifdef AFTER_PARAMETERS
        if (has_column) after = After::load(column, n, AFTER_ARGUMENTS);
#endif
    };
    int sum_1[ROW_BLOCKS][TOKEN_TILES][4] = {}, sum_4[ROW_BLOCKS][TOKEN_TILES][4] = {};
#pragma unroll 1
    for (int first = 0; first < TURNS; first += AT_ONCE) {
        Words codes[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int step = (first + i) * WARPS + warp;
            codes[i] = Words{};
            if (has_row && 4 * step + q < TILES) codes[i] = load_once((const Words *)(words + (size_t)step * 256));
        }
        // Not before: the loads of the next launch would stand in the way of these.
        if (first == 0) {
#ifdef BEFORE
            BEFORE(record, scratch, wait);
            __syncthreads();
#else
            wait();
#endif
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int tile = 4 * ((first + i) * WARPS + warp) + q;
            unsigned b[TOKEN_TILES][4] = {};
#pragma unroll
            for (int t = 0; t < TOKEN_TILES; t++) {
                // Records start at multiples of 8.
                const uint2 *from = (const uint2 *)(x + (size_t)(8 * t + g) * RECORD + tile * 16);
                if ((ONE_TOKEN ? g == 0 : 8 * t + g < n) && tile < TILES) {
                    uint2 low = load_activations(from), high = load_activations(from + 1);
                    b[t][0] = low.x, b[t][1] = low.y, b[t][2] = high.x, b[t][3] = high.y;
                }
            }
#pragma unroll
            for (int h = 0; h < ROW_BLOCKS; h++) {
                unsigned even = word(codes[i], 2 * h), odd = word(codes[i], 2 * h + 1);
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
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        int token = (threadIdx.x + o * THREADS) / ROWS;
        if (token < TOKENS && token < n) numbers[o] = load_activations((const int2 *)(x + (size_t)token * RECORD + (RECORD - 8)));
    }
#pragma unroll
    for (int h = 0; h < ROW_BLOCKS; h++)
#pragma unroll
        for (int t = 0; t < TOKEN_TILES; t++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int token = 8 * t + 2 * q + j % 2, r = 2 * ROW_BLOCKS * g + 2 * h + j / 2;
                if (token < TOKENS) sums[warp][token][r] = sum_1[h][t][j] + (sum_4[h][t][j] >> 2);
            }
    __syncthreads();
    auto sum_of = [&](int token, int r) {
        int acc = 0;
#pragma unroll
        for (int each = 0; each < WARPS; each++) acc += sums[each][token][r];
        return acc;
    };
#ifdef AFTER_PARAMETERS
    __shared__ float products[ROWS];
    if (threadIdx.x < ROWS) products[threadIdx.x] = ((float)(sum_of(0, threadIdx.x) - numbers[0].y) * __int_as_float(numbers[0].x)) * scales[0];
    __syncwarp();
    if (has_column) {
        float parts[PARTS];
#pragma unroll
        for (int part = 0; part < PARTS; part++) parts[part] = products[part * 16 + threadIdx.x];
        after.store(parts, column, n, AFTER_ARGUMENTS);
    }
#else
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        int i = threadIdx.x + o * THREADS, token = i / ROWS, r = i % ROWS, out_row = row_of(r);
        if (n <= token || TOKENS <= token || M <= out_row) continue;
        int acc = sum_of(token, r) - numbers[o].y;
        out[(size_t)token * M + out_row] = ((float)acc * __int_as_float(numbers[o].x)) * scales[o];
    }
#endif
}
