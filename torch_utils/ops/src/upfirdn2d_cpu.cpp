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
constexpr int64_t kStrip = 65536;  // elements of a row that are filtered at once: a few rows of them fit the L2 cache
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
    plan_rows();
  }

  void run() const {
    if (a_.inner == 1 && a_.columns.up * a_.columns.down > 2) return run_pixels();
    const int64_t width = std::min(a_.columns.out, std::max<int64_t>(8, kStrip / a_.inner));
    const int64_t strips = (a_.columns.out + width - 1) / width, items = a_.outer * strips;
    const int64_t grain = std::max<int64_t>(1, kGrain / (width * a_.inner));
    at::parallel_for(0, items * a_.rows.out, grain, [&](int64_t begin, int64_t end) {
      std::vector<T> buffer;
      for (int64_t i = begin; i < end;) {  // the rows of one strip of one picture, as far as they are ours
        const int64_t item = i / a_.rows.out, first = i % a_.rows.out;
        const int64_t rows = std::min(end - i, a_.rows.out - first), start = item % strips * width;
        const Strip strip = strip_of(start, std::min(a_.columns.out, start + width));
        buffer.assign((strip.high - strip.low) * a_.inner, T(0));
        for (int64_t oy = first; oy < first + rows; ++oy) row(item / strips, oy, strip, buffer.data());
        i += rows;
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

  // The rows of the picture that a row of the result adds up, from `at` on, and their vertical taps.
  struct Row {
    int64_t at, count;
    const T* taps;  // of a separable filter
    int64_t tap;    // number of the first; the next one comes `up` later
  };

  void plan_rows() {
    const Axis& axis = a_.rows;
    vertical_by_phase_.resize(axis.up);
    for (int64_t phase = 0; separable_ && phase < axis.up; ++phase) {
      for (int64_t tap = phase; tap < axis.taps; tap += axis.up) vertical_by_phase_[phase].push_back(vertical_[tap]);
    }
    for (int64_t oy = 0; oy < axis.out; ++oy) {
      const FirstTap first = first_tap(axis, oy);
      const int64_t count = first.tap < axis.taps ? (axis.taps - first.tap + axis.up - 1) / axis.up : 0;
      const int64_t skip = std::min(count, std::max<int64_t>(0, -first.at));  // rows above the picture are zero
      const int64_t kept = std::max<int64_t>(0, std::min(count, axis.in - first.at) - skip);
      const T* taps = kept && separable_ ? vertical_by_phase_[first.tap].data() + skip : nullptr;
      rows_.push_back({first.at + skip, kept, taps, first.tap + skip * axis.up});
    }
  }

  // Columns begin ... end of the result, and pixels low ... high of a row that they read; those outside of the
  // picture are zeros in the buffer, those of from ... to are in it. `axis` counts from the strip's own first ones.
  struct Strip {
    int64_t begin, low, high, from, to;
    Axis axis;
  };

  Strip strip_of(int64_t begin, int64_t end) const {
    const Axis& all = a_.columns;
    const int64_t low = first_tap(all, begin).at;
    const int64_t last = (end - 1) * all.down - all.before + all.taps - 1;
    const int64_t high =
        std::max(low, (last >= 0 ? last / all.up : -((all.up - 1 - last) / all.up)) + 1);
    const int64_t from = std::clamp<int64_t>(0, low, high), to = std::clamp(all.in, from, high);
    const int64_t before = all.before - begin * all.down + low * all.up;
    return {begin, low, high, from, to, {high - low, end - begin, all.up, all.down, before, all.taps}};
  }

  // A strip of row oy of picture n. The buffer holds zeros where it is outside of the picture.
  void row(int64_t n, int64_t oy, const Strip& strip, T* buffer) const {
    const Row& row = rows_[oy];
    T* y = a_.y + ((n * a_.rows.out + oy) * a_.columns.out + strip.begin) * a_.inner;
    if (row.count == 0) {
      std::fill(y, y + strip.axis.out * a_.inner, T(0));
      return;
    }
    const int64_t pitch = a_.columns.in * a_.inner, length = (strip.to - strip.from) * a_.inner;
    const T* x = a_.x + (n * a_.rows.in + row.at) * pitch + strip.from * a_.inner;
    T* inside = buffer + (strip.from - strip.low) * a_.inner;
    if (separable_) {
      correlate_any<1>(x, pitch, row.taps, row.count, inside, length, false);
      along(buffer, horizontal_.data(), strip.axis, y, false);
      return;
    }
    for (int64_t k = 0; k < row.count; ++k) {
      std::copy_n(x + k * pitch, length, inside);
      along(buffer, a_.f + (row.tap + k * a_.rows.up) * a_.columns.taps, strip.axis, y, k > 0);
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
  std::vector<std::vector<T>> vertical_by_phase_;
  std::vector<Row> rows_;
};

}  // namespace

void upfirdn2d_cpu(const UpfirdnArguments<float, float>& arguments) { Filter<float>(arguments).run(); }
void upfirdn2d_cpu(const UpfirdnArguments<double, double>& arguments) { Filter<double>(arguments).run(); }

}  // namespace mate3d
