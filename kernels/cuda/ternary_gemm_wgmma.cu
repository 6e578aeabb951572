// Ternary matmul for many tokens on Hopper: out[t, r] = ((acc as f32) * x_scale) * scale[r], acc = sum_c code * x - sum_c x, exact in i32.
//
// x: n records of q8 of K codes; w: [M, K] in tiles of 16 x 16, 64 bytes each; scale: f32 [M]; out: f32 [n, M].
//
// A block is 256 rows by 128 tokens, and each of its two warpgroups 128 rows: weights are a quarter of a byte, so rows are what a block can have
// many of, and 25 bytes a clock from the L2 feed the tensor cores at their full rate. Stages of 128 columns travel to shared memory while others
// are multiplied: the packed weights as they lie, and the activations in lines of 128 bytes with the swizzle that the tensor core knows.
// Records are aligned to 8 bytes, and so are the copies; the bulk copy engine would want 16.
//
// Weights are unpacked in registers, where wgmma takes them from. Lane (g = lane / 4, q = lane % 4) holds columns 4q.. of 16, which are bits 2q of
// a word: one shift, one mask and four weights are in place. A lane has the words of rows 4g.. of 32, in one load; the first two are those of
// one product, the others of a second one.
//
// The products of a part (32 columns) run while the next part is unpacked into other registers. They may run on into the next stage's time,
// so a stage is filled again only two steps after it was multiplied.
//
// Shared memory, dynamic: STAGES * (16384 + 16 * 576) + 1024 bytes. Bound: the rate of wgmma.
#include "lib/copy.cuh"

constexpr int TILES = ceil_div(K, 16), RECORD = round_up(K, 16) + 8, STEPS = ceil_div(TILES, 8), AHEAD = STAGES - 2;
constexpr int BLOCK_ROWS = 256, BLOCK_TOKENS = 128;
// A row block's 8 tiles, and room that moves the next one to other banks.
constexpr int ROW_BLOCK_BYTES = 8 * 64 + 64, W_BYTES = BLOCK_ROWS / 16 * ROW_BLOCK_BYTES, X_BYTES = BLOCK_TOKENS * 128;
constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
static_assert(THREADS == 256 && STAGE_BYTES % 1024 == 0, "two warpgroups, and a swizzle that repeats after 1024 bytes");

// d[64, 128] += a[64, 32] * b[32, 128], for a warpgroup: a, in registers, is unsigned, b is signed and described by `b`. It runs on while the warps do
// something else, until `wait_for_products`. Warp i has rows 16i.., laid out as those of mma_u8s8.
__device__ __forceinline__ void multiply(int (&d)[64], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned long long b) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, 1, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 {"
          "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p; }"
          : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]),
            "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]),
            "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
            "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]),
            "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]),
            "+r"(d[40]), "+r"(d[41]), "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]),
            "+r"(d[48]), "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]),
            "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]), "+r"(d[61]), "+r"(d[62]), "+r"(d[63])
          : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}

__device__ __forceinline__ void start_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all products but those of the last `but` groups are done.
template <int but> __device__ __forceinline__ void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(but) : "memory"); }

