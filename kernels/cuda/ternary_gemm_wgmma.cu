// Ternary matmul for many tokens on Hopper: out[t, r] = ((acc as f32) * x_scale) * scale[r], acc = sum_c code * x - sum_c x, exact in i32.
//
// x: n records of q8 of K codes; w: [M, K] in tiles of 16 x 16, 64 bytes each; scale: f32 [M]; out: f32 [n, M].
//
// A tile of the result is 256 rows by TOKENS, and each of two warpgroups has 128 rows of it: weights are a quarter of a byte, so rows are what a tile
// can have many of. A block takes tile after tile. A third warpgroup fetches: stages of 128 columns travel to shared memory while others are
// multiplied, those of the next tile while the results of the last are written. The packed weights come as they lie, the activations in lines of
// 128 bytes with the swizzle that the tensor core knows. Records are aligned to 8 bytes, and so are the copies; the bulk copy engine would want 16.
//
// Weights are unpacked in registers, where wgmma takes them from. Lane (g = lane / 4, q = lane % 4) holds columns 4q.. of 16, which are bits 2q of
// a word: one shift, one mask and four weights are in place. A lane has the words of rows 4g.. of 32, in one load; the first two are those of
// one product, the others of a second one. The products of a part (32 columns) run while the next part is unpacked into other registers.
//
// Where there are fewer tiles than multiprocessors, SPLIT blocks of a cluster share one: each has a part of the columns, and in the end a part of
// the tokens, whose sums the others write into its shared memory. Integers are exact, so this changes nothing.
//
// Shared memory, dynamic: STAGES * (128 * TOKENS + 16 * 576) + 1024 bytes, and (SPLIT - 1) * ceil(TOKENS / 8 / SPLIT) * 8192 for sums. Bound: the rate
// of wgmma, and the L2, which has 128 + 9216 / TOKENS bytes to give for each token and 256 * 128 products.
#include "lib/cluster.cuh"
#include "lib/stage.cuh"

constexpr int BLOCK_ROWS = 256, ROW_TILES = ceil_div(M, BLOCK_ROWS);
constexpr int W_BYTES = BLOCK_ROWS / 16 * ROW_BLOCK_BYTES, X_BYTES = TOKENS * 128;
constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int FETCHERS = 128, MULTIPLIERS = 256;
// Stages that a thread leaves on their way when it says that the one before them has come.
constexpr int ON_THE_WAY = STAGES / 2;
// Blocks of eight tokens of a tile, and how many of them each block of a cluster gives the results of.
constexpr int EIGHTS = TOKENS / 8, OWN_EIGHTS = ceil_div(EIGHTS, SPLIT), SLOT_BYTES = OWN_EIGHTS * 2 * MULTIPLIERS * 16;
constexpr int first_of(int owner) { return EIGHTS * owner / SPLIT; }
constexpr int owner_of(int eight) { return ((eight + 1) * SPLIT - 1) / EIGHTS; }
static_assert(THREADS == FETCHERS + MULTIPLIERS && STAGE_BYTES % 1024 == 0, "three warpgroups, and a swizzle that repeats after 1024 bytes");

// d[64, TOKENS] += a[64, 32] * b[32, TOKENS], for a warpgroup: a, in registers, is unsigned, b is signed and described by `b`. It runs on while the warps
// do something else, until `wait_for_products`. Warp i has rows 16i.., laid out as those of mma_u8s8.
#define SUMS_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_64 SUMS_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS_80 SUMS_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define OWN_8(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), "+r"(d[i + 7])
#define OWN_32 OWN_8(0), OWN_8(8), OWN_8(16), OWN_8(24)
#define OWN_64 OWN_32, OWN_8(32), OWN_8(40), OWN_8(48), OWN_8(56)
#define OWN_80 OWN_64, OWN_8(64), OWN_8(72)
#define MULTIPLY(shape, count, sums, rest, ...) \
    __device__ __forceinline__ void multiply(int (&d)[count], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned long long b) { \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned." shape ".s32.u8.s8 {" sums "}, " rest ", p; }" \
                     : __VA_ARGS__ \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b)); \
    }
