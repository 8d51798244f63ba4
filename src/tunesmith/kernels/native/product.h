// Small matrix products in registers, for an element type REAL; the caller packs the right side.
//
// With bfloat16 dot products (AVX512-BF16) numbers stay bf16 and are multiplied in pairs; elsewhere they are widened to float when packed.

#if defined(__AVX512BF16__) && REAL_IS_BF16
#define PAIR 2 // neighbours in depth that stand side by side
typedef bf16 NAME(packed);
#define PACK(value) (value)
#define TO_PACK(value) store_bf16(value)
#define FROM_PACK(value) load_bf16(value)
#else
#define PAIR 1
typedef float NAME(packed);
#define PACK(value) LOAD(value)
#define TO_PACK(value) (value)
#define FROM_PACK(value) (value)
#endif

#define PACKED NAME(packed)

// What the left side holds: packed numbers, or a model's own weights.
#define LEFT PACKED
#define AHEAD 0
#define LEFT_NAME(operation) NAME(operation)
#define LEFT_LOAD(value) (value)
#include "tile.h"
#undef LEFT
#undef AHEAD
#undef LEFT_NAME
#undef LEFT_LOAD

#define LEFT REAL
#define AHEAD 1 // strips to fetch before they are read
#define LEFT_NAME(operation) NAME(weight_##operation)
#define LEFT_LOAD(value) LOAD(value)
#include "tile.h"
#undef LEFT
#undef AHEAD
#undef LEFT_NAME
#undef LEFT_LOAD
