// torch.ops.mate3d.triplane_*: checks, and the way to the kernels.
#include "triplane_sample.h"

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#ifdef MATE3D_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace mate3d {
namespace {

// Calls visit.template operator()<T>() for the type of `like`.
template <typename Visit>
void with_type(const at::Tensor& like, Visit visit) {
  if (like.scalar_type() == at::kFloat) return visit.template operator()<float>();
  TORCH_CHECK(like.scalar_type() == at::kDouble, "triplane_sample: no code for ", like.scalar_type());
  visit.template operator()<double>();
}

template <typename T>
const T* in(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

template <typename T>
T* out(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

#ifdef MATE3D_CUDA
template <typename Launch>
void on_gpu(const at::Tensor& like, Launch launch) {
  const c10::cuda::CUDAGuard guard(like.device());
  const char* const error = launch(c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(!error, "triplane_sample: ", error);
}
#endif

void check_same(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type() && a.device() == b.device(),
              "triplane_sample: inputs differ in type or device");
}

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

  at::Tensor new_points() const { return at::empty(points.sizes(), points.options()); }

  template <typename T>
  CornerArguments<T> arguments(Corners wanted) const {
    CornerArguments<T> a{wanted,
                         {int(planes()), {}, height, width, points.size(1), T(width / box_warp), T(height / box_warp),
                          T(scale)},
                         count(), in<T>(points)};
    std::copy(axes.begin(), axes.end(), a.to.axes);
    return a;
  }

  // Finds what is wanted; tensors that do not belong to it are undefined.
  void run(Corners wanted, const at::Tensor& direction, const at::Tensor& by_weight, const at::Tensor& cells,
           const at::Tensor& weight, const at::Tensor& by_points) const {
    if (count() == 0) return;
    with_type(points, [&]<typename T>() {
      CornerArguments<T> a = arguments<T>(wanted);
      a.direction = in<T>(direction), a.by_weight = in<T>(by_weight);
      a.cells = out<int32_t>(cells), a.weight = out<T>(weight), a.by_points = out<T>(by_points);
      if (points.is_cpu()) return corners_cpu(a);
#ifdef MATE3D_CUDA
      on_gpu(points, [&](void* stream) { return corners_cuda(a, stream); });
#endif
    });
  }
};

std::tuple<at::Tensor, at::Tensor> corners(const at::Tensor& points, at::IntArrayRef axes, double box_warp,
                                           int64_t height, int64_t width, double scale) {
  const Plan plan(points, axes, box_warp, height, width, scale);
  const at::Tensor cells = at::empty({plan.count(), plan.planes()}, points.options().dtype(at::kInt));
  const at::Tensor weight = plan.new_weight();
  plan.run(Corners::weights, {}, {}, cells, weight, {});
  return {cells, weight};
}

at::Tensor slopes(const at::Tensor& direction, const at::Tensor& points, at::IntArrayRef axes, double box_warp,
                  int64_t height, int64_t width, double scale) {
  const Plan plan(points, axes, box_warp, height, width, scale);
  const at::Tensor slope = plan.new_weight();
  plan.run(Corners::slopes, plan.check_direction(direction), {}, {}, slope, {});
  return slope;
}

at::Tensor gradient(const at::Tensor& by_weight, const at::Tensor& points, at::IntArrayRef axes, double box_warp,
                    int64_t height, int64_t width, double scale) {
  const Plan plan(points, axes, box_warp, height, width, scale);
  const at::Tensor by_points = plan.new_points();
  plan.run(Corners::gradient, {}, plan.check_weight(by_weight), {}, {}, by_points);
  return by_points;
}

at::Tensor curvature(const at::Tensor& direction, const at::Tensor& by_weight, const at::Tensor& points,
                     at::IntArrayRef axes, double box_warp, int64_t height, int64_t width, double scale) {
  const Plan plan(points, axes, box_warp, height, width, scale);
  const at::Tensor by_points = plan.new_points();
  plan.run(Corners::curvature, plan.check_direction(direction), plan.check_weight(by_weight), {}, {}, by_points);
  return by_points;
}

void check_cells(const at::Tensor& cells, int64_t rows, int64_t pitch) {
  TORCH_CHECK(cells.dim() == 2 && cells.scalar_type() == at::kInt && cells.size(1) <= kMaxPlanes,
              "triplane_sample: cells are (B, P) int32 with P <= ", kMaxPlanes);
  TORCH_CHECK(pitch > 0, "triplane_sample: the pitch is not positive");
  if (!cells.is_cpu()) return;  // it would have to wait for the GPU
  const int32_t* const all = in<int32_t>(cells);
  const int64_t count = cells.numel();
  int32_t low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, all[i]);
    high = std::max(high, all[i]);
  }
  TORCH_CHECK(count == 0 || (low >= 0 && high + pitch + 1 < rows),
              "triplane_sample: a cell is outside the table of ", rows, " rows");
}

void check_weights(const at::Tensor& weight, const at::Tensor& cells) {
  TORCH_CHECK(weight.dim() == 3 && weight.sizes().slice(0, 2) == cells.sizes() && weight.size(2) == 4,
              "triplane_sample: weights are (B, P, 4)");
}

