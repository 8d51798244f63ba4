// Operations on rows of REAL; `ld_x` is the distance between rows of x in elements, all other sizes are counts.

// The largest of `count` elements, in lanes, since compilers keep the order of a plain loop for the sake of NaN.
static float NAME(largest)(const REAL *x, long count) {
    float lane[LANES], most = -INFINITY;
    for (int j = 0; j < LANES; j++) lane[j] = -INFINITY;
    long whole = count - count % LANES;
    for (long i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float value = LOAD(x[i + j]);
            lane[j] = value > lane[j] ? value : lane[j];
        }
    for (int j = 0; j < LANES; j++) most = lane[j] > most ? lane[j] : most;
    for (long i = whole; i < count; i++) most = LOAD(x[i]) > most ? LOAD(x[i]) : most;
    return most;
}

// residual_out = residual + update (update may be null); out = residual_out * rstd * weight.
// RMSNorm, Zhang and Sennrich 2019 (arXiv:1910.07467), eq. 4. Columns of `out` beyond `width` are set to zero.
void NAME(add_norm)(const float *residual, const REAL *update, const float *weight, float *residual_out, REAL *out,
                    long ld_out, float *rstd, long rows, long width, float eps) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long row = 0; row < rows; row++) {
        const float *in = residual + row * width;
        float *sum = residual_out + row * width;
        REAL *to = out + row * ld_out;
        float square = 0.0f;
        if (update) {
            const REAL *add = update + row * width;
            for (long i = 0; i < width; i++) {
                float value = in[i] + LOAD(add[i]);
                sum[i] = value;
                square += value * value;
            }
        } else {
            for (long i = 0; i < width; i++) {
                sum[i] = in[i];
                square += in[i] * in[i];
            }
        }
        float scale = 1.0f / sqrtf(square / width + eps);
        rstd[row] = scale;
        for (long i = 0; i < width; i++) to[i] = STORE(sum[i] * scale * weight[i]);
        if (ld_out > width) memset(to + width, 0, (ld_out - width) * sizeof(REAL));
    }
}

// grad = grad_residual + d(out)/d(residual_out)^T grad_out, as float and as REAL; `out` is the forward's, so xhat = out / weight.
void NAME(add_norm_backward)(const float *grad_residual, const REAL *grad_out, long ld_grad, const REAL *out, long ld_out,
                             const float *weight, const float *rstd, float *grad, REAL *grad_update, long rows, long width) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long row = 0; row < rows; row++) {
        const REAL *g = grad_out + row * ld_grad, *h = out + row * ld_out;
        const float *before = grad_residual ? grad_residual + row * width : 0;
        float *to = grad + row * width;
        REAL *update = grad_update + row * width;
        float dot = 0.0f;
        for (long i = 0; i < width; i++) dot += LOAD(g[i]) * LOAD(h[i]);
        dot /= width;
        float scale = rstd[row];
        if (before)
            for (long i = 0; i < width; i++) {
                float value = before[i] + scale * (LOAD(g[i]) * weight[i] - LOAD(h[i]) / weight[i] * dot);
                to[i] = value;
                update[i] = STORE(value);
            }
        else
            for (long i = 0; i < width; i++) {
                float value = scale * (LOAD(g[i]) * weight[i] - LOAD(h[i]) / weight[i] * dot);
                to[i] = value;
                update[i] = STORE(value);
            }
    }
}

// Rotary positions in place on the first `heads` heads of each row: (a, b) -> (a cos - b sin, b cos + a sin) for the two halves of
// the first `turned` elements of a head. sign -1 is the backward. RoFormer, Su et al. 2021 (arXiv:2104.09864), halves as in GPT-NeoX.
void NAME(rotate)(REAL *x, long ld_x, long heads, long head_width, long turned, const float *cosine, const float *sine, float sign,
                  long rows) {
    long half = turned / 2;
#pragma omp parallel for schedule(static) if (rows * heads * head_width > SMALL)
    for (long row = 0; row < rows; row++) {
        const float *c = cosine + row * turned, *s = sine + row * turned;
        for (long head = 0; head < heads; head++) {
            REAL *a = x + row * ld_x + head * head_width, *b = a + half;
            for (long i = 0; i < half; i++) {
                float left = LOAD(a[i]), right = LOAD(b[i]), turn = sign * s[i];
                a[i] = STORE(left * c[i] - right * turn);
                b[i] = STORE(right * c[i] + left * turn);
            }
        }
    }
}

