// CUDA's bfloat16: the upper half of a float.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float from) {
    uint32_t all;
    std::memcpy(&all, &from, 4);
    bits = from != from ? 0x7fff : (all + 0x7fff + (all >> 16 & 1)) >> 16;  // to the nearest, to even
  }
  explicit operator float() const {
    const uint32_t all = uint32_t(bits) << 16;
    float to;
    std::memcpy(&to, &all, 4);
    return to;
  }
};
