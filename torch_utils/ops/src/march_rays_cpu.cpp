// The CPU loops of march_rays, a ray at a time.
#include "march_rays.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "lanes.h"

namespace mate3d {
namespace {

constexpr int64_t kGrain = 16384;  // values of samples worth a thread
constexpr int64_t kCounted = 256;  // samples that are sorted by counting

// y_f = sum_s v_s x_sf for `vectors` vectors of f, kept in registers
template <int64_t vectors, typename T>
inline void composite_vectors(const T* x, const T* v, T* y, int64_t samples, int64_t values) {
  Lanes<T> even[vectors] = {}, odd[vectors] = {};  // two sums each, so that no addition waits for the one before
  int64_t s = 0;
  for (; s + 2 <= samples; s += 2) {
    for (int64_t i = 0; i < vectors; ++i) {
      even[i] += v[s] * load(x + s * values + i * kLanes<T>);
      odd[i] += v[s + 1] * load(x + (s + 1) * values + i * kLanes<T>);
    }
  }
  for (int64_t i = 0; i < vectors; ++i) {
    if (s < samples) even[i] += v[s] * load(x + s * values + i * kLanes<T>);
    store(y + i * kLanes<T>, even[i] + odd[i]);
  }
}

// The same for all f. The last vector overlaps the one before.
template <typename T>
void composite(const T* x, const T* v, T* y, int64_t samples, int64_t values) {
  if (values < kLanes<T>) {
    for (int64_t f = 0; f < values; ++f) {
      T sum = 0;
      for (int64_t s = 0; s < samples; ++s) sum += v[s] * x[s * values + f];
      y[f] = sum;
    }
    return;
  }
  int64_t f = 0;
  for (; f + 2 * kLanes<T> <= values; f += 2 * kLanes<T>) composite_vectors<2>(x + f, v, y + f, samples, values);
  for (; f < values; f += kLanes<T>) {
    const int64_t at = std::min(f, values - kLanes<T>);
    composite_vectors<1>(x + at, v, y + at, samples, values);
  }
}

// to_f = factor g_f
template <typename T>
inline void scale(T factor, const T* g, T* to, int64_t values) {
  if (values < kLanes<T>) {
    for (int64_t f = 0; f < values; ++f) to[f] = factor * g[f];
    return;
  }
  for (int64_t f = 0; f < values; f += kLanes<T>) {
    const int64_t at = std::min(f, values - kLanes<T>);
    store(to + at, factor * load(g + at));
  }
}

// d_s += x_s . g, and to_x_s = v_s g unless null
template <typename T>
void composite_gradient(const T* x, const T* v, const T* g, T* d, T* to_x, int64_t samples, int64_t values) {
  if (values < kLanes<T>) {
    for (int64_t s = 0; s < samples; ++s) {
      for (int64_t f = 0; f < values; ++f) d[s] += x[s * values + f] * g[f];
      if (to_x) scale(v[s], g, to_x + s * values, values);
    }
    return;
  }
  // The last vector overlaps the one before; what that has counted is left out.
  const int64_t last = values - kLanes<T>, counted = (kLanes<T> - values % kLanes<T>) % kLanes<T>;
  Lanes<T> g_last = load(g + last);
  for (int64_t i = 0; i < counted; ++i) g_last[i] = 0;
  for (int64_t first = 0; first < samples; first += kLanes<T>) {
    const int64_t count = std::min(kLanes<T>, samples - first);
    Lanes<T> sums[kLanes<T>] = {};  // of a sample each; turned about, the lanes are the samples
    for (int64_t i = 0; i < count; ++i) {
      const T* const row = x + (first + i) * values;
      sums[i] = g_last * load(row + last);
      for (int64_t f = 0; f < last; f += kLanes<T>) sums[i] += load(g + f) * load(row + f);
      if (to_x) scale(v[first + i], g, to_x + (first + i) * values, values);
    }
    transpose<T>(sums);
    for (int64_t i = 1; i < kLanes<T>; ++i) sums[0] += sums[i];
    for (int64_t i = 0; i < count; ++i) d[first + i] += sums[0][i];
  }
}

// A ray's samples by depth, and its intervals.
template <typename T>
class Sorted {
 public:
  Sorted(int64_t samples, bool published)
      : samples_(samples), published_(published), order_(samples), rank_(samples + kLanes<T>), depth_(samples + kLanes<T>),
        density_(samples), thickness_(samples), before_(samples + 1), weight_(samples + 1), slope_(samples) {}

