// Outputs of a linear layer, each multiplied by a factor of its own.
#if REAL_IS_BF16
#define CHANCE(value, place) ((bf16)(to_bits(value) + (mixed((uint32_t)(place)) >> 16) >> 16))
#else
#define CHANCE(value, place) (value)
#endif

// y = y * factor + bias in place, a factor and a bias for each column; no bias is a null pointer. Liu et al. 2024 (arXiv:2402.09353), eq. 5.
// y was rounded once already: a factor closer to 1 than bf16 tells apart would move none of it by rounding to the nearest, so it goes to one of its
// neighbours by chance, in proportion, and is right in the mean.
void NAME(stretch)(REAL *y, const float *factor, const REAL *bias, long rows, long width) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long row = 0; row < rows; row++) {
        REAL *to = y + row * width;
        if (bias)
            for (long i = 0; i < width; i++) to[i] = CHANCE(LOAD(to[i]) * factor[i] + LOAD(bias[i]), row * width + i);
        else
            for (long i = 0; i < width; i++) to[i] = CHANCE(LOAD(to[i]) * factor[i], row * width + i);
    }
}

// Its gradient with respect to what it stretched, and the sums over rows of grad * (y - bias), y what came out.
void NAME(stretch_backward)(const REAL *grad, const REAL *y, const float *factor, const REAL *bias, REAL *inner, float *sums, long rows,
                            long width) {
    enum { SPAN = 256 };
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long from = 0; from < width; from += SPAN) {
        long count = width - from < SPAN ? width - from : SPAN;
        float sum[SPAN] = {0.0f}, shift[SPAN] = {0.0f};
        if (bias)
            for (long i = 0; i < count; i++) shift[i] = LOAD(bias[from + i]);
        for (long row = 0; row < rows; row++) {
            const REAL *g = grad + row * width + from, *out = y + row * width + from;
            REAL *to = inner + row * width + from;
            for (long i = 0; i < count; i++) {
                float value = LOAD(g[i]);
                sum[i] += value * (LOAD(out[i]) - shift[i]);
                to[i] = STORE(value * factor[from + i]);
            }
        }
        memcpy(sums + from, sum, count * sizeof(float));
    }
}
#undef CHANCE