template <typename T>
Rows<T> rows_of(const at::Tensor& cells, const at::Tensor& weight, int64_t channels, int64_t pitch) {
  return {cells.size(0), cells.size(1), channels, pitch, in<int32_t>(cells), in<T>(weight)};
}

at::Tensor gather(const at::Tensor& table_any, const at::Tensor& cells_any, const at::Tensor& weight_any,
                  int64_t pitch, int64_t /* groups: for the gradient */) {
  const at::Tensor table = table_any.contiguous(), cells = cells_any.contiguous(), weight = weight_any.contiguous();
  TORCH_CHECK(table.dim() == 2, "triplane_sample: the table is (R, C)");
  check_same(table, weight);
  check_weights(weight, cells);
  check_cells(cells, table.size(0), pitch);
  const at::Tensor values = at::empty({cells.size(0), table.size(1)}, table.options());
  if (values.numel() == 0) return values;
  with_type(table, [&]<typename T>() {
    const auto rows = rows_of<T>(cells, weight, table.size(1), pitch);
    if (table.is_cpu()) return gather_cpu(rows, in<T>(table), out<T>(values));
#ifdef MATE3D_CUDA
    on_gpu(table, [&](void* stream) { return gather_cuda(rows, in<T>(table), out<T>(values), stream); });
#endif
  });
  return values;
}

at::Tensor scatter(const at::Tensor& values_any, const at::Tensor& cells_any, const at::Tensor& weight_any,
                   int64_t pitch, int64_t groups, int64_t rows) {
  const at::Tensor values = values_any.contiguous(), cells = cells_any.contiguous(), weight = weight_any.contiguous();
  TORCH_CHECK(values.dim() == 2 && values.size(0) == cells.size(0), "triplane_sample: values are (B, C)");
  TORCH_CHECK(groups > 0 && cells.size(0) % groups == 0, "triplane_sample: points do not divide into ", groups);
  check_same(values, weight);
  check_weights(weight, cells);
  check_cells(cells, rows, pitch);
  const at::Tensor table = at::zeros({rows, values.size(1)}, values.options());
  if (values.numel() == 0) return table;
  if (!values.is_cpu()) at::globalContext().alertNotDeterministic("mate3d::triplane_scatter");
  with_type(values, [&]<typename T>() {
    const auto from = rows_of<T>(cells, weight, values.size(1), pitch);
    if (values.is_cpu()) return scatter_cpu(from, groups, in<T>(values), out<T>(table));
#ifdef MATE3D_CUDA
    on_gpu(values, [&](void* stream) { return scatter_cuda(from, in<T>(values), out<T>(table), stream); });
#endif
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
  if (dots.numel() == 0) return dots;
  with_type(table, [&]<typename T>() {
    const auto rows = rows_of<T>(cells, {}, table.size(1), pitch);
    if (table.is_cpu()) return dot_cpu(rows, in<T>(table), in<T>(values), out<T>(dots));
#ifdef MATE3D_CUDA
    on_gpu(table, [&](void* stream) { return dot_cuda(rows, in<T>(table), in<T>(values), out<T>(dots), stream); });
#endif
  });
  return dots;
}

at::Tensor sample(const at::Tensor& table_any, const at::Tensor& points, at::IntArrayRef axes, double box_warp,
                  int64_t height, int64_t width, double scale) {
  const Plan plan(points, axes, box_warp, height, width, scale);
  const at::Tensor table = table_any.contiguous();
  TORCH_CHECK(table.dim() == 2 && table.size(0) == points.size(0) * plan.planes() * height * width,
              "triplane_sample: the table has not the pixels of the planes");
  check_same(table, points);
  const at::Tensor values = at::empty({plan.count(), table.size(1)}, table.options());
  if (values.numel() == 0) return values;
  with_type(table, [&]<typename T>() {
    sample_cpu(plan.arguments<T>(Corners::weights), in<T>(table), table.size(1), out<T>(values));
  });
  return values;
}

at::Tensor turn(const at::Tensor& matrices_any) {
  const at::Tensor matrices = matrices_any.contiguous();
  TORCH_CHECK(matrices.dim() == 3, "triplane_sample: the matrices are (B, I, J)");
  const int64_t count = matrices.size(0), rows = matrices.size(1), columns = matrices.size(2);
  const at::Tensor turned = at::empty({count, columns, rows}, matrices.options());
  if (turned.numel() == 0) return turned;
  with_type(matrices, [&]<typename T>() { turn_cpu(in<T>(matrices), out<T>(turned), count, rows, columns); });
  return turned;
}

}  // namespace

// The signatures are defined in triplane_sample.py.
#define MATE3D_KERNELS(library)                      \
  library.impl("triplane_corners", &corners);         \
  library.impl("triplane_slopes", &slopes);           \
  library.impl("triplane_gradient", &gradient);       \
  library.impl("triplane_curvature", &curvature);     \
  library.impl("triplane_gather", &gather);           \
  library.impl("triplane_scatter", &scatter);         \
  library.impl("triplane_dot", &dot);

TORCH_LIBRARY_IMPL(mate3d, CPU, library) {
  MATE3D_KERNELS(library)
  library.impl("triplane_sample", &sample);
  library.impl("triplane_turn", &turn);
}

#ifdef MATE3D_CUDA
TORCH_LIBRARY_IMPL(mate3d, CUDA, library) { MATE3D_KERNELS(library) }
#endif

}  // namespace mate3d
