// The CPU loops of triplane_sample.
#include <ATen/Parallel.h>

#include <algorithm>

#include "lanes.h"
#include "triplane_sample.h"

namespace mate3d {
namespace {

constexpr int64_t kGrain = 1024;         // points worth a thread
constexpr int64_t kTurnGrain = 1 << 15;  // numbers to be turned that are worth one
constexpr int64_t kBlock = 128;          // points whose corners are found together
constexpr int kVectors = 4;              // sums of a point that are added up side by side
constexpr int64_t kAhead = 8;            // points between the one at work and the one whose rows are asked for
constexpr int64_t kLine = 64;            // bytes that memory moves at once

// Channels in `vectors` whole vectors at a time, then in fewer, then in ever smaller ones:
// visit.template operator()<lanes, vectors>(first channel).
template <int64_t lanes, int vectors, typename Visit>
inline void by_vectors(int64_t channels, Visit visit, int64_t c = 0) {
  constexpr int64_t step = lanes * vectors;
  for (; c + step <= channels; c += step) visit.template operator()<lanes, vectors>(c);
  if (c >= channels) return;
  if constexpr (vectors > 1) by_vectors<lanes, vectors / 2>(channels, visit, c);
  else if constexpr (lanes > 1) by_vectors<lanes / 2, 1>(channels, visit, c);
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

// The rows of a table that a point reads, corner by corner; `known` planes, or any number if that is 0. A point's cells
// are `step` numbers apart.
template <int known, typename Value, int64_t step = 1>
struct CornerRows {
  Value* cells[known ? known : kMaxPlanes];
  int64_t right, below;

  template <typename T>
  MATE3D_INLINE CornerRows(const Rows<T>& r, const int32_t* rows, int64_t planes, Value* table)
      : right(r.channels), below(r.pitch * r.channels) {
    for (int64_t p = 0; p < planes; ++p) cells[p] = table + rows[p * step] * r.channels;
  }

  MATE3D_INLINE Value* operator[](int64_t k) const {
    return cells[k / 4] + (k & 1 ? right : 0) + (k & 2 ? below : 0);
  }
};

// Asks memory for the rows of a point to come, of planes first ... last, channels from ... to: points in no order take
// little more than half the time. Not if one of its cells is that of the point before, as on a ray along an axis: there
// it would cost more than it saves. (Inline, because GCC drops calls of functions that only ask.)
template <int64_t step = 1, typename T>
MATE3D_INLINE void ask(const Rows<T>& r, const T* table, int64_t b, int64_t end, int64_t first, int64_t last,
                       int64_t from, int64_t to) {
  if (b + kAhead >= end) return;
  const int64_t next = step == 1 ? r.planes : 1;  // cells to those of the next point
  const int32_t *const cells = r.cells + (b + kAhead) * next, *const before = cells - next;
  bool near = false;
  for (int64_t p = first; p < last; ++p) near |= cells[p * step] == before[p * step];
  if (near) return;
  for (int64_t p = first; p < last; ++p) {
    const T* const row = table + cells[p * step] * r.channels;
    for (const T* half : {row, row + r.pitch * r.channels}) {  // a pixel and the one to its right lie together
      for (const T* at = half + from; at < half + r.channels + to; at += kLine / sizeof(T)) __builtin_prefetch(at);
    }
  }
}

// Calls visit.template operator()<planes>(): 3 or 1, which loops are unrolled for, or 0 for any other number.
template <typename Visit>
inline void with_planes(int64_t planes, Visit visit) {
  if (planes == 3) visit.template operator()<3>();
  else if (planes == 1) visit.template operator()<1>();
  else visit.template operator()<0>();
}

// Cells and weights of up to kBlock points of a scene on one plane. All points at once, in vectors; so the weights
// of a corner lie together.
template <typename T>
void weigh_points(const Projection<T>& any, const T* __restrict__ points, int64_t scene, int plane, int64_t count,
                  int32_t* __restrict__ cells, T (*__restrict__ weight)[kBlock]) {
  const Projection<T> to = any;  // what is stored below cannot change it
  for (int64_t i = 0; i < count; ++i) {
    const Cell<T> cell(to, points + 3 * i, plane);
    cells[i] = int32_t(cell.row(to, scene, plane));
    T corners[4];
    corner_weights(to, cell, corners);
    for (int k = 0; k < 4; ++k) weight[k][i] = corners[k];
  }
}

// Calls visit(first point, count, scene) for points begin ... end, up to kBlock of one scene at a time.
template <typename T, typename Visit>
void by_blocks(const Projection<T>& to, int64_t begin, int64_t end, Visit visit) {
  while (begin < end) {
    const int64_t scene = begin / to.points_per_scene;
    const int64_t count = std::min({kBlock, end - begin, (scene + 1) * to.points_per_scene - begin});
    visit(begin, count, scene);
    begin += count;
  }
}

template <typename T>
void weigh_all(const CornerArguments<T>& a, int64_t begin, int64_t end) {
  const int64_t planes = a.to.planes;
  int32_t cells[kBlock];
  T weight[4][kBlock];
  by_blocks(a.to, begin, end, [&](int64_t b, int64_t count, int64_t scene) {
    for (int64_t p = 0; p < planes; ++p) {
      weigh_points(a.to, a.points + 3 * b, scene, int(p), count, cells, weight);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = (b + i) * planes + p;
        a.cells[at] = cells[i];
        for (int k = 0; k < 4; ++k) a.weight[4 * at + k] = weight[k][i];
      }
    }
  });
}

// Short loops of known length: with few instructions a point, the processor sees several points at once. A point's
// cells and weights are `step` numbers apart: 1, or kBlock where they are those of a block.
template <int known, int64_t step = 1, typename T>
void gather_points(const Rows<T>& r, const T* table, T* values, int64_t begin, int64_t end) {
  const int64_t planes = known ? known : r.planes, next = step == 1 ? planes : 1;
  for (int64_t b = begin; b < end; ++b) {
    ask<step>(r, table, b, end, 0, planes, 0, r.channels);
    const CornerRows<known, const T, step> rows(r, r.cells + b * next, planes, table);
    const T* const w = r.weight + (step == 1 ? 4 * planes * b : b);
    const auto add = [&]<int64_t lanes, int vectors>(int64_t c) __attribute__((always_inline)) {
      using V = Vector<T, lanes>;
      typename V::type sums[vectors] = {};
#pragma GCC unroll 16
      for (int64_t k = 0; k < 4 * planes; ++k) {
#pragma GCC unroll 4
        for (int i = 0; i < vectors; ++i) sums[i] += w[k * step] * V::from(rows[k] + c + i * lanes);
      }
#pragma GCC unroll 4
      for (int i = 0; i < vectors; ++i) V::to(values + b * r.channels + c + i * lanes, sums[i]);
    };
    by_vectors<kLanes<T>, kVectors>(r.channels, add);
  }
}

// weigh_points and gather_points, block by block.
template <int known, typename T>
void sample_points(const CornerArguments<T>& a, const T* table, int64_t channels, T* values, int64_t begin,
                   int64_t end) {
  const int64_t planes = known ? known : a.to.planes;
  int32_t cells[kMaxPlanes][kBlock];
  T weight[4 * kMaxPlanes][kBlock];
  by_blocks(a.to, begin, end, [&](int64_t b, int64_t count, int64_t scene) {
    for (int64_t p = 0; p < planes; ++p) {
      weigh_points(a.to, a.points + 3 * b, scene, int(p), count, cells[p], weight + 4 * p);
    }
    const Rows<T> r{count, planes, channels, a.to.width, cells[0], weight[0]};
    gather_points<known, kBlock>(r, table, values + b * channels, 0, count);
  });
}

// Points begin ... end to the rows of planes first ... last, channels from ... to.
template <int known, typename T>
void scatter_points(const Rows<T>& r, const T* values, T* table, int64_t begin, int64_t end, int64_t first,
                    int64_t last, int64_t from, int64_t to) {
  const int64_t planes = known ? known : last - first;
  for (int64_t b = begin; b < end; ++b) {
    ask(r, table, b, end, first, first + planes, from, to);
    const CornerRows<known, T> rows(r, r.cells + b * r.planes + first, planes, table + from);
    const T* const w = r.weight + (b * r.planes + first) * 4;
    const auto add = [&]<int64_t lanes, int>(int64_t c) __attribute__((always_inline)) {
      using V = Vector<T, lanes>;
      const auto value = V::from(values + b * r.channels + from + c);
#pragma GCC unroll 16
      for (int64_t k = 0; k < 4 * planes; ++k) {
        T* const row = rows[k] + c;
        V::to(row, V::from(row) + w[k] * value);
      }
    };
    by_vectors<kLanes<T>, 1>(to - from, add);
  }
}

// Adds up the lanes of each of kLanes vectors: the sum of vector i comes to be lane i of the first.
template <typename T, int half = int(kLanes<T>) / 2>
MATE3D_INLINE void sum_lanes(Lanes<T>* vectors) {
  if constexpr (half > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) {
      swap_blocks<half>(vectors[i], vectors[i + half], std::make_integer_sequence<int, kLanes<T>>());
      vectors[i] += vectors[i + half];
    }
    sum_lanes<T, half / 2>(vectors);
  }
}

// `count` <= kLanes of the corners of a point, from the first-th on.
template <int count, int known, typename T>
MATE3D_INLINE void dot_corners(const CornerRows<known, const T>& rows, int64_t first, const T* value, int64_t channels,
                               T* dots) {
  const int64_t whole = channels / kLanes<T> * kLanes<T>;
  Lanes<T> sums[kLanes<T>] = {};
  for (int64_t c = 0; c < whole; c += kLanes<T>) {
    const Lanes<T> factor = load(value + c);
#pragma GCC unroll 16
    for (int k = 0; k < count; ++k) sums[k] += load(rows[first + k] + c) * factor;
  }
  if (whole < channels) {  // the others, and zeros
    Lanes<T> factor = {}, row = {};
    std::memcpy(&factor, value + whole, (channels - whole) * sizeof(T));
    for (int k = 0; k < count; ++k) {
      std::memcpy(&row, rows[first + k] + whole, (channels - whole) * sizeof(T));
      sums[k] += row * factor;
    }
  }
  sum_lanes<T>(sums);
  std::memcpy(dots + first, sums, count * sizeof(T));
}

template <int known, typename T>
void dot_points(const Rows<T>& r, const T* table, const T* values, T* dots, int64_t begin, int64_t end) {
  constexpr int all = 4 * known, together = int(std::min<int64_t>(known ? all : 4, kLanes<T>)), rest = all % together;
  const int64_t planes = known ? known : r.planes;
  for (int64_t b = begin; b < end; ++b) {
    ask(r, table, b, end, 0, planes, 0, r.channels);
    const CornerRows<known, const T> rows(r, r.cells + b * planes, planes, table);
    const T* const value = values + b * r.channels;
    T* const found = dots + b * 4 * planes;
#pragma GCC unroll 8
    for (int64_t k = 0; k + together <= 4 * planes; k += together) {
      dot_corners<together>(rows, k, value, r.channels, found);
    }
    if constexpr (rest > 0) dot_corners<rest>(rows, all - rest, value, r.channels, found);
  }
}

// Columns begin ... end of a matrix to rows of the turned one.
template <typename T>
void turn_columns(const T* matrix, T* turned, int64_t rows, int64_t columns, int64_t begin, int64_t end) {
  constexpr int64_t side = kLanes<T>;
  const int64_t last = begin + (end - begin) / side * side;
  int64_t i = 0;
  for (; i + side <= rows; i += side) {
    for (int64_t j = begin; j < last; j += side) {
      Lanes<T> square[side];
      for (int64_t k = 0; k < side; ++k) square[k] = load(matrix + (i + k) * columns + j);
      transpose<T>(square);
      for (int64_t k = 0; k < side; ++k) store(turned + (j + k) * rows + i, square[k]);
    }
    for (int64_t j = last; j < end; ++j) {
      for (int64_t k = i; k < i + side; ++k) turned[j * rows + k] = matrix[k * columns + j];
    }
  }
  for (; i < rows; ++i) {
    for (int64_t j = begin; j < end; ++j) turned[j * rows + i] = matrix[i * columns + j];
  }
}

}  // namespace

