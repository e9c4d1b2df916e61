// The CPU loops of march_rays, a ray at a time.
#include "march_rays.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace mate3d {
namespace {

constexpr int64_t kGrain = 16384;  // values of samples worth a thread
constexpr int64_t kCounted = 256;  // samples that are sorted by counting

// y_f = sum_s v_s x_sf
template <typename T>
void composite(const T* __restrict__ x, const T* __restrict__ v, T* __restrict__ y, int64_t samples, int64_t values) {
  std::fill(y, y + values, T(0));
  int64_t s = 0;
  for (; s + 4 <= samples; s += 4) {  // four at a time: the sums are read and written once for all of them
    const T *a = x + s * values, *b = a + values, *c = b + values, *d = c + values;
    const T va = v[s], vb = v[s + 1], vc = v[s + 2], vd = v[s + 3];
#pragma omp simd
    for (int64_t f = 0; f < values; ++f) y[f] += (va * a[f] + vb * b[f]) + (vc * c[f] + vd * d[f]);
  }
  for (; s < samples; ++s) {
#pragma omp simd
    for (int64_t f = 0; f < values; ++f) y[f] += v[s] * x[s * values + f];
  }
}

// d_s += x_s . g, and to_x_s = v_s g unless null
template <typename T>
void composite_gradient(const T* __restrict__ x, const T* __restrict__ v, const T* __restrict__ g, T* __restrict__ d,
                        T* __restrict__ to_x, int64_t samples, int64_t values) {
  for (int64_t s = 0; s < samples; ++s) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t f = 0; f < values; ++f) sum += x[s * values + f] * g[f];
    d[s] += sum;
    if (!to_x) continue;
#pragma omp simd
    for (int64_t f = 0; f < values; ++f) to_x[s * values + f] = v[s] * g[f];
  }
}

// A ray's samples by depth, and its intervals.
template <typename T>
class Sorted {
 public:
  Sorted(int64_t samples, bool published)
      : samples_(samples), published_(published), order_(samples), rank_(samples), depth_(samples),
        density_(samples), thickness_(samples), before_(samples + 1), weight_(samples), slope_(samples) {}

  void load(const T* density, const T* depth) {
    sort(depth);
    for (int64_t s = 0; s < samples_; ++s) {
      depth_[s] = depth[order_[s]];
      density_[s] = density[order_[s]];
    }
    const int64_t intervals = samples_ - 1;
    const bool published = published_;
    const T *__restrict__ z = depth_.data(), *__restrict__ sigma = density_.data();
    T *__restrict__ thick = thickness_.data(), *__restrict__ before = before_.data(), *__restrict__ weight = weight_.data();
#pragma omp simd
    for (int64_t i = 0; i < intervals; ++i) thick[i] = thickness(sigma[i], sigma[i + 1], z[i], z[i + 1], published);
    before[0] = 0;
    for (int64_t i = 0; i < intervals; ++i) before[i + 1] = before[i] + thick[i];
#pragma omp simd
    for (int64_t i = 0; i < intervals; ++i) weight[i] = interval_weight(before[i], thick[i]);
  }

  // Half of each interval's weight goes to either end.
  void weights(T* v) const {
    for (int64_t i = 0; i < samples_; ++i) {
      const T left = i > 0 ? weight_[i - 1] : T(0), right = i + 1 < samples_ ? weight_[i] : T(0);
      v[order_[i]] = T(0.5) * (left + right);
    }
  }

  // From derivatives by the samples' weights to those by their densities.
  void gradient(const T* by_weight, T* by_density) {
    const int64_t intervals = samples_ - 1;
    const bool published = published_;
    const T *__restrict__ z = depth_.data(), *__restrict__ sigma = density_.data(), *__restrict__ before = before_.data();
    T *__restrict__ passed = thickness_.data(), *__restrict__ slope = slope_.data();  // thicknesses have served
#pragma omp simd
    for (int64_t i = 0; i < intervals; ++i) {
      passed[i] = exponential(-before[i + 1]);
      slope[i] = T(0.5) * thickness_slope(sigma[i], sigma[i + 1], z[i], z[i + 1], published);
    }
    T later = 0, behind = 0;  // sum of b_k w_k over the intervals behind: a denser one leaves less for them
    for (int64_t i = intervals - 1; i >= 0; --i) {
      const T b = T(0.5) * (by_weight[order_[i]] + by_weight[order_[i + 1]]);
      const T each = (b * passed[i] - later) * slope[i];
      later += b * weight_[i];
      by_density[order_[i + 1]] = behind + each;
      behind = each;
    }
    by_density[order_[0]] = behind;
  }

