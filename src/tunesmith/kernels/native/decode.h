// One new token for each sequence of a batch through all layers in one call, for an element type REAL.
//
// Activations are float between products and stand feature by feature, [features / PAIR][broad][PAIR], as right sides of products whose
// left side is the model's own weight: weights are read once and nothing of them is packed.

// Write a column of a right side.
#define PUT(side, broad, feature, column, value) (side)[(feature) / PAIR * (broad) * PAIR + (column) * PAIR + (feature) % PAIR] = TO_PACK(value)

// out[b * ld + row] = weight side + bias, all of a team's threads together; `side` has room for the low-rank part, which is filled first.
static void NAME(linear)(const struct linear *w, PACKED *side, long batch, long broad, float *out) {
    float tile[SLICE * broad];
    if (w->room) {
#pragma omp for schedule(static)
        for (long first = 0; first < w->room; first += 6) {
            long rows = w->room - first < 6 ? w->room - first : 6;
            memset(tile, 0, rows * broad * 4);
            NAME(weight_product)((const REAL *)w->down + first * w->width, w->width, side, broad, tile, broad, rows, w->width, broad);
            for (long r = 0; r < rows; r++)
                for (long b = 0; b < batch; b++) PUT(side, broad, w->width + first + r, b, tile[r * broad + b]);
        }
    }
#pragma omp for schedule(static)
    for (long first = 0; first < w->rows; first += SLICE) {
        long rows = w->rows - first < SLICE ? w->rows - first : SLICE;
        memset(tile, 0, rows * broad * 4);
        NAME(weight_product)((const REAL *)w->weight + first * w->ld, w->ld, side, broad, tile, broad, rows, w->width + w->room, broad);
        for (long b = 0; b < batch; b++) {
            float *to = out + b * w->rows + first;
            for (long r = 0; r < rows; r++) to[r] = tile[r * broad + b];
            if (w->bias)
                for (long r = 0; r < rows; r++) to[r] += LOAD(((const REAL *)w->bias)[first + r]);
        }
    }
}

// x * rstd * weight in place; nothing where there is no norm.
static void NAME(norm_row)(const struct norm *norm, float *x, long width) {
    if (!norm->weight) return;
    float square = 0.0f;
    for (long i = 0; i < width; i++) square += x[i] * x[i];
    float scale = 1.0f / sqrtf(square / width + norm->eps);
    for (long i = 0; i < width; i++) x[i] *= scale * norm->weight[i];
}

// residual += update through `after`; its norm by `before` becomes a right side.
static void NAME(add_update)(const struct norm *after, const struct norm *before, float *residual, float *update, PACKED *side, long batch,
                             long broad, long width) {
#pragma omp for schedule(static)
    for (long b = 0; b < batch; b++) {
        float *row = residual + b * width, normed[width];
        if (update) {
            NAME(norm_row)(after, update + b * width, width);
            for (long i = 0; i < width; i++) row[i] += update[b * width + i];
        }
        if (!before) continue;
        memcpy(normed, row, width * 4);
        NAME(norm_row)(before, normed, width);
        for (long i = 0; i < width; i++) PUT(side, broad, i, b, normed[i]);
    }
}

static void NAME(turn)(float *head, const float *cosine, const float *sine, long turned) {
    for (long i = 0, half = turned / 2; i < half; i++) {
        float left = head[i], right = head[i + half];
        head[i] = left * cosine[i] - right * sine[i];
        head[i + half] = right * cosine[i] + left * sine[i];
    }
}

// Where a stretch of keys and values lies: [deep / PAIR][ld][PAIR] and [ld / PAIR][deep][PAIR].
struct NAME(stretch) {
    const PACKED *keys, *values;
    long ld, start, stop;
};

