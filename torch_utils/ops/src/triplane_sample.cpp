// torch.ops.mate3d.triplane_*: checks, and the CPU loops.
#include "triplane_sample.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "lanes.h"

namespace mate3d {
namespace {

constexpr int64_t kGrain = 1024;  // points worth a thread

// Calls visit.template operator()<T>() for the type of `like`.
template <typename Visit>
void with_type(const at::Tensor& like, Visit visit) {
  if (like.scalar_type() == at::kFloat) return visit.template operator()<float>();
  TORCH_CHECK(like.scalar_type() == at::kDouble, "triplane_sample: no CPU code for ", like.scalar_type());
  visit.template operator()<double>();
}

template <typename T>
const T* in(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* out(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

void check_same(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type() && a.device() == b.device(),
              "triplane_sample: inputs differ in type or device");
}

// --- points to the weights of their corners

struct Plan {
  at::Tensor points;
  at::IntArrayRef axes;
  double box_warp;
  int64_t height, width;
  double scale;

  Plan(const at::Tensor& points_any, at::IntArrayRef axes, double box_warp, int64_t height, int64_t width,
       double scale)
      : points(points_any.contiguous()), axes(axes), box_warp(box_warp), height(height), width(width), scale(scale) {
    TORCH_CHECK(points.dim() == 3 && points.size(2) == 3, "triplane_sample: points are (N, M, 3)");
    TORCH_CHECK(axes.size() % 2 == 0 && planes() >= 1 && planes() <= kMaxPlanes, "triplane_sample: 1 to ", kMaxPlanes,
                " planes have two axes each");
    for (const int64_t axis : axes) TORCH_CHECK(axis >= 0 && axis < 3, "triplane_sample: no axis ", axis);
    TORCH_CHECK(height >= 2 && width >= 2, "triplane_sample: planes are at least 2 x 2");
    TORCH_CHECK(points.size(0) * planes() * height * width <= std::numeric_limits<int32_t>::max(),
                "triplane_sample: more than 2^31 pixels");
  }

  int64_t planes() const { return int64_t(axes.size()) / 2; }
  int64_t count() const { return points.size(0) * points.size(1); }

  at::Tensor check_direction(const at::Tensor& any) const {
    TORCH_CHECK(any.sizes() == points.sizes(), "triplane_sample: the direction does not fit the points");
    check_same(any, points);
    return any.contiguous();
  }

  at::Tensor check_weight(const at::Tensor& any) const {
    TORCH_CHECK(any.sizes() == at::IntArrayRef({count(), planes(), 4}), "triplane_sample: weights are (N M, P, 4)");
    check_same(any, points);
    return any.contiguous();
  }

  at::Tensor new_weight() const { return at::empty({count(), planes(), 4}, points.options()); }

  template <typename T>
  Projection<T> projection() const {
    Projection<T> to{int(planes()), {}, height, width, std::max<int64_t>(points.size(1), 1), T(width / box_warp),
                     T(height / box_warp), T(scale)};
    std::copy(axes.begin(), axes.end(), to.axes);
    return to;
  }

  // visit(point b, plane p, its cell) for all, in parallel over the points.
  template <typename T, typename Visit>
  void each(const Projection<T>& to, Visit visit) const {
    const T* at = in<T>(points);
    at::parallel_for(0, count(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        for (int p = 0; p < to.planes; ++p) visit(b, p, Cell<T>(to, at + 3 * b, p));
      }
    });
  }
};

std::tuple<at::Tensor, at::Tensor> corners(const at::Tensor& points, at::IntArrayRef axes, double box_warp,
                                           int64_t height, int64_t width, double scale) {
  const Plan plan(points, axes, box_warp, height, width, scale);
  const at::Tensor cells = at::empty({plan.count(), plan.planes()}, points.options().dtype(at::kInt));
  const at::Tensor weight = plan.new_weight();
  with_type(points, [&]<typename T>() {
    const auto to = plan.projection<T>();
    int32_t* const cell_out = out<int32_t>(cells);
    T* const weight_out = out<T>(weight);
    plan.each<T>(to, [&](int64_t b, int p, const Cell<T>& cell) {
      const int64_t at = b * to.planes + p;
      cell_out[at] = int32_t(cell.row(to, b, p));
      corner_weights(to, cell, weight_out + 4 * at);
    });
  });
  return {cells, weight};
}

at::Tensor slopes(const at::Tensor& direction_any, const at::Tensor& points, at::IntArrayRef axes, double box_warp,
                  int64_t height, int64_t width, double scale) {
  const Plan plan(points, axes, box_warp, height, width, scale);
  const at::Tensor direction = plan.check_direction(direction_any), slope = plan.new_weight();
  with_type(points, [&]<typename T>() {
    const auto to = plan.projection<T>();
    plan.each<T>(to, [&](int64_t b, int p, const Cell<T>& cell) {
      corner_slopes(to, cell, p, in<T>(direction) + 3 * b, out<T>(slope) + 4 * (b * to.planes + p));
    });
  });
  return slope;
}

at::Tensor gradient(const at::Tensor& by_weight_any, const at::Tensor& points, at::IntArrayRef axes, double box_warp,
                    int64_t height, int64_t width, double scale) {
  const Plan plan(points, axes, box_warp, height, width, scale);
  const at::Tensor by_weight = plan.check_weight(by_weight_any), result = at::zeros(points.sizes(), points.options());
  with_type(points, [&]<typename T>() {
    const auto to = plan.projection<T>();
    plan.each<T>(to, [&](int64_t b, int p, const Cell<T>& cell) {
      add_corner_gradient(to, cell, p, in<T>(by_weight) + 4 * (b * to.planes + p), out<T>(result) + 3 * b);
    });
  });
  return result;
}

at::Tensor curvature(const at::Tensor& direction_any, const at::Tensor& by_weight_any, const at::Tensor& points,
                     at::IntArrayRef axes, double box_warp, int64_t height, int64_t width, double scale) {
  const Plan plan(points, axes, box_warp, height, width, scale);
  const at::Tensor direction = plan.check_direction(direction_any), by_weight = plan.check_weight(by_weight_any);
  const at::Tensor result = at::zeros(points.sizes(), points.options());
  with_type(points, [&]<typename T>() {
    const auto to = plan.projection<T>();
    plan.each<T>(to, [&](int64_t b, int p, const Cell<T>& cell) {
      add_corner_curvature(to, cell, p, in<T>(direction) + 3 * b, in<T>(by_weight) + 4 * (b * to.planes + p),
                           out<T>(result) + 3 * b);
    });
  });
  return result;
}

// --- between rows of a table and points

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

template <typename T>
void dot_points(const Rows<T>& r, const T* table, const T* values, T* dots, int64_t begin, int64_t end) {
  const int64_t corners = 4 * r.planes;
  for (int64_t b = begin; b < end; ++b) {
    int64_t at[4 * kMaxPlanes];
    locate(r, r.cells + b * r.planes, r.planes, at);
    T* const d = dots + b * corners;
    for (int64_t k = 0; k < corners; ++k) {
      T sum = 0;
      by_vectors<kLanes<T>>(r.channels, [&]<int64_t lanes>(int64_t c) {
        using V = Vector<T, lanes>;
        const auto products = V::from(table + at[k] + c) * V::from(values + b * r.channels + c);
        T parts[lanes];
        V::to(parts, products);
        for (int64_t half = lanes / 2; half > 0; half /= 2) {
          for (int64_t i = 0; i < half; ++i) parts[i] += parts[i + half];
        }
        sum += parts[0];
      });
      d[k] = sum;
    }
  }
}

void check_cells(const at::Tensor& cells, int64_t rows, int64_t pitch) {
  TORCH_CHECK(cells.dim() == 2 && cells.scalar_type() == at::kInt && cells.size(1) <= kMaxPlanes,
              "triplane_sample: cells are (B, P) int32 with P <= ", kMaxPlanes);
  const int32_t* const all = in<int32_t>(cells);
  int32_t low = 0, high = 0;
  for (int64_t i = 0; i < cells.numel(); ++i) {
    low = std::min(low, all[i]);
    high = std::max(high, all[i]);
  }
  TORCH_CHECK(cells.numel() == 0 || (low >= 0 && pitch > 0 && high + pitch + 1 < rows),
              "triplane_sample: a cell is outside the table of ", rows, " rows");
}

void check_weights(const at::Tensor& weight, const at::Tensor& cells) {
  TORCH_CHECK(weight.dim() == 3 && weight.sizes().slice(0, 2) == cells.sizes() && weight.size(2) == 4,
              "triplane_sample: weights are (B, P, 4)");
}

at::Tensor gather(const at::Tensor& table_any, const at::Tensor& cells_any, const at::Tensor& weight_any,
                  int64_t pitch, int64_t /* groups: for the gradient */) {
  const at::Tensor table = table_any.contiguous(), cells = cells_any.contiguous(), weight = weight_any.contiguous();
  TORCH_CHECK(table.dim() == 2, "triplane_sample: the table is (R, C)");
  check_same(table, weight);
  check_weights(weight, cells);
  check_cells(cells, table.size(0), pitch);
  const at::Tensor values = at::empty({cells.size(0), table.size(1)}, table.options());
  with_type(table, [&]<typename T>() {
    const Rows<T> r{cells.size(0), cells.size(1), table.size(1), pitch, table.size(0), 1,
                    in<int32_t>(cells), in<T>(weight)};
    at::parallel_for(0, r.points, kGrain, [&](int64_t begin, int64_t end) {
      gather_points(r, in<T>(table), out<T>(values), begin, end);
    });
  });
  return values;
}

// Points come in `groups` of equal size, each with its own equal share of the table, and the planes of a group with
// their own share of that. Where there are more threads than groups, planes and then blocks of channels are dealt
// out: each element of the table is added up by one thread, in the order of the points, however many there are.
at::Tensor scatter(const at::Tensor& values_any, const at::Tensor& cells_any, const at::Tensor& weight_any,
                   int64_t pitch, int64_t groups, int64_t rows) {
  const at::Tensor values = values_any.contiguous(), cells = cells_any.contiguous(), weight = weight_any.contiguous();
  TORCH_CHECK(values.dim() == 2 && values.size(0) == cells.size(0), "triplane_sample: values are (B, C)");
  TORCH_CHECK(groups > 0 && cells.size(0) % groups == 0, "triplane_sample: points do not divide into ", groups);
  check_same(values, weight);
  check_weights(weight, cells);
  check_cells(cells, rows, pitch);
  const at::Tensor table = at::zeros({rows, values.size(1)}, values.options());
  with_type(values, [&]<typename T>() {
    const Rows<T> r{cells.size(0), cells.size(1), values.size(1), pitch, rows, groups,
                    in<int32_t>(cells), in<T>(weight)};
    const int64_t threads = at::get_num_threads();
    const int64_t step = groups * r.planes < threads ? kLanes<T> : std::max<int64_t>(r.channels, 1);
    const int64_t by_plane = groups < threads ? r.planes : 1, planes = r.planes / by_plane;
    const int64_t by_channels = (r.channels + step - 1) / step;
    const int64_t each = r.points / groups;
    at::parallel_for(0, groups * by_plane * by_channels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t from = task % by_channels * step, plane = task / by_channels % by_plane * planes;
        const int64_t group = task / by_channels / by_plane;
        scatter_points(r, in<T>(values), out<T>(table), group * each, (group + 1) * each, plane, plane + planes,
                       from, std::min(from + step, r.channels));
      }
    });
  });
  return table;
}

