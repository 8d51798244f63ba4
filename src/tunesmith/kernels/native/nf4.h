// Weights in four bits (`nf4_linear.py`) to plain numbers.

// A matrix of which every 64 numbers, wherever rows end, have a scale and lie in 32 bytes, the first of two in the high bits.
void NAME(nf4)(const uint8_t *codes, const float *scale, REAL *out, long ld, long rows, long width) {
    long count = rows * width;
#pragma omp parallel for schedule(static) if (count > SMALL)
    for (long r = 0; r < rows; r++) {
        REAL *to = out + r * ld - r * width;
        for (long at = r * width, end = at + width; at < end;) {
            long first = at / NF4_BLOCK * NF4_BLOCK, stop = first + NF4_BLOCK < end ? first + NF4_BLOCK : end;
            const uint8_t *from = codes + first / 2;
            float value[NF4_BLOCK], times = scale[first / NF4_BLOCK];
            if (at == first && stop == first + NF4_BLOCK) {
                nf4_block(from, NF4_BLOCK, times, value);
                for (long i = 0; i < NF4_BLOCK; i++) to[first + i] = STORE(value[i]);
            } else { // a row begins or ends within the block
                nf4_block(from, count - first < NF4_BLOCK ? count - first : NF4_BLOCK, times, value);
                for (long i = at; i < stop; i++) to[i] = STORE(value[i - first]);
            }
            at = stop;
        }
    }
}
