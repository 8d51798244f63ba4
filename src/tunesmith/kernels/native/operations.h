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
