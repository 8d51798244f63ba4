// Rows of several sequences, new tokens and stretches of prompts, through all layers in one call, for an element type REAL.
//
// Activations are float between products and stand feature by feature as right sides of products whose left side is the model's own
// weight (side.h). Every number is summed in an order that depends on its own sequence alone, so a row's bits are the same whatever rows are
// beside it.
//
// Keys and values lie in pages of PAGE positions: [groups][deep / PAIR][PAGE][PAIR] and [groups][PAGE / PAIR][deep][PAIR].

// x * rstd * weight in place; nothing where there is no norm.
static void NAME(norm_row)(const struct norm *norm, float *x, long width) {
    if (!norm->weight) return;
    float square = 0.0f;
    for (long i = 0; i < width; i++) square += x[i] * x[i];
    float scale = 1.0f / sqrtf(square / width + norm->eps);
    for (long i = 0; i < width; i++) x[i] *= scale * norm->weight[i];
}

// residual += update through `after`; its norm by `before` becomes a right side.
static void NAME(add_update)(const struct norm *after, const struct norm *before, float *residual, float *update,
                             const struct NAME(side) *side, long batch, long width) {
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
        NAME(put)(side, 0, b, normed, width);
    }
}

static void NAME(turn)(float *head, const float *cosine, const float *sine, long turned) {
    for (long i = 0, half = turned / 2; i < half; i++) {
        float left = head[i], right = head[i + half];
        head[i] = left * cosine[i] - right * sine[i];
        head[i + half] = right * cosine[i] + left * sine[i];
    }
}

// Norm and turn a row's key of one group and write it and the value into their page; the last row of a feed clears its neighbour in the pair.
static void NAME(keep)(const struct layer *layer, const struct cache *cache, const struct step *step, long feed, long row, long group,
                       float *qkv) {
    long groups = layer->groups, width = layer->width, deep = DEEP(width);
    long place = step->start[feed] + row - step->first[feed], slot = place % PAGE, angle = (layer->kind * step->rows + row) * step->turned;
    long at = step->table[feed * step->pages + place / PAGE] * cache->stride + group * deep * PAGE;
    PACKED *keys = (PACKED *)cache->keys + at, *values = (PACKED *)cache->values + at;
    float *key = qkv + row * (layer->heads + 2 * groups) * width + (layer->heads + group) * width, *value = key + groups * width;
    NAME(norm_row)(&layer->key, key, width);
    NAME(turn)(key, step->cosine + angle, step->sine + angle, step->turned);
    for (long i = 0; i < width; i++) {
        keys[i / PAIR * PAGE * PAIR + slot * PAIR + i % PAIR] = TO_PACK(key[i]);
        values[slot / PAIR * deep * PAIR + i * PAIR + slot % PAIR] = TO_PACK(value[i]);
    }
    if (PAIR == 2 && slot % 2 == 0 && row + 1 == step->first[feed + 1])
        for (long i = 0; i < width; i++) values[slot / PAIR * deep * PAIR + i * PAIR + 1] = 0;
}

// Scores of a row, of which the positions from `low` to `high` count, become weights; returns their sum.
static float NAME(weigh)(float *score, PACKED *weight, long count, long low, long high, float scale, float softcap) {
    for (long c = low; c < high; c++) score[c] *= scale;
    if (softcap > 0.0f)
        for (long c = low; c < high; c++) score[c] = capped(score[c], softcap);
    for (long c = 0; c < low; c++) score[c] = -1e30f;
    for (long c = high; c < count; c++) score[c] = -1e30f;
    float most = largest_float(score, count), total = 0.0f;
    for (long c = 0; c < count; c++) score[c] = score[c] > -1e30f ? fast_exp(score[c] - most) : 0.0f;
    for (long c = 0; c < count; c++) total += score[c];
    NAME(to_packed)(score, weight, count);
    return total;
}

// What a thread needs to attend with.
struct NAME(desk) {
    PACKED *ask, *weight;
    float *score, *out;
};

// Attention of some rows of a feed, and the query heads of one group, over the pages up to the last of them; into the side.
static void NAME(attend)(const struct layer *layer, const struct cache *cache, const struct step *step, long feed, long row, long rows,
                         long group, float *qkv, const struct NAME(side) *side, struct NAME(desk) desk) {
    long heads = layer->heads, groups = layer->groups, width = layer->width, share = heads / groups, deep = DEEP(width);
    long place = step->start[feed] + row - step->first[feed], end = place + rows, low = place + 1 > layer->window ? place + 1 - layer->window : 0;
    long begin = low / PAGE * PAGE, count = (end - begin + PAGE - 1) / PAGE * PAGE, room = step->pages * PAGE;
    const int64_t *table = step->table + feed * step->pages;
    memset(desk.ask, 0, rows * share * deep * sizeof(PACKED));
    memset(desk.out, 0, rows * share * deep * 4);
    for (long r = 0; r < rows; r++) {
        long angle = (layer->kind * step->rows + row + r) * step->turned;
        for (long h = 0; h < share; h++) {
            float *query = qkv + (row + r) * (heads + 2 * groups) * width + (group * share + h) * width;
            NAME(norm_row)(&layer->query, query, width);
            NAME(turn)(query, step->cosine + angle, step->sine + angle, step->turned);
            NAME(to_packed)(query, desk.ask + (r * share + h) * deep, width);
            memset(desk.score + (r * share + h) * room, 0, count * 4);
        }
    }
    for (long at = begin; at < end; at += PAGE) {
        const PACKED *keys = (const PACKED *)cache->keys + table[at / PAGE] * cache->stride + group * deep * PAGE;
        NAME(product)(desk.ask, deep, keys, PAGE, desk.score + at - begin, room, rows * share, deep, PAGE);
    }
    float total[rows * share];
    for (long r = 0; r < rows; r++) {
        long high = place + r + 1, from = high > layer->window ? high - layer->window : 0;
        for (long h = r * share; h < (r + 1) * share; h++)
            total[h] = NAME(weigh)(desk.score + h * room, desk.weight + h * room, count, from - begin, high - begin, layer->scale, layer->softcap);
    }
    for (long at = begin; at < end; at += PAGE) { // what lies beyond the last position was never written, or by another sequence
        const PACKED *values = (const PACKED *)cache->values + table[at / PAGE] * cache->stride + group * deep * PAGE;
        long depth = end - at < PAGE ? (end - at + PAIR - 1) / PAIR * PAIR : PAGE;
        NAME(product)(desk.weight + at - begin, room, values, deep, desk.out, deep, rows * share, depth, deep);
    }
    for (long r = 0; r < rows * share; r++) {
        for (long i = 0; i < width; i++) desk.out[r * deep + i] /= total[r];
        NAME(put)(side, (group * share + r % share) * width, row + r / share, desk.out + r * deep, width);
    }
}

