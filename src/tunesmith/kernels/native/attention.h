// Causal attention over a forest by tiles, forward and backward, for an element type REAL; nothing of size queries * keys is kept.
//
// Dao et al. 2022 (arXiv:2205.14135): scores of a tile live in the cache, the softmax is carried along a row, and the backward computes
// them again from each query's log-sum-exp. A task is one path and one key head: its keys and values are gathered and packed once for
// all query heads that share them. Gradients of keys and values are kept per path and then added up over paths in a fixed order.

// Rows of a head into [rows, deep], zero beyond.
static void NAME(copy_rows)(const REAL *from, long ld, long width, long deep, PACKED *to, long count, long rows) {
    memset(to, 0, rows * deep * sizeof(PACKED));
    for (long r = 0; r < count; r++)
        for (long i = 0; i < width; i++) to[r * deep + i] = PACK(from[r * ld + i]);
}

// left [rows, deep] as the left side of its transpose: [deep, rows]. ld is that of the target.
static void NAME(transpose)(const PACKED *from, PACKED *to, long rows, long deep, long ld) {
#if PAIR == 2
    for (long r = 0; r < rows; r += 2) {
        const bf16 *one = from + r * deep, *two = one + deep;
        for (long i = 0; i < deep; i++) {
            uint32_t both = one[i] | (uint32_t)two[i] << 16;
            memcpy(to + i * ld + r, &both, 4);
        }
    }
#else
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < deep; i++) to[i * ld + r] = from[r * deep + i];
#endif
}

// Rows [broad, deep] as the right side of products whose columns are the rows: [deep / PAIR][broad][PAIR].
static void NAME(pack_across)(const PACKED *from, PACKED *to, long broad, long deep) {
    for (long r = 0; r < broad; r++)
        for (long i = 0; i < deep; i += PAIR) memcpy(to + (i * broad + r * PAIR), from + r * deep + i, PAIR * sizeof(PACKED));
}

// Rows [rows, deep] as the right side of products whose depth is the rows: [rows / PAIR][deep][PAIR].
static void NAME(pack_down)(const PACKED *from, PACKED *to, long rows, long deep) {
#if PAIR == 2
    for (long r = 0; r < rows; r += 2) {
        const bf16 *one = from + r * deep, *two = one + deep;
        uint32_t *both = (uint32_t *)(to + r * deep);
        for (long i = 0; i < deep; i++) both[i] = one[i] | (uint32_t)two[i] << 16;
    }
#else
    memcpy(to, from, rows * deep * sizeof(PACKED));
#endif
}

// A row of floats as packed numbers.
static inline void NAME(to_packed)(const float *from, PACKED *to, long count) {
    for (long i = 0; i < count; i++) to[i] = TO_PACK(from[i]);
}

// The keys or values of a path, [broad, deep].
static void NAME(gather)(const REAL *from, long ld, const int64_t *path, const int64_t *runs, long width, long deep, long broad,
                         PACKED *to) {
    long at = 0;
    for (long run = path[FIRST_RUN]; run < path[LAST_RUN]; run++) {
        long start = runs[2 * run], count = runs[2 * run + 1] - start;
        NAME(copy_rows)(from + start * ld, ld, width, deep, to + at * deep, count, count);
        at += count;
    }
    memset(to + at * deep, 0, (broad - at) * deep * sizeof(PACKED));
}

// scores * scale through the soft cap, in place.
static void NAME(scaled)(float *score, long rows, long columns, float scale, float softcap) {
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < columns; c++) {
            float value = score[r * KEYS + c] * scale;
            if (softcap > 0.0f) value = capped(value, softcap);
            score[r * KEYS + c] = value;
        }
}

// Set what a row's query, at `place` counted from the tile's first key, may not see.
static inline void NAME(hide)(float *row, long columns, long place, long window, float value) {
    for (long c = place + 1 > 0 ? place + 1 : 0; c < columns; c++) row[c] = value;
    for (long c = 0; c <= place - window && c < columns; c++) row[c] = value;
}

