// exp, expm1, log1p and tanh of real numbers: on a GPU CUDA's own, on a CPU polynomials without branches, of which the
// compiler evaluates several at once (a call of libm would stop it from that). Errors are a few units in the last
// place.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#define MATE3D_INLINE __host__ __device__ __forceinline__
#else
#define MATE3D_INLINE inline __attribute__((always_inline))
#endif

namespace mate3d {

template <typename T>
MATE3D_INLINE T absolute(T x) {
  return x < T(0) ? -x : x;
}

// 2^n (1 + fraction) = exp(x), |fraction| <= 0.42; `below` and `above` multiply to 2^n, which may be out of range.
template <typename T>
struct Exponential {
  T fraction, below, above;
};

template <typename T>
MATE3D_INLINE Exponential<T> split_exponential(T x) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr bool single = sizeof(T) == 4;
  constexpr int mantissa = single ? 23 : 52, bias = single ? 127 : 1023;
  constexpr T log2_e = T(1.4426950408889634074);
  // ln 2 in two pieces: n times the first is exact.
  constexpr T ln2 = single ? T(0.693359375) : T(0.6931471803691238165);
  constexpr T ln2_rest = single ? T(-2.12194440054690583e-4) : T(1.9082149292705877e-10);
  constexpr T lowest = single ? T(-104) : T(-746), highest = single ? T(89) : T(710);  // 0 and infinity beyond
  constexpr T shift = single ? T(12582912.0) : T(6755399441055744.0);  // adding it rounds to whole numbers
  x = x < lowest ? lowest : x;  // in this form a NaN stays one
  x = x > highest ? highest : x;
  const T shifted = x * log2_e + shift;
  const T n = shifted - shift;
  const T r = (x - n * ln2) - n * ln2_rest;  // |r| <= ln 2 / 2
  // (exp(r) - 1) / r by its series, cut where the next term is below the last place.
  T sum = T(1.0 / 5040);
  if constexpr (!single) {
    sum = T(1.0 / 6227020800.0);
    sum = sum * r + T(1.0 / 479001600.0);
    sum = sum * r + T(1.0 / 39916800);
    sum = sum * r + T(1.0 / 3628800);
    sum = sum * r + T(1.0 / 362880);
    sum = sum * r + T(1.0 / 40320);
    sum = sum * r + T(1.0 / 5040);
  }
  sum = sum * r + T(1.0 / 720);
  sum = sum * r + T(1.0 / 120);
  sum = sum * r + T(1.0 / 24);
  sum = sum * r + T(1.0 / 6);
  sum = sum * r + T(0.5);
  sum = sum * r + T(1);
  // 2^n as a product of two, each of which is an ordinary number. The low bits of `shifted` are n.
  Bits bits, shift_bits;
  std::memcpy(&bits, &shifted, sizeof(T));
  std::memcpy(&shift_bits, &shift, sizeof(T));
  using Signed = std::make_signed_t<Bits>;
  const Signed whole = Signed(bits - shift_bits);
  const Signed half = whole >> 1;
  const Bits first = Bits(half + bias) << mantissa, second = Bits(whole - half + bias) << mantissa;
  Exponential<T> result;
  result.fraction = sum * r;
  std::memcpy(&result.below, &first, sizeof(T));
  std::memcpy(&result.above, &second, sizeof(T));
  return result;
}

template <typename T>
MATE3D_INLINE T exponential(T x) {
#ifdef __CUDA_ARCH__
  return std::exp(x);
#else
  const Exponential<T> e = split_exponential(x);
  return (T(1) + e.fraction) * e.below * e.above;
#endif
}

// exp(x) - 1, exact near 0 too.
template <typename T>
MATE3D_INLINE T exponential_minus_one(T x) {
#ifdef __CUDA_ARCH__
  return std::expm1(x);
#else
  const Exponential<T> e = split_exponential(x);
  return e.fraction * e.below * e.above + (e.below * e.above - T(1));
#endif
}

// 1 / (2 k + 1) + z / (2 k + 3) + ..., `terms` terms from number k on.
template <typename T, int k, int terms>
MATE3D_INLINE T odd_reciprocals(T z) {
  constexpr T first = T(1.0 / (2 * k + 1));
  if constexpr (k + 1 == terms) return first;
  else return first + z * odd_reciprocals<T, k + 1, terms>(z);
}

// log(1 + x) for 0 <= x <= 1.
template <typename T>
MATE3D_INLINE T log_one_plus(T x) {
#ifdef __CUDA_ARCH__
  return std::log1p(x);
#else
  const T s = x / (T(2) + x), z = s * s;  // log(1 + x) = 2 artanh(s) = 2 s (1 + z / 3 + z^2 / 5 ...), s <= 1/3
  constexpr int terms = sizeof(T) == 4 ? 8 : 17;
  return 2 * s * odd_reciprocals<T, 0, terms>(z);
#endif
}

template <typename T>
MATE3D_INLINE T hyperbolic_tangent(T x) {
#ifdef __CUDA_ARCH__
  return std::tanh(x);
#else
  const T e = exponential_minus_one(-2 * absolute(x));
  const T y = -e / (T(2) + e);
  return x < T(0) ? -y : y;
#endif
}

template <typename T>
MATE3D_INLINE T logistic(T x) {
  return T(1) / (T(1) + exponential(-x));
}

template <typename T>
MATE3D_INLINE T soft_plus(T x) {
  return (x < T(0) ? T(0) : x) + log_one_plus(exponential(-absolute(x)));
}

}  // namespace mate3d
