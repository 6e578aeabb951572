// Dense matmul with q8 weights and few tokens on tensor cores: out[t, r] = ((acc as f32) * x_scale) * w_scale, acc exact in i32.
//
// x: n records of q8 of K codes, n <= TOKENS; w: M records of K codes; out: f32 [n, M].
//
// Records are aligned to 8 bytes, but 8 of them are a multiple of 16: so a warp has the copy engine bring 8 rows as they lie, and takes them from shared
// memory. It has STAGES such copies of its own, waits for no other warp, and goes through the rows with all others side by side.
//
// Tokens are the rows of an mma, 8 or 16 of them, and rows of the weights its columns. The order of columns within a product is free as long as both
// sides agree: of 128 columns lane (g = lane / 4, q = lane % 4) takes those from 32q on, 8 at a time, which puts what lanes read at once into different
// banks, whatever K is. Activations lie as lanes read them: for each two products 16 bytes of every lane.
//
// Shared memory, dynamic: the activations, then STAGES * (THREADS / 32) copies of 8 rows. Bound: memory.
#include "lib/barrier.cuh"

constexpr int RECORD = round_up(K, 16) + 8, STEPS = ceil_div(K, 128), WARPS = THREADS / 32, PLANES = TOKENS / 8;
constexpr int TILES = ceil_div(M, 8), X_BYTES = TOKENS * STEPS * 128;
// A row's steps may end behind its record, where activations are zeros: for the last row that is still shared memory.
constexpr int STAGE_BYTES = 8 * RECORD + 128;

__device__ __forceinline__ uint2 load_8(unsigned from) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from));
    return v;
}
__device__ __forceinline__ void store_8(unsigned to, uint2 v) { asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(v.x), "r"(v.y) : "memory"); }

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const u8 *x, const u8 *w, float *out, int n) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ unsigned long long barriers[WARPS * STAGES];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    unsigned activations = (unsigned)__cvta_generic_to_shared(shared), own = activations + X_BYTES + warp * STAGES * STAGE_BYTES;
    unsigned barrier = (unsigned)__cvta_generic_to_shared(barriers + warp * STAGES);
    int first = blockIdx.x * WARPS + warp, all = gridDim.x * WARPS;
    if (lane < STAGES) make_barrier(barrier + 8 * lane, 1), show_barriers();
    __syncwarp();
    auto fetch = [&](int tile, int stage) {
        if (TILES <= tile || lane != 0) return;
        int bytes = min(8, M - 8 * tile) * RECORD, whole = bytes / 16 * 16;
        const u8 *from = w + (size_t)tile * (8 * RECORD);
        unsigned to = own + stage * STAGE_BYTES;
        arrive_and_expect(barrier + 8 * stage, whole);
        copy_bytes(to, from, whole, barrier + 8 * stage);
        // The last rows of all, if they are an odd number.
        if (whole < bytes) store_8(to + whole, load_once((const uint2 *)(from + whole)));
    };
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) fetch(first + stage * all, stage);
    let_next_start();
    wait_for_inputs();
    // Pieces of 8 columns of a token: piece p of 16 is the product p % 4 of lane p / 4.
    constexpr int PIECES = TOKENS * STEPS * 16, TURNS = ceil_div(PIECES, THREADS), AT_ONCE = 20;
#pragma unroll 1
    for (int turn = 0; turn < TURNS; turn += AT_ONCE) {
        uint2 codes[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int at = (turn + i) * THREADS + threadIdx.x, token = at / (STEPS * 16), piece = at % (STEPS * 16);
            codes[i] = uint2{};
            if (token < n && token < TOKENS && 8 * piece < RECORD - 8) codes[i] = *(const uint2 *)(x + (size_t)token * RECORD + 8 * piece);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int at = (turn + i) * THREADS + threadIdx.x, token = at / (STEPS * 16), piece = at % (STEPS * 16);
            int step = piece / 16, product = piece % 4, of_lane = token % 8 * 4 + piece % 16 / 4;
            if (at < PIECES) store_8(activations + (((step * 2 + product / 2) * PLANES + token / 8) * 32 + of_lane) * 16 + product % 2 * 8, codes[i]);
        }
    }
    float x_scale[PLANES];
#pragma unroll
    for (int plane = 0; plane < PLANES; plane++) {
        int token = 8 * plane + g;
        x_scale[plane] = token < n ? *(const float *)(x + (size_t)token * RECORD + (RECORD - 8)) : 0.0f;
    }
    __syncthreads();

    unsigned mine = own + g * RECORD + 32 * q;
#pragma unroll 1
    for (int tile = first, turn = 0; tile < TILES; tile += all, turn++) {
        int stage = turn % STAGES;
        unsigned rows = mine + stage * STAGE_BYTES;
        wait_for(barrier + 8 * stage, turn / STAGES % 2);
        __syncwarp();
        // Two sums, so that a product need not wait for the one before it.
        int sums[2][4] = {};
#pragma unroll 4
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int pair = 0; pair < 2; pair++) {
                unsigned from = activations + ((step * 2 + pair) * PLANES * 32 + lane) * 16;
                uint4 low = load_shared(from), high = PLANES == 2 ? load_shared(from + 512) : uint4{};
                uint2 even = load_8(rows + 128 * step + 16 * pair), odd = load_8(rows + 128 * step + 16 * pair + 8);
                mma_s8s8(sums[0], low.x, high.x, low.y, high.y, even.x, even.y);
                mma_s8s8(sums[1], low.z, high.z, low.w, high.w, odd.x, odd.y);
            }
        }
        float w_scale[2];
#pragma unroll
        for (int j = 0; j < 2; j++) w_scale[j] = __uint_as_float(load_8(own + stage * STAGE_BYTES + (2 * q + j) * RECORD + (RECORD - 8)).x);
        __syncwarp();
        fetch(tile + STAGES * all, stage);
#pragma unroll
        for (int j = 0; j < 2 * PLANES; j++) {
            int token = 8 * (j / 2) + g, row = 8 * tile + 2 * q + j % 2;
            float acc = (float)(sums[0][j] + sums[1][j]);
            if (token < n && row < M) out[(size_t)token * M + row] = (acc * x_scale[j / 2]) * w_scale[j % 2];
        }
    }
}