template <typename T>
void corners_cpu(const CornerArguments<T>& a) {
  at::parallel_for(0, a.count, kGrain, [&](int64_t begin, int64_t end) {
    if (a.wanted == Corners::weights) return weigh_all(a, begin, end);
    for (int64_t b = begin; b < end; ++b) visit_point(a, b);
  });
}

template <typename T>
void sample_cpu(const CornerArguments<T>& a, const T* table, int64_t channels, T* values) {
  at::parallel_for(0, a.count, kGrain, [&](int64_t begin, int64_t end) {
    with_planes(a.to.planes, [&]<int planes>() { sample_points<planes>(a, table, channels, values, begin, end); });
  });
}

template <typename T>
void gather_cpu(const Rows<T>& r, const T* table, T* values) {
  at::parallel_for(0, r.points, kGrain, [&](int64_t begin, int64_t end) {
    with_planes(r.planes, [&]<int planes>() { gather_points<planes>(r, table, values, begin, end); });
  });
}

// Points come in `groups` of equal size, each with its own equal share of the table, and the planes of a group with
// their own share of that. Where threads would be dealt few groups and not as many each, blocks of channels are dealt
// out, and planes too where there are still not enough for all threads; in this order, because a point takes half the
// time where all its planes are added to together. Each element of the table is added up by one thread, in the order of
// the points, however many there are.
template <typename T>
void scatter_cpu(const Rows<T>& r, int64_t groups, const T* values, T* table) {
  constexpr int64_t line = kLine / int64_t(sizeof(T));
  const int64_t threads = at::get_num_threads(), each = r.points / groups;
  const bool whole = groups % threads == 0 || groups >= 4 * threads;
  const int64_t lines = (r.channels + line - 1) / line, blocks = whole ? 1 : std::min(lines, threads);
  const int64_t step = (lines + blocks - 1) / blocks * line, by_channels = (r.channels + step - 1) / step;
  const int64_t by_plane = !whole && groups * by_channels < threads ? r.planes : 1, planes = r.planes / by_plane;
  at::parallel_for(0, groups * by_plane * by_channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t from = task % by_channels * step, plane = task / by_channels % by_plane * planes;
      const int64_t group = task / by_channels / by_plane;
      with_planes(planes, [&]<int known>() {
        scatter_points<known>(r, values, table, group * each, (group + 1) * each, plane, plane + planes, from,
                              std::min(from + step, r.channels));
      });
    }
  });
}

