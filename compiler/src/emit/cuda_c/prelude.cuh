typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

// Lets the next kernel of the stream start up now, then waits until the kernels before this one are done: what is launched so may start before
// that. Every thread calls it first. Compute capabilities below 9.0 start a kernel only when it may run.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

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
    typedef float T;
    static __device__ T start() { return 0.0f; }
    static __device__ T take(T acc, T x) { return acc + x; }
};
struct MaxF32 {
    typedef float T;
    static __device__ T start() { return __uint_as_float(0xff800000u); }
    static __device__ T take(T acc, T x) { return acc < x ? x : acc; }
};
struct MinF32 {
    typedef float T;
    static __device__ T start() { return __uint_as_float(0x7f800000u); }
    static __device__ T take(T acc, T x) { return x < acc ? x : acc; }
};
struct SumI32 {
    typedef int T;
    static __device__ T start() { return 0; }
    static __device__ T take(T acc, T x) { return wrap_add(acc, x); }
};
struct MaxI32 {
    typedef int T;
    static __device__ T start() { return (int)0x80000000u; }
    static __device__ T take(T acc, T x) { return acc < x ? x : acc; }
};
struct MinI32 {
    typedef int T;
    static __device__ T start() { return 0x7fffffff; }
    static __device__ T take(T acc, T x) { return x < acc ? x : acc; }
};

// The fold of the columns, in every thread. All threads compute values and leave them in shared memory; the first warp has the 32 lanes of the
// written order: lane l takes the columns j % 32 == l in ascending order, then lanes are folded by 16, 8, 4, 2, 1.
template <class Op, int CHUNK, class Column> __device__ typename Op::T fold(i64 len, Column column, u32 (&scratch)[CHUNK]) {
    typedef typename Op::T T;
    T *values = (T *)scratch;
    T lane = Op::start();
    for (i64 start = 0; start < len; start += CHUNK) {
        int count = (int)min(len - start, (i64)CHUNK);
        for (int j = threadIdx.x; j < count; j += THREADS) values[j] = column(start + j);
        __syncthreads();
        if (threadIdx.x < 32)
#pragma unroll 16
            for (int j = threadIdx.x; j < count; j += 32) lane = Op::take(lane, values[j]);
        __syncthreads();
    }
    if (threadIdx.x < 32) {
        for (int d = 16; 0 < d; d /= 2) lane = Op::take(lane, __shfl_down_sync(0xffffffffu, lane, d));
        if (threadIdx.x == 0) values[0] = lane;
    }
    __syncthreads();
    T result = values[0];
    __syncthreads();
    return result;
}

// The first column of the largest value; 0 if none is a number.
template <int CHUNK, class Column> __device__ int first_of_largest(i64 len, Column column, u32 (&scratch)[CHUNK]) {
    float largest = fold<MaxF32>(len, column, scratch);
    int first = fold<MinI32>(len, [&](i64 j) { return column(j) == largest ? (int)j : 0x7fffffff; }, scratch);
    return first == 0x7fffffff ? 0 : first;
}

// The fold of one value of each thread in any order, in every thread: for sums of integers, and for extremes where nobody sees the sign of a zero.
template <class Op, int CHUNK> __device__ typename Op::T fold_threads(typename Op::T lane, u32 (&scratch)[CHUNK]) {
    typedef typename Op::T T;
    T *warps = (T *)scratch;
    for (int d = 16; 0 < d; d /= 2) lane = Op::take(lane, __shfl_xor_sync(0xffffffffu, lane, d));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = lane;
    __syncthreads();
    T result = Op::start();
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; warp++) result = Op::take(result, warps[warp]);
    __syncthreads();
    return result;
}

// The columns of one thread: computed once and kept, unless there are so many that registers run out.
template <int k, class Column> struct Columns {
    static constexpr int COUNT = (k + THREADS - 1) / THREADS;
    static constexpr bool ARE_KEPT = COUNT <= 16;
    Column &column;
    float kept[ARE_KEPT ? COUNT : 1];

    __device__ Columns(Column &column) : column(column) {
        if constexpr (ARE_KEPT) {
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                int j = threadIdx.x + i * THREADS;
                kept[i] = j < k ? column(j) : 0.0f;
            }
        }
    }
    // Calls `visit` with each column and its value.
    template <class Visit> __device__ void each(Visit visit) {
#pragma unroll(ARE_KEPT ? 16 : 1)
        for (int i = 0; i < COUNT; i++) {
            int j = threadIdx.x + i * THREADS;
            if (j < k) visit(j, ARE_KEPT ? kept[ARE_KEPT ? i : 0] : column(j));
        }
    }
};

// One value of a record: k int8 codes padded to 16, scale, sum; or k 4-bit codes padded to 4 bytes, scale, minimum.
template <int k> __device__ float load_q8(const u8 *record, i64 i) {
    return (float)(i8)record[i] * *(const float *)(record + (k + 15) / 16 * 16);
}
template <int k> __device__ float load_q4(const u8 *record, i64 i) {
    const float *numbers = (const float *)(record + ((k + 1) / 2 + 3) / 4 * 4);
    return numbers[1] + (float)((record[i >> 1] >> (4 * (i & 1))) & 15) * numbers[0];
}

// A row as one record, as `ir::packing::RowFormat::encode` writes it.
template <int k, int CHUNK, class Column> __device__ void store_q8(u8 *record, Column column, u32 (&scratch)[CHUNK]) {
    constexpr int CODE_BYTES = (k + 15) / 16 * 16;
    Columns<k, Column> columns(column);
    float absmax = MaxF32::start();
    columns.each([&](int, float x) { absmax = MaxF32::take(absmax, fabsf(x)); });
    absmax = fold_threads<MaxF32>(absmax, scratch);
    absmax = 1e-5f < absmax ? absmax : 1e-5f;
    float factor = 127.0f / absmax;
    int sum = 0;
    columns.each([&](int j, float x) {
        int code = whole(x * factor);
        record[j] = (u8)code;
        sum += code;
    });
    for (int j = k + threadIdx.x; j < CODE_BYTES; j += THREADS) record[j] = 0;
    sum = fold_threads<SumI32>(sum, scratch);
    if (threadIdx.x == 0) {
        *(float *)(record + CODE_BYTES) = absmax / 127.0f;
        *(int *)(record + CODE_BYTES + 4) = sum;
    }
}
template <int k, int CHUNK, class Column> __device__ void store_q4(u8 *record, Column column, u32 (&scratch)[CHUNK]) {
    constexpr int CODE_BYTES = ((k + 1) / 2 + 3) / 4 * 4;
    // The sum makes one zero of two.
    float low = MinF32::start(), high = MaxF32::start();
    for (int j = threadIdx.x; j < k; j += THREADS) {
        float x = column(j);
        low = MinF32::take(low, x);
        high = MaxF32::take(high, x);
    }
    float minimum = fold_threads<MinF32>(low, scratch) + 0.0f;
    float maximum = fold_threads<MaxF32>(high, scratch);
    float scale = (maximum - minimum) / 15.0f;
    auto code = [&](int j) { return j < k && 0.0f < scale ? whole((column(j) - minimum) / scale) & 15 : 0; };
    for (int i = threadIdx.x; i < CODE_BYTES; i += THREADS) record[i] = (u8)(code(2 * i) | code(2 * i + 1) << 4);
    if (threadIdx.x == 0) {
        ((float *)(record + CODE_BYTES))[0] = scale;
        ((float *)(record + CODE_BYTES))[1] = minimum;
    }
}