// out = activation(gate) * up for rows [gate | up]; columns of `out` beyond `width` are set to zero. Shazeer 2020 (arXiv:2002.05202).
void NAME(glu)(const REAL *gate_up, REAL *out, long ld_out, long rows, long width, int kind) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long row = 0; row < rows; row++) {
        const REAL *gate = gate_up + row * 2 * width, *up = gate + width;
        REAL *to = out + row * ld_out;
        float slope;
        if (kind == SILU)
            for (long i = 0; i < width; i++) to[i] = STORE(activate(LOAD(gate[i]), SILU, &slope) * LOAD(up[i]));
        else
            for (long i = 0; i < width; i++) to[i] = STORE(activate(LOAD(gate[i]), GELU_TANH, &slope) * LOAD(up[i]));
        if (ld_out > width) memset(to + width, 0, (ld_out - width) * sizeof(REAL));
    }
}

// Gradient of glu with respect to [gate | up].
void NAME(glu_backward)(const REAL *gate_up, const REAL *grad_out, long ld_grad, REAL *grad, long rows, long width, int kind) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
    for (long row = 0; row < rows; row++) {
        const REAL *gate = gate_up + row * 2 * width, *up = gate + width, *g = grad_out + row * ld_grad;
        REAL *to_gate = grad + row * 2 * width, *to_up = to_gate + width;
        if (kind == SILU)
            for (long i = 0; i < width; i++) {
                float slope, value = activate(LOAD(gate[i]), SILU, &slope), d = LOAD(g[i]);
                to_gate[i] = STORE(d * LOAD(up[i]) * slope);
                to_up[i] = STORE(d * value);
            }
        else
            for (long i = 0; i < width; i++) {
                float slope, value = activate(LOAD(gate[i]), GELU_TANH, &slope), d = LOAD(g[i]);
                to_gate[i] = STORE(d * LOAD(up[i]) * slope);
                to_up[i] = STORE(d * value);
            }
    }
}

// Softmax of scores * scale in place, over the keys that a query sees. Rows are [heads * queries, keys], a query's place is
// row % queries, and it sees keys (keys - queries + place - window, keys - queries + place].
void NAME(causal_softmax)(REAL *scores, long rows, long queries, long keys, long window, float scale) {
#pragma omp parallel for schedule(static, 16) if (rows * keys > SMALL)
    for (long row = 0; row < rows; row++) {
        REAL *x = scores + row * keys;
        long end = keys - queries + row % queries + 1, start = end > window ? end - window : 0;
        float most = NAME(largest)(x + start, end - start), sum = 0.0f;
        for (long i = start; i < end; i++) sum += fast_exp((LOAD(x[i]) - most) * scale);
        float share = 1.0f / sum;
        for (long i = start; i < end; i++) x[i] = STORE(fast_exp((LOAD(x[i]) - most) * scale) * share);
        memset(x, 0, start * sizeof(REAL));
        memset(x + end, 0, (keys - end) * sizeof(REAL));
    }
}

// Gradient of causal_softmax with respect to the unscaled scores, in place on `grad`; `weights` is what the forward left.
void NAME(causal_softmax_backward)(REAL *grad, const REAL *weights, long rows, long queries, long keys, long window, float scale) {
#pragma omp parallel for schedule(static, 16) if (rows * keys > SMALL)
    for (long row = 0; row < rows; row++) {
        REAL *g = grad + row * keys;
        const REAL *p = weights + row * keys;
        long end = keys - queries + row % queries + 1, start = end > window ? end - window : 0;
        float dot = 0.0f;
        for (long i = start; i < end; i++) dot += LOAD(g[i]) * LOAD(p[i]);
        for (long i = start; i < end; i++) g[i] = STORE(LOAD(p[i]) * scale * (LOAD(g[i]) - dot));
        memset(g, 0, start * sizeof(REAL));
        memset(g + end, 0, (keys - end) * sizeof(REAL));
    }
}