// stride: of rows and heads, first of queries, then keys, values and out. lse [nodes, heads].
void NAME(attention)(const REAL *query, const REAL *key, const REAL *value, REAL *out, const int64_t *stride, float *lse,
                     const int64_t *paths, const int64_t *runs, long count, long heads, long groups, long width, long longest,
                     long window, float scale, float softcap) {
    long share = heads / groups, deep = DEEP(width), most = BROAD(longest);
#pragma omp parallel
    {
        PACKED *rows = aligned(most * deep * sizeof(PACKED)), *keys = aligned(most * deep * sizeof(PACKED));
        PACKED *values = aligned(most * deep * sizeof(PACKED)), *ask = aligned(ROWS * deep * sizeof(PACKED));
        PACKED *weight = aligned(ROWS * KEYS * sizeof(PACKED));
        float *score = aligned(ROWS * KEYS * 4), *sum = aligned(ROWS * deep * 4);
#pragma omp for schedule(dynamic) collapse(2)
        for (long p = 0; p < count; p++)
            for (long group = 0; group < groups; group++) {
                const int64_t *path = paths + p * FIELDS;
                long own = path[STOP] - path[START], before = path[LENGTH] - own, broad = BROAD(path[LENGTH]);
                NAME(gather)(key + group * stride[3], stride[2], path, runs, width, deep, broad, rows);
                NAME(pack_across)(rows, keys, broad, deep);
                NAME(gather)(value + group * stride[5], stride[4], path, runs, width, deep, broad, rows);
                NAME(pack_down)(rows, values, broad, deep);
                for (long head = group * share; head < (group + 1) * share; head++)
                    for (long first = 0; first < own; first += ROWS) {
                        long node = path[START] + first, used = own - first < ROWS ? own - first : ROWS, even = (used + 1) / 2 * 2;
                        float high[ROWS], total[ROWS];
                        for (long r = 0; r < even; r++) high[r] = -1e30f, total[r] = 0.0f;
                        NAME(copy_rows)(query + node * stride[0] + head * stride[1], stride[0], width, deep, ask, used, even);
                        memset(sum, 0, even * deep * 4);
                        long end = before + first + used, start = before + first + 1 > window ? before + first + 1 - window : 0;
                        for (long j = start / WIDE * WIDE; j < end; j += KEYS) {
                            long columns = end - j < KEYS ? DEEP(end - j) : KEYS;
                            int whole = j + columns - 1 <= before + first && j > before + first + used - 1 - window;
                            for (long r = 0; r < even; r++) memset(score + r * KEYS, 0, columns * 4);
                            NAME(product)(ask, deep, keys + j * PAIR, broad, score, KEYS, even, deep, columns);
                            NAME(scaled)(score, even, columns, scale, softcap);
                            for (long r = 0; r < even; r++) {
                                float *row = score + r * KEYS, part = 0.0f;
                                if (!whole) NAME(hide)(row, columns, before + first + r - j, window, -1e30f);
                                float old = high[r], most_here = largest_float(row, columns), now = most_here > old ? most_here : old;
                                for (long c = 0; c < columns; c++) row[c] = fast_exp(row[c] - now);
                                if (!whole) NAME(hide)(row, columns, before + first + r - j, window, 0.0f);
                                for (long c = 0; c < columns; c++) part += row[c];
                                NAME(to_packed)(row, weight + r * KEYS, columns);
                                if (now > old) {
                                    float fade = old > -1e30f ? fast_exp(old - now) : 0.0f;
                                    total[r] *= fade;
                                    for (long i = 0; i < deep; i++) sum[r * deep + i] *= fade;
                                }
                                total[r] += part;
                                high[r] = now;
                            }
                            NAME(product)(weight, KEYS, values + j * deep, deep, sum, deep, even, columns, deep);
                        }
                        for (long r = 0; r < used; r++) {
                            REAL *to = out + (node + r) * stride[6] + head * stride[7];
                            float one = 1.0f / total[r];
                            for (long i = 0; i < width; i++) to[i] = STORE(sum[r * deep + i] * one);
                            if (lse) lse[(node + r) * heads + head] = high[r] + logf(total[r]);
                        }
                    }
            }
        free(rows), free(keys), free(values), free(ask), free(weight), free(score), free(sum);
    }
}

