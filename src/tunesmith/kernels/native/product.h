// Small matrix products in registers, for an element type REAL; the caller packs the right side.
//
// With bfloat16 dot products (AVX512-BF16) numbers stay bf16 and are multiplied in pairs; elsewhere they are widened to float when packed.

#if defined(__AVX512BF16__) && REAL_IS_BF16
#define PAIR 2 // neighbours in depth that stand side by side
typedef bf16 NAME(packed);
#define PACK(value) (value)
#define TO_PACK(value) store_bf16(value)
#else
#define PAIR 1
typedef float NAME(packed);
#define PACK(value) LOAD(value)
#define TO_PACK(value) (value)
#endif

#define PACKED NAME(packed)

// to[rows, WIDE * vectors] += left[rows, depth] right[depth, WIDE * vectors]; rows and vectors are constants where this is inlined.
static inline __attribute__((always_inline)) void NAME(tile)(const PACKED *left, long ld_left, const PACKED *right, long ld_right,
                                                                  float *to, long ld_to, long depth, const int rows, const int vectors) {
    lanes sum[12][VECTORS];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[r][v] = load_lanes(to + r * ld_to + v * WIDE);
    for (long k = 0; k < depth; k += PAIR) {
#if PAIR == 2
        __m512bh b[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) b[v] = (__m512bh)_mm512_loadu_si512(right + k * ld_right + v * WIDE * 2);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            int both;
            memcpy(&both, left + r * ld_left + k, 4);
            __m512bh a = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] = (lanes)_mm512_dpbf16_ps((__m512)sum[r][v], a, b[v]);
        }
#else
        lanes b[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) b[v] = load_lanes(right + k * ld_right + v * WIDE);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            float a = left[r * ld_left + k];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] += a * b[v];
        }
#endif
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) memcpy(to + r * ld_to + v * WIDE, &sum[r][v], sizeof(lanes));
}

#define STRIP(rows, vectors)                                                                                                              \
    for (; count - r >= rows; r += rows)                                                                                                  \
        NAME(tile)(left + r * ld_left, ld_left, right + c * PAIR, ld_right, to + r * ld_to + c, ld_to, depth, rows, vectors);
#define STRIPS(vectors)                                                                                                                   \
    {                                                                                                                                     \
        long r = 0;                                                                                                                       \
        if (vectors * 2 <= VECTORS) STRIP(12, vectors)                                                                                    \
        STRIP(6, vectors) STRIP(4, vectors) STRIP(3, vectors) STRIP(2, vectors) STRIP(1, vectors)                                         \
    }

// to[count, columns] += left[count, depth] right[depth, columns]: depth is a multiple of PAIR, columns of WIDE; `right` is
// laid out as [depth / PAIR][ld_right][PAIR].
static __attribute__((noinline)) void NAME(product)(const PACKED *left, long ld_left, const PACKED *right, long ld_right, float *to,
                                                         long ld_to, long count, long depth, long columns) {
    for (long c = 0, vectors; c < columns; c += vectors * WIDE) {
        vectors = (columns - c) / WIDE;
        if (vectors >= VECTORS) {
            vectors = VECTORS;
            STRIPS(VECTORS)
        } else if (vectors == 3)
            STRIPS(VECTORS > 3 ? 3 : 1)
        else if (vectors == 2)
            STRIPS(VECTORS > 2 ? 2 : 1)
        else
            STRIPS(1)
    }
}
#undef STRIP
#undef STRIPS