MULTIPLY("m64n64k32", 32, SUMS_32, "{%32, %33, %34, %35}, %36", OWN_32)
MULTIPLY("m64n128k32", 64, SUMS_64, "{%64, %65, %66, %67}, %68", OWN_64)
MULTIPLY("m64n160k32", 80, SUMS_80, "{%80, %81, %82, %83}, %84", OWN_80)

__device__ __forceinline__ void start_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all products but those of the last `but` groups are done.
template <int but> __device__ __forceinline__ void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(but) : "memory"); }

// Barriers in shared memory: a phase ends when all that are counted have arrived; what is waited for is the end of the phase of a parity.
__device__ __forceinline__ void make_barrier(unsigned barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(unsigned barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.release.cta.shared::cta.b64 state, [%0]; }" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void wait_for(unsigned barrier, int parity) {
    asm volatile(
        "{ .reg .pred done; again: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1; @!done bra again; }" ::"r"(barrier),
        "r"(parity)
        : "memory");
}
// The same address in the shared memory of another block of the cluster, and what is done there.
__device__ __forceinline__ unsigned of_block(unsigned own, int rank) {
    unsigned other;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(rank));
    return other;
}
__device__ __forceinline__ void arrive_there(unsigned barrier) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void write_there(unsigned to, int a, int b, int c, int d) {
    asm volatile("st.shared::cluster.v4.s32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ __forceinline__ void wait_for_others(unsigned barrier, int parity) {
    asm volatile(
        "{ .reg .pred done; again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1; @!done bra again; }" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// The same number, but the compiler does not know: it would make one of the branches for different numbers, and index registers in it.
__device__ __forceinline__ int hidden(int number) {
    asm volatile("" : "+r"(number));
    return number;
}

// Until all threads of a warpgroup have come to the barrier of that number.
__device__ __forceinline__ void meet_group(int barrier) { asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory"); }
template <int count> __device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count)); }
template <int count> __device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count)); }

// The steps of this block of its cluster.
__device__ __forceinline__ int first_step(int rank) { return STEPS * rank / SPLIT; }

// The tiles of one block in turn, the rows of the same tokens next to each other.
struct Tile {
    int row_block, token_0;
    __device__ __forceinline__ Tile(int tile) : row_block(tile % ROW_TILES * (BLOCK_ROWS / 16)), token_0(tile / ROW_TILES * TOKENS) {}
};

// Fetches the stages of all tiles.
__device__ __forceinline__ void fetch_all(unsigned base, unsigned full, unsigned empty, const u8 *x, const u8 *w, int n, int tiles) {
    int at = 0;
    // A thread says that a stage has come when later ones are on their way.
    auto end_stage = [&](int stage) {
        end_copies();
        if (stage < ON_THE_WAY) return;
        wait_for_copies<ON_THE_WAY>();
        // What was copied is to be seen by the tensor cores, which read in another way.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        arrive(full + (stage - ON_THE_WAY) % STAGES * 8);
    };
    int begin = first_step(blockIdx.x % SPLIT), end = first_step(blockIdx.x % SPLIT + 1);
    for (int number = blockIdx.x / SPLIT; number < tiles; number += gridDim.x / SPLIT) {
        Tile tile(number);
        Pieces<X_BYTES> pieces(x, w, n, tile.token_0, tile.row_block);
#pragma unroll 1
        for (int step = begin; step < end; step++, at++) {
            unsigned stage = base + at % STAGES * STAGE_BYTES;
            if (STAGES <= at) wait_for(empty + at % STAGES * 8, at / STAGES - 1 & 1);
#pragma unroll
            for (int i = 0; i < TOKENS / 8; i++) pieces.copy_tokens(stage, step, i);
#pragma unroll
            for (int i = 0; i < BLOCK_ROWS / 64; i++) pieces.copy_rows(stage, step, i);
            end_stage(at);
        }
    }
#pragma unroll 1
    for (int stage = at; stage < at + ON_THE_WAY; stage++) end_stage(stage);
}

