// Ternary matmul for many tokens: out[t, r] = ((acc as f32) * x_scale) * scale[r], acc = sum_c code * x - sum_c x, exact in i32.
//
// x: n records of q8 of K codes; w: [M, K] in tiles of 16 x 16, 64 bytes each; scale: f32 [M]; out: f32 [n, M].
//
// A block is 128 rows by 128 tokens and its four warps are 64 by 64 each. Stages of 128 columns travel to shared memory while others are
// multiplied: the packed weights as they lie, and the activations in lines of 128 bytes whose 16-byte pieces are swapped by the token, so that
// ldmatrix meets every bank once. Records are aligned to 8 bytes, and so are the copies.
//
// Weights are unpacked in registers, on their way to the tensor core. Lane (g = lane / 4, q = lane % 4) holds columns 4q.. of 16, which are
// bits 2q of a word: one shift, one mask and four weights are in place. A lane has the words of rows 4g.. of 32, in one load, so the four
// sums of a token that it ends up with are neighbours too.
//
// Shared memory, dynamic: STAGES * (16384 + 8 * 576) bytes. Bound: the rate of mma.sync, of which unpacking takes no part: 1 integer
// instruction for each product.
#include "lib/stage.cuh"

constexpr int BLOCK_ROWS = 128, BLOCK_TOKENS = 128;
constexpr int W_BYTES = BLOCK_ROWS / 16 * ROW_BLOCK_BYTES, X_BYTES = BLOCK_TOKENS * 128;
constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
static_assert(THREADS == 128, "two by two warps");

__device__ __forceinline__ void load_matrices(unsigned (&d)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(from));
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
KERNEL(const u8 *x, const u8 *w, const float *scale, float *out, int n) {
    extern __shared__ __align__(128) u8 shared[];
    unsigned base = (unsigned)__cvta_generic_to_shared(shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    int row_block = blockIdx.x * (BLOCK_ROWS / 16), token_0 = blockIdx.y * BLOCK_TOKENS;
    wait_for_inputs();

    // A quarter of a thread's pieces of a step.
    Pieces<X_BYTES> pieces(x, w, n, token_0, row_block);
    auto fetch = [&](int step, int quarter) {
        unsigned stage = base + step % STAGES * STAGE_BYTES;
#pragma unroll
        for (int i = 4 * quarter; i < 4 * quarter + 4; i++) pieces.copy_tokens(stage, step, i);
        if (quarter < 2) pieces.copy_rows(stage, step, quarter);
    };

#pragma unroll
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < STEPS)
#pragma unroll
            for (int quarter = 0; quarter < 4; quarter++) fetch(step, quarter);
        end_copies();
    }
    let_next_start();

    int acc[4][8][4] = {};
    int warp_row = warp % 2 * 64, warp_token = warp / 2 * 64;
    // Where the lane's words and the rows of its matrices start in a stage.
    unsigned words = X_BYTES + (warp_row / 16 + g / 4) * ROW_BLOCK_BYTES + g % 4 * 16;
    int matrix_token = warp_token + lane / 16 * 8 + lane % 8;
    unsigned lines = matrix_token * 128, swap = matrix_token % 8, odd = lane / 8 % 2;
#pragma unroll 1
    for (int step = 0; step < STEPS; step++) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        unsigned stage = base + step % STAGES * STAGE_BYTES;
#pragma unroll
        for (int part = 0; part < 4; part++) {
            unsigned a[4][4];
#pragma unroll
            for (int pair = 0; pair < 2; pair++)
#pragma unroll
                for (int tile = 0; tile < 2; tile++) {
                    uint4 four = load_shared(stage + words + pair * 2 * ROW_BLOCK_BYTES + (2 * part + tile) * 64);
                    a[2 * pair][2 * tile] = four.x >> (2 * q) & 0x03030303;
                    a[2 * pair][2 * tile + 1] = four.y >> (2 * q) & 0x03030303;
                    a[2 * pair + 1][2 * tile] = four.z >> (2 * q) & 0x03030303;
                    a[2 * pair + 1][2 * tile + 1] = four.w >> (2 * q) & 0x03030303;
                }
            // The stage that everyone has left behind is filled again.
            if (step + STAGES - 1 < STEPS) fetch(step + STAGES - 1, part);
#pragma unroll
            for (int two = 0; two < 4; two++) {
                unsigned b[4];
                load_matrices(b, stage + lines + two * 16 * 128 + (((2 * part + odd) ^ swap) << 4));
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    mma_u8s8(acc[m][2 * two], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                    mma_u8s8(acc[m][2 * two + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
                }
            }
        }
        end_copies();
    }

    // Sums 2h and 2h + 1 of a pair of row blocks are rows 4g + 2h and the next, of tokens 2q and the next.
    bool in_fours = M % 4 == 0 && (size_t)out % 16 == 0;
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
        int row = blockIdx.x * BLOCK_ROWS + warp_row + 32 * pair + 4 * g;
        float scales[4];
#pragma unroll
        for (int j = 0; j < 4; j++) scales[j] = row + j < M ? scale[row + j] : 0.0f;
#pragma unroll
        for (int t = 0; t < 8; t++)
#pragma unroll
            for (int next = 0; next < 2; next++) {
                int token = token_0 + warp_token + 8 * t + 2 * q + next;
                if (n <= token) continue;
                int2 numbers = *(const int2 *)(x + (size_t)token * RECORD + (RECORD - 8));
                float x_scale = __int_as_float(numbers.x);
                float results[4];
#pragma unroll
                for (int j = 0; j < 4; j++)
                    results[j] = ((float)(acc[2 * pair + j / 2][t][2 * (j % 2) + next] - numbers.y) * x_scale) * scales[j];
                float *to = out + (size_t)token * M + row;
                if (in_fours && row < M) *(float4 *)to = float4{results[0], results[1], results[2], results[3]};
                else
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        if (row + j < M) to[j] = results[j];
            }
    }
}
