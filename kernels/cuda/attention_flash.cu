// Attention of many tokens on Hopper; the difference to exact arithmetic is bounded (`kernels::cuda::Accuracy`).
//
// q, out: f32 [n, HEADS, HD]; k, v: caches [seqs, KV_HEADS, CTX] of rows of HD numbers; seq, pos: i32 [n]; span: i32 [n, 2].
//
// A block is one query head of 128 tokens, 64 for each of two warpgroups that multiply; a third one brings keys and values, in tiles of 128 keys, to
// shared memory, where wgmma takes them from: bf16 as they are, records decoded and rounded to bf16. Tiles that no token of the block sees are
// passed over, and only tiles that some token does not see whole are masked. Tokens of other sequences than the current one see nothing of it, and
// the sequences of a block come one after the other.
//
// A warpgroup has its scores as sums of wgmma, takes exp2 of them, and they are the first operand, in registers, of the product with the values, which
// runs while the scores of the next tile do. Maxima and sums are f32, those of exact arithmetic but for the order.
//
// Tiles are lines of 128 bytes (64 dims) with the swizzle that the tensor core knows, one block of lines after the other; values are the same, since
// wgmma takes a second operand either way round.
//
// Shared memory, dynamic: 1024 + HD * 2 * 128 * (1 + 2 * STAGES), and for records 128 of a key and a value. Bound: the rate of wgmma.
#include "lib/attention.cuh"
#include "lib/barrier.cuh"

constexpr int TOKENS = 128, KEYS = 128, STAGES = 2, LINES_BYTES = KEYS * 128, BLOCKS = HD / 64, TILE_BYTES = BLOCKS * LINES_BYTES;
constexpr int K_AT = TILE_BYTES, V_AT = K_AT + STAGES * TILE_BYTES, RAW_AT = V_AT + STAGES * TILE_BYTES;
static_assert(THREADS == 384 && (HD == 64 || HD == 128), "three warpgroups, and sums of HD / 2 numbers");

// d[64, 128] (+)= a[64, 16] * b[16, 128], for a warpgroup: both operands in shared memory, described by `a` and `b`. It runs on while the warps do
// something else, until `wait_for_products`. Warp i has rows 16i..; lane (g = lane / 4, c = lane % 4) has d[g][8j + 2c..] as numbers 4j, 4j + 1 and
// d[g + 8][8j + 2c..] as 4j + 2, 4j + 3.
__device__ __forceinline__ void multiply(float (&d)[64], unsigned long long a, unsigned long long b, int adds) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %66, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 0, 0; }"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
            "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
            "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
            "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
            "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
            "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
            "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
            "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
          : "l"(a), "l"(b), "r"(adds));
}

// d[64, 128] += a[64, 16] * b[16, 128], the first in registers: a[g][2c..], a[g + 8][2c..], a[g][8 + 2c..], a[g + 8][8 + 2c..] of a lane; the second the other way
// round, numbers of one row of b side by side.
__device__ __forceinline__ void multiply(float (&d)[64], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned long long b) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, 1, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 1; }"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
            "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
            "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
            "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
            "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
            "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
            "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
            "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
          : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}

// The same with 64 columns.
__device__ __forceinline__ void multiply(float (&d)[32], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned long long b) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, 1, 0; "
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 1; }"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
            "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
            "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
            "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
          : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}

