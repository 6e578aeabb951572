#include "lib/launch.cuh"

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

// Integer arithmetic that wraps around.
__device__ int wrap_add(int a, int b) { return (int)((u32)a + (u32)b); }
__device__ int wrap_sub(int a, int b) { return (int)((u32)a - (u32)b); }
__device__ int wrap_mul(int a, int b) { return (int)((u32)a * (u32)b); }

// The number of two that may both be none.
__device__ float larger_number(float a, float b) { return a == a ? (a < b ? b : a) : b; }
__device__ float smaller_number(float a, float b) { return a == a ? (b < a ? b : a) : b; }

// A row of a table of `rows`: the nearest one to a value outside it.
__device__ i64 clamp_row(int row, i64 rows) { return max(min((i64)row, rows - 1), (i64)0); }

// The nearest whole number, ties to even, for |x| < 2^22; 0 for what is no number.
__device__ int whole(float x) {
    float shifted = x + 12582912.0f;
    return shifted == shifted ? __float_as_int(shifted) - 0x4b400000 : 0;
}

// Reductions: what lanes start from, and how a lane takes a value. What is no number is passed over by the extremes.
struct SumF32 {
    static constexpr bool IS_EXTREME = false;
    typedef float T;
    static __device__ T start() { return 0.0f; }
    static __device__ T take(T acc, T x) { return acc + x; }
};
struct MaxF32 {
    static constexpr bool IS_EXTREME = true;
    typedef float T;
    static __device__ T start() { return __uint_as_float(0xff800000u); }
    static __device__ T take(T acc, T x) { return acc < x ? x : acc; }
};
struct MinF32 {
    static constexpr bool IS_EXTREME = true;
    typedef float T;
    static __device__ T start() { return __uint_as_float(0x7f800000u); }
    static __device__ T take(T acc, T x) { return x < acc ? x : acc; }
};
struct SumI32 {
    static constexpr bool IS_EXTREME = false;
    typedef int T;
    static __device__ T start() { return 0; }
    static __device__ T take(T acc, T x) { return wrap_add(acc, x); }
};
struct MaxI32 {
    static constexpr bool IS_EXTREME = true;
    typedef int T;
    static __device__ T start() { return (int)0x80000000u; }
    static __device__ T take(T acc, T x) { return acc < x ? x : acc; }
};
struct MinI32 {
    static constexpr bool IS_EXTREME = true;
    typedef int T;
    static __device__ T start() { return 0x7fffffff; }
    static __device__ T take(T acc, T x) { return x < acc ? x : acc; }
};

// A unit is computed by WIDTH threads: one warp, or a whole block. Thread t of them has the columns j % WIDTH == t; LEN is the number of columns where it
// is a constant, else 0. What is computed for a column can be kept in registers as long as their number is known and small.
template <int LEN, int WIDTH> constexpr int columns_of_thread() { return (LEN + WIDTH - 1) / WIDTH; }
template <int LEN, int WIDTH> constexpr bool are_kept() { return 0 < LEN && LEN <= CHUNK && columns_of_thread<LEN, WIDTH>() <= 96; }
template <int WIDTH> __device__ __forceinline__ int place() { return threadIdx.x % WIDTH; }
template <int WIDTH> __device__ __forceinline__ void meet() {
    if constexpr (WIDTH == 32) __syncwarp();
    else __syncthreads();
}

// Calls `visit(i, j)` for each column j of this thread, in ascending order; i counts them if they are kept.
template <int LEN, int WIDTH, class Visit> __device__ __forceinline__ void each_column(i64 len, Visit visit) {
    if constexpr (are_kept<LEN, WIDTH>()) {
#pragma unroll
        for (int i = 0; i < columns_of_thread<LEN, WIDTH>(); i++) {
            int j = place<WIDTH>() + i * WIDTH;
            if (LEN % WIDTH == 0 || j < LEN) visit(i, j);
        }
    } else
        for (i64 j = place<WIDTH>(); j < len; j += WIDTH) visit(0, j);
}

