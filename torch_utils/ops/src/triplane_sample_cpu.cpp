// The CPU loops of triplane_sample.
#include <ATen/Parallel.h>

#include <algorithm>

#include "lanes.h"
#include "triplane_sample.h"

namespace mate3d {
namespace {

constexpr int64_t kGrain = 1024;  // points worth a thread

// Channels in whole vectors, then in ever smaller ones: visit.template operator()<lanes>(first channel).
template <int64_t lanes, typename Visit>
inline void by_vectors(int64_t channels, Visit visit, int64_t c = 0) {
  for (; c + lanes <= channels; c += lanes) visit.template operator()<lanes>(c);
  if constexpr (lanes > 1) {
    if (c < channels) by_vectors<lanes / 2>(channels, visit, c);
  }
}

template <typename T, int64_t lanes>
struct Vector {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
  static type from(const T* p) {
    type v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static void to(T* p, type v) { __builtin_memcpy(p, &v, sizeof v); }
};

// Where the corners of a point lie in the table.
template <typename T>
inline void locate(const Rows<T>& r, const int32_t* cells, int64_t planes, int64_t* at) {
  for (int64_t p = 0; p < planes; ++p) {
    const int64_t first = int64_t(cells[p]) * r.channels, below = first + r.pitch * r.channels;
    at[4 * p] = first, at[4 * p + 1] = first + r.channels;
    at[4 * p + 2] = below, at[4 * p + 3] = below + r.channels;
  }
}

template <typename T>
void gather_points(const Rows<T>& r, const T* table, T* values, int64_t begin, int64_t end) {
  const int64_t corners = 4 * r.planes;
  for (int64_t b = begin; b < end; ++b) {
    int64_t at[4 * kMaxPlanes];
    locate(r, r.cells + b * r.planes, r.planes, at);
    const T* const w = r.weight + b * corners;
    by_vectors<kLanes<T>>(r.channels, [&]<int64_t lanes>(int64_t c) {
      using V = Vector<T, lanes>;
      typename V::type sum = {};
      for (int64_t k = 0; k < corners; ++k) sum += w[k] * V::from(table + at[k] + c);
      V::to(values + b * r.channels + c, sum);
    });
  }
}

// Points begin ... end to the rows of planes first ... last, channels from ... to.
template <typename T>
void scatter_points(const Rows<T>& r, const T* values, T* table, int64_t begin, int64_t end, int64_t first,
                    int64_t last, int64_t from, int64_t to) {
  const int64_t corners = 4 * (last - first);
  for (int64_t b = begin; b < end; ++b) {
    int64_t at[4 * kMaxPlanes];
    locate(r, r.cells + b * r.planes + first, last - first, at);
    const T* const w = r.weight + (b * r.planes + first) * 4;
    by_vectors<kLanes<T>>(to - from, [&]<int64_t lanes>(int64_t c) {
      using V = Vector<T, lanes>;
      const auto value = V::from(values + b * r.channels + from + c);
      for (int64_t k = 0; k < corners; ++k) {
        T* const row = table + at[k] + from + c;
        V::to(row, V::from(row) + w[k] * value);
      }
    });
  }
}

// The sum of `lanes` partial sums and of the products that are left, fewer than `lanes`.
template <typename T, int64_t lanes>
inline T finish_dot(typename Vector<T, lanes>::type sums, const T* row, const T* value, int64_t left) {
  if constexpr (lanes == 1) {
    return sums[0];
  } else {
    using V = Vector<T, lanes / 2>;
    T all[lanes];
    Vector<T, lanes>::to(all, sums);
    auto half = V::from(all) + V::from(all + lanes / 2);
    if (left >= lanes / 2) {
      half += V::from(row) * V::from(value);
      return finish_dot<T, lanes / 2>(half, row + lanes / 2, value + lanes / 2, left - lanes / 2);
    }
    return finish_dot<T, lanes / 2>(half, row, value, left);
  }
}

template <typename T>
void dot_points(const Rows<T>& r, const T* table, const T* values, T* dots, int64_t begin, int64_t end) {
  const int64_t whole = r.channels / kLanes<T> * kLanes<T>, corners = 4 * r.planes;
  for (int64_t b = begin; b < end; ++b) {
    int64_t at[4 * kMaxPlanes];
    locate(r, r.cells + b * r.planes, r.planes, at);
    const T* const value = values + b * r.channels;
    for (int64_t k = 0; k < corners; ++k) {
      const T* const row = table + at[k];
      Lanes<T> sums = {};
      for (int64_t c = 0; c < whole; c += kLanes<T>) sums += load(row + c) * load(value + c);
      dots[b * corners + k] = finish_dot<T, kLanes<T>>(sums, row + whole, value + whole, r.channels - whole);
    }
  }
}

}  // namespace

template <typename T>
void corners_cpu(const CornerArguments<T>& a) {
  at::parallel_for(0, a.count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) visit_point(a, b);
  });
}

template <typename T>
void gather_cpu(const Rows<T>& r, const T* table, T* values) {
  at::parallel_for(0, r.points, kGrain, [&](int64_t begin, int64_t end) {
    gather_points(r, table, values, begin, end);
  });
}

// Points come in `groups` of equal size, each with its own equal share of the table, and the planes of a group with
// their own share of that. Where there are more threads than groups, planes and then blocks of channels are dealt
// out: each element of the table is added up by one thread, in the order of the points, however many there are.
template <typename T>
void scatter_cpu(const Rows<T>& r, int64_t groups, const T* values, T* table) {
  const int64_t threads = at::get_num_threads(), each = r.points / groups;
  const int64_t step = groups * r.planes < threads ? kLanes<T> : std::max<int64_t>(r.channels, 1);
  const int64_t by_plane = groups < threads ? r.planes : 1, planes = r.planes / by_plane;
  const int64_t by_channels = (r.channels + step - 1) / step;
  at::parallel_for(0, groups * by_plane * by_channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t from = task % by_channels * step, plane = task / by_channels % by_plane * planes;
      const int64_t group = task / by_channels / by_plane;
      scatter_points(r, values, table, group * each, (group + 1) * each, plane, plane + planes, from,
                     std::min(from + step, r.channels));
    }
  });
}

template <typename T>
void dot_cpu(const Rows<T>& r, const T* table, const T* values, T* dots) {
  at::parallel_for(0, r.points, kGrain, [&](int64_t begin, int64_t end) {
    dot_points(r, table, values, dots, begin, end);
  });
}

#define MATE3D_INSTANCES(T)                                             \
  template void corners_cpu(const CornerArguments<T>&);                 \
  template void gather_cpu(const Rows<T>&, const T*, T*);               \
  template void scatter_cpu(const Rows<T>&, int64_t, const T*, T*);     \
  template void dot_cpu(const Rows<T>&, const T*, const T*, T*);
MATE3D_INSTANCES(float)
MATE3D_INSTANCES(double)

}  // namespace mate3d
