// Streamed weights as kernels read them, from a parcel as they travel: `ir::plan::transit`.
//
// from: a parcel, with its header; to: the piece.
//
// A block takes as many units as it has threads: 16 bytes of a parcel are 80 codes of 2 bits, 20 bytes. Two bytes are taken apart at once, each in half
// of a word: x / 3 is 171 x / 512 for x below 243. Words are written in the order of memory, through shared memory. Bound: reading and writing memory.
constexpr int HEADER_WORDS = 4, UNIT_WORDS = 5;

// The ten bits of two bytes, which lie 16 bits apart, as 20 bits.
__device__ __forceinline__ unsigned codes_of(unsigned two) {
    unsigned codes = 0;
#pragma unroll
    for (int i = 0; i < 5; i++) {
        unsigned third = (two * 171 >> 9) & 0x007f007fu;
        codes |= (two - 3 * third) << (2 * i);
        two = third;
    }
    return (codes & 0x3ffu) | (codes >> 6 & 0xffc00u);
}

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(const unsigned *__restrict__ from, unsigned *__restrict__ to) {
    __shared__ unsigned unpacked[THREADS * UNIT_WORDS];
    int tensors = (int)from[0];
    for (int tensor = 1; tensor <= tensors; tensor++) {
        const unsigned *header = from + HEADER_WORDS * tensor;
        bool is_ternary = header[0] != 0;
        const uint4 *packed = (const uint4 *)from + header[1];
        unsigned *piece = to + header[2];
        int words = (int)header[3];
        if (!is_ternary) {
            for (int i = blockIdx.x * THREADS + threadIdx.x; i < words; i += gridDim.x * THREADS) piece[i] = ((const unsigned *)packed)[i];
            continue;
        }
        int units = (words + UNIT_WORDS - 1) / UNIT_WORDS;
        for (int first = blockIdx.x * THREADS; first < units; first += gridDim.x * THREADS) {
            int unit = first + threadIdx.x;
            if (unit < units) {
                uint4 four = packed[unit];
                unsigned of[4] = {four.x, four.y, four.z, four.w};
                // 16 bytes in eight pairs, of 20 bits each: 160 bits.
                unsigned bits[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    unsigned two = of[i / 2] >> (16 * (i % 2));
                    bits[i] = codes_of((two & 0xffu) | (two & 0xff00u) << 8);
                }
                unsigned *own = unpacked + threadIdx.x * UNIT_WORDS;
                own[0] = bits[0] | bits[1] << 20;
                own[1] = bits[1] >> 12 | bits[2] << 8 | bits[3] << 28;
                own[2] = bits[3] >> 4 | bits[4] << 16;
                own[3] = bits[4] >> 16 | bits[5] << 4 | bits[6] << 24;
                own[4] = bits[6] >> 8 | bits[7] << 12;
            }
            __syncthreads();
            int here = min(THREADS * UNIT_WORDS, words - first * UNIT_WORDS);
            for (int i = threadIdx.x; i < here; i += THREADS) piece[first * UNIT_WORDS + i] = unpacked[i];
            __syncthreads();
        }
    }
}