// Multiplies, and writes the results.
__device__ __forceinline__ void multiply_all(unsigned base, unsigned full, unsigned empty, unsigned sums, unsigned received,
                                             int2 (&numbers_of)[2][TOKENS], const u8 *x, const float *scale, float *out, int n, int tiles) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - FETCHERS / 32, group = warp / 4, g = lane / 4, q = lane % 4;
    // Tokens of a tile whose scale and sum a thread fetches for its warpgroup.
    constexpr int OWN_TOKENS = ceil_div(TOKENS, 128);
    // Where the lane's words start in a stage: a warp has two row blocks.
    unsigned words = X_BYTES + (2 * warp + g / 4) * ROW_BLOCK_BYTES + g % 4 * 16;
    bool in_fours = M % 4 == 0 && (size_t)out % 16 == 0;
    int rank = blockIdx.x % SPLIT, steps = first_step(rank + 1) - first_step(rank);
    unsigned taken = received + 8;
    int at = 0, turn = 0;
    for (int number = blockIdx.x / SPLIT; number < tiles; number += gridDim.x / SPLIT, turn++) {
        Tile tile(number);
        int row = tile.row_block * 16 + 32 * warp + 4 * g;
        // What the results are multiplied by, long before it is needed.
        float scales[4];
#pragma unroll
        for (int j = 0; j < 4; j++) scales[j] = row + j < M ? scale[row + j] : 0.0f;
        int2 own_numbers[OWN_TOKENS] = {};
#pragma unroll
        for (int i = 0; i < OWN_TOKENS; i++) {
            int token = threadIdx.x % 128 + 128 * i, from = tile.token_0 + token;
            if (token < TOKENS && from < n) own_numbers[i] = *(const int2 *)(x + (size_t)from * RECORD + (RECORD - 8));
        }

        int acc_0[TOKENS / 2] = {}, acc_1[TOKENS / 2] = {};
#pragma unroll 1
        for (int step = 0; step < steps; step++, at++) {
            wait_for(full + at % STAGES * 8, at / STAGES & 1);
            unsigned stage = base + at % STAGES * STAGE_BYTES;
            // Lines of 128 bytes, groups of eight 1024 bytes apart, swizzled.
            unsigned long long lines = (unsigned long long)(stage >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
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
                // The registers of the part before this one are free after it, and so is the stage before this one.
                wait_for_products<1>();
                if (part == 0 && 0 < step && lane == 0) arrive(empty + (at - 1) % STAGES * 8);
            }
        }
        wait_for_products<0>();
        if (0 < steps && lane == 0) arrive(empty + (at - 1) % STAGES * 8);
        // From here on the sums are ordinary registers.
#pragma unroll
        for (int i = 0; i < TOKENS / 2; i++) asm volatile("" : "+r"(acc_0[i]), "+r"(acc_1[i]));

#pragma unroll
        for (int i = 0; i < OWN_TOKENS; i++) {
            int token = threadIdx.x % 128 + 128 * i;
            if (token < TOKENS) numbers_of[turn % 2][token] = own_numbers[i];
        }
        meet_group(1 + group);
        if (1 < SPLIT) {
            unsigned own = sums + (threadIdx.x - FETCHERS) * 16;
            if (0 < turn) wait_for_others(taken, turn - 1 & 1);
#pragma unroll
            for (int t = 0; t < EIGHTS; t++) {
                int owner = owner_of(t), slot = (rank - owner + SPLIT - 1) % SPLIT;
                if (owner == hidden(rank)) continue;
                unsigned to = of_block(own + slot * SLOT_BYTES + (t - first_of(owner)) * 2 * MULTIPLIERS * 16, owner);
                write_there(to, acc_0[4 * t], acc_0[4 * t + 1], acc_0[4 * t + 2], acc_0[4 * t + 3]);
                write_there(to + MULTIPLIERS * 16, acc_1[4 * t], acc_1[4 * t + 1], acc_1[4 * t + 2], acc_1[4 * t + 3]);
            }
            asm volatile("fence.acq_rel.cluster;" ::: "memory");
            __syncwarp();
            if (lane < SPLIT && lane != rank) arrive_there(of_block(received, lane));
            wait_for_others(received, turn & 1);
#pragma unroll
            for (int t = 0; t < EIGHTS; t++) {
                if (owner_of(t) != hidden(rank)) continue;
#pragma unroll
                for (int slot = 0; slot < SPLIT - 1; slot++) {
                    unsigned from = own + slot * SLOT_BYTES + (t - first_of(owner_of(t))) * 2 * MULTIPLIERS * 16;
                    uint4 low = load_shared(from), high = load_shared(from + MULTIPLIERS * 16);
                    acc_0[4 * t] += low.x, acc_0[4 * t + 1] += low.y, acc_0[4 * t + 2] += low.z, acc_0[4 * t + 3] += low.w;
                    acc_1[4 * t] += high.x, acc_1[4 * t + 1] += high.y, acc_1[4 * t + 2] += high.z, acc_1[4 * t + 3] += high.w;
                }
            }
            __syncwarp();
            if (lane < SPLIT && lane != rank) arrive_there(of_block(taken, lane));
        }
        // Sums of the first product are rows 4g and the next, of the second 4g + 2 and the next; of tokens 2q and the next.
        float *first_to = out + (size_t)tile.token_0 * M + row;
        int tokens = n - tile.token_0;
#pragma unroll
        for (int t = 0; t < EIGHTS; t++) {
            if (1 < SPLIT && owner_of(t) != hidden(rank)) continue;
#pragma unroll
            for (int next = 0; next < 2; next++) {
                int token = 8 * t + 2 * q + next;
                int2 numbers = numbers_of[turn % 2][token];
                float x_scale = __int_as_float(numbers.x);
                int each[4] = {acc_0[4 * t + next], acc_0[4 * t + 2 + next], acc_1[4 * t + next], acc_1[4 * t + 2 + next]};
                float results[4];
#pragma unroll
                for (int j = 0; j < 4; j++) results[j] = ((float)(each[j] - numbers.y) * x_scale) * scales[j];
                float *to = first_to + (size_t)token * M;
                if (tokens <= token) continue;
                if (in_fours) {
                    if (row < M) *(float4 *)to = float4{results[0], results[1], results[2], results[3]};
                } else
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        if (row + j < M) to[j] = results[j];
            }
        }
    }
}

