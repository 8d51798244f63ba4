// The fused operations of tunesmith for CPUs, in plain C that compilers turn into vector code; built once per instruction set.
//
// Every operation walks rows and is memory bound: it reads each number once and writes it once. Matrix products stay in oneDNN.
// The operations are written once, in operations.h, for an element type REAL, and included for float and for bfloat16. Sums are
// float whatever REAL is. The torch reference of each stands beside its Python wrapper in the package above.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define SMALL 8192 // elements below which a second thread costs more than it brings
#define LANES 32   // of a running maximum
#define SLICE 48   // rows of a weight that a thread takes at a time when decoding
#define PANEL 64   // columns of a right side that it takes with them
#define PAGE 64    // positions whose keys and values lie together

// What a register of this instruction set holds, and how many of them a row of a small product is wide.
#if defined(__AVX512F__)
#define WIDE 16
#define VECTORS 4
#elif defined(__AVX2__)
#define WIDE 8
#define VECTORS 2
#else
#define WIDE 4
#define VECTORS 2
#endif
typedef float lanes __attribute__((vector_size(WIDE * 4)));

// Columns of the narrowest right side.
#define NARROW (WIDE < 8 ? WIDE : 8)
typedef float narrow_lanes __attribute__((vector_size(NARROW * 4)));

static inline lanes load_lanes(const float *from) {
    lanes found;
    memcpy(&found, from, sizeof(found));
    return found;
}

typedef int32_t places __attribute__((vector_size(WIDE * 4)));

#if WIDE == 16
#define LANE_BY_LANE(place, far) FOUR(place, 0, far), FOUR(place, 4, far), FOUR(place, 8, far), FOUR(place, 12, far)
#elif WIDE == 8
#define LANE_BY_LANE(place, far) FOUR(place, 0, far), FOUR(place, 4, far)
#else
#define LANE_BY_LANE(place, far) FOUR(place, 0, far)
#endif
#define FOUR(place, lane, far) place(lane, far), place(lane + 1, far), place(lane + 2, far), place(lane + 3, far)
#define EVEN(lane, far) ((lane) & (far) ? WIDE + (lane) - (far) : (lane))
#define ODD(lane, far) ((lane) & (far) ? WIDE + (lane) : (lane) + (far))
#define EXCHANGE(far)                                                                                                                     \
    for (int i = 0; far < WIDE && i < WIDE; i++)                                                                                          \
        if (!(i & far)) {                                                                                                                 \
            lanes one = row[i], other = row[i + far];                                                                                     \
            row[i] = __builtin_shuffle(one, other, (places){LANE_BY_LANE(EVEN, far)});                                                    \
            row[i + far] = __builtin_shuffle(one, other, (places){LANE_BY_LANE(ODD, far)});                                               \
        }

// to[column * ld_to + row] = from[row * ld + column]
static void turn_over(const float *from, long ld, long rows, long columns, float *to, long ld_to) {
    long tall = rows / WIDE * WIDE, broad = columns / WIDE * WIDE;
    for (long r = 0; r < tall; r += WIDE)
        for (long c = 0; c < broad; c += WIDE) {
            lanes row[WIDE];
            for (int i = 0; i < WIDE; i++) row[i] = load_lanes(from + (r + i) * ld + c);
            EXCHANGE(1) EXCHANGE(2) EXCHANGE(4) EXCHANGE(8)
            for (int i = 0; i < WIDE; i++) memcpy(to + (c + i) * ld_to + r, &row[i], sizeof(lanes));
        }
    for (long c = 0; c < columns; c++)
        for (long r = c < broad ? tall : 0; r < rows; r++) to[c * ld_to + r] = from[r * ld + c];
}

static void *aligned(long bytes) {
    void *found = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!found) fputs("tunesmith: out of memory in a compiled operation\n", stderr), abort();
    return found;
}

// Raised when what Python hands over changes; a library that was compiled from other files is not used.
int layout(void) { return 2; }

typedef uint16_t bf16;

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float load_bf16(bf16 value) { return from_bits((uint32_t)value << 16); }

