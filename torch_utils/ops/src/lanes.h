// Several neighbouring numbers as one value of the processor's registers. Operators act on all lanes at once; the
// compiler (GCC or Clang) splits what the processor has no instruction for, so any width is right on any machine.
#pragma once

#include <cstdint>
#include <cstring>

namespace mate3d {

#if defined(__AVX512F__)
constexpr int64_t kLaneBytes = 64;
#elif defined(__AVX__)
constexpr int64_t kLaneBytes = 32;
#else
constexpr int64_t kLaneBytes = 16;
#endif

template <typename T>
struct LanesOf {
  typedef T type __attribute__((vector_size(kLaneBytes)));
  static constexpr int64_t count = kLaneBytes / int64_t(sizeof(T));
};

template <typename T>
using Lanes = typename LanesOf<T>::type;

template <typename T>
inline constexpr int64_t kLanes = LanesOf<T>::count;

template <typename T>
inline Lanes<T> load(const T* from) {
  Lanes<T> lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <typename T>
inline void store(T* to, Lanes<T> lanes) {
  std::memcpy(to, &lanes, sizeof lanes);
}

template <typename T>
inline T sum_of(Lanes<T> lanes) {
  T parts[kLanes<T>];
  store(parts, lanes);
  for (int64_t half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) parts[i] += parts[i + half];
  }
  return parts[0];
}

}  // namespace mate3d