  void read(const T* density, const T* depth) {
    sort(depth);
    for (int64_t s = 0; s < samples_; ++s) {
      depth_[s] = depth[order_[s]];
      density_[s] = density[order_[s]];
    }
    if (published_) load_intervals<true>();
    else load_intervals<false>();
  }

  // Half of each interval's weight goes to either end.
  void weights(T* v) const {
    for (int64_t i = 0; i < samples_; ++i) v[order_[i]] = half_of_both(weight_[i], weight_[i + 1]);
  }

  // From derivatives by the samples' weights to those by their densities.
  void gradient(const T* by_weight, T* by_density) {
    if (published_) load_slopes<true>();
    else load_slopes<false>();
    const T *__restrict__ passed = thickness_.data(), *__restrict__ slope = slope_.data();
    DensityGradient<T> found;
    for (int64_t i = samples_ - 2; i >= 0; --i) {
      const T b = half_of_both(by_weight[order_[i]], by_weight[order_[i + 1]]);
      by_density[order_[i + 1]] = found.step(b, weight_[i + 1], passed[i], slope[i]);
    }
    by_density[order_[0]] = found.behind;
  }

 private:
  // `published` is known to the compiler in both: its loops would not become vectors with a condition in them.
  template <bool published>
  void load_intervals() {
    const int64_t intervals = samples_ - 1;
    const T *__restrict__ z = depth_.data(), *__restrict__ sigma = density_.data();
    T *__restrict__ thick = thickness_.data(), *__restrict__ before = before_.data(), *__restrict__ weight = weight_.data();
#pragma omp simd
    for (int64_t i = 0; i < intervals; ++i) thick[i] = thickness(sigma[i], sigma[i + 1], z[i], z[i + 1], published);
    before[0] = 0;
    for (int64_t i = 0; i < intervals; ++i) before[i + 1] = before[i] + thick[i];
    weight[0] = weight[samples_] = 0;
#pragma omp simd
    for (int64_t i = 0; i < intervals; ++i) weight[i + 1] = interval_weight(before[i], thick[i]);
  }

  template <bool published>
  void load_slopes() {
    const T *__restrict__ z = depth_.data(), *__restrict__ sigma = density_.data(), *__restrict__ before = before_.data();
    T *__restrict__ passed = thickness_.data(), *__restrict__ slope = slope_.data();  // thicknesses have served
#pragma omp simd
    for (int64_t i = 0; i < samples_ - 1; ++i) {
      passed[i] = exponential(-before[i + 1]);
      slope[i] = thickness_slope(sigma[i], sigma[i + 1], z[i], z[i + 1], published);
    }
  }

  void sort(const T* depth_any) {
    T* const depth = depth_.data();
    for (int64_t s = 0; s < samples_; ++s) depth[s] = sorting_key(depth_any[s]);
    if (samples_ > kCounted) {
      for (int64_t s = 0; s < samples_; ++s) order_[s] = int32_t(s);
      std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) { return comes_before(depth, a, b); });
      return;
    }
    // Few samples: counting those before each, a vector of them at a time, has no branch that could be guessed wrongly.
    using Counts = decltype(Lanes<T>{} < Lanes<T>{});  // integers; of a comparison, -1 where it holds
    using Count = std::remove_reference_t<decltype(Counts{}[0])>;
    Counts place{};
    for (int64_t i = 0; i < kLanes<T>; ++i) place[i] = Count(i);
    for (int64_t first = 0; first < samples_; first += kLanes<T>) {
      const Lanes<T> own = load(depth + first);  // what lies beyond the last sample is counted in vain
      const int64_t last = std::min(first + kLanes<T>, samples_);
      Counts count{};
      for (int64_t other = 0; other < first; ++other) count -= depth[other] <= own;
      for (int64_t other = first; other < last; ++other) {
        count -= (depth[other] < own) | ((depth[other] == own) & (place > Count(other - first)));
      }
      for (int64_t other = last; other < samples_; ++other) count -= depth[other] < own;
      for (int64_t i = 0; i < kLanes<T>; ++i) rank_[first + i] = int32_t(count[i]);
    }
    for (int64_t s = 0; s < samples_; ++s) order_[rank_[s]] = int32_t(s);
  }

  int64_t samples_;
  bool published_;
  std::vector<int32_t> order_, rank_;
  std::vector<T> depth_, density_, thickness_, before_;
  std::vector<T> weight_;  // of interval i in number i + 1, with a zero at either end
  std::vector<T> slope_;
};

