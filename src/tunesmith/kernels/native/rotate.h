// Rotation of float rows by Hadamard matrices, and their rounding to int8.

#define BLOCK 64 // numbers that are mixed: a Hadamard matrix of this size, on blocks of a row

// x[i] and x[i ^ distance] become sum and difference; distance is a constant below 16.
#define MIX_WITHIN(x, distance)                                                                                                           \
    {                                                                                                                                     \
        sixteen_places place = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};                                                     \
        sixteen_places behind = (place & distance) != 0;                                                                                  \
        sixteen sign = __builtin_convertvector(behind * 2 + 1, sixteen);                                                                  \
        x = x * sign + __builtin_shuffle(x, place ^ distance);                                                                            \
    }
#define MIX(a, b)                                                                                                                         \
    {                                                                                                                                     \
        sixteen sum = a + b;                                                                                                              \
        b = a - b;                                                                                                                        \
        a = sum;                                                                                                                          \
    }

// Multiply each BLOCK of a row by the orthonormal Hadamard matrix in Sylvester's order, which is its own inverse.
static void rotate_blocks(float *row, long width) {
    for (long start = 0; start < width; start += BLOCK) {
        sixteen part[4];
        memcpy(part, row + start, sizeof(part));
        for (int p = 0; p < 4; p++) {
            MIX_WITHIN(part[p], 1)
            MIX_WITHIN(part[p], 2)
            MIX_WITHIN(part[p], 4)
            MIX_WITHIN(part[p], 8)
        }
        MIX(part[0], part[1])
        MIX(part[2], part[3])
        MIX(part[0], part[2])
        MIX(part[1], part[3])
        for (int p = 0; p < 4; p++) part[p] = part[p] * 0.125f;
        memcpy(row + start, part, sizeof(part));
    }
}

// to = round(127 row / max |row|); returns max |row| / 127. Sizes are compared by their bits, which are in the same order and put what is not
// a number above all others, so that it shows in the scale.
static float to_int8(const float *row, int8_t *to, long width) {
    int32_t largest = 0;
    for (long i = 0; i < width; i++) {
        int32_t size = (int32_t)(to_bits(row[i]) & 0x7fffffff);
        largest = size > largest ? size : largest;
    }
    float most = from_bits((uint32_t)largest), inverse = most > 0.0f ? 127.0f / most : 0.0f;
    for (long i = 0; i < width; i++) to[i] = (int8_t)(int32_t)rintf(row[i] * inverse);
    return most / 127.0f;
}