template <typename T>
void dot_cpu(const Rows<T>& r, const T* table, const T* values, T* dots) {
  at::parallel_for(0, r.points, kGrain, [&](int64_t begin, int64_t end) {
    with_planes(r.planes, [&]<int planes>() { dot_points<planes>(r, table, values, dots, begin, end); });
  });
}

template <typename T>
void turn_cpu(const T* matrices, T* turned, int64_t count, int64_t rows, int64_t columns) {
  const int64_t strips = (columns + kBlock - 1) / kBlock;
  const int64_t grain = std::max<int64_t>(1, kTurnGrain / (kBlock * rows));
  at::parallel_for(0, count * strips, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t matrix = task / strips * rows * columns, from = task % strips * kBlock;
      turn_columns(matrices + matrix, turned + matrix, rows, columns, from, std::min(from + kBlock, columns));
    }
  });
}

#define MATE3D_INSTANCES(T)                                             \
  template void corners_cpu(const CornerArguments<T>&);                 \
  template void sample_cpu(const CornerArguments<T>&, const T*, int64_t, T*); \
  template void gather_cpu(const Rows<T>&, const T*, T*);               \
  template void scatter_cpu(const Rows<T>&, int64_t, const T*, T*);     \
  template void dot_cpu(const Rows<T>&, const T*, const T*, T*);        \
  template void turn_cpu(const T*, T*, int64_t, int64_t, int64_t);
MATE3D_INSTANCES(float)
MATE3D_INSTANCES(double)

}  // namespace mate3d
