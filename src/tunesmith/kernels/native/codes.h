// Products of int8 rows with int8 rows: whole numbers, so that they are the same in whatever order they are summed.
//
// Where processors multiply bytes in fours (VNNI) one side has no sign: its codes are kept 128 higher, and 128 times the other side's sum is
// taken off again.

#if defined(__AVX512VNNI__)
#define SHIFT 128
#else
#define SHIFT 0
#endif
#define ROOM(width) (((width) + 63) / 64 * 64) // bytes of a row of the right side

#if SHIFT
// out[r * 4 + c] = left row r times right row c, both constants where this is inlined; the next rows of the left side are fetched meanwhile.
static inline __attribute__((always_inline)) void code_tile(const int8_t *left, const uint8_t *right, long width, int32_t *out, const int rows,
                                                            const int columns) {
    __m512i sum[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) sum[r][c] = _mm512_setzero_si512();
    for (long k = 0; k < width; k += 64) {
        __mmask64 there = width - k < 64 ? ((__mmask64)1 << (width - k)) - 1 : ~(__mmask64)0;
        __m512i side[4];
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) side[c] = _mm512_load_si512(right + c * ROOM(width) + k);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            __builtin_prefetch(left + (r + 2 * rows) * width + k, 0, 2);
            __m512i row = _mm512_maskz_loadu_epi8(there, left + r * width + k);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) sum[r][c] = _mm512_dpbusd_epi32(sum[r][c], side[c], row);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) out[r * 4 + c] = _mm512_reduce_add_epi32(sum[r][c]);
}
#else
static inline void code_tile(const int8_t *left, const uint8_t *right, long width, int32_t *out, int rows, int columns) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            const int8_t *row = left + r * width, *side = (const int8_t *)right + c * ROOM(width);
            int32_t sum = 0;
            for (long k = 0; k < width; k++) sum += (int32_t)row[k] * side[k];
            out[r * 4 + c] = sum;
        }
}
#endif

// A row of the right side as the product wants it, in place, and nothing behind it.
static void shift_codes(int8_t *row, long width) {
    if (SHIFT)
        for (long i = 0; i < width; i++) row[i] = (int8_t)(row[i] ^ -128);
    memset(row + width, 0, ROOM(width) - width);
}

// to += what four sums mean; never inlined, so that compilers order its products alike for every column.
static __attribute__((noinline)) void add_scaled(const int32_t *sum, int32_t total, float scale, const float *scales, float *to) {
    for (int c = 0; c < 4; c++) to[c] += (float)(sum[c] - SHIFT * total) * (scales[c] * scale);
}

// to[r * ld + c] += left row r times right row c, times the scales of both; `total` are the sums of the left side's rows. There is room for
// four columns at a time: in `right`, `scales` and `to`.
static void code_product(const int8_t *left, const float *scale, const int32_t *total, long rows, const uint8_t *right, const float *scales,
                         long columns, long width, float *to, long ld) {
    int32_t sums[16] = {0};
    for (long r = 0; r < rows; r += 4)
        for (long c = 0; c < columns; c += 4) {
            const int8_t *from = left + r * width;
            const uint8_t *side = right + c * ROOM(width);
            long tall = rows - r < 4 ? rows - r : 4, lone = columns - c == 1;
            if (tall == 4 && lone)
                code_tile(from, side, width, sums, 4, 1);
            else if (tall == 4)
                code_tile(from, side, width, sums, 4, 4);
            else
                for (long i = 0; i < tall; i++) code_tile(from + i * width, side, width, sums + i * 4, 1, 4);
            for (long i = 0; i < tall; i++) add_scaled(sums + i * 4, total[r + i], scale[r + i], scales + c, to + (r + i) * ld + c);
        }
}