// Keep the rows' keys and values, then attend, so many rows at a time; all of a team's threads together.
static void NAME(attend_all)(const struct layer *layer, const struct cache *cache, const struct step *step, float *qkv,
                             const struct NAME(side) *side) {
    long share = layer->heads / layer->groups, deep = DEEP(layer->width), room = step->pages * PAGE, most = ROWS / share ? ROWS / share : 1;
    int single = step->rows == step->feeds; // a lone row's own key and value are only read by itself
    if (step->longest < most) most = step->longest;
    PACKED *ask = aligned(most * share * deep * sizeof(PACKED)), *weight = aligned(most * share * room * sizeof(PACKED));
    float *score = aligned(most * share * room * 4), *out = aligned(most * share * deep * 4);
    struct NAME(desk) desk = {ask, weight, score, out};
    if (!single) {
#pragma omp for schedule(static) collapse(2)
        for (long feed = 0; feed < step->feeds; feed++)
            for (long group = 0; group < layer->groups; group++)
                for (long row = step->first[feed]; row < step->first[feed + 1]; row++) NAME(keep)(layer, cache, step, feed, row, group, qkv);
    }
    long blocks = (step->longest + most - 1) / most;
#pragma omp for schedule(dynamic) collapse(3)
    for (long feed = 0; feed < step->feeds; feed++)
        for (long block = 0; block < blocks; block++)
            for (long group = 0; group < layer->groups; group++) {
                long row = step->first[feed] + block * most, rows = step->first[feed + 1] - row;
                if (rows <= 0) continue;
                if (single) NAME(keep)(layer, cache, step, feed, row, group, qkv);
                NAME(attend)(layer, cache, step, feed, row, rows < most ? rows : most, group, qkv, side, desk);
            }
    free(ask), free(weight), free(score), free(out);
}

// Numbers that the right side of any of a layer's products but the last has for each column.
static long NAME(tallest)(const struct layer *layer) {
    const struct linear *all[] = {&layer->joint, &layer->out, &layer->gate_up};
    long most = 0;
    for (int i = 0; i < 3; i++) most = all[i]->width + all[i]->room > most ? all[i]->width + all[i]->room : most;
    return most + most % PAIR;
}

// residual [rows, features] passes through layers, in place; the rows' keys and values are kept.
void NAME(decode_layers)(const struct layer *layers, const struct cache *caches, long count, const struct step *step, float *residual) {
    long batch = step->rows, features = layers->joint.width, inner = layers->down.width + layers->down.room;
    struct NAME(side) side = NAME(new_side)(NAME(tallest)(layers), batch), gated = NAME(new_side)(inner + inner % PAIR, batch);
    float *qkv = aligned(batch * layers->joint.rows * 4), *update = aligned(batch * features * 4);
#pragma omp parallel
    for (const struct layer *layer = layers; layer < layers + count; layer++) {
        NAME(add_update)(0, &layer->before_attention, residual, 0, &side, batch, features);
        NAME(linear)(&layer->joint, &side, batch, qkv);
        NAME(attend_all)(layer, caches + (layer - layers), step, qkv, &side);
        NAME(linear)(&layer->out, &side, batch, update);
        NAME(add_update)(&layer->after_attention, &layer->before_feedforward, residual, update, &side, batch, features);
        NAME(gated)(&layer->gate_up, &side, batch, layer->activation, &gated);
        NAME(linear)(&layer->down, &gated, batch, update);
        NAME(add_update)(&layer->after_feedforward, 0, residual, update, &side, batch, features);
    }
    NAME(no_side)(side), NAME(no_side)(gated), free(qkv), free(update);
}

// logits [batch, head->rows] of hidden states after their last norm.
void NAME(decode_head)(const struct norm *norm, const struct linear *head, float *residual, float *logits, long batch) {
    long tall = head->width + head->room;
    struct NAME(side) side = NAME(new_side)(tall + tall % PAIR, batch);
#pragma omp parallel
    {
        NAME(add_update)(0, norm, residual, 0, &side, batch, head->width);
        NAME(linear)(head, &side, batch, logits);
    }
    NAME(no_side)(side);
}

// Bytes of a packed number.
int NAME(packed_bytes)(void) { return sizeof(PACKED); }
