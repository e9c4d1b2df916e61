// The CPU loops of upfirdn2d. Each row of the result is made in two steps, both over contiguous elements: rows of the
// picture are added up with the vertical taps, and that row is filtered along itself. A filter that is no outer
// product takes both steps once for each of its rows.
#include "upfirdn2d.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

namespace mate3d {
namespace {

constexpr int64_t kGrain = 16384;  // elements of the result worth a thread
constexpr int64_t kStrip = 4096;   // elements of a row that are filtered at once: they stay in the nearest cache
constexpr int64_t kGroup = 4;      // taps in one loop

// Calls visit.template operator()<count>() for 1 <= count <= kGroup.
template <typename Visit>
void with_count(int64_t count, Visit visit) {
  static_assert(kGroup == 4);
  if (count == 1) visit.template operator()<1>();
  else if (count == 2) visit.template operator()<2>();
  else if (count == 3) visit.template operator()<3>();
  else visit.template operator()<4>();
}

// y_i (+)= sum_k taps_k x_{i stride + k step}
template <int count, int stride, bool add, typename T>
void correlate(const T* __restrict__ x, int64_t step, const T* taps, T* __restrict__ y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    T sum = add ? y[i] : T(0);
#pragma GCC unroll 4
    for (int k = 0; k < count; ++k) sum += taps[k] * x[i * stride + k * step];
    y[i] = sum;
  }
}

template <int stride, typename T>
void correlate_any(const T* x, int64_t step, const T* taps, int64_t count, T* y, int64_t n, bool add) {
  for (int64_t k = 0; k < count; k += kGroup) {
    with_count(std::min(kGroup, count - k), [&]<int known>() {
      const bool more = add || k > 0;
      if (more) correlate<known, stride, true>(x + k * step, step, taps + k, y, n);
      else correlate<known, stride, false>(x + k * step, step, taps + k, y, n);
    });
  }
  if (count == 0 && !add) std::fill(y, y + n, T(0));
}

// y_i (+)= sum_k taps_k rows_k[i]
template <int count, bool add, typename T>
void combine(const T* const* rows, const T* taps, T* __restrict__ y, int64_t n) {
  const T* __restrict__ row[count];
  for (int k = 0; k < count; ++k) row[k] = rows[k];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    T sum = add ? y[i] : T(0);
#pragma GCC unroll 4
    for (int k = 0; k < count; ++k) sum += taps[k] * row[k][i];
    y[i] = sum;
  }
}

// Both phases of up-sampling by two, of as many taps each: y_2m = sum_k even_k a_{m+k}, y_2m+1 likewise of b.
template <int count, bool add, typename T>
void up_two(const T* __restrict__ a, const T* even, const T* __restrict__ b, const T* odd, T* __restrict__ y,
            int64_t pairs) {
#pragma omp simd
  for (int64_t m = 0; m < pairs; ++m) {
    T first = add ? y[2 * m] : T(0), second = add ? y[2 * m + 1] : T(0);
#pragma GCC unroll 4
    for (int k = 0; k < count; ++k) {
      first += even[k] * a[m + k];
      second += odd[k] * b[m + k];
    }
    y[2 * m] = first;
    y[2 * m + 1] = second;
  }
}

template <typename T>
class Filter {
 public:
  explicit Filter(const UpfirdnArguments<T, T>& arguments) : a_(arguments) {
    separable_ = factorise();
  }

