// Copies to shared memory that run beside the computation, and reads of what they brought.
#include "lib/mma.cuh"

__device__ __forceinline__ void copy_4(unsigned to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

// Copies of 8 and 16 bytes; zeros if there is nothing to copy.
__device__ __forceinline__ void copy_8(unsigned to, const void *from, bool is_there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(is_there ? 8 : 0));
}
__device__ __forceinline__ void copy_16(unsigned to, const void *from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0));
}

// The copies since the last such end are a group.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;"); }
// Until all groups of this thread but the last `but` have arrived.
template <int but> __device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(but) : "memory"); }

__device__ __forceinline__ uint4 load_shared(unsigned from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from));
    return v;
}