__device__ __forceinline__ void start_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all products but those of the last `but` groups are done.
template <int but> __device__ __forceinline__ void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(but) : "memory"); }
// Sums are ordinary registers before and after this.
template <int count> __device__ __forceinline__ void settle(float (&d)[count]) {
#pragma unroll
    for (int i = 0; i < count; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Until the records copied last are there, and all threads are done with those before them.
__device__ __forceinline__ void wait_for_records() {
    wait_for_copies<0>();
    asm volatile("barrier.sync 3, 128;" ::: "memory");
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
KERNEL(const float *q, const u8 *k, const u8 *v, const int *__restrict__ seq, const int *__restrict__ pos,
       const int *__restrict__ span, float *__restrict__ out, int n) {
    extern __shared__ u8 shared[];
    __shared__ int4 ranges[TOKENS];
    __shared__ int seqs[TOKENS];
    __shared__ unsigned long long barriers[4 * STAGES];
    unsigned base = round_up((unsigned)__cvta_generic_to_shared(shared), 1024), barrier = (unsigned)__cvta_generic_to_shared(barriers);
    // Barriers of a stage: keys are there, values are there, keys are used, values are used.
    unsigned has_k = barrier, has_v = barrier + 8 * STAGES, used_k = barrier + 16 * STAGES, used_v = barrier + 24 * STAGES;
    int lane = threadIdx.x % 32, group = threadIdx.x / 128, head = blockIdx.x, kv_head = head / (HEADS / KV_HEADS);
    // Those that see most come first.
    int token_0 = (int)(gridDim.y - 1 - blockIdx.y) * TOKENS, rows = min(TOKENS, n - token_0);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            make_barrier(has_k + 8 * stage, 128), make_barrier(has_v + 8 * stage, 128);
            make_barrier(used_k + 8 * stage, 8), make_barrier(used_v + 8 * stage, 8);
        }
        show_barriers();
    }
    wait_for_inputs();
    let_next_start();
    if (threadIdx.x < rows) {
        int token = token_0 + threadIdx.x;
        Ranges own(pos[token], span[2 * token], span[2 * token + 1]);
        ranges[threadIdx.x] = int4{own.head_start, own.head_end, own.tail_start, own.tail_end};
        seqs[threadIdx.x] = seq[token];
    }
    __syncthreads();

    Tiles<KEYS> tiles(ranges, seqs, rows);
    bool is_other;
    if (group == 0) {
        // Brings the keys and the values of each tile.
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        int stage = 0, parity = 1;
        auto go_on = [&]() {
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            if (stage == 0) parity ^= 1;
        };
        if (!IS_RECORDS) {
            while (tiles.next(is_other)) {
                size_t first_row = row_of_first_key(tiles.seq, kv_head);
                wait_for(used_k + 8 * stage, parity);
                copy_tile(base + K_AT + stage * TILE_BYTES, k + first_row * K_BYTES, tiles);
                arrive_with_copies(has_k + 8 * stage);
                wait_for(used_v + 8 * stage, parity);
                copy_tile(base + V_AT + stage * TILE_BYTES, v + first_row * V_BYTES, tiles);
                arrive_with_copies(has_v + 8 * stage);
                go_on();
            }
            wait_for_copies<0>();
        } else {
            // Records are copied as they lie while the ones before them are decoded.
            unsigned raw_k = base + RAW_AT, raw_v = raw_k + KEYS * K_BYTES;
            bool has_tile = tiles.next(is_other);
            if (has_tile) copy_records<K_BYTES>(raw_k, k + row_of_first_key(tiles.seq, kv_head) * K_BYTES, tiles);
            while (has_tile) {
                wait_for_records();
                copy_records<V_BYTES>(raw_v, v + row_of_first_key(tiles.seq, kv_head) * V_BYTES, tiles);
                wait_for(used_k + 8 * stage, parity);
                bool is_seen = tiles.has_key(threadIdx.x);
                decode_record<K_ROW, KEYS>(base + K_AT + stage * TILE_BYTES, raw_k, threadIdx.x, is_seen);
                show_to_products();
                arrive(has_k + 8 * stage);
                wait_for_records();
                has_tile = tiles.next(is_other);
                if (has_tile) copy_records<K_BYTES>(raw_k, k + row_of_first_key(tiles.seq, kv_head) * K_BYTES, tiles);
                wait_for(used_v + 8 * stage, parity);
                decode_record<V_ROW, KEYS>(base + V_AT + stage * TILE_BYTES, raw_v, threadIdx.x, is_seen);
                show_to_products();
                arrive(has_v + 8 * stage);
                go_on();
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        int thread = threadIdx.x % 128, warp = thread / 32, g = lane / 4, c = lane % 4, row_0 = (group - 1) * 64;
        // The queries of the warpgroup.
        bool in_fours = (size_t)q % 16 == 0;
#pragma unroll 2
        for (int at = thread; at < 64 * (HD / 8); at += 128) {
            int row = row_0 + at / (HD / 8), part = at % (HD / 8);
            const float *from = q + ((size_t)(token_0 + min(row, rows - 1)) * HEADS + head) * HD + part * 8;
            float x[8];
            if (in_fours) {
                float4 low = *(const float4 *)from, high = *(const float4 *)(from + 4);
                x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w, x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
            } else
#pragma unroll
                for (int i = 0; i < 8; i++) x[i] = from[i];
            unsigned to = base + part / 8 * LINES_BYTES + row * 128 + ((part % 8) ^ (row % 8)) * 16;
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(pack_bf16(x[0], x[1])), "r"(pack_bf16(x[2], x[3])),
                         "r"(pack_bf16(x[4], x[5])), "r"(pack_bf16(x[6], x[7]))
                         : "memory");
        }
        show_to_products();
        asm volatile("barrier.sync %0, 128;" ::"r"(group) : "memory");

        const float minus_infinity = __int_as_float(0xff800000);
        // Scores are in units whose power of two is the exponential.
        float scale = __int_as_float(SCALE_BITS) * 1.4426950408889634f;
        int rows_of[2] = {row_0 + 16 * warp + g, row_0 + 16 * warp + g + 8};
        int4 own[2] = {};
        float s[KEYS / 2] = {}, result[HD / 2] = {}, most[2] = {minus_infinity, minus_infinity}, sum[2] = {};
        unsigned weights[KEYS / 4] = {};
        // Lines of 128 bytes, groups of eight 1024 bytes apart, swizzled; of values, further blocks of lines LINES_BYTES apart.
        constexpr unsigned long long LINES = 1ull << 16 | 64ull << 32 | 1ull << 62;
        constexpr unsigned long long TURNED = (unsigned long long)(LINES_BYTES >> 4) << 16 | 64ull << 32 | 1ull << 62;
        unsigned long long query_lines = ((base + row_0 * 128) >> 4) | LINES;
        unsigned long long key_lines = ((base + K_AT) >> 4) | LINES, value_lines = ((base + V_AT) >> 4) | TURNED;

        // What the rows of this thread see of the current sequence.
        auto look = [&]() {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int row = rows <= rows_of[i] ? rows - 1 : rows_of[i];
                own[i] = tiles.first_row <= row && row < tiles.last_row ? ranges[row] : int4{0, 0, 0, 0};
            }
        };
        auto multiply_keys = [&](int stage) {
#pragma unroll
            for (int i = 0; i < HD / 16; i++) {
                unsigned offset = (i / 4 * LINES_BYTES + i % 4 * 32) >> 4;
                multiply(s, query_lines + offset, key_lines + (unsigned)((stage * TILE_BYTES) >> 4) + offset, i != 0);
            }
        };
        auto multiply_values = [&](int stage) {
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++)
                multiply(result, weights[4 * i], weights[4 * i + 1], weights[4 * i + 2], weights[4 * i + 3],
                         value_lines + (unsigned)((stage * TILE_BYTES) >> 4) + i * (16 * 128 >> 4));
        };
        auto mask = [&]() {
            int first = tiles.tile * KEYS, last = first + KEYS;
            bool is_whole = true;
#pragma unroll
            for (int i = 0; i < 2; i++)
                is_whole = is_whole && ((own[i].x <= first && last <= own[i].y) || (own[i].z <= first && last <= own[i].w));
            if (__all_sync(0xffffffffu, is_whole)) return;
#pragma unroll
            for (int i = 0; i < KEYS / 2; i++) {
                int4 range = own[i / 2 % 2];
                int key = first + i / 4 * 8 + 2 * c + i % 2;
                bool is_visible = (range.x <= key && key < range.y) || (range.z <= key && key < range.w);
                s[i] = is_visible ? s[i] : minus_infinity;
            }
        };
        // Exponentials instead of the scores; by how much what was before shrinks.
        auto soften = [&](float (&shrink)[2]) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float now = most[i];
#pragma unroll
                for (int j = 2 * i; j < KEYS / 2; j += 4) now = fmaxf(now, fmaxf(s[j], s[j + 1]));
                now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
                now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
                // A row that has seen nothing yet has no maximum.
                float shift = now == minus_infinity ? 0.0f : now * scale;
                shrink[i] = exp2_near(fmaf(most[i], scale, -shift));
                most[i] = now;
                float here = 0.0f;
#pragma unroll
                for (int j = 2 * i; j < KEYS / 2; j += 4) {
                    s[j] = exp2_near(fmaf(s[j], scale, -shift)), s[j + 1] = exp2_near(fmaf(s[j + 1], scale, -shift));
                    here = here + s[j], here = here + s[j + 1];
                }
                sum[i] = fmaf(sum[i], shrink[i], here);
            }
        };
        auto pack = [&]() {
#pragma unroll
            for (int i = 0; i < KEYS / 4; i++) weights[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
        };

        if (tiles.next(is_other)) {
            int stage = 0, parity = 0;
            float shrink[2];
            look();
            wait_for(has_k, 0);
            show_to_products();
            settle(s);
            start_products();
            multiply_keys(0);
            end_products();
            wait_for_products<0>();
            settle(s);
            if (lane == 0) arrive(used_k);
            mask();
            soften(shrink);
            pack();
#pragma unroll 1
            while (tiles.next(is_other)) {
                if (is_other) look();
                int last_stage = stage, last_parity = parity;
                stage = stage + 1 == STAGES ? 0 : stage + 1;
                if (stage == 0) parity ^= 1;
                wait_for(has_k + 8 * stage, parity);
                show_to_products();
                settle(s);
                start_products();
                multiply_keys(stage);
                end_products();
                wait_for(has_v + 8 * last_stage, last_parity);
                show_to_products();
                settle(result);
                start_products();
                multiply_values(last_stage);
                end_products();
                wait_for_products<1>();
                settle(s);
                if (lane == 0) arrive(used_k + 8 * stage);
                mask();
                soften(shrink);
                wait_for_products<0>();
                settle(result);
                if (lane == 0) arrive(used_v + 8 * last_stage);
#pragma unroll
                for (int i = 0; i < HD / 2; i++) result[i] = result[i] * shrink[i / 2 % 2];
                pack();
            }
            wait_for(has_v + 8 * stage, parity);
            show_to_products();
            settle(result);
            start_products();
            multiply_values(stage);
            end_products();
            wait_for_products<0>();
            settle(result);
        }
        bool in_twos = (size_t)out % 8 == 0;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float total = sum[i];
            total = total + __shfl_xor_sync(0xffffffffu, total, 1);
            total = total + __shfl_xor_sync(0xffffffffu, total, 2);
            // A row that sees no key has the sum 0.
            float factor = total == 0.0f ? 0.0f : 1.0f / total;
            if (rows <= rows_of[i]) continue;
            float *to = out + ((size_t)(token_0 + rows_of[i]) * HEADS + head) * HD + 2 * c;
#pragma unroll
            for (int j = 0; j < HD / 8; j++) {
                float first = result[4 * j + 2 * i] * factor, second = result[4 * j + 2 * i + 1] * factor;
                if (in_twos) *(float2 *)(to + 8 * j) = float2{first, second};
                else to[8 * j] = first, to[8 * j + 1] = second;
            }
        }
    }
}