// out [share, deep] of the queries of one key head over stretches of its sequence, of which `hidden` keys are out of the window.
static void NAME(attend)(const float *query, const struct NAME(stretch) *stretches, long count, long share, long width, long deep,
                         long room, long hidden, float scale, float softcap, PACKED *ask, float *score, PACKED *weight, float *out) {
    long at = 0, place = 0;
    memset(ask, 0, share * deep * sizeof(PACKED));
    for (long h = 0; h < share; h++) NAME(to_packed)(query + h * width, ask + h * deep, width);
    memset(score, 0, share * room * 4);
    memset(out, 0, share * deep * 4);
    for (long s = 0; s < count; s++) { // a stretch takes whole pairs; what does not belong to it is hidden
        const struct NAME(stretch) *one = stretches + s;
        long first = one->start / PAIR * PAIR, columns = DEEP(one->stop - first);
        NAME(product)(ask, deep, one->keys + first * PAIR, one->ld, score + at, room, share, deep, columns);
        long from = one->start - first + (hidden > place ? hidden - place : 0), to = one->stop - first;
        for (long h = 0; h < share; h++) {
            float *row = score + h * room + at;
            for (long c = 0; c < columns; c++) {
                float value = row[c] * scale;
                if (softcap > 0.0f) value = softcap * (1.0f - 2.0f / (fast_exp(2.0f * value / softcap) + 1.0f));
                row[c] = c >= from && c < to ? value : -1e30f;
            }
        }
        place += one->stop - one->start, at += columns;
    }
    float total[share];
    for (long h = 0; h < share; h++) {
        float *row = score + h * room, most = largest_float(row, at);
        for (long c = 0; c < at; c++) row[c] = row[c] > -1e30f ? fast_exp(row[c] - most) : 0.0f;
        total[h] = 0.0f;
        for (long c = 0; c < at; c++) total[h] += row[c];
        NAME(to_packed)(row, weight + h * room, at);
    }
    at = 0;
    for (long s = 0; s < count; s++) {
        const struct NAME(stretch) *one = stretches + s;
        long first = one->start / PAIR * PAIR, columns = DEEP(one->stop - first);
        NAME(product)(weight + at, room, one->values + first * deep, deep, out, deep, share, columns, deep);
        at += columns;
    }
    for (long h = 0; h < share; h++)
        for (long i = 0; i < deep; i++) out[h * deep + i] /= total[h];
}

// Norm and turn the heads of a new token, keep its key and value, attend; all of a team's threads together.
static void NAME(decode_heads)(const struct layer *layer, const struct cache *cache, const struct step *step, float *qkv, PACKED *side,
                               long broad) {
    long heads = layer->heads, groups = layer->groups, width = layer->width, share = heads / groups, deep = DEEP(width);
    long room = DEEP(step->longest + 2 * WIDE * step->stretches);
    PACKED *ask = aligned(share * deep * sizeof(PACKED)), *weight = aligned(share * room * sizeof(PACKED));
    float *score = aligned(share * room * 4), *out = aligned(share * deep * 4);
    struct NAME(stretch) stretches[step->stretches];
#pragma omp for schedule(static) collapse(2)
    for (long group = 0; group < groups; group++)
        for (long b = 0; b < step->batch; b++) {
            long slot = step->slot[b], length = step->length[b], given = step->given[b], mine = slot * groups + group;
            long angle = (layer->kind * step->batch + b) * step->turned;
            const float *cosine = step->cosine + angle, *sine = step->sine + angle;
            float *row = qkv + b * (heads + 2 * groups) * width, *query = row + group * share * width;
            float *key = row + (heads + group) * width, *value = key + groups * width;
            for (long h = 0; h < share; h++) {
                NAME(norm_row)(&layer->query, query + h * width, width);
                NAME(turn)(query + h * width, cosine, sine, step->turned);
            }
            NAME(norm_row)(&layer->key, key, width);
            NAME(turn)(key, cosine, sine, step->turned);
            PACKED *keys = (PACKED *)cache->new_keys + mine * deep * cache->room, *values = (PACKED *)cache->new_values + mine * deep * cache->room;
            long at = length - given, count = 0;
            for (long i = 0; i < width; i++) {
                PUT(keys, cache->room, i, at, key[i]);
                PUT(values, deep, at, i, value[i]);
            }
            for (long run = step->first_run[slot]; run < step->first_run[slot + 1]; run++, count++) {
                const PACKED *all_keys = (const PACKED *)cache->keys + group * deep * cache->nodes;
                const PACKED *all_values = (const PACKED *)cache->values + group * deep * cache->nodes;
                stretches[count] = (struct NAME(stretch)){all_keys, all_values, cache->nodes, step->runs[2 * run], step->runs[2 * run + 1]};
            }
            stretches[count++] = (struct NAME(stretch)){keys, values, cache->room, 0, at + 1};
            long hidden = length + 1 > layer->window ? length + 1 - layer->window : 0;
            NAME(attend)(query, stretches, count, share, width, deep, room, hidden, layer->scale, layer->softcap, ask, score, weight, out);
            for (long h = 0; h < share; h++)
                for (long i = 0; i < width; i++) PUT(side, broad, (group * share + h) * width + i, b, out[h * deep + i]);
        }
    free(ask), free(weight), free(score), free(out);
}