  void run() const {
    if (a_.inner == 1 && a_.columns.up * a_.columns.down > 2) return run_pixels();
    const int64_t strip = std::max<int64_t>(8, kStrip / a_.inner);
    const int64_t strips = (a_.columns.out + strip - 1) / strip, rows = a_.outer * strips * a_.rows.out;
    const int64_t grain = std::max<int64_t>(1, kGrain / (std::min(strip, a_.columns.out) * a_.inner));
    at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<T> buffer;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t oy = i % a_.rows.out, start = i / a_.rows.out % strips * strip;
        row(i / a_.rows.out / strips, oy, start, std::min(a_.columns.out, start + strip), buffer);
      }
    });
  }

 private:
  // Whether f is an outer product; if so, of which two vectors.
  bool factorise() {
    const int64_t height = a_.rows.taps, width = a_.columns.taps, count = height * width;
    const int64_t pivot = std::max_element(a_.f, a_.f + count, [](T p, T q) { return absolute(p) < absolute(q); }) -
                          a_.f;
    const T largest = a_.f[pivot];
    if (largest == T(0)) return false;
    for (int64_t i = 0; i < height; ++i) vertical_.push_back(a_.f[i * width + pivot % width]);
    for (int64_t j = 0; j < width; ++j) horizontal_.push_back(a_.f[pivot / width * width + j] / largest);
    const T tolerance = absolute(largest) * (sizeof(T) == 4 ? T(1e-6) : T(1e-14));  // of the taps' own rounding
    for (int64_t i = 0; i < count; ++i) {
      if (!(absolute(a_.f[i] - vertical_[i / width] * horizontal_[i % width]) <= tolerance)) return false;
    }
    return true;
  }

  // Single channels at unusual scales gain nothing from rows: each pixel by itself, as on a GPU.
  void run_pixels() const {
    const int64_t rows = a_.outer * a_.rows.out, picture = a_.rows.in * a_.columns.in;
    at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / a_.columns.out), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* x = a_.x + i / a_.rows.out * picture;
        for (int64_t ox = 0; ox < a_.columns.out; ++ox) {
          a_.y[i * a_.columns.out + ox] =
              filtered_pixel(x, a_.columns.in, 1, a_.f, a_.rows, a_.columns, i % a_.rows.out, ox);
        }
      }
    });
  }

  // Columns begin ... end of row oy of picture n.
  void row(int64_t n, int64_t oy, int64_t begin, int64_t end, std::vector<T>& buffer) const {
    const Axis& all = a_.columns;
    T* y = a_.y + ((n * a_.rows.out + oy) * all.out + begin) * a_.inner;
    // The pixels that these columns read, from `low` on; `part` counts columns and pixels from the strip's own.
    const int64_t low = first_tap(all, begin).at;
    const int64_t last = (end - 1) * all.down - all.before + all.taps - 1;
    const int64_t high = (last >= 0 ? last / all.up : -((all.up - 1 - last) / all.up)) + 1;
    const Axis part{high - low, end - begin, all.up, all.down, all.before - begin * all.down + low * all.up, all.taps};
    const FirstTap first = first_tap(a_.rows, oy);
    const int64_t count = first.tap < a_.rows.taps ? (a_.rows.taps - first.tap + a_.rows.up - 1) / a_.rows.up : 0;
    static thread_local std::vector<const T*> rows;
    static thread_local std::vector<T> taps;
    rows.clear();
    taps.clear();
    bool any = false;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t iy = first.at + k, tap = first.tap + k * a_.rows.up;
      if (iy < 0 || iy >= a_.rows.in) continue;
      const T* row = a_.x + (n * a_.rows.in + iy) * all.in * a_.inner;
      if (separable_) {
        rows.push_back(row);
        taps.push_back(vertical_[tap]);
      } else {
        const T one = 1;
        gather(&row, &one, 1, low, high, buffer);
        along(buffer.data(), a_.f + tap * all.taps, part, y, any);
        any = true;
      }
    }
    if (!rows.empty()) {
      gather(rows.data(), taps.data(), int64_t(rows.size()), low, high, buffer);
      along(buffer.data(), horizontal_.data(), part, y, false);
    } else if (!any) {
      std::fill(y, y + part.out * a_.inner, T(0));
    }
  }

  // Pixels low ... high of the weighted sum of rows, with zeros outside of the picture.
  void gather(const T* const* rows, const T* taps, int64_t count, int64_t low, int64_t high,
              std::vector<T>& buffer) const {
    buffer.resize(std::max<int64_t>(0, high - low) * a_.inner);
    const int64_t from = std::clamp<int64_t>(0, low, high), to = std::clamp(a_.columns.in, from, high);
    T* inside = buffer.data() + (from - low) * a_.inner;
    const int64_t n = (to - from) * a_.inner;
    std::fill(buffer.data(), inside, T(0));
    std::fill(inside + n, buffer.data() + buffer.size(), T(0));
    const T* shifted[kGroup];
    for (int64_t k = 0; k < count; k += kGroup) {
      const int64_t group = std::min(kGroup, count - k);
      for (int64_t i = 0; i < group; ++i) shifted[i] = rows[k + i] + from * a_.inner;
      with_count(group, [&]<int known>() {
        if (k > 0) combine<known, true>(shifted, taps + k, inside, n);
        else combine<known, false>(shifted, taps + k, inside, n);
      });
    }
  }

  // Filters one row along itself, or adds that to y.
  void along(const T* x, const T* f, const Axis& axis, T* y, bool add) const {
    if (axis.up == 1 && axis.down == 1) {
      correlate_any<1>(x - axis.before * a_.inner, a_.inner, f, axis.taps, y, axis.out * a_.inner, add);
    } else if (a_.inner == 1 && axis.up == 1 && axis.down == 2) {
      correlate_any<2>(x - axis.before, 1, f, axis.taps, y, axis.out, add);
    } else if (a_.inner == 1 && axis.up == 2 && axis.down == 1 && axis.taps % 2 == 0) {
      up_by_two(x, f, axis, y, add);
    } else {
      pixel_by_pixel(x, f, axis, y, add, 0);
    }
  }

  void up_by_two(const T* x, const T* f, const Axis& axis, T* y, bool add) const {
    const FirstTap even = first_tap(axis, 0), odd = first_tap(axis, 1);
    const int64_t count = axis.taps / 2, pairs = axis.out / 2;
    for (int64_t k = 0; k < count; k += kGroup) {
      T of_even[kGroup], of_odd[kGroup];
      const int64_t group = std::min(kGroup, count - k);
      for (int64_t i = 0; i < group; ++i) {
        of_even[i] = f[even.tap + 2 * (k + i)];
        of_odd[i] = f[odd.tap + 2 * (k + i)];
      }
      with_count(group, [&]<int known>() {
        const bool more = add || k > 0;
        if (more) up_two<known, true>(x + even.at + k, of_even, x + odd.at + k, of_odd, y, pairs);
        else up_two<known, false>(x + even.at + k, of_even, x + odd.at + k, of_odd, y, pairs);
      });
    }
    pixel_by_pixel(x, f, axis, y, add, 2 * pairs);
  }

  // Columns from `begin` on, for any up and down.
  void pixel_by_pixel(const T* x, const T* f, const Axis& axis, T* y, bool add, int64_t begin) const {
    static thread_local std::vector<T> taps;
    taps.resize(axis.taps);
    for (int64_t o = begin; o < axis.out; ++o) {
      const FirstTap first = first_tap(axis, o);
      int64_t count = 0;
      for (int64_t tap = first.tap; tap < axis.taps; tap += axis.up) taps[count++] = f[tap];
      correlate_any<1>(x + first.at * a_.inner, a_.inner, taps.data(), count, y + o * a_.inner, a_.inner, add);
    }
  }

  UpfirdnArguments<T, T> a_;
  bool separable_ = false;
  std::vector<T> vertical_, horizontal_;
};

}  // namespace

void upfirdn2d_cpu(const UpfirdnArguments<float, float>& arguments) { Filter<float>(arguments).run(); }
void upfirdn2d_cpu(const UpfirdnArguments<double, double>& arguments) { Filter<double>(arguments).run(); }

}  // namespace mate3d
