// Numbers zeroed at random by a counter: which ones fall depends on the seed and on their place, and on nothing else.

#pragma once

#include <cstdint>

namespace beige {

// What is dropped.
struct Thinning {
  uint64_t seed;
  // A number falls where its 16 random bits are below this.
  uint32_t threshold;
  // What the others are multiplied by.
  float scale;
};

// For numbers `first` to `first + count` of a tensor: `out[i] = (kept ? in[i] * scale : 0) + rest[i]`. `rest` may be
// null, and `out` may be `in`. The pointers are to the number `first`.
void thin(float* out, const float* in, const float* rest, uint64_t first, uint64_t count, const Thinning& how);

}  // namespace beige