// Round to nearest, ties to even.
static inline bf16 store_bf16(float value) {
    uint32_t bits = to_bits(value);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// e^x to 1e-7 relative: 2^n times a polynomial in the rest (Cephes).
static inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * from_bits((uint32_t)((int32_t)n + 127) << 23);
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// cap tanh(x / cap). Near zero, where 1 - 2 / (e^2x + 1) would keep only what 1 leaves of a small number, by a polynomial in x^2, fitted to 1e-8.
static inline float capped(float value, float cap) {
    float x = value / cap, z = x * x;
    float bend = -0.333333304f + z * (0.133329229f + z * (-0.0538750225f + z * (0.0211157763f - 0.00627583585f * z)));
    float near = x + x * z * bend, far = 1.0f - 2.0f / (fast_exp(2.0f * x) + 1.0f);
    return cap * (z < 0.36f ? near : far);
}

enum { SILU = 0, GELU_TANH = 1 };

// The activation of a gated feed-forward layer and its derivative.
static inline float activate(float x, int kind, float *slope) {
    if (kind == SILU) {
        float s = sigmoid(x);
        *slope = s + x * s * (1.0f - s);
        return x * s;
    }
    float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
    float half = sigmoid(2.0f * inner); // (1 + tanh(inner)) / 2
    *slope = half + x * 2.0f * half * (1.0f - half) * 0.7978845608f * (1.0f + 0.134145f * x * x);
    return x * half;
}

// Tiles of attention (attention.h).
#define ROWS 48 // queries
#define KEYS 64
#define DEEP(width) (((width) + WIDE - 1) / WIDE * WIDE)
#define BROAD(length) (((length) + KEYS - 1) / KEYS * KEYS)

// A path: its own nodes [start, stop), its runs of nodes, its length, and where it begins if each is BROAD(length) long.
enum { START, STOP, FIRST_RUN, LAST_RUN, LENGTH, OFFSET, FIELDS };

// A decoder layer as decode_layers reads it; a norm without weight is absent. The Python side is `kernels/decode.py`.
struct norm {
    const float *weight;
    float eps;
};
struct linear { // weight [rows, ld], of which width + room columns count, or room alone where the others are in few bits; down [room, width]
    const void *weight, *bias, *down;
    long rows, width, room, ld;
    // Weights in int8, or in four bits (two in a byte, as many in a block as NF4_BLOCK), and what they are multiplied by, a row or a block each.
    const int8_t *codes;
    const uint8_t *four;
    const float *scale;
    const int32_t *total; // sums of the int8 rows
};
struct layer {
    struct norm before_attention, query, key, after_attention, before_feedforward, after_feedforward;
    struct linear joint, out, gate_up, down;
    long kind, heads, groups, width, window, activation;
    float scale, softcap;
};
// Keys and values of one layer in pages, `stride` numbers from page to page.
struct cache {
    void *keys, *values;
    long stride;
};
// Feeds are stretches of new tokens, each of one sequence: its rows [first[f], first[f + 1]) from position start[f] on, and its row of the
// table, which names the pages of its positions. Angles [kinds, rows, turned].
struct step {
    long rows, feeds, longest, pages, turned;
    const float *cosine, *sine;
    const int64_t *first, *start, *table;
};

// The sixteen numbers of a weight in four bits, and how many have one scale.
#define NF4_BLOCK 64
static const float nf4_levels[16] = {
    -1.0f,          -0.6961928010f, -0.5250730515f, -0.3949174881f, -0.2844413817f, -0.1847734302f, -0.0910500363f, 0.0f,
    0.0795802996f,  0.1609302014f,  0.2461123019f,  0.3379152417f,  0.4407098293f,  0.5626170039f,  0.7229568362f,  1.0f};

typedef float sixteen __attribute__((vector_size(64)));
typedef int32_t sixteen_places __attribute__((vector_size(64)));
typedef uint8_t sixteen_bytes __attribute__((vector_size(16)));

// A block, or what there is of the last one, as floats.
static inline void nf4_block(const uint8_t *codes, long count, float scale, float *value) {
#ifdef __AVX512F__
    if (count == NF4_BLOCK) {
        sixteen levels;
        memcpy(&levels, nf4_levels, sizeof(levels));
        levels *= scale;
        for (long i = 0; i < NF4_BLOCK / 32; i++) {
            sixteen_bytes both;
            memcpy(&both, codes + 16 * i, sizeof(both));
            sixteen_places code = __builtin_convertvector(both, sixteen_places);
            sixteen even = __builtin_shuffle(levels, code >> 4), odd = __builtin_shuffle(levels, code & 15);
            sixteen one = __builtin_shuffle(even, odd, (sixteen_places){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
            sixteen two = __builtin_shuffle(even, odd, (sixteen_places){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
            memcpy(value + 32 * i, &one, sizeof(one));
            memcpy(value + 32 * i + 16, &two, sizeof(two));
        }
        return;
    }
#endif
    int32_t code[NF4_BLOCK];
    for (long i = 0; i < (count + 1) / 2; i++) code[2 * i] = codes[i] >> 4, code[2 * i + 1] = codes[i] & 15;
    for (long i = 0; i < count; i++) value[i] = nf4_levels[code[i]] * scale;
}

#include "rotate.h"
#include "codes.h"

#define REAL float
#define REAL_IS_BF16 0
#define NAME(operation) operation##_float
#define LOAD(value) (value)
#define STORE(value) (value)
#include "operations.h"
#include "noise.h"
#include "stretch.h"
#include "quantise.h"
#include "nf4.h"
#include "product.h"
#include "attention.h"
#include "side.h"
#include "decode.h"
#undef REAL
#undef REAL_IS_BF16
#undef NAME
#undef LOAD
#undef STORE
#undef PAIR
#undef PACK
#undef TO_PACK
#undef FROM_PACK

#define REAL bf16
#define REAL_IS_BF16 1
#define NAME(operation) operation##_bf16
#define LOAD(value) load_bf16(value)
#define STORE(value) store_bf16(value)
#include "operations.h"
#include "stretch.h"
#include "quantise.h"
#include "nf4.h"
#include "product.h"
#include "attention.h"
#include "side.h"
#include "decode.h"
