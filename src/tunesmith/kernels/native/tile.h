// to += left right for one kind of left side (product.h).

// to[rows, WIDE * vectors] += left[rows, depth] right[depth, WIDE * vectors]; rows and vectors are constants where this is inlined.
static inline __attribute__((always_inline)) void LEFT_NAME(tile)(const LEFT *left, long ld_left, const PACKED *right, long ld_right,
                                                                  float *to, long ld_to, long depth, const int rows, const int vectors) {
    lanes sum[12][VECTORS];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[r][v] = load_lanes(to + r * ld_to + v * WIDE);
    for (long k = 0; k < depth; k += PAIR) {
        if (AHEAD && k % 32 == 0)
            for (int r = 0; r < rows; r++) __builtin_prefetch(left + (r + AHEAD * rows) * ld_left + k, 0, 2);
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
            float a = LEFT_LOAD(left[r * ld_left + k]);
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

// The same for NARROW columns: a register of half the size, which many processors take twice as fast; the bits are the same.
static inline __attribute__((always_inline)) void LEFT_NAME(narrow_tile)(const LEFT *left, long ld_left, const PACKED *right, long ld_right,
                                                                         float *to, long ld_to, long depth, const int rows) {
    narrow_lanes sum[12];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) memcpy(&sum[r], to + r * ld_to, sizeof(narrow_lanes));
    for (long k = 0; k < depth; k += PAIR) {
        if (AHEAD && k % 32 == 0)
            for (int r = 0; r < rows; r++) __builtin_prefetch(left + (r + AHEAD * rows) * ld_left + k, 0, 2);
        narrow_lanes b;
        memcpy(&b, right + k * ld_right, sizeof(b));
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
#if PAIR == 2
            int both;
            memcpy(&both, left + r * ld_left + k, 4);
            sum[r] = (narrow_lanes)_mm256_dpbf16_ps((__m256)sum[r], (__m256bh)_mm256_set1_epi32(both), (__m256bh)b);
#else
            sum[r] += LEFT_LOAD(left[r * ld_left + k]) * b;
#endif
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) memcpy(to + r * ld_to, &sum[r], sizeof(narrow_lanes));
}

#define STRIP(rows, vectors)                                                                                                              \
    for (; count - r >= rows; r += rows)                                                                                                  \
        LEFT_NAME(tile)(left + r * ld_left, ld_left, right + c * PAIR, ld_right, to + r * ld_to + c, ld_to, depth, rows, vectors);
#define STRIPS(vectors)                                                                                                                   \
    {                                                                                                                                     \
        long r = 0;                                                                                                                       \
        if (vectors * 2 <= VECTORS) STRIP(12, vectors)                                                                                    \
        STRIP(6, vectors) STRIP(4, vectors) STRIP(3, vectors) STRIP(2, vectors) STRIP(1, vectors)                                         \
    }

// to[count, columns] += left[count, depth] right[depth, columns]: depth is a multiple of PAIR, columns of WIDE or NARROW itself; `right` is
// laid out as [depth / PAIR][ld_right][PAIR].
static __attribute__((noinline)) void LEFT_NAME(product)(const LEFT *left, long ld_left, const PACKED *right, long ld_right, float *to,
                                                         long ld_to, long count, long depth, long columns) {
    if (columns < WIDE) {
        long r = 0;
        for (; count - r >= 12; r += 12) LEFT_NAME(narrow_tile)(left + r * ld_left, ld_left, right, ld_right, to + r * ld_to, ld_to, depth, 12);
        for (; r < count; r++) LEFT_NAME(narrow_tile)(left + r * ld_left, ld_left, right, ld_right, to + r * ld_to, ld_to, depth, 1);
        return;
    }
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
