// Division by a number that a launch knows: on a GPU, where that has no instruction, a product and a shift.
#pragma once

#include "elementary.h"

namespace mate3d {

struct Division {
  // of numbers up to `largest` by `divisor`
  Division(int64_t divisor, int64_t largest) : divisor(uint64_t(divisor)) {
    if (largest >= int64_t(1) << 31) return;  // 64 bits, by plain division
    // A divisor above all that is divided gives 0, as 2^31 does.
    const uint64_t d = divisor > largest ? uint64_t(1) << 31 : uint64_t(divisor);
    while ((uint64_t(1) << shift) < d) ++shift;
    factor = uint32_t((((uint64_t(1) << shift) - d) << 32) / d + 1);
    small = true;
  }

  MATE3D_INLINE uint64_t operator()(uint64_t n) const { return small ? of_small(uint32_t(n)) : n / divisor; }

  // What is left of n, of which the quotient takes the place.
  MATE3D_INLINE uint64_t rest(uint64_t& n) const {
    const uint64_t all = n;
    if (small) {
      const uint32_t quotient = of_small(uint32_t(all));
      n = quotient;
      return uint32_t(all) - quotient * uint32_t(divisor);
    }
    n = all / divisor;
    return all - n * divisor;
  }

  // n < 2^31, and what is added to it is not above it: no carry.
  MATE3D_INLINE uint32_t of_small(uint32_t n) const { return (uint32_t(uint64_t(n) * factor >> 32) + n) >> shift; }

  uint64_t divisor;
  uint32_t factor = 0, shift = 0;
  bool small = false;
};

}  // namespace mate3d
