// Right sides of a decoding step's products, and what a layer's weights make of them, for an element type REAL.
//
// A right side is cut into panels of PANEL columns, a column a row of the batch. Weights stand on the left and are read as they lie: as REAL,
// in int8 or in four bits.

// A right side: panels [features / PAIR][columns][PAIR], each `tall` features high.
struct NAME(side) {
    PACKED *at;
    long tall, broad, batch;
    uint8_t *codes; // its columns in int8, one after another, and what they are multiplied by
    float *scale;
};

static inline long NAME(panel)(const struct NAME(side) *side, long column) {
    long rest = side->broad - column / PANEL * PANEL;
    return rest < PANEL ? rest : PANEL;
}

static struct NAME(side) NAME(new_side)(long tall, long batch) {
    long broad = batch <= NARROW ? NARROW : DEEP(batch);
    long room = batch + 3; // int8 columns are multiplied four at a time, those beyond the last by a scale of zero
    struct NAME(side) side = {aligned(tall * broad * sizeof(PACKED)), tall, broad, batch, aligned(ROOM(tall) * room), aligned(room * 4)};
    memset(side.at, 0, tall * side.broad * sizeof(PACKED));
    memset(side.scale, 0, room * 4);
    return side;
}

static void NAME(no_side)(struct NAME(side) side) { free(side.at), free(side.codes), free(side.scale); }

// Fill features from `feature` on of a column.
static void NAME(put)(const struct NAME(side) *side, long feature, long column, const float *values, long count) {
    long columns = NAME(panel)(side, column);
    PACKED *to = side->at + column / PANEL * PANEL * side->tall + column % PANEL * PAIR;
#if PAIR == 2
    if (feature % 2 == 0)
        for (; count > 1; count -= 2, feature += 2, values += 2) {
            uint32_t both = store_bf16(values[0]) | (uint32_t)store_bf16(values[1]) << 16;
            memcpy(to + feature * columns, &both, 4);
        }
#endif
    for (long i = feature; i < feature + count; i++) to[i / PAIR * columns * PAIR + i % PAIR] = TO_PACK(values[i - feature]);
}

// The low-rank features of a right side; all of a team's threads together.
static void NAME(narrow_down)(const struct linear *w, const struct NAME(side) *side, long batch) {
    float tile[6 * PANEL];
#pragma omp for schedule(static) collapse(2)
    for (long first = 0; first < w->room; first += 6)
        for (long left = 0; left < batch; left += PANEL) {
            long rows = w->room - first < 6 ? w->room - first : 6, columns = NAME(panel)(side, left);
            memset(tile, 0, rows * columns * 4);
            NAME(weight_product)((const REAL *)w->down + first * w->width, w->width, side->at + left * side->tall, columns, tile, columns,
                                 rows, w->width, columns);
            for (long r = 0; r < rows; r++)
                for (long b = left; b < batch && b < left + PANEL; b++)
                    NAME(put)(side, w->width + first + r, b, tile + r * columns + b - left, 1);
        }
}

// The columns of a right side in int8, rotated as the weight is; all of a team's threads together.
static void NAME(round_side)(const struct linear *w, const struct NAME(side) *side, long batch) {
#pragma omp for schedule(static)
    for (long b = 0; b < batch; b++) {
        long columns = NAME(panel)(side, b);
        const PACKED *from = side->at + b / PANEL * PANEL * side->tall + b % PANEL * PAIR;
        float row[w->width];
        for (long i = 0; i < w->width; i++) row[i] = FROM_PACK(from[i / PAIR * columns * PAIR + i % PAIR]);
        if (w->width % BLOCK == 0) rotate_blocks(row, w->width);
        int8_t *to = (int8_t *)side->codes + b * ROOM(w->width);
        side->scale[b] = to_int8(row, to, w->width);
        shift_codes(to, w->width);
    }
}