at::Tensor dot(const at::Tensor& table_any, const at::Tensor& cells_any, const at::Tensor& values_any, int64_t pitch,
               int64_t /* groups: for the gradient */) {
  const at::Tensor table = table_any.contiguous(), cells = cells_any.contiguous(), values = values_any.contiguous();
  TORCH_CHECK(table.dim() == 2 && values.dim() == 2 && values.size(0) == cells.size(0) &&
                  values.size(1) == table.size(1),
              "triplane_sample: the table is (R, C), values are (B, C)");
  check_same(table, values);
  check_cells(cells, table.size(0), pitch);
  const at::Tensor dots = at::empty({cells.size(0), cells.size(1), 4}, table.options());
  with_type(table, [&]<typename T>() {
    const Rows<T> r{cells.size(0), cells.size(1), table.size(1), pitch, table.size(0), 1, in<int32_t>(cells), nullptr};
    at::parallel_for(0, r.points, kGrain, [&](int64_t begin, int64_t end) {
      dot_points(r, in<T>(table), in<T>(values), out<T>(dots), begin, end);
    });
  });
  return dots;
}

}  // namespace

TORCH_LIBRARY_IMPL(mate3d, CPU, library) {
  library.impl("triplane_corners", &corners);
  library.impl("triplane_slopes", &slopes);
  library.impl("triplane_gradient", &gradient);
  library.impl("triplane_curvature", &curvature);
  library.impl("triplane_gather", &gather);
  library.impl("triplane_scatter", &scatter);
  library.impl("triplane_dot", &dot);
}

}  // namespace mate3d