// `visit` gets a ray, its samples in order, and `room` for so many numbers.
template <typename T>
void each_ray(const Rays<T>& rays, int64_t room, auto visit) {
  const int64_t values = rays.samples * (rays.features + rays.parts + 8);
  at::parallel_for(0, rays.rays, std::max<int64_t>(1, kGrain / values), [&](int64_t begin, int64_t end) {
    Sorted<T> sorted(rays.samples, rays.published);
    std::vector<T> buffer(room);
    for (int64_t r = begin; r < end; ++r) {
      sorted.read(rays.density + r * rays.samples, rays.depth + r * rays.samples);
      visit(r, sorted, buffer.data());
    }
  });
}

template <typename T>
void march(const Rays<T>& rays, const Marched<T>& out) {
  const int64_t samples = rays.samples, parts = rays.parts;
  each_ray(rays, samples * parts, [&](int64_t r, Sorted<T>& sorted, T* __restrict__ mask) {
    T* v = out.weights + r * samples;
    sorted.weights(v);
    T total = 0, far = 0;
    const T* z = rays.depth + r * samples;
#pragma omp simd reduction(+ : total, far)
    for (int64_t s = 0; s < samples; ++s) {
      total += v[s];
      far += v[s] * z[s];
    }
    out.weight[r] = total;
    out.depth[r] = mean_depth(total, far);
    composite(rays.colour + r * samples * rays.features, v, out.colour + r * rays.features, samples, rays.features);
    if (rays.normal) composite(rays.normal + r * samples * 3, v, out.normal + r * 3, samples, int64_t(3));
    if (parts == 0) return;
    const T* __restrict__ sdf = rays.part_sdf + r * samples * parts;
    const T sharpness = rays.sharpness;
#pragma omp simd
    for (int64_t i = 0; i < samples * parts; ++i) mask[i] = mask_value(sharpness, sdf[i]);
    composite(mask, v, out.mask + r * parts, samples, parts);
  });
}

template <typename T>
void gradient(const Rays<T>& rays, const RayGradients<T>& g) {
  const int64_t samples = rays.samples, parts = rays.parts;
  each_ray(rays, samples, [&](int64_t r, Sorted<T>& sorted, T* by_weights) {
    const T *v = g.weights + r * samples, *z = rays.depth + r * samples;
    T total = 0, far = 0;
#pragma omp simd reduction(+ : total, far)
    for (int64_t s = 0; s < samples; ++s) {
      total += v[s];
      far += v[s] * z[s];
    }
    const ByWeight<T> by_weight(g.by_weight ? g.by_weight[r] : T(0), g.by_depth ? g.by_depth[r] : T(0), total, far);
    for (int64_t s = 0; s < samples; ++s) by_weights[s] = by_weight.at(z[s]);
    if (g.by_colour) {
      const int64_t at = r * samples * rays.features;
      composite_gradient(rays.colour + at, v, g.by_colour + r * rays.features, by_weights,
                         g.colour ? g.colour + at : nullptr, samples, rays.features);
    }
    if (g.by_normal) {
      const int64_t at = r * samples * 3;
      composite_gradient(rays.normal + at, v, g.by_normal + r * 3, by_weights, g.normal ? g.normal + at : nullptr,
                         samples, int64_t(3));
    }
    if (g.density) sorted.gradient(by_weights, g.density + r * samples);
    if (!g.by_mask || !g.part_sdf) return;
    const T* by_mask = g.by_mask + r * parts;
    const T* __restrict__ sdf = rays.part_sdf + r * samples * parts;
    T* __restrict__ to_sdf = g.part_sdf + r * samples * parts;
    for (int64_t s = 0; s < samples; ++s) scale(v[s], by_mask, to_sdf + s * parts, parts);
    const T sharpness = rays.sharpness;
#pragma omp simd
    for (int64_t i = 0; i < samples * parts; ++i) to_sdf[i] *= mask_slope(sharpness, sdf[i]);
  });
}

}  // namespace

void march_rays_cpu(const Rays<float>& rays, const Marched<float>& out) { march(rays, out); }
void march_rays_cpu(const Rays<double>& rays, const Marched<double>& out) { march(rays, out); }
void march_rays_gradient_cpu(const Rays<float>& rays, const RayGradients<float>& g) { gradient(rays, g); }
void march_rays_gradient_cpu(const Rays<double>& rays, const RayGradients<double>& g) { gradient(rays, g); }

}  // namespace mate3d