// tile += weight side, where the weight is in four bits: made plain so many rows at a time.
static void NAME(four_product)(const struct linear *w, const PACKED *side, long first, long rows, long columns, float *tile) {
    enum { STRIP = 12 };
    long width = w->width;
    REAL *plain = aligned(STRIP * width * sizeof(REAL));
    for (long r = 0; r < rows; r += STRIP) {
        long count = rows - r < STRIP ? rows - r : STRIP;
        for (long at = 0; at < count * width; at += NF4_BLOCK) {
            long block = ((first + r) * width + at) / NF4_BLOCK;
            NAME(nf4_plain)(w->four + block * (NF4_BLOCK / 2), w->scale[block], plain + at);
        }
        NAME(weight_product)(plain, width, side, columns, tile + r * columns, columns, count, width, columns);
    }
    free(plain);
}

// tile[rows, columns] = weight side + bias, for some rows of the weight and one panel.
static void NAME(slice)(const struct linear *w, const struct NAME(side) *side, long first, long rows, long left, float *tile) {
    long columns = NAME(panel)(side, left);
    for (long r = 0; r < rows; r++) {
        float bias = w->bias ? LOAD(((const REAL *)w->bias)[first + r]) : 0.0f;
        for (long c = 0; c < columns; c++) tile[r * columns + c] = bias;
    }
    const PACKED *from = side->at + left * side->tall;
    long known = w->width, count = side->batch - left < PANEL ? side->batch - left : PANEL;
    if (w->codes)
        code_product(w->codes + first * known, w->scale + first, w->total + first, rows, side->codes + left * ROOM(known), side->scale + left,
                     count, known, tile, columns);
    else if (w->four)
        NAME(four_product)(w, from, first, rows, columns, tile);
    else
        known = 0;
    long depth = w->width + w->room - known;
    if (!depth) return;
    const REAL *plain = (const REAL *)w->weight + first * w->ld;
    NAME(weight_product)(plain, w->ld, from + known * columns, columns, tile, columns, rows, depth, columns);
}

// out[b, row] = weight side + bias; all of a team's threads together.
static void NAME(linear)(const struct linear *w, const struct NAME(side) *side, long batch, float *out) {
    float tile[SLICE * PANEL];
    NAME(narrow_down)(w, side, batch);
    if (w->codes) NAME(round_side)(w, side, batch);
#pragma omp for schedule(static) collapse(2)
    for (long first = 0; first < w->rows; first += SLICE)
        for (long left = 0; left < batch; left += PANEL) {
            long rows = w->rows - first < SLICE ? w->rows - first : SLICE, count = batch - left < PANEL ? batch - left : PANEL;
            NAME(slice)(w, side, first, rows, left, tile);
            turn_over(tile, NAME(panel)(side, left), rows, count, out + left * w->rows + first, w->rows);
        }
}

// to = activation(gate) up of the rows of a weight that holds the one above the other; all of a team's threads together.
static void NAME(gated)(const struct linear *w, const struct NAME(side) *side, long batch, long kind, const struct NAME(side) *to) {
    long inner = w->rows / 2;
    float gate[SLICE * PANEL], *up = gate + SLICE / 2 * PANEL, slope;
    NAME(narrow_down)(w, side, batch);
    if (w->codes) NAME(round_side)(w, side, batch);
#pragma omp for schedule(static) collapse(2)
    for (long first = 0; first < inner; first += SLICE / 2)
        for (long left = 0; left < batch; left += PANEL) {
            long rows = inner - first < SLICE / 2 ? inner - first : SLICE / 2, columns = NAME(panel)(side, left);
            NAME(slice)(w, side, first, rows, left, gate);
            NAME(slice)(w, side, inner + first, rows, left, up);
            if (kind == SILU)
                for (long i = 0; i < rows * columns; i++) gate[i] = activate(gate[i], SILU, &slope) * up[i];
            else
                for (long i = 0; i < rows * columns; i++) gate[i] = activate(gate[i], GELU_TANH, &slope) * up[i];
            PACKED *at = to->at + left * to->tall;
            for (long r = 0; r < rows; r++)
                for (long c = 0; c < columns; c++)
                    at[(first + r) / PAIR * columns * PAIR + c * PAIR + (first + r) % PAIR] = TO_PACK(gate[r * columns + c]);
        }
}
