// Blocks of one cluster: what they wait for, and their shared memory.

// What a thread wrote before it is seen by every thread of the cluster behind it.
__device__ __forceinline__ void wait_for_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A number from the same place in the shared memory of another block of the cluster.
__device__ __forceinline__ unsigned long long load_of_block(const unsigned long long *place, int rank) {
    unsigned own = (unsigned)__cvta_generic_to_shared(place), other;
    unsigned long long value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(rank));
    asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(value) : "r"(other) : "memory");
    return value;
}
