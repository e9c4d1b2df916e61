// softplus(h) = log(1 + exp(h)) and its first derivative, the sigmoid: for the CPU's lanes and the CUDA kernel alike.
//
// In float32 from polynomials, within 3e-7 of the exact value, relatively; in float64 from the standard functions.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#ifndef __CUDACC__
#include "lanes.h"
#endif

#ifndef MATE3D_INLINE
#ifdef __CUDACC__
#define MATE3D_INLINE __host__ __device__ __forceinline__
#else
#define MATE3D_INLINE inline
#endif
#endif

namespace mate3d {

// Adds to the exponent of x the integer that stands in the lowest bits of `shifted`.
#ifdef __CUDA_ARCH__
MATE3D_INLINE float scale_by_power(float x, float shifted) {
  return __int_as_float(__float_as_int(x) + (__float_as_int(shifted) << 23));
}
#else
template <typename Bits, typename V>
inline V scale_by_power_of(V x, V shifted) {
  static_assert(sizeof(Bits) == sizeof(V));
  Bits a, b;
  __builtin_memcpy(&a, &x, sizeof x);
  __builtin_memcpy(&b, &shifted, sizeof x);
  a += b << 23;
  __builtin_memcpy(&x, &a, sizeof x);
  return x;
}

inline float scale_by_power(float x, float shifted) { return scale_by_power_of<uint32_t>(x, shifted); }
#ifndef __CUDACC__
inline Lanes<float> scale_by_power(Lanes<float> x, Lanes<float> shifted) {
  return scale_by_power_of<Lanes<uint32_t>>(x, shifted);
}
#endif
#endif

// exp(z) for z <= 0: 2^n exp(r) with |r| <= log(2) / 2. Below -87, where float32 has no more digits, it is exp(-87).
template <typename V>
MATE3D_INLINE V exp_of_negative(V z) {
  const float to_integer = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  const V least = V{} - 87.0f;
  z = z < least ? least : z;  // a NaN stays one
  const V shifted = z * 1.44269504088896341f + to_integer;
  const V n = shifted - to_integer;
  const V r = (z - n * 0.693359375f) - n * -2.12194440e-4f;  // log(2) in two parts: the first times n is exact
  V y = r * 0.008297647349536419f + 0.04191543161869049f;
  y = y * r + 0.16667574644088745f;
  y = y * r + 0.49998894333839417f;
  y = y * r + 0.9999997019767761f;
  y = y * r + 1.0000001192092896f;
  return scale_by_power(y, shifted);
}

// log(1 + e) for e in [0, 1].
template <typename V>
MATE3D_INLINE V log_of_one_plus(V e) {
  V y = e * 0.005232682917267084f - 0.02950519323348999f;
  y = y * e + 0.07822588086128235f;
  y = y * e - 0.13663239777088165f;
  y = y * e + 0.19106003642082214f;
  y = y * e - 0.2484298199415207f;
  y = y * e + 0.3331909775733948f;
  y = y * e - 0.4999949336051941f;
  y = y * e + 0.9999999403953552f;
  return y * e;
}

// 1 / (1 + e) for e in [0, 1]: a parabola, then Newton's iteration twice; a division takes longer.
template <typename V>
MATE3D_INLINE V inverse_of_one_plus(V e) {
  const V d = e + 1.0f;
  V y = (d * 0.32323147f - 1.45454287f) * d + 2.12121026f;
  y = y * (2.0f - d * y);
  return y * (2.0f - d * y);
}

// The parts that both functions share: magnitude e = exp(-|h|).
template <typename V>
MATE3D_INLINE V softplus_from(V h, V e) {
  const V zero = V{};
  return (h > zero ? h : zero) + log_of_one_plus(e);  // of a NaN, e is one
}

template <typename V>
MATE3D_INLINE V sigmoid_from(V h, V e) {
  const V inverse = inverse_of_one_plus(e);
  return h < 0.0f ? e * inverse : inverse;
}

template <typename V>
MATE3D_INLINE V softplus(V h) {
  return softplus_from(h, exp_of_negative(h < 0.0f ? h : -h));
}

template <typename V>
MATE3D_INLINE V sigmoid(V h) {
  return sigmoid_from(h, exp_of_negative(h < 0.0f ? h : -h));
}

template <typename V>
MATE3D_INLINE void softplus_and_sigmoid(V h, V& value, V& slope) {
  const V e = exp_of_negative(h < 0.0f ? h : -h);
  value = softplus_from(h, e);
  slope = sigmoid_from(h, e);
}

template <>
MATE3D_INLINE double softplus(double h) {
  const double rest = std::log1p(std::exp(h > 0 ? -h : h));
  return h > 0 ? h + rest : rest;
}

template <>
MATE3D_INLINE double sigmoid(double h) {
  return 1 / (1 + std::exp(-h));
}

template <>
MATE3D_INLINE void softplus_and_sigmoid(double h, double& value, double& slope) {
  value = softplus(h);
  slope = sigmoid(h);
}

#ifndef __CUDACC__
template <>
inline Lanes<double> softplus(Lanes<double> h) {
  for (int64_t i = 0; i < kLanes<double>; ++i) h[i] = softplus<double>(h[i]);
  return h;
}

template <>
inline Lanes<double> sigmoid(Lanes<double> h) {
  for (int64_t i = 0; i < kLanes<double>; ++i) h[i] = sigmoid<double>(h[i]);
  return h;
}

template <>
inline void softplus_and_sigmoid(Lanes<double> h, Lanes<double>& value, Lanes<double>& slope) {
  value = softplus(h);
  slope = sigmoid(h);
}
#endif

}  // namespace mate3d