 private:
  void sort(const T* __restrict__ depth) {
    if (samples_ > kCounted) {
      for (int64_t s = 0; s < samples_; ++s) order_[s] = int32_t(s);
      std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) { return comes_before(depth, a, b); });
      return;
    }
    // Few samples: counting, for all of them at once, those before each has no branch that could be guessed wrongly.
    const int32_t samples = int32_t(samples_);
    int32_t* __restrict__ rank = rank_.data();
    std::fill(rank, rank + samples, 0);
    for (int32_t other = 0; other < samples; ++other) {
      const T z = depth[other];
#pragma omp simd
      for (int32_t s = 0; s < samples; ++s) rank[s] += (z < depth[s]) | ((z == depth[s]) & (other < s));
    }
    for (int32_t s = 0; s < samples; ++s) order_[rank[s]] = s;
  }

  int64_t samples_;
  bool published_;
  std::vector<int32_t> order_, rank_;
  std::vector<T> depth_, density_, thickness_, before_, weight_, slope_;
};

template <typename T>
void each_ray(const Rays<T>& rays, auto visit) {
  const int64_t values = rays.samples * (rays.features + rays.parts + 8);
  at::parallel_for(0, rays.rays, std::max<int64_t>(1, kGrain / values), [&](int64_t begin, int64_t end) {
    Sorted<T> sorted(rays.samples, rays.published);
    std::vector<T> buffer(rays.samples * (rays.parts + 1));
    for (int64_t r = begin; r < end; ++r) {
      sorted.load(rays.density + r * rays.samples, rays.depth + r * rays.samples);
      visit(r, sorted, buffer.data());
    }
  });
}

template <typename T>
void march(const Rays<T>& rays, const Marched<T>& out) {
  const int64_t samples = rays.samples, parts = rays.parts;
  each_ray(rays, [&](int64_t r, Sorted<T>& sorted, T* __restrict__ mask) {
    T* v = out.weights + r * samples;
    sorted.weights(v);
    T total = 0, far = 0;
    const T* z = rays.depth + r * samples;
    for (int64_t s = 0; s < samples; ++s) {
      total += v[s];
      far += v[s] * z[s];
    }
    out.weight[r] = total;
    out.depth[r] = total > T(0) ? far / total : std::numeric_limits<T>::infinity();
    composite(rays.colour + r * samples * rays.features, v, out.colour + r * rays.features, samples, rays.features);
    if (rays.normal) composite(rays.normal + r * samples * 3, v, out.normal + r * 3, samples, int64_t(3));
    if (parts == 0) return;
    const T* __restrict__ sdf = rays.part_sdf + r * samples * parts;
    const T sharpness = rays.sharpness;
#pragma omp simd
    for (int64_t i = 0; i < samples * parts; ++i) mask[i] = logistic(-sharpness * sdf[i]);
    composite(mask, v, out.mask + r * parts, samples, parts);
  });
}

template <typename T>
void gradient(const Rays<T>& rays, const RayGradients<T>& g) {
  const int64_t samples = rays.samples, parts = rays.parts;
  each_ray(rays, [&](int64_t r, Sorted<T>& sorted, T* buffer) {
    const T *v = g.weights + r * samples, *z = rays.depth + r * samples;
    T total = 0, far = 0;
    for (int64_t s = 0; s < samples; ++s) {
      total += v[s];
      far += v[s] * z[s];
    }
    T* by_weights = buffer + samples * parts;
    const T by_weight = g.by_weight ? g.by_weight[r] : T(0);
    const T by_depth = g.by_depth && total > T(0) ? g.by_depth[r] / total : T(0);
    const T depth = total > T(0) ? far / total : T(0);
    for (int64_t s = 0; s < samples; ++s) by_weights[s] = by_weight + by_depth * (z[s] - depth);
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
    const T* __restrict__ by_mask = g.by_mask + r * parts;
    const T* __restrict__ sdf = rays.part_sdf + r * samples * parts;
    T *__restrict__ slope = buffer, *__restrict__ to_sdf = g.part_sdf + r * samples * parts;
    const T sharpness = rays.sharpness;
#pragma omp simd
    for (int64_t i = 0; i < samples * parts; ++i) {
      const T m = logistic(-sharpness * sdf[i]);
      slope[i] = -sharpness * m * (T(1) - m);
    }
    for (int64_t s = 0; s < samples; ++s) {
#pragma omp simd
      for (int64_t p = 0; p < parts; ++p) to_sdf[s * parts + p] = v[s] * by_mask[p] * slope[s * parts + p];
    }
  });
}

}  // namespace

void march_rays_cpu(const Rays<float>& rays, const Marched<float>& out) { march(rays, out); }
void march_rays_cpu(const Rays<double>& rays, const Marched<double>& out) { march(rays, out); }
void march_rays_gradient_cpu(const Rays<float>& rays, const RayGradients<float>& g) { gradient(rays, g); }
void march_rays_gradient_cpu(const Rays<double>& rays, const RayGradients<double>& g) { gradient(rays, g); }

}  // namespace mate3d