// A value of each column that is used more than once, or late: kept if there is room, else computed again.
template <class T, int LEN, int WIDTH, class Column> struct Kept {
    static constexpr bool IS_KEPT = are_kept<LEN, WIDTH>();
    Column &column;
    T values[IS_KEPT ? columns_of_thread<LEN, WIDTH>() : 1];

    __device__ __forceinline__ Kept(Column &column) : column(column) {
        if constexpr (IS_KEPT) each_column<LEN, WIDTH>(LEN, [&](int i, i64 j) { values[i] = column(i, j); });
    }
    __device__ __forceinline__ T at(int i, i64 j) const { return IS_KEPT ? values[IS_KEPT ? i : 0] : column(i, j); }
};

// Writes all columns. Values of several are computed before the first is written: the compiler cannot know that no column reads what another writes.
template <int LEN, int WIDTH, class Column, class Write> __device__ __forceinline__ void store(i64 len, Column column, Write write) {
    constexpr int COUNT = columns_of_thread<LEN, WIDTH>(), AT_ONCE = 0 < LEN && COUNT < 8 ? COUNT : 8;
    if constexpr (are_kept<LEN, WIDTH>()) {
#pragma unroll
        for (int first = 0; first < COUNT; first += AT_ONCE) {
            decltype(column(0, (i64)0)) values[AT_ONCE];
#pragma unroll
            for (int i = first; i < first + AT_ONCE; i++) {
                int j = place<WIDTH>() + i * WIDTH;
                if (i < COUNT && (LEN % WIDTH == 0 || j < LEN)) values[i - first] = column(i, j);
            }
#pragma unroll
            for (int i = first; i < first + AT_ONCE; i++) {
                int j = place<WIDTH>() + i * WIDTH;
                if (i < COUNT && (LEN % WIDTH == 0 || j < LEN)) write(j, values[i - first]);
            }
        }
    } else {
        for (i64 first = place<WIDTH>(); first < len; first += 8 * WIDTH) {
            decltype(column(0, (i64)0)) values[8];
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (first + i * WIDTH < len) values[i] = column(0, first + i * WIDTH);
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (first + i * WIDTH < len) write(first + i * WIDTH, values[i]);
        }
    }
}

// Shared memory of a block: what a fold of columns works in, whose first word is its result; and behind these 32 words, those of folds of threads. Stages
// meet between two that use the same words.
constexpr int OF_THREADS = 32, OF_MORE_THREADS = 64;

// A lane's part of a fold of columns in shared memory. It is a chain of operations; the loads of the next columns are under way while those of the last
// are taken.
template <class Op, int LEN> __device__ __forceinline__ typename Op::T fold_lane(typename Op::T lane, const typename Op::T *values, int count) {
    typedef typename Op::T T;
    if constexpr (0 < LEN && LEN <= CHUNK) {
        constexpr int EACH = (LEN + 31) / 32, AT_ONCE = 8;
        T now[AT_ONCE], next[AT_ONCE];
        // Nothing is asked of the chain's every step but where a lane may have one column less.
        auto is_there = [&](int i) { return i < LEN / 32 || (i == LEN / 32 && threadIdx.x < LEN % 32); };
        auto load = [&](int first, T(&batch)[AT_ONCE]) {
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (is_there(first + i)) batch[i] = values[threadIdx.x + (first + i) * 32];
        };
        load(0, now);
#pragma unroll
        for (int first = 0; first < EACH; first += AT_ONCE) {
            load(first + AT_ONCE, next);
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (is_there(first + i)) lane = Op::take(lane, now[i]);
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) now[i] = next[i];
        }
    } else {
        // Chunks of a wider row are whole but for the last one.
        constexpr int AT_ONCE = 16;
        int j = threadIdx.x;
        for (; j + (AT_ONCE - 1) * 32 < count; j += AT_ONCE * 32) {
            T batch[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) batch[i] = values[j + i * 32];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) lane = Op::take(lane, batch[i]);
        }
        for (; j < count; j += 32) lane = Op::take(lane, values[j]);
    }
    return lane;
}

