// Stages of 128 columns of a ternary product on their way to shared memory: the activations of a tile's tokens in lines of 128 bytes, whose 16-byte
// pieces are swapped by the token so that tensor cores meet every bank once, then the packed weights of its row blocks as they lie.
#include "lib/copy.cuh"

constexpr int TILES = ceil_div(K, 16), RECORD = round_up(K, 16) + 8, STEPS = ceil_div(TILES, 8);
// A row block's 8 tiles, and room that moves the next one to other banks.
constexpr int ROW_BLOCK_BYTES = 8 * 64 + 64;

// What one of 128 threads copies: of every eighth token 8 bytes, as records are aligned, and of every fourth row block 16. Addresses differ by
// constants, so that copies wait for no arithmetic; what lies outside is not read.
template <int X_BYTES> struct Pieces {
    const u8 *x_from, *w_from;
    unsigned x_to, w_to;
    int column, tile, tokens, rows;

    __device__ __forceinline__ Pieces(const u8 *x, const u8 *w, int n, int token_0, int row_block) {
        int thread = threadIdx.x % 128, half = thread % 16, token = thread / 16, block = thread / 32, piece = thread % 32;
        column = 8 * half, tile = piece / 4;
        x_from = x + (size_t)(token_0 + token) * RECORD + column, w_from = w + (size_t)(row_block + block) * TILES * 64 + piece * 16;
        x_to = token * 128 + ((half / 2) ^ token) * 16 + half % 2 * 8, w_to = X_BYTES + block * ROW_BLOCK_BYTES + piece * 16;
        tokens = n - token_0 - token, rows = M - (row_block + block) * 16;
    }
    // Of tokens 8i.. of the tile.
    __device__ __forceinline__ void copy_tokens(unsigned stage, int step, int i) const {
        copy_8(stage + x_to + i * 8 * 128, x_from + 128 * step + i * 8 * RECORD, 128 * step + column < RECORD - 8 && 8 * i < tokens);
    }
    // Of row blocks 4i.. of the tile.
    __device__ __forceinline__ void copy_rows(unsigned stage, int step, int i) const {
        copy_16(stage + w_to + i * 4 * ROW_BLOCK_BYTES, w_from + 512 * step + i * 4 * TILES * 64, 8 * step + tile < TILES && 64 * i < rows);
    }
};