// Probabilities and gradients of a tile's scores, in place: score becomes p, grad becomes p (grad - delta) scale times the soft cap's slope.
static void NAME(tile_gradient)(float *score, float *grad, const float *lse, const float *delta, long rows, long columns, int whole,
                                long place, long window, float scale, float softcap) {
    for (long r = 0; r < rows; r++) {
        float *p = score + r * KEYS, *g = grad + r * KEYS;
        if (softcap > 0.0f)
            for (long c = 0; c < columns; c++) {
                float bent = p[c] / softcap;
                g[c] = (g[c] - delta[r]) * (1.0f - bent * bent) * scale;
            }
        else
            for (long c = 0; c < columns; c++) g[c] = (g[c] - delta[r]) * scale;
        for (long c = 0; c < columns; c++) p[c] = fast_exp(p[c] - lse[r]);
        if (!whole) NAME(hide)(p, columns, place + r, window, 0.0f);
        for (long c = 0; c < columns; c++) g[c] *= p[c];
    }
}

// Two rows of floats side by side, as the right side of a product whose depth is the rows: [rows / PAIR][KEYS][PAIR].
static void NAME(pack_tile)(const float *from, PACKED *to, long rows, long columns) {
#if PAIR == 2
    for (long r = 0; r < rows; r += 2) {
        const float *one = from + r * KEYS, *two = one + KEYS;
        uint32_t *both = (uint32_t *)(to + r * KEYS);
        for (long c = 0; c < columns; c++) both[c] = store_bf16(one[c]) | (uint32_t)store_bf16(two[c]) << 16;
    }
#else
    memcpy(to, from, rows * KEYS * sizeof(PACKED));
#endif
}

