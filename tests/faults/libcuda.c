// A driver that loses a copy to the device: the real one, but for the functions below. It is built into a folder that comes first on the loader's path,
// under the name that programs ask for, and everything else is found in the real library, on which it depends.
//
// FAULT_COPY=N   the copy that fails, counted from 1; none without it
// FAULT=call     the call that queues it returns an error
// FAULT=later    the call succeeds, nothing is copied, and whoever waits afterwards is told so, as when a link or the memory fails

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef int status;
typedef unsigned long long address;

enum { SUCCESS = 0, INVALID_VALUE = 1, ILLEGAL_ADDRESS = 700 };

static atomic_long copies;
static atomic_int is_lost;

status cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, void *stream) {
    status (*real)(address, const void *, size_t, void *) = dlsym(RTLD_NEXT, "cuMemcpyHtoDAsync_v2");
    const char *which = getenv("FAULT_COPY");
    const char *how = getenv("FAULT");
    if (which && atomic_fetch_add(&copies, 1) + 1 == atol(which)) {
        if (how && strcmp(how, "later") == 0) {
            atomic_store(&is_lost, 1);
            return SUCCESS;
        }
        return INVALID_VALUE;
    }
    return real(to, from, bytes, stream);
}

status cuStreamSynchronize(void *stream) {
    status (*real)(void *) = dlsym(RTLD_NEXT, "cuStreamSynchronize");
    status found = real(stream);
    return atomic_load(&is_lost) ? ILLEGAL_ADDRESS : found;
}

status cuEventSynchronize(void *event) {
    status (*real)(void *) = dlsym(RTLD_NEXT, "cuEventSynchronize");
    status found = real(event);
    return atomic_load(&is_lost) ? ILLEGAL_ADDRESS : found;
}
