// Noise that is computed from its place instead of being drawn: the same for any number of threads, and made again when it is needed again.

static inline uint32_t mixed(uint32_t x) { // Wellons' "lowbias32": every bit of the result depends on every bit of x
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// log(x) of a positive normal number to 1e-7 relative (Cephes).
static inline float fast_log(float x) {
    uint32_t bits = to_bits(x);
    int32_t exponent = (int32_t)(bits >> 23) - 126;
    float m = from_bits((bits & 0x007fffffu) | 0x3f000000u); // [0.5, 1)
    int low = m < 0.707106781f;
    exponent -= low;
    m = (low ? m + m : m) - 1.0f;
    float p = 7.0376836292e-2f, e = (float)exponent, square = m * m;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    return m + (p * m * square - 2.12194440e-4f * e - 0.5f * square + 0.693359375f * e);
}

// sqrt(2) erfinv(u), u within (-1, 1): a standard normal number where u is uniform (Giles, 2010, "Approximating the erfinv function").
static inline float normal(float u) {
    float w = -fast_log((1.0f - u) * (1.0f + u));
    float a = w - 2.5f, b = sqrtf(w) - 3.0f;
    float p = 2.81022636e-08f, q = -0.000200214257f;
    p = 3.43273939e-07f + p * a, q = 0.000100950558f + q * b;
    p = -3.5233877e-06f + p * a, q = 0.00134934322f + q * b;
    p = -4.39150654e-06f + p * a, q = -0.00367342844f + q * b;
    p = 0.00021858087f + p * a, q = 0.00573950773f + q * b;
    p = -0.00125372503f + p * a, q = -0.0076224613f + q * b;
    p = -0.00417768164f + p * a, q = 0.00943887047f + q * b;
    p = 0.246640727f + p * a, q = 1.00167406f + q * b;
    p = 1.50140941f + p * a, q = 2.83297682f + q * b;
    return 1.41421356f * u * (w < 5.0f ? p : q);
}

enum { NORMAL = 0, SIGN = 1 };
#define CHUNK 128 // numbers that are computed at once

// to = keep from + scale noise for CHUNK places from `place` on, whose upper halves are in `second`. One function for all numbers, never a copy of it
// for the last few: then their bits do not depend on where in a row they lie. Numbers go in step, so that `to` may be `from`; compilers are told, or
// they would take one number at a time.
#define EACH(z)                                                                                                                           \
    _Pragma("GCC ivdep") for (int i = 0; i < CHUNK; i++) {                                                                                \
        uint32_t bits = mixed(mixed((place + (uint32_t)i) ^ first) + second);                                                             \
        to[i] = keep * from[i] + scale * (z);                                                                                             \
    }
static __attribute__((noinline)) void NAME(perturb_chunk)(float *to, const float *from, uint32_t place, uint32_t first, uint32_t second,
                                                          float keep, float scale, int kind) {
    if (kind == SIGN)
        EACH(from_bits(0x3f800000u | (bits & 0x80000000u)))
    else
        EACH(normal(((float)(int32_t)(bits >> 9) + 0.5f) * 0x1p-22f - 1.0f))
}

// to = keep from + scale noise, [rows, columns] each with its own distance from row to row; `to` may be `from`. The noise at a place depends on
// (first, second, offset + place) alone, places counted as if rows were side by side.
void NAME(perturb)(float *to, const float *from, long rows, long columns, long ld_to, long ld_from, long first, long second, long offset,
                   float keep, float scale, int kind) {
    long blocks = (columns + SMALL - 1) / SMALL;
#pragma omp parallel for schedule(static) collapse(2) if (rows * columns > SMALL)
    for (long row = 0; row < rows; row++)
        for (long block = 0; block < blocks; block++) {
            long end = (block + 1) * SMALL < columns ? (block + 1) * SMALL : columns, count;
            float few[CHUNK] = {0};
            for (long i = block * SMALL; i < end; i += count) {
                uint64_t place = (uint64_t)(offset + row * columns + i), same = (1ull << 32) - (uint32_t)place;
                uint32_t upper = (uint32_t)second + (uint32_t)(place >> 32) * 0x9e3779b9u;
                float *there = to + row * ld_to + i;
                const float *here = from + row * ld_from + i;
                count = end - i < CHUNK ? end - i : CHUNK;
                count = same < (uint64_t)count ? (long)same : count;
                if (count == CHUNK) {
                    NAME(perturb_chunk)(there, here, (uint32_t)place, (uint32_t)first, upper, keep, scale, kind);
                    continue;
                }
                memcpy(few, here, count * sizeof(float));
                NAME(perturb_chunk)(few, few, (uint32_t)place, (uint32_t)first, upper, keep, scale, kind);
                memcpy(there, few, count * sizeof(float));
            }
        }
}
