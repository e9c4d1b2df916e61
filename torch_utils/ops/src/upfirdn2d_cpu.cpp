// The CPU loops of upfirdn2d. Each row of the result is made in two steps, both over contiguous elements: rows of the
// picture are added up with the vertical taps, and that row is filtered along itself. A filter that is no outer
// product takes both steps once for each of its rows.
#include "upfirdn2d.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mate3d {
namespace {

constexpr int64_t kGrain = 16384;  // elements of the result worth a thread
constexpr int64_t kStrip = 65536;  // elements of a row that are filtered at once: a few rows of them fit the L2 cache
constexpr int64_t kGroup = 4;      // taps in one loop
constexpr int64_t kLine = 64;      // bytes that memory moves at once
constexpr int64_t kAhead = 4096;   // bytes between what is read and what is asked for ahead of it

// Calls visit.template operator()<count>() for 1 <= count <= kGroup. As part of the caller: short rows feel a call.
template <typename Visit>
MATE3D_INLINE void with_count(int64_t count, Visit visit) {
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
MATE3D_INLINE void correlate_any(const T* x, int64_t step, const T* taps, int64_t count, T* y, int64_t n, bool add) {
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
  explicit Filter(const UpfirdnArguments<T, T>& arguments)
      : a_(arguments), taps_(arguments.f, arguments.f + arguments.rows.taps * arguments.columns.taps) {
    if (!a_.flip) std::reverse(taps_.begin(), taps_.end());
    for (T& tap : taps_) tap *= a_.gain;
    separable_ = factorise();
    columns_ = reads(a_.columns);
    rows_ = reads(a_.rows);
    for (Reads& row : rows_) {  // those above and below the picture are zero
      const int64_t skip = std::min(row.count, std::max<int64_t>(0, -row.at));
      row.count = std::max<int64_t>(0, std::min(row.count, a_.rows.in - row.at) - skip);
      row.at += skip;
      row.tap += skip;
    }
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
        const Strip strip = strip_of(item / strips, start, std::min(a_.columns.out, start + width));
        if (separable_) separable_rows(strip, first, first + rows, buffer);
        else any_rows(strip, first, first + rows, buffer);
        i += rows;
      }
    });
  }

 private:
  // What a result reads along an axis: `count` pixels from `at` on. `tap` is the first of the taps that it multiplies
  // them by, of which those of a phase lie beside each other (by_phase).
  struct Reads {
    int64_t at, count, tap;
  };

  static std::vector<Reads> reads(const Axis& axis) {
    std::vector<int64_t> taps(axis.up + 1, 0);  // before each phase's
    for (int64_t phase = 0; phase < axis.up; ++phase) {
      taps[phase + 1] = taps[phase] + std::max<int64_t>(0, (axis.taps - phase + axis.up - 1) / axis.up);
    }
    std::vector<Reads> all;
    all.reserve(axis.out);
    for (int64_t o = 0; o < axis.out; ++o) {
      const FirstTap first = first_tap(axis, o);
      all.push_back({first.at, taps[first.tap + 1] - taps[first.tap], taps[first.tap]});
    }
    return all;
  }

  // Numbers of the taps, phase by phase: 0, up, 2 up ..., 1, 1 + up ...
  static std::vector<int64_t> by_phase(const Axis& axis) {
    std::vector<int64_t> taps;
    for (int64_t phase = 0; phase < axis.up; ++phase) {
      for (int64_t tap = phase; tap < axis.taps; tap += axis.up) taps.push_back(tap);
    }
    return taps;
  }

  // Whether f is an outer product; if so, its two vectors are kept, else all its taps.
  bool factorise() {
    const T* f = taps_.data();
    const int64_t height = a_.rows.taps, width = a_.columns.taps, count = height * width;
    const int64_t pivot = std::max_element(f, f + count, [](T p, T q) { return absolute(p) < absolute(q); }) - f;
    const T* row = f + pivot / width * width;
    const T* column = f + pivot % width;
    const T largest = f[pivot], tolerance = sizeof(T) == 4 ? T(1e-6) : T(1e-14);
    bool product = largest != T(0);
    for (int64_t i = 0; i < count && product; ++i) {  // but for each tap's own rounding: small ones count too
      const T difference = f[i] - column[i / width * width] * (row[i % width] / largest);
      product = absolute(difference) <= tolerance * absolute(f[i]);
    }
    const auto across = by_phase(a_.columns);
    for (const int64_t i : by_phase(a_.rows)) {
      if (product) vertical_.push_back(column[i * width]);
      else for (const int64_t j : across) horizontal_.push_back(f[i * width + j]);
    }
    if (product) for (const int64_t j : across) horizontal_.push_back(row[j] / largest);
    return product;
  }

  // Single channels at unusual scales gain nothing from rows: each pixel by itself, as on a GPU.
  void run_pixels() const {
    const int64_t rows = a_.outer * a_.rows.out, picture = a_.rows.in * a_.columns.in;
    at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / a_.columns.out), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* x = a_.x + i / a_.rows.out * picture;
        for (int64_t ox = 0; ox < a_.columns.out; ++ox) {
          a_.y[i * a_.columns.out + ox] =
              filtered_pixel(x, a_.columns.in, 1, taps_.data(), 1, a_.rows, a_.columns, i % a_.rows.out, ox);
        }
      }
    });
  }

  // Columns begin ... end of the results of a picture, and the pixels low ... high of a row that they read, of which
  // from ... to are in the picture and the others zero. `x` is that of row 0 and column `from`, `y` the first result.
  struct Strip {
    int64_t begin, end, low, high, from, to;
    const T* x;
    T* y;
  };

  Strip strip_of(int64_t picture, int64_t begin, int64_t end) const {
    const Axis& all = a_.columns;
    const int64_t low = columns_[begin].at;
    const int64_t last = (end - 1) * all.down - all.before + all.taps - 1;
    const int64_t high =
        std::max(low, (last >= 0 ? last / all.up : -((all.up - 1 - last) / all.up)) + 1);
    const int64_t from = std::clamp<int64_t>(0, low, high), to = std::clamp(all.in, from, high);
    return {begin, end, low, high, from, to, a_.x + (picture * a_.rows.in * all.in + from) * a_.inner,
            a_.y + (picture * a_.rows.out * all.out + begin) * a_.inner};
  }

  // Rows first ... last of a strip. The buffer is zero where it is outside of the picture.
  void separable_rows(const Strip& strip, int64_t first, int64_t last, std::vector<T>& buffer) const {
    const int64_t pitch_x = a_.columns.in * a_.inner, pitch_y = a_.columns.out * a_.inner;
    const int64_t length = (strip.to - strip.from) * a_.inner;
    const int64_t before = (strip.from - strip.low) * a_.inner;
    buffer.assign((strip.high - strip.low) * a_.inner + kLine / sizeof(T), T(0));
    T* sum = buffer.data();  // moved to where the vectors that are written to it, or every second one read, fill lines
    while (reinterpret_cast<uintptr_t>(sum + (a_.columns.down == 1 ? before : 0)) % kLine) ++sum;
    for (int64_t oy = first; oy < last; ++oy) {
      const Reads& row = rows_[oy];
      const T* x = strip.x + row.at * pitch_x;
      ask_ahead(x + row.count * pitch_x);
      correlate_any<1>(x, pitch_x, vertical_.data() + row.tap, row.count, sum + before, length, false);
      along(sum, horizontal_.data(), strip, strip.y + oy * pitch_y, false);
    }
  }

  // Down-sampling reads several new rows for each of its own, side by side. Processors guess where one such stream
  // goes on, but give up several that end every few hundred pixels: so we ask memory for what follows `next`, the first
  // row not yet read. They see to very short and to long rows themselves. (Inlined, because GCC drops calls of functions
  // that do nothing but this.)
  MATE3D_INLINE void ask_ahead(const T* next) const {
    const int64_t pitch = a_.columns.in * a_.inner * int64_t(sizeof(T));
    if (a_.rows.down <= a_.rows.up || pitch < 256 || pitch > 16384) return;
    const char* from = reinterpret_cast<const char*>(next) + kAhead;
    const char* end = reinterpret_cast<const char*>(a_.x + a_.outer * a_.rows.in * a_.columns.in * a_.inner);
    const char* to = std::min(end, from + pitch * a_.rows.down / a_.rows.up);
    for (; from < to; from += kLine) __builtin_prefetch(from);
  }

  void any_rows(const Strip& strip, int64_t first, int64_t last, std::vector<T>& buffer) const {
    const int64_t pitch_x = a_.columns.in * a_.inner, pitch_y = a_.columns.out * a_.inner;
    buffer.assign((strip.high - strip.low) * a_.inner, T(0));
    for (int64_t oy = first; oy < last; ++oy) {
      const Reads& row = rows_[oy];
      T* y = strip.y + oy * pitch_y;
      if (row.count == 0) std::fill(y, y + (strip.end - strip.begin) * a_.inner, T(0));
      for (int64_t k = 0; k < row.count; ++k) {
        std::copy_n(strip.x + (row.at + k) * pitch_x, (strip.to - strip.from) * a_.inner,
                    buffer.data() + (strip.from - strip.low) * a_.inner);
        along(buffer.data(), horizontal_.data() + (row.tap + k) * a_.columns.taps, strip, y, k > 0);
      }
    }
  }

  // Filters one row along itself, or adds that to y.
  void along(const T* x, const T* taps, const Strip& strip, T* y, bool add) const {
    const Axis& axis = a_.columns;
    const int64_t out = strip.end - strip.begin;
    if (axis.up == 1 && axis.down == 1) {
      correlate_any<1>(x, a_.inner, taps, axis.taps, y, out * a_.inner, add);
    } else if (a_.inner == 1 && axis.up == 1 && axis.down == 2) {
      correlate_any<2>(x, 1, taps, axis.taps, y, out, add);
    } else if (a_.inner == 1 && axis.up == 2 && axis.down == 1 && axis.taps % 2 == 0 && out >= 2) {
      up_by_two(x, taps, strip, y, add);
      pixel_by_pixel(x, taps, strip, y, add, strip.begin + out / 2 * 2);
    } else {
      pixel_by_pixel(x, taps, strip, y, add, strip.begin);
    }
  }

  void up_by_two(const T* x, const T* taps, const Strip& strip, T* y, bool add) const {
    const Reads &even = columns_[strip.begin], &odd = columns_[strip.begin + 1];
    const T *from_even = x + even.at - strip.low, *from_odd = x + odd.at - strip.low;
    const int64_t count = even.count, pairs = (strip.end - strip.begin) / 2;
    for (int64_t k = 0; k < count; k += kGroup) {
      with_count(std::min(kGroup, count - k), [&]<int known>() {
        const T *of_even = taps + even.tap + k, *of_odd = taps + odd.tap + k;
        const bool more = add || k > 0;
        if (more) up_two<known, true>(from_even + k, of_even, from_odd + k, of_odd, y, pairs);
        else up_two<known, false>(from_even + k, of_even, from_odd + k, of_odd, y, pairs);
      });
    }
  }

  // Columns from `begin` on, for any up and down.
  void pixel_by_pixel(const T* x, const T* taps, const Strip& strip, T* y, bool add, int64_t begin) const {
    for (int64_t o = begin; o < strip.end; ++o) {
      const Reads& column = columns_[o];
      correlate_any<1>(x + (column.at - strip.low) * a_.inner, a_.inner, taps + column.tap, column.count,
                       y + (o - strip.begin) * a_.inner, a_.inner, add);
    }
  }

  UpfirdnArguments<T, T> a_;
  bool separable_ = false;
  std::vector<T> taps_;  // as they are correlated, with the gain
  std::vector<T> vertical_, horizontal_;  // those by phase; of an inseparable filter all, row by row, in the second
  std::vector<Reads> rows_, columns_;
};

}  // namespace

void upfirdn2d_cpu(const UpfirdnArguments<float, float>& arguments) { Filter<float>(arguments).run(); }
void upfirdn2d_cpu(const UpfirdnArguments<double, double>& arguments) { Filter<double>(arguments).run(); }

}  // namespace mate3d