// The fold of one value of each thread in any order, in every thread: for extremes where nobody sees the sign of a zero.
template <class Op, int WIDTH> __device__ __forceinline__ typename Op::T fold_threads(typename Op::T lane, u32 *scratch) {
    typedef typename Op::T T;
    for (int d = 16; 0 < d; d /= 2) lane = Op::take(lane, __shfl_xor_sync(0xffffffffu, lane, d));
    if constexpr (WIDTH == 32) return lane;
    T *warps = (T *)scratch;
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = lane;
    __syncthreads();
    T result = Op::start();
#pragma unroll
    for (int warp = 0; warp < WIDTH / 32; warp++) result = Op::take(result, warps[warp]);
    return result;
}

// The fold of the columns, in every thread, in the written order: lane l takes the columns j % 32 == l in ascending order, then lanes are folded by
// 16, 8, 4, 2, 1. A warp has its lanes' columns in its threads; the threads of a block leave values in shared memory for the first warp.
template <class Op, int LEN, int WIDTH, class Column> __device__ __forceinline__ typename Op::T fold(i64 len, Column column, u32 *scratch) {
    typedef typename Op::T T;
    T lane = Op::start();
    if constexpr (WIDTH == 32) {
        each_column<LEN, WIDTH>(len, [&](int i, i64 j) { lane = Op::take(lane, column(i, j)); });
        for (int d = 16; 0 < d; d /= 2) lane = Op::take(lane, __shfl_down_sync(0xffffffffu, lane, d));
        return __shfl_sync(0xffffffffu, lane, 0);
    }
    T *values = (T *)scratch;
    if constexpr (are_kept<LEN, WIDTH>()) {
        each_column<LEN, WIDTH>(len, [&](int i, i64 j) { values[j] = column(i, j); });
        __syncthreads();
        if (threadIdx.x < 32) lane = fold_lane<Op, LEN>(lane, values, (int)len);
    } else {
        if constexpr (Op::IS_EXTREME) {
            // The order of an extreme shows in the sign of a zero alone.
#pragma unroll 8
            for (i64 j = threadIdx.x; j < len; j += WIDTH) lane = Op::take(lane, column(0, j));
            lane = fold_threads<Op, WIDTH>(lane, scratch);
            if (lane != 0) return lane;
            lane = Op::start();
            __syncthreads();
        }
        // While the first warp folds one part of the row, the others compute the next one.
        constexpr int PART = CHUNK / 64 * 32, THERE = 4;
        for (i64 start = 0; start < len + PART; start += PART) {
            T *next = values + start / PART % 2 * PART;
            int count = (int)min(len - start, (i64)PART);
            if (threadIdx.x < 32) {
                T *last = values + (start / PART + 1) % 2 * PART;
                if (0 < start) lane = fold_lane<Op, 0>(lane, last, (int)min(len - start + PART, (i64)PART));
            } else
                for (int first = threadIdx.x - 32; first < count; first += THERE * (WIDTH - 32)) {
                    T batch[THERE];
#pragma unroll
                    for (int i = 0; i < THERE; i++) {
                        int j = first + i * (WIDTH - 32);
                        if (j < count) batch[i] = column(0, start + j);
                    }
#pragma unroll
                    for (int i = 0; i < THERE; i++) {
                        int j = first + i * (WIDTH - 32);
                        if (j < count) next[j] = batch[i];
                    }
                }
            __syncthreads();
        }
    }
    if (threadIdx.x < 32) {
        // The shuffles come after all lanes have read.
        for (int d = 16; 0 < d; d /= 2) lane = Op::take(lane, __shfl_down_sync(0xffffffffu, lane, d));
        if (threadIdx.x == 0) values[0] = lane;
    }
    __syncthreads();
    return values[0];
}

// The first column of the largest value; 0 if none is a number.
template <int LEN, int WIDTH, class Column> __device__ int first_of_largest(i64 len, Column column, u32 *scratch) {
    float largest = fold<MaxF32, LEN, WIDTH>(len, column, scratch);
    meet<WIDTH>();
    auto candidate = [&](int i, i64 j) { return column(i, j) == largest ? (int)j : 0x7fffffff; };
    int first = fold<MinI32, LEN, WIDTH>(len, candidate, scratch);
    return first == 0x7fffffff ? 0 : first;
}