// stride: as in attention, then of the gradients of out, queries, keys and values. part: per path [groups, 2, deep, broad], of all paths
// the sum of broad; every gradient is written.
void NAME(attention_backward)(const REAL *query, const REAL *key, const REAL *value, const REAL *out, const REAL *grad_out,
                              REAL *grad_query, REAL *grad_key, REAL *grad_value, const int64_t *stride, const float *lse, float *part,
                              const int64_t *paths, const int64_t *runs, long count, long nodes, long heads, long groups, long width,
                              long longest, long window, float scale, float softcap) {
    long share = heads / groups, deep = DEEP(width), most = BROAD(longest);
#pragma omp parallel
    {
        PACKED *rows = aligned(most * deep * sizeof(PACKED)), *across = aligned(most * deep * sizeof(PACKED));
        PACKED *values = aligned(most * deep * sizeof(PACKED)), *down = aligned(most * deep * sizeof(PACKED));
        PACKED *ask = aligned(ROWS * deep * sizeof(PACKED)), *ask_t = aligned(ROWS * deep * sizeof(PACKED));
        PACKED *given = aligned(ROWS * deep * sizeof(PACKED)), *given_t = aligned(ROWS * deep * sizeof(PACKED));
        PACKED *tile = aligned(ROWS * KEYS * sizeof(PACKED)), *pairs = aligned(ROWS * KEYS * sizeof(PACKED));
        float *score = aligned(ROWS * KEYS * 4), *grad = aligned(ROWS * KEYS * 4), *sum = aligned(ROWS * deep * 4);
#pragma omp for schedule(dynamic) collapse(2)
        for (long p = 0; p < count; p++)
            for (long group = 0; group < groups; group++) {
                const int64_t *path = paths + p * FIELDS;
                long own = path[STOP] - path[START], before = path[LENGTH] - own, broad = BROAD(path[LENGTH]);
                float *key_part = part + (path[OFFSET] * groups + group * broad) * 2 * deep, *value_part = key_part + deep * broad;
                memset(key_part, 0, 2 * deep * broad * 4);
                NAME(gather)(value + group * stride[5], stride[4], path, runs, width, deep, broad, rows);
                NAME(pack_across)(rows, values, broad, deep);
                NAME(gather)(key + group * stride[3], stride[2], path, runs, width, deep, broad, rows);
                NAME(pack_across)(rows, across, broad, deep);
                NAME(pack_down)(rows, down, broad, deep);
                for (long head = group * share; head < (group + 1) * share; head++)
                    for (long first = 0; first < own; first += ROWS) {
                        long node = path[START] + first, used = own - first < ROWS ? own - first : ROWS, even = (used + 1) / 2 * 2;
                        float norm[ROWS], delta[ROWS];
                        NAME(copy_rows)(query + node * stride[0] + head * stride[1], stride[0], width, deep, ask, used, even);
                        NAME(copy_rows)(grad_out + node * stride[8] + head * stride[9], stride[8], width, deep, given, used, even);
                        NAME(transpose)(ask, ask_t, even, deep, ROWS);
                        NAME(transpose)(given, given_t, even, deep, ROWS);
                        for (long r = 0; r < even; r++) {
                            norm[r] = r < used ? lse[(node + r) * heads + head] : 0.0f, delta[r] = 0.0f;
                            if (r == used) break;
                            const REAL *g = grad_out + (node + r) * stride[8] + head * stride[9];
                            const REAL *o = out + (node + r) * stride[6] + head * stride[7];
                            for (long i = 0; i < width; i++) delta[r] += LOAD(g[i]) * LOAD(o[i]);
                        }
                        memset(sum, 0, even * deep * 4);
                        long end = before + first + used, start = before + first + 1 > window ? before + first + 1 - window : 0;
                        for (long j = start / WIDE * WIDE; j < end; j += KEYS) {
                            long columns = end - j < KEYS ? DEEP(end - j) : KEYS;
                            int whole = j + columns - 1 <= before + first && j > before + first + used - 1 - window;
                            for (long r = 0; r < even; r++) {
                                memset(score + r * KEYS, 0, columns * 4);
                                memset(grad + r * KEYS, 0, columns * 4);
                            }
                            NAME(product)(ask, deep, across + j * PAIR, broad, score, KEYS, even, deep, columns);
                            NAME(product)(given, deep, values + j * PAIR, broad, grad, KEYS, even, deep, columns);
                            NAME(scaled)(score, even, columns, scale, softcap);
                            NAME(tile_gradient)(score, grad, norm, delta, even, columns, whole, before + first - j, window, scale, softcap);
                            NAME(pack_tile)(score, pairs, even, columns);
                            NAME(product)(given_t, ROWS, pairs, KEYS, value_part + j, broad, deep, even, columns);
                            NAME(pack_tile)(grad, pairs, even, columns);
                            NAME(product)(ask_t, ROWS, pairs, KEYS, key_part + j, broad, deep, even, columns);
                            for (long r = 0; r < even; r++) NAME(to_packed)(grad + r * KEYS, tile + r * KEYS, columns);
                            NAME(product)(tile, KEYS, down + j * deep, deep, sum, deep, even, columns, deep);
                        }
                        for (long r = 0; r < used; r++) {
                            REAL *to = grad_query + (node + r) * stride[10] + head * stride[11];
                            for (long i = 0; i < width; i++) to[i] = STORE(sum[r * deep + i]);
                        }
                    }
            }
        free(rows), free(across), free(values), free(down), free(ask), free(ask_t), free(given), free(given_t), free(tile), free(pairs);
        free(score), free(grad), free(sum);
    }
    // Sums over paths: of one group's keys or values at a time.
#pragma omp parallel
    {
        float *sum = aligned(deep * nodes * 4);
#pragma omp for schedule(static) collapse(2)
        for (long group = 0; group < groups; group++)
            for (long which = 0; which < 2; which++) {
                memset(sum, 0, deep * nodes * 4);
                for (long p = 0; p < count; p++) {
                    const int64_t *path = paths + p * FIELDS;
                    long broad = BROAD(path[LENGTH]), at = 0;
                    const float *from = part + ((path[OFFSET] * groups + group * broad) * 2 + which * broad) * deep;
                    for (long run = path[FIRST_RUN]; run < path[LAST_RUN]; run++) {
                        long begin = runs[2 * run], length = runs[2 * run + 1] - begin;
                        for (long i = 0; i < deep; i++)
                            for (long n = 0; n < length; n++) sum[i * nodes + begin + n] += from[i * broad + at + n];
                        at += length;
                    }
                }
                REAL *to = which ? grad_value + group * stride[15] : grad_key + group * stride[13];
                long ld = which ? stride[14] : stride[12];
                for (long n = 0; n < nodes; n++)
                    for (long i = 0; i < width; i++) to[n * ld + i] = STORE(sum[i * nodes + n]);
            }
        free(sum);
    }
}
