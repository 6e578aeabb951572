// Which keys a token sees, as `ir::mask::Mask::ranges` has it: two ranges, clipped to the cache. An empty one ends where it starts.
#include "lib/exact.cuh"

struct Ranges {
    int head_start, head_end, tail_start, tail_end;

    __device__ __forceinline__ Ranges(int position, int first_key, int reach_key) {
        constexpr unsigned window = (unsigned)WINDOW, sinks = (unsigned)SINKS, ctx = (unsigned)CTX;
        unsigned first = (unsigned)max(first_key, 0), reach = (unsigned)max(reach_key, 0), last = (unsigned)position + 1;
        unsigned window_start = window == 0 || last < window ? 0 : last - window;
        unsigned sinks_end = window == 0 ? 0 : min(first + min(sinks, 0xffffffffu - first), last);
        unsigned head_stop = max(max(reach, sinks_end), first), start = max(window_start, head_stop);
        head_start = (int)min(first, ctx), head_end = position < 0 ? head_start : (int)min(head_stop, ctx);
        tail_start = (int)min(start, ctx), tail_end = position < 0 ? tail_start : (int)min(max(last, start), ctx);
    }
    __device__ __forceinline__ bool sees(int key) const { return (head_start <= key && key < head_end) || (tail_start <= key && key < tail_end); }
};