#if 1 < SPLIT
#define CLUSTER __cluster_dims__(SPLIT, 1, 1)
#else
#define CLUSTER
#endif

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, 1)
KERNEL(const u8 *x, const u8 *w, const float *scale, float *out, int n) {
    extern __shared__ u8 shared[];
    __shared__ unsigned long long barriers[2 * STAGES + 2];
    __shared__ int2 numbers_of[2][2][TOKENS];
    unsigned base = round_up((unsigned)__cvta_generic_to_shared(shared), 1024), sums = base + STAGES * STAGE_BYTES;
    unsigned full = (unsigned)__cvta_generic_to_shared(barriers), empty = full + 8 * STAGES, received = empty + 8 * STAGES;
    int tiles = ROW_TILES * ceil_div(n, TOKENS);
    if (threadIdx.x < STAGES) {
        make_barrier(full + 8 * threadIdx.x, FETCHERS);
        make_barrier(empty + 8 * threadIdx.x, MULTIPLIERS / 32);
    }
    if (1 < SPLIT && threadIdx.x < 2) make_barrier(received + 8 * threadIdx.x, (SPLIT - 1) * (MULTIPLIERS / 32));
    __syncthreads();
    // Barriers are there before another block arrives at them, and shared memory as long as one may.
    if (1 < SPLIT) wait_for_cluster();
    let_next_start();
    wait_for_inputs();
    if (threadIdx.x < FETCHERS) {
        give_registers<40>();
        fetch_all(base, full, empty, x, w, n, tiles);
    } else {
        take_registers<232>();
        multiply_all(base, full, empty, sums, received, numbers_of[threadIdx.x / 128 - 1], x, scale, out, n, tiles);
    }
    if (1 < SPLIT) wait_for_cluster();
}
