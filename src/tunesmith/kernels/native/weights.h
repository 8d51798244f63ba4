// Products of a model's own weights, read as they lie, with rows of a batch, for an element type REAL.
//
// Both run along the depth: a register of a weight's row meets one of a batch's row, and each pair of rows has a register of partial sums of its
// own, folded into one number at the end. So a number is summed in one order whatever rows are beside it, and one row of a batch costs the
// reading of the weights.

// A right side: rows of a batch, each `tall` numbers from the next, with as many behind its features as a register holds.
struct NAME(side) {
    PACKED *at;
    long tall;
};

#if PAIR == 2
#define TOGETHER (WIDE * 2)
#define PART __m512bh
#define PART_OF(at) ((__m512bh)_mm512_loadu_si512(at))
#define FIRST_OF(at, count) ((__m512bh)_mm512_maskz_loadu_epi16((1u << (count)) - 1, at))
#define ADD_PRODUCT(sum, w, x) ((lanes)_mm512_dpbf16_ps((__m512)(sum), w, x))
#else
#define TOGETHER WIDE
#define PART lanes
#define PART_OF(at) NAME(part)(at)
#define FIRST_OF(at, count) NAME(first)(at, count)
#define ADD_PRODUCT(sum, w, x) ((sum) + (w) * (x))

static inline __attribute__((always_inline)) lanes NAME(part)(const REAL *at) {
#if REAL_IS_BF16
    places bits;
    bf16 some[WIDE];
    memcpy(some, at, sizeof(some));
    for (int i = 0; i < WIDE; i++) bits[i] = (int32_t)((uint32_t)some[i] << 16);
    return (lanes)bits;
#else
    return load_lanes(at);
#endif
}

static inline __attribute__((always_inline)) lanes NAME(first)(const REAL *at, long count) {
    REAL some[WIDE] = {0};
    memcpy(some, at, count * sizeof(REAL));
    return NAME(part)(some);
}
#endif

// Sums of WIDE registers: lane i of the first one becomes the sum over register i, always in the same order.
static inline __attribute__((always_inline)) lanes NAME(fold)(lanes *sum) {
#define FOLD(far)                                                                                                                         \
    for (int i = 0; far < WIDE && i < WIDE / far; i += 2) {                                                                               \
        lanes own = __builtin_shuffle(sum[i], sum[i + 1], (places){LANE_BY_LANE(OWN, far)});                                              \
        lanes other = __builtin_shuffle(sum[i + 1], sum[i], (places){LANE_BY_LANE(OWN, far)});                                            \
        sum[i / 2] = own + __builtin_shuffle(other, (places){LANE_BY_LANE(ACROSS, far)});                                                 \
    }
#pragma GCC unroll 16
    FOLD(1)
#pragma GCC unroll 16
    FOLD(2)
#pragma GCC unroll 16
    FOLD(4)
#pragma GCC unroll 16
    FOLD(8)
#undef FOLD
    return sum[0];
}

// out[column][row] of `rows` rows of a weight, of which `count` are there, and some columns; rows * columns = WIDE. Constants where inlined.
static inline __attribute__((always_inline)) void NAME(meet)(const REAL *weight, long ld, long count, const PACKED *x, long tall, long depth,
                                                             float *out, long ld_out, const int rows, const int columns) {
    const REAL *row[WIDE];
    lanes sum[WIDE];
#pragma GCC unroll 16
    for (int i = 0; i < WIDE; i++) sum[i] = (lanes){0};
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) row[r] = weight + (r < count ? r : count - 1) * ld;
    long k = 0;
    for (; k + TOGETHER <= depth; k += TOGETHER) {
        PART b[4];
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) memcpy(&b[c], x + c * tall + k, sizeof(PART));
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __builtin_prefetch(row[r] + rows * ld + k, 0, 2);
            PART a = PART_OF(row[r] + k);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) sum[c * rows + r] = ADD_PRODUCT(sum[c * rows + r], a, b[c]);
        }
    }
    if (k < depth) {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            PART a = FIRST_OF(row[r] + k, depth - k);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) {
                PART b;
                memcpy(&b, x + c * tall + k, sizeof(b));
                sum[c * rows + r] = ADD_PRODUCT(sum[c * rows + r], a, b);
            }
        }
    }
    lanes total = NAME(fold)(sum);
    for (int c = 0; c < columns; c++) memcpy(out + c * ld_out, (float *)&total + c * rows, (count < rows ? count : rows) * 4);
}

#define MEET(rows, columns)                                                                                                               \
    for (long r = 0; r < count; r += rows)                                                                                                \
        NAME(meet)(weight + r * ld, ld, count - r, x + c * tall, tall, depth, out + c * ld_out + r, ld_out, rows, columns);

// out[column][row] = weight[row] . x[column] for `count` rows and some columns.
static __attribute__((noinline)) void NAME(multiply)(const REAL *weight, long ld, long count, const PACKED *x, long tall, long columns, long depth,
                                                  float *out, long ld_out) {
    long c = 0;
    for (; columns - c >= 4; c += 4) MEET(WIDE / 4, 4)
    if (columns - c >= 2) {
        MEET(WIDE / 2, 2)
        c += 2;
    }
    if (c < columns) MEET(WIDE, 1)
}
#undef MEET
#undef TOGETHER
#undef PART
#undef PART_OF
#undef FIRST_OF
#undef ADD_PRODUCT
