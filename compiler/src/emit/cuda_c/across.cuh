
// The same fold for UNITS units that lie side by side: thread t has lane t / UNITS of unit t % UNITS, so that a warp reads whole lines of several rows. A
// lane's loads are far ahead of its chain. The result is in every thread of the unit.
template <class Op, int LEN, int UNITS, class Column> __device__ __forceinline__ typename Op::T fold_across(Column column, u32 *scratch) {
    typedef typename Op::T T;
    constexpr int WHOLE = LEN / 32, AT_ONCE = WHOLE < 64 ? WHOLE : 64;
    const int l = threadIdx.x / UNITS;
    T lane = Op::start();
    int i = 0;
    for (; i + AT_ONCE <= WHOLE; i += AT_ONCE) {
        T values[AT_ONCE];
#pragma unroll
        for (int at = 0; at < AT_ONCE; at++) values[at] = column(0, (i64)(i + at) * 32 + l);
#pragma unroll
        for (int at = 0; at < AT_ONCE; at++) lane = Op::take(lane, values[at]);
    }
    for (; i < WHOLE; i++) lane = Op::take(lane, column(0, (i64)i * 32 + l));
    if (l < LEN % 32) lane = Op::take(lane, column(0, (i64)WHOLE * 32 + l));
    T *lanes = (T *)scratch;
    lanes[threadIdx.x] = lane;
#pragma unroll
    for (int d = 16; 0 < d; d /= 2) {
        __syncthreads();
        if (l < d) lanes[threadIdx.x] = Op::take(lanes[threadIdx.x], lanes[threadIdx.x + d * UNITS]);
    }
    __syncthreads();
    return lanes[threadIdx.x % UNITS];
}