extern "C" __global__ void __launch_bounds__(THREADS, 1)
KERNEL(const u8 *x, const u8 *w, const float *scale, float *out, int n) {
    extern __shared__ u8 shared[];
    unsigned base = round_up((unsigned)__cvta_generic_to_shared(shared), 1024);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    int row_block = blockIdx.x * (BLOCK_ROWS / 16), token_0 = blockIdx.y * BLOCK_TOKENS;
    wait_for_inputs();
    let_next_start();

    // A thread's pieces of a step, a quarter of them at a time. Addresses differ by constants, so that copies wait for no arithmetic; what lies outside
    // is not read.
    int half = threadIdx.x % 16, first_token = threadIdx.x / 16, first_block = threadIdx.x / 32, piece = threadIdx.x % 32;
    const u8 *x_from = x + (size_t)(token_0 + first_token) * RECORD + 8 * half;
    const u8 *w_from = w + (size_t)(row_block + first_block) * TILES * 64 + piece * 16;
    unsigned x_to = first_token * 128 + ((half / 2) ^ (first_token % 8)) * 16 + half % 2 * 8;
    unsigned w_to = X_BYTES + first_block * ROW_BLOCK_BYTES + piece * 16;
    auto fetch = [&](int step, int quarter) {
        unsigned stage = base + step % STAGES * STAGE_BYTES;
        bool has_col = 128 * step + 8 * half < RECORD - 8, has_tile = 8 * step + piece / 4 < TILES;
#pragma unroll
        for (int i = 2 * quarter; i < 2 * quarter + 2; i++)
            copy_8(stage + x_to + i * 16 * 128, x_from + 128 * step + i * 16 * RECORD, has_col && token_0 + first_token + 16 * i < n);
        if (quarter < 2)
            copy_16(stage + w_to + quarter * 8 * ROW_BLOCK_BYTES, w_from + 512 * step + quarter * 8 * TILES * 64,
                    has_tile && (row_block + first_block + 8 * quarter) * 16 < M);
    };

#pragma unroll
    for (int step = 0; step < AHEAD; step++) {
        if (step < STEPS)
#pragma unroll
            for (int quarter = 0; quarter < 4; quarter++) fetch(step, quarter);
        end_copies();
    }

    int acc_0[64] = {}, acc_1[64] = {};
    // Where the lane's words start in a stage: a warp has two row blocks.
    unsigned words = X_BYTES + (2 * warp + g / 4) * ROW_BLOCK_BYTES + g % 4 * 16;
#pragma unroll 1
    for (int step = 0; step < STEPS; step++) {
        wait_for_copies<AHEAD - 1>();
        // What was copied is to be seen by the tensor cores, which read in another way.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        unsigned stage = base + step % STAGES * STAGE_BYTES;
        // Lines of 128 bytes, groups of eight 1024 bytes apart, swizzled.
        unsigned long long lines = (unsigned long long)(stage >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
        // All words of the stage: a load stands in line behind the copies that are issued before it.
        uint4 first[4], second[4];
#pragma unroll
        for (int part = 0; part < 4; part++) {
            first[part] = load_shared(stage + words + 2 * part * 64);
            second[part] = load_shared(stage + words + (2 * part + 1) * 64);
        }
#pragma unroll
        for (int part = 0; part < 4; part++) {
            uint4 even = first[part], odd = second[part];
            constexpr unsigned ONES = 0x03030303;
            unsigned a[8] = {even.x >> (2 * q) & ONES, even.y >> (2 * q) & ONES, odd.x >> (2 * q) & ONES, odd.y >> (2 * q) & ONES,
                             even.z >> (2 * q) & ONES, even.w >> (2 * q) & ONES, odd.z >> (2 * q) & ONES, odd.w >> (2 * q) & ONES};
            start_products();
            multiply(acc_0, a[0], a[1], a[2], a[3], lines + 2 * part);
            multiply(acc_1, a[4], a[5], a[6], a[7], lines + 2 * part);
            end_products();
            if (step + AHEAD < STEPS) fetch(step + AHEAD, part);
            // The registers of the part before this one are free after it.
            wait_for_products<1>();
        }
        end_copies();
    }
    wait_for_products<0>();
    // From here on the sums are ordinary registers.
#pragma unroll
    for (int i = 0; i < 64; i++) asm volatile("" : "+r"(acc_0[i]), "+r"(acc_1[i]));

    // Sums of the first product are rows 4g and the next, of the second 4g + 2 and the next; of tokens 2q and the next.
    bool in_fours = M % 4 == 0 && (size_t)out % 16 == 0;
    int row = blockIdx.x * BLOCK_ROWS + 32 * warp + 4 * g;
    float scales[4];
#pragma unroll
    for (int j = 0; j < 4; j++) scales[j] = row + j < M ? scale[row + j] : 0.0f;
#pragma unroll
    for (int t = 0; t < 16; t++)
#pragma unroll
        for (int next = 0; next < 2; next++) {
            int token = token_0 + 8 * t + 2 * q + next;
            if (n <= token) continue;
            int2 numbers = __ldg((const int2 *)(x + (size_t)token * RECORD + (RECORD - 8)));
            float x_scale = __int_as_float(numbers.x);
            int sums[4] = {acc_0[4 * t + next], acc_0[4 * t + 2 + next], acc_1[4 * t + next], acc_1[4 * t + 2 + next]};
            float results[4];
#pragma unroll
            for (int j = 0; j < 4; j++) results[j] = ((float)(sums[j] - numbers.y) * x_scale) * scales[j];
            float *to = out + (size_t)token * M + row;
            if (in_fours && row < M) *(float4 *)to = float4{results[0], results[1], results[2], results[3]};
            else
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (row + j < M) to[j] = results[j];
        }
}