// `fold_threads` for the largest of numbers that are not negative: their bits are in the order of the numbers.
template <int WIDTH> __device__ __forceinline__ float largest_of_threads(float lane, u32 *scratch) {
    u32 bits = __reduce_max_sync(0xffffffffu, __float_as_uint(lane));
    if constexpr (WIDTH == 32) return __uint_as_float(bits);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = bits;
    __syncthreads();
    bits = 0;
#pragma unroll
    for (int warp = 0; warp < WIDTH / 32; warp++) bits = max(bits, scratch[warp]);
    return __uint_as_float(bits);
}

// One value of a record: k int8 codes padded to 16, scale, sum; or k 4-bit codes padded to 4 bytes, scale, minimum.
template <int k> __device__ float load_q8(const u8 *record, i64 i) {
    return (float)(i8)record[i] * *(const float *)(record + (k + 15) / 16 * 16);
}
template <int k> __device__ float load_q4(const u8 *record, i64 i) {
    const float *numbers = (const float *)(record + ((k + 1) / 2 + 3) / 4 * 4);
    return numbers[1] + (float)((record[i >> 1] >> (4 * (i & 1))) & 15) * numbers[0];
}

// A row as one record, as `ir::packing::RowFormat::encode` writes it. The first thread has written scale and sum only when threads meet again.
template <int k, int WIDTH, class Column> __device__ __forceinline__ void store_q8(u8 *record, Column column, u32 *scratch) {
    constexpr int CODE_BYTES = (k + 15) / 16 * 16;
    Kept<float, k, WIDTH, Column> row(column);
    float absmax = 0.0f;
    each_column<k, WIDTH>(k, [&](int i, i64 j) { absmax = fmaxf(absmax, fabsf(row.at(i, j))); });
    absmax = largest_of_threads<WIDTH>(absmax, scratch + OF_THREADS);
    absmax = 1e-5f < absmax ? absmax : 1e-5f;
    float factor = 127.0f / absmax;
    int sum = 0;
    each_column<k, WIDTH>(k, [&](int i, i64 j) {
        int code = whole(row.at(i, j) * factor);
        record[j] = (u8)code;
        sum += code;
    });
    for (int j = k + place<WIDTH>(); j < CODE_BYTES; j += WIDTH) record[j] = 0;
    sum = __reduce_add_sync(0xffffffffu, sum);
    if constexpr (WIDTH != 32) {
        int *warps = (int *)scratch + OF_MORE_THREADS;
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            sum = 0;
#pragma unroll
            for (int warp = 0; warp < WIDTH / 32; warp++) sum += warps[warp];
        }
    }
    if (place<WIDTH>() == 0) {
        *(float *)(record + CODE_BYTES) = absmax / 127.0f;
        *(int *)(record + CODE_BYTES + 4) = sum;
    }
}
template <int k, int WIDTH, class Column> __device__ void store_q4(u8 *record, Column column, u32 *scratch) {
    constexpr int CODE_BYTES = ((k + 1) / 2 + 3) / 4 * 4;
    // The sum makes one zero of two.
    float low = MinF32::start(), high = MaxF32::start();
    for (int j = place<WIDTH>(); j < k; j += WIDTH) {
        float x = column(0, j);
        low = MinF32::take(low, x);
        high = MaxF32::take(high, x);
    }
    float minimum = fold_threads<MinF32, WIDTH>(low, scratch + OF_THREADS) + 0.0f;
    float maximum = fold_threads<MaxF32, WIDTH>(high, scratch + OF_MORE_THREADS);
    float scale = (maximum - minimum) / 15.0f;
    auto code = [&](int j) { return j < k && 0.0f < scale ? whole((column(0, j) - minimum) / scale) & 15 : 0; };
    for (int i = place<WIDTH>(); i < CODE_BYTES; i += WIDTH) record[i] = (u8)(code(2 * i) | code(2 * i + 1) << 4);
    if (place<WIDTH>() == 0) {
        ((float *)(record + CODE_BYTES))[0] = scale;
        ((float *)(record + CODE_BYTES))[1] = minimum;
    }
}
