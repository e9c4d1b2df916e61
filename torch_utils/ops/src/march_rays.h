// Volume rendering of the samples of one ray: the arithmetic of its intervals, for the CPU loop and the CUDA kernel
// alike. Equations: torch_utils/ops/march_rays.py.
#pragma once

#include "elementary.h"

namespace mate3d {

// Optical thickness of the interval between two neighbouring samples.
template <typename T>
MATE3D_INLINE T thickness(T density0, T density1, T depth0, T depth1, bool published) {
  const T middle = T(0.5) * (density0 + density1);
  return (published ? soft_plus(middle - T(1)) : middle) * (depth1 - depth0);
}

// Its derivative by either density, times two.
template <typename T>
MATE3D_INLINE T thickness_slope(T density0, T density1, T depth0, T depth1, bool published) {
  const T middle = T(0.5) * (density0 + density1);
  return (published ? logistic(middle - T(1)) : T(1)) * (depth1 - depth0);
}

// Light that an interval takes of what passed the intervals before it, whose thickness is `before` in sum.
template <typename T>
MATE3D_INLINE T interval_weight(T before, T own) {
  return exponential(-before) * -exponential_minus_one(-own);
}

// Whether sample a comes before sample b; of two at one depth, the one that was drawn first.
template <typename T>
MATE3D_INLINE bool comes_before(const T* depth, int64_t a, int64_t b) {
  return depth[a] < depth[b] || (depth[a] == depth[b] && a < b);
}

// What a call works on: R rays of S samples, with F colours, P parts and 3 components of a normal at each; every
// tensor is contiguous. P is 0 where no mask is wanted, and normal is null where no normals are.
template <typename T>
struct Rays {
  int64_t rays, samples, features, parts;
  bool published;
  T sharpness;      // mask channel p is the composite of sigmoid(-sharpness s_p)
  const T* density;   // (R, S)
  const T* depth;     // (R, S)
  const T* colour;    // (R, S, F)
  const T* part_sdf;  // (R, S, P)
  const T* normal;    // (R, S, 3)
};

template <typename T>
struct Marched {
  T* colour;    // (R, F)
  T* depth;     // (R): sum(v z) / sum(v), infinite where that is 0 / 0
  T* weight;    // (R): sum(v)
  T* mask;      // (R, P)
  T* normal;    // (R, 3)
  T* weights;   // (R, S): v, in the order of the samples
};

// Derivatives by what was marched, and what they become; null where there is none.
template <typename T>
struct RayGradients {
  const T *weights, *by_colour, *by_depth, *by_weight, *by_mask, *by_normal;
  T *density, *colour, *part_sdf, *normal;
};

}  // namespace mate3d
