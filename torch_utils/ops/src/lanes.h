// Several neighbouring numbers as one value of the processor's registers. Operators act on all lanes at once; the
// compiler (GCC or Clang) splits what the processor has no instruction for, so any width is right on any machine.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

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

// Swaps, in two rows, the blocks of `half` lanes off the diagonal: (A B), (C D) become (A C), (B D).
template <int half, typename V, int... i>
inline void swap_blocks(V& a, V& b, std::integer_sequence<int, i...>) {
  constexpr int count = sizeof...(i);
#if __has_builtin(__builtin_shufflevector)
  const V above = __builtin_shufflevector(a, b, (i & half ? count + i - half : i)...);
  b = __builtin_shufflevector(a, b, (i & half ? count + i : i + half)...);
  a = above;
#else
  const V old_a = a, old_b = b;
  ((a[i] = i & half ? old_b[i - half] : old_a[i], b[i] = i & half ? old_b[i] : old_a[i + half]), ...);
#endif
}

// A square of kLanes rows, turned about its diagonal.
template <typename T, int half = int(kLanes<T>) / 2>
inline void transpose(Lanes<T> (&rows)[kLanes<T>]) {
  if constexpr (half > 0) {
    for (int i = 0; i < kLanes<T>; ++i) {
      if (!(i & half)) swap_blocks<half>(rows[i], rows[i + half], std::make_integer_sequence<int, kLanes<T>>());
    }
    transpose<T, half / 2>(rows);
  }
}

}  // namespace mate3d