// Log-probability of one token a row; with `direction` set, logits become its gradient: onehot - softmax.
void NAME(token_logp)(REAL *logits, const int64_t *token, float *logp, long rows, long vocabulary, int direction) {
#pragma omp parallel for schedule(static) if (rows * vocabulary > SMALL)
    for (long row = 0; row < rows; row++) {
        REAL *x = logits + row * vocabulary;
        float most = NAME(largest)(x, vocabulary), sum = 0.0f;
        for (long i = 0; i < vocabulary; i++) sum += fast_exp(LOAD(x[i]) - most);
        float chosen = LOAD(x[token[row]]) - most, share = -1.0f / sum;
        logp[row] = chosen - logf(sum);
        if (direction) {
            for (long i = 0; i < vocabulary; i++) x[i] = STORE(fast_exp(LOAD(x[i]) - most) * share);
            x[token[row]] = STORE(1.0f + fast_exp(chosen) * share);
        }
    }
}

// out = softmax(query keys^T * scale) values over keys start to end, for the `share` query heads of a key head. Inlined with a constant
// width, so that a head's sums stay in registers. scores holds [share, room].
static inline __attribute__((always_inline)) void NAME(attend_group)(const REAL *query, const REAL *keys, const REAL *values, REAL *out,
                                                                     float *scores, long share, long start, long end, long room,
                                                                     long width, float scale, float softcap) {
    float ask[WIDEST], row[WIDEST];
    for (long head = 0; head < share; head++) {
        float *score = scores + head * room, sum = 0.0f;
        for (long j = 0; j < width; j++) ask[j] = LOAD(query[head * width + j]) * scale;
        for (long i = start; i < end; i++) {
            float dot = 0.0f;
            for (long j = 0; j < width; j++) dot += ask[j] * LOAD(keys[i * width + j]);
            score[i] = dot;
        }
        if (softcap > 0.0f)
            for (long i = start; i < end; i++) score[i] = softcap * (1.0f - 2.0f / (fast_exp(2.0f * score[i] / softcap) + 1.0f));
        float most = largest_float(score + start, end - start);
        for (long i = start; i < end; i++) score[i] = fast_exp(score[i] - most);
        for (long i = start; i < end; i++) sum += score[i];
        for (long j = 0; j < width; j++) row[j] = 0.0f;
        for (long i = start; i < end; i++) {
            float share_of_i = score[i];
            for (long j = 0; j < width; j++) row[j] += share_of_i * LOAD(values[i * width + j]);
        }
        for (long j = 0; j < width; j++) out[head * width + j] = STORE(row[j] / sum);
    }
}

// One new token a sequence: its key and value are put into the cache at `length`, then it attends to all of it within `window`.
// qkv [batch, (heads + 2 groups) * width]; keys and values [slots, groups, room, width], of which row b uses slot[b]; out [batch, ld_out];
// scratch [batch, heads, room]. Scores pass through softcap * tanh(score / softcap) if softcap is above 0.
void NAME(decode_attention)(const REAL *qkv, REAL *keys, REAL *values, const int64_t *slot, const int64_t *length, REAL *out,
                            long ld_out, float *scratch, long batch, long heads, long groups, long width, long room, long window,
                            float scale, float softcap) {
    long share = heads / groups;
#pragma omp parallel for schedule(static) collapse(2) if (batch * groups * width > 1024)
    for (long b = 0; b < batch; b++)
        for (long group = 0; group < groups; group++) {
            const REAL *row = qkv + b * (heads + 2 * groups) * width;
            long at = (slot[b] * groups + group) * room * width, end = length[b] + 1, start = end > window ? end - window : 0;
            REAL *key = keys + at, *value = values + at;
            memcpy(key + length[b] * width, row + (heads + group) * width, width * sizeof(REAL));
            memcpy(value + length[b] * width, row + (heads + groups + group) * width, width * sizeof(REAL));
            const REAL *query = row + group * share * width;
            REAL *to = out + b * ld_out + group * share * width;
            float *mine = scratch + (b * groups + group) * share * room;
            if (width == 64)
                NAME(attend_group)(query, key, value, to, mine, share, start, end, room, 64, scale, softcap);
            else if (width == 128)
                NAME(attend_group)(query, key, value, to, mine, share, start, end, room, 128, scale, softcap);
            else
                NAME(attend_group)(query, key, value, to, mine, share, start, end, room, width, scale, softcap);
        }
}
