// Rows of REAL to int8 and products of int8 back to REAL, each in one pass; between them stands an integer product.

// A row as floats, times `factor` where there is one: `row` has room for `width`.
static void NAME(widen)(const REAL *x, const float *factor, float *row, long width) {
    if (factor)
        for (long i = 0; i < width; i++) row[i] = LOAD(x[i]) * factor[i];
    else
        for (long i = 0; i < width; i++) row[i] = LOAD(x[i]);
}

// to = round(127 x / max |x|) for each row of x * factor, and scale = max |x| / 127, so that x is about scale * to. A row that is not
// finite gets a scale that is not. With `turn`, rows are rotated first (see `rotate_blocks`).
void NAME(quantise)(const REAL *x, long ld_x, const float *factor, int8_t *to, float *scale, long rows, long width, int turn) {
#pragma omp parallel if (rows * width > SMALL)
    {
        float *row = aligned(width * sizeof(float));
#pragma omp for schedule(static)
        for (long r = 0; r < rows; r++) {
            NAME(widen)(x + r * ld_x, factor, row, width);
            if (turn) rotate_blocks(row, width);
            scale[r] = to_int8(row, to + r * width, width);
        }
        free(row);
    }
}

// out += sums * row_scale * column_scale, rotated if `turn`: what an integer product means, added to what `out` holds and rounded once.
// A column scale that is absent is one.
void NAME(dequantise)(const int32_t *sums, const float *row_scale, const float *column_scale, REAL *out, long ld_out, long rows, long width,
                      int turn) {
#pragma omp parallel if (rows * width > SMALL)
    {
        float *row = aligned(width * sizeof(float));
#pragma omp for schedule(static)
        for (long r = 0; r < rows; r++) {
            const int32_t *from = sums + r * width;
            REAL *to = out + r * ld_out;
            float scale = row_scale[r];
            if (column_scale)
                for (long i = 0; i < width; i++) row[i] = (float)from[i] * (scale * column_scale[i]);
            else
                for (long i = 0; i < width; i++) row[i] = (float)from[i] * scale;
            if (turn) rotate_blocks(row, width);
            for (long i = 0; i < width; i++) to[i] = STORE(LOAD(to[i]) + row[i]);
        }
        free(row);
    }
}
