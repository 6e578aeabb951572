// Launches that overlap. Where the launch allows it, a kernel starts before the one ahead of it ends; compute capabilities below 9.0 start it only
// when it may run, and there all of this does nothing.

// Until this wait a kernel may read what no launch of the call writes: weights, inputs, and rows of caches that are older than the call. Anything else is
// read by plain loads: through `__ldg` or a `__restrict__` pointer to what is const it is taken to never change, and compilers move such loads ahead of
// the wait.
__device__ __forceinline__ void wait_for_inputs() {
#if 900 <= __CUDA_ARCH__
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start when all blocks have come here, or are done.
__device__ __forceinline__ void let_next_start() {
#if 900 <= __CUDA_ARCH__
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// What a kernel begins with that has nothing to do ahead of its inputs.
__device__ __forceinline__ void wait_for_previous() {
    let_next_start();
    wait_for_inputs();
}