// Numbers that the right side of any of a layer's products has for each column.
static long NAME(tallest)(const struct layer *layer) {
    const struct linear *all[] = {&layer->joint, &layer->out, &layer->gate_up, &layer->down};
    long most = 0;
    for (int i = 0; i < 4; i++) most = all[i]->width + all[i]->room > most ? all[i]->width + all[i]->room : most;
    return most + most % PAIR;
}

// gate = activation(gate) up; it becomes a right side.
static void NAME(gated)(float *gate_up, PACKED *side, long batch, long broad, long inner, long kind) {
#pragma omp for schedule(static)
    for (long b = 0; b < batch; b++) {
        float *gate = gate_up + b * 2 * inner, *up = gate + inner, slope;
        if (kind == SILU)
            for (long i = 0; i < inner; i++) gate[i] = activate(gate[i], SILU, &slope) * up[i];
        else
            for (long i = 0; i < inner; i++) gate[i] = activate(gate[i], GELU_TANH, &slope) * up[i];
        for (long i = 0; i < inner; i++) PUT(side, broad, i, b, gate[i]);
    }
}

// residual [batch, features] passes through layers, in place; the new tokens' keys and values are kept.
void NAME(decode_layers)(const struct layer *layers, const struct cache *caches, long count, const struct step *step, float *residual) {
    long batch = step->batch, broad = DEEP(batch), features = layers->joint.width, inner = layers->down.width;
    long rows = layers->joint.rows > 2 * inner ? layers->joint.rows : 2 * inner;
    PACKED *side = aligned(NAME(tallest)(layers) * broad * sizeof(PACKED));
    memset(side, 0, NAME(tallest)(layers) * broad * sizeof(PACKED));
    float *wide = aligned(batch * rows * 4), *update = aligned(batch * features * 4);
#pragma omp parallel
    for (const struct layer *layer = layers; layer < layers + count; layer++) {
        NAME(add_update)(0, &layer->before_attention, residual, 0, side, batch, broad, features);
        NAME(linear)(&layer->joint, side, batch, broad, wide);
        NAME(decode_heads)(layer, caches + (layer - layers), step, wide, side, broad);
        NAME(linear)(&layer->out, side, batch, broad, update);
        NAME(add_update)(&layer->after_attention, &layer->before_feedforward, residual, update, side, batch, broad, features);
        NAME(linear)(&layer->gate_up, side, batch, broad, wide);
        NAME(gated)(wide, side, batch, broad, inner, layer->activation);
        NAME(linear)(&layer->down, side, batch, broad, update);
        NAME(add_update)(&layer->after_feedforward, 0, residual, update, side, batch, broad, features);
    }
    free(side), free(wide), free(update);
}

// logits [batch, head->rows] of hidden states after their last norm.
void NAME(decode_head)(const struct norm *norm, const struct linear *head, float *residual, float *logits, long batch) {
    long broad = DEEP(batch), features = head->width;
    PACKED *side = aligned(features * broad * sizeof(PACKED));
    memset(side, 0, features * broad * sizeof(PACKED));
#pragma omp parallel
    {
        NAME(add_update)(0, norm, residual, 0, side, batch, broad, features);
        NAME(linear)(head, side, batch, broad, logits);
    }
    free(side);
}

// The keys or values [nodes, groups * width], rows ld apart, of a prefilled forest as decode_layer wants them; nodes is a multiple of WIDE.
void NAME(pack_cache)(const REAL *from, long ld, long count, long nodes, long groups, long width, void *to, int down) {
    long deep = DEEP(width);
#pragma omp parallel for schedule(static)
    for (long group = 0; group < groups; group++) {
        PACKED *rows = aligned(nodes * deep * sizeof(PACKED)), *mine = (PACKED *)to + group * deep * nodes;
        NAME(copy_rows)(from + group * width, ld, width, deep, rows, count, nodes);
        if (down)
            NAME(pack_down)(rows, mine, nodes, deep);
        else
            NAME(pack_across)(rows, mine, nodes, deep);
        free(rows);
    }
}

// Bytes of a packed number.
int NAME(packed_bytes)(void) { return sizeof(PACKED); }
