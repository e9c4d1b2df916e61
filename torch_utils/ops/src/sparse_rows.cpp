// CPU side of the linear maps in sparse_rows.h. Shapes: table (R, C), index and weight (B, K), values (B, C).

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "sparse_rows.h"

namespace {

constexpr int64_t kGrain = 512;  // rows per task: some 10 microseconds of work

void check(const at::Tensor& index, int64_t rows) {
    TORCH_CHECK(index.dim() == 2 && index.scalar_type() == at::kLong, "index must be (B, K) int64");
    if (index.numel() == 0) return;
    const auto data = index.const_data_ptr<int64_t>();
    int64_t low = 0, high = 0;
    for (int64_t i = 0; i < index.numel(); ++i) {
        low = data[i] < low ? data[i] : low;
        high = data[i] > high ? data[i] : high;
    }
    TORCH_CHECK(low >= 0 && high < rows, "index out of range: ", low, " to ", high, " in a table of ", rows);
}

// Rows come in `groups` equal blocks that write to equal, disjoint blocks of the table (one per scene), so blocks run in
// parallel without atomics and the sum's order, hence its rounding, does not depend on the number of threads.
at::Tensor scatter(const at::Tensor& values_, const at::Tensor& index_, const at::Tensor& weight_, int64_t table_rows,
                   int64_t groups) {
    const auto values = values_.contiguous(), index = index_.contiguous(), weight = weight_.contiguous();
    check(index, table_rows);
    const int64_t rows = index.size(0), entries = index.size(1), channels = values.size(1);
    TORCH_CHECK(groups > 0 && rows % groups == 0, rows, " rows do not divide into ", groups, " groups");
    auto out = at::zeros({table_rows, channels}, values.options());
    AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "sparse_scatter", [&] {
        const auto v = values.const_data_ptr<scalar_t>(), w = weight.const_data_ptr<scalar_t>();
        const auto i = index.const_data_ptr<int64_t>();
        const auto o = out.mutable_data_ptr<scalar_t>();
        const int64_t each = rows / groups;
        at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin * each; b < end * each; ++b) {
                mate3d::scatter_row(v + b * channels, i + b * entries, w + b * entries, entries, channels, o);
            }
        });
    });
    return out;
}

at::Tensor dot(const at::Tensor& table_, const at::Tensor& index_, const at::Tensor& values_) {
    const auto table = table_.contiguous(), index = index_.contiguous(), values = values_.contiguous();
    check(index, table.size(0));
    const int64_t rows = index.size(0), entries = index.size(1), channels = table.size(1);
    auto out = at::empty({rows, entries}, table.options());
    AT_DISPATCH_FLOATING_TYPES(table.scalar_type(), "sparse_dot", [&] {
        const auto t = table.const_data_ptr<scalar_t>(), v = values.const_data_ptr<scalar_t>();
        const auto i = index.const_data_ptr<int64_t>();
        const auto o = out.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) {
                mate3d::dot_row(t, i + b * entries, v + b * channels, entries, channels, o + b * entries);
            }
        });
    });
    return out;
}

// Points (N, M, 3) to the table rows and weights of their corners on every plane, (N * M, 4 * planes) each. `axes` holds
// the horizontal and the vertical axis of each plane; weights are multiplied by `scale`. Not differentiable.
std::tuple<at::Tensor, at::Tensor> corners(const at::Tensor& points_, at::IntArrayRef axes, double box_warp,
                                           int64_t height, int64_t width, double scale) {
    const auto points = points_.contiguous();
    TORCH_CHECK(points.dim() == 3 && points.size(2) == 3, "points must be (N, M, 3)");
    const int64_t scenes = points.size(0), each = points.size(1), planes = static_cast<int64_t>(axes.size()) / 2;
    auto index = at::empty({scenes * each, 4 * planes}, points.options().dtype(at::kLong));
    auto weight = at::empty({scenes * each, 4 * planes}, points.options());
    AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "triplane_corners", [&] {
        const auto p = points.const_data_ptr<scalar_t>();
        const auto i = index.mutable_data_ptr<int64_t>();
        const auto w = weight.mutable_data_ptr<scalar_t>();
        const scalar_t sx = width / box_warp, sy = height / box_warp;
        at::parallel_for(0, scenes * each, kGrain, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) {
                for (int64_t k = 0; k < planes; ++k) {
                    const scalar_t x = p[3 * b + axes[2 * k]] * sx + scalar_t(width - 1) / 2;
                    const scalar_t y = p[3 * b + axes[2 * k + 1]] * sy + scalar_t(height - 1) / 2;
                    const int64_t at = 4 * (planes * b + k), first = (b / each * planes + k) * height * width;
                    mate3d::cell_corners<scalar_t>(x, y, height, width, first, scale, i + at, w + at);
                }
            }
        });
    });
    return {index, weight};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mate3d, m) {
    m.def("triplane_corners(Tensor points, int[] axes, float box_warp, int height, int width, float scale) -> (Tensor, Tensor)");
    m.def("sparse_scatter(Tensor values, Tensor index, Tensor weight, int table_rows, int groups) -> Tensor");
    m.def("sparse_dot(Tensor table, Tensor index, Tensor values) -> Tensor");
}

TORCH_LIBRARY_IMPL(mate3d, CPU, m) {
    m.impl("triplane_corners", &corners);
    m.impl("sparse_scatter", &scatter);
    m.impl("sparse_dot", &dot);
}
