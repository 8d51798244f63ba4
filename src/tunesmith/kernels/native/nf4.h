// Weights in four bits (`nf4_linear.py`) to plain numbers.

// A whole block. In bf16 all that a number can be is rounded once, and looked up.
static inline void NAME(nf4_plain)(const uint8_t *codes, float scale, REAL *to) {
#if defined(__AVX512BF16__) && REAL_IS_BF16
    __m256i levels = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(nf4_levels), _mm512_set1_ps(scale)));
    __m512i twice = _mm512_broadcast_i64x4(levels); // of a place five bits count, of which the highest says nothing
    for (long i = 0; i < NF4_BLOCK / 32; i++) {
        __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + 16 * i)));
        __m512i place = _mm512_or_si512(_mm512_srli_epi32(both, 4), _mm512_slli_epi32(both, 16));
        _mm512_storeu_si512(to + 32 * i, _mm512_permutexvar_epi16(place, twice));
    }
#else
    float value[NF4_BLOCK];
    nf4_block(codes, NF4_BLOCK, scale, value);
    for (long i = 0; i < NF4_BLOCK; i++) to[i] = STORE(value[i]);
#endif
}

// A matrix of which every 64 numbers, wherever rows end, have a scale and lie in 32 bytes, the first of two in the high bits.
void NAME(nf4)(const uint8_t *codes, const float *scale, REAL *out, long ld, long rows, long width) {
    long count = rows * width;
#pragma omp parallel for schedule(static) if (count > SMALL)
    for (long r = 0; r < rows; r++) {
        REAL *to = out + r * ld - r * width;
        for (long at = r * width, end = at + width; at < end;) {
            long first = at / NF4_BLOCK * NF4_BLOCK, stop = first + NF4_BLOCK < end ? first + NF4_BLOCK : end;
            const uint8_t *from = codes + first / 2;
            float times = scale[first / NF4_BLOCK];
            if (at == first && stop == first + NF4_BLOCK)
                NAME(nf4_plain)(from, times, to + first);
            else { // a row begins or ends within the block
                float value[NF4_BLOCK];
                nf4_block(from, count - first < NF4_BLOCK ? count - first : NF4_BLOCK, times, value);
                for (long i = at; i < stop; i++) to[i] = STORE(value[i - first]);
            }
            at = stop;
        }
    }
}
