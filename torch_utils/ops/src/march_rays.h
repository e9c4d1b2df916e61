// Volume rendering of the samples of one ray: the arithmetic of its intervals, for the CPU loop and the CUDA kernel
// alike. Equations: torch_utils/ops/march_rays.py.
#pragma once

#include <cfloat>

#include "elementary.h"

namespace mate3d {

// Optical thickness of the interval between two neighbouring samples.
template <typename T>
MATE3D_INLINE T thickness(T density0, T density1, T depth0, T depth1, bool published) {
  const T middle = T(0.5) * (density0 + density1);
  return (published ? soft_plus(middle - T(1)) : middle) * (depth1 - depth0);
}

// Its derivative by either density.
template <typename T>
MATE3D_INLINE T thickness_slope(T density0, T density1, T depth0, T depth1, bool published) {
  const T middle = T(0.5) * (density0 + density1);
  return T(0.5) * (published ? logistic(middle - T(1)) : T(1)) * (depth1 - depth0);
}

// Light that an interval takes of what passed the intervals before it, whose thickness is `before` in sum.
template <typename T>
MATE3D_INLINE T interval_weight(T before, T own) {
  return exponential(-before) * -exponential_minus_one(-own);
}

// Half of an interval's weight goes to the sample at either end: a sample's weight from those of the intervals before
// and behind it, and the derivative by an interval's weight from those by its ends'.
template <typename T>
MATE3D_INLINE T half_of_both(T before, T behind) {
  return T(0.5) * (before + behind);
}

// Whether a ray of total = sum(v) meets anything: less than this has an infinite inverse.
template <typename T>
MATE3D_INLINE bool meets(T total) {
  constexpr T least = sizeof(T) == 4 ? T(FLT_MIN) : T(DBL_MIN);  // of full precision
  return total >= least;
}

// Where a ray ends, of that and far = sum(v z).
template <typename T>
MATE3D_INLINE T mean_depth(T total, T far) {
  return meets(total) ? far / total : T(INFINITY);
}

// Derivative, by the weight of a sample at depth z, of what depends on sum(v) and on the mean depth.
template <typename T>
struct ByWeight {
  MATE3D_INLINE ByWeight(T by_total, T by_depth, T total, T far)
      : by_total(by_total), by_depth(meets(total) ? by_depth / total : T(0)), depth(meets(total) ? far / total : T(0)) {}
  MATE3D_INLINE T at(T z) const { return by_total + by_depth * (z - depth); }

  T by_total, by_depth, depth;
};

// From derivatives by the intervals' weights to those by the samples' densities, from a ray's last interval to its first.
template <typename T>
struct DensityGradient {
  T later = 0;   // sum of b_k w_k over the intervals behind: a denser one leaves less for them
  T behind = 0;  // what the interval behind gives to its nearer end

  // Derivative by the density at the farther end of an interval, the nearer of the one behind. `b`: that by the
  // interval's weight; `passed`: the light that is left behind it; `slope`: thickness_slope. The ray's first density
  // gets what `behind` is at the end.
  MATE3D_INLINE T step(T b, T weight, T passed, T slope) {
    const T each = (b * passed - later) * slope, both = behind + each;
    later += b * weight;
    behind = each;
    return both;
  }
};

// Mask channel of one sample, and its derivative by the part's signed distance.
template <typename T>
MATE3D_INLINE T mask_value(T sharpness, T sdf) {
  return logistic(-sharpness * sdf);
}

template <typename T>
MATE3D_INLINE T mask_slope(T sharpness, T sdf) {
  const T m = mask_value(sharpness, sdf);
  return -sharpness * m * (T(1) - m);
}

// What samples are sorted by. A depth that is not a number comes last: every sample must have a place, and what it
// gives stays visible.
template <typename T>
MATE3D_INLINE T sorting_key(T depth) {
  return depth == depth ? depth : T(INFINITY);
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
