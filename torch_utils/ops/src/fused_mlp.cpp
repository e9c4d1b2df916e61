// torch.ops.mate3d.fused_mlp, fused_mlp_gradient and fused_mlp_second: checks, and the way to the kernels.
#include "fused_mlp.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#ifdef MATE3D_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace mate3d {
namespace {

// Contiguous inputs and new outputs, whose pointers are the arguments of a kernel.
struct Call {
  Call(const at::Tensor& x_any, const at::Tensor& weight1_any, const at::Tensor& bias1_any,
       const at::Tensor& weight2_any)
      : x(x_any.contiguous()),
        weight1(weight1_any.contiguous()),
        bias1(bias1_any.contiguous()),
        weight2(weight2_any.contiguous()) {
    TORCH_CHECK(x.dim() == 2 && weight1.dim() == 3 && bias1.dim() == 2 && weight2.dim() == 3,
                "fused_mlp: x is (M, C), W1 (P, K, C), b1 (P, K) and W2 (P, O, K)");
    TORCH_CHECK(x.size(1) == weight1.size(2), "fused_mlp: x and W1 differ in their channels");
    TORCH_CHECK(bias1.sizes() == weight1.sizes().slice(0, 2), "fused_mlp: b1 does not fit W1");
    TORCH_CHECK(weight2.size(0) == weight1.size(0) && weight2.size(2) == weight1.size(1),
                "fused_mlp: W2 does not fit W1");
    for (const auto& other : {weight1, bias1, weight2}) same(other);
  }

  void same(const at::Tensor& other) const {
    TORCH_CHECK(other.scalar_type() == x.scalar_type() && other.device() == x.device(),
                "fused_mlp: inputs differ in type or device");
  }

  int64_t columns() const { return weight2.size(0) * weight2.size(1); }

  void set_grad(const at::Tensor& any) {
    grad = any.contiguous();
    same(grad);
    TORCH_CHECK(grad.dim() == 2 && grad.size(0) == x.size(0) && grad.size(1) == columns(),
                "fused_mlp: the gradient is not (M, P O)");
  }

  void want_inputs(bool weights) {
    to_x = at::empty(x.sizes(), x.options());
    const auto zeros = [&](const at::Tensor& like) {
      return weights ? at::zeros(like.sizes(), x.options()) : at::empty({0}, x.options());
    };
    to_weight1 = zeros(weight1);
    to_bias1 = zeros(bias1);
    to_weight2 = zeros(weight2);
  }

  void want_outputs() { y = at::empty({x.size(0), columns()}, x.options()); }

  template <typename T>
  MlpArguments<T> arguments() const {
    const auto in = [](const at::Tensor& t) {
      return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
    };
    const auto out = [](const at::Tensor& t) {
      return t.defined() && t.numel() > 0 ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
    };
    return {x.size(0), x.size(1), weight1.size(0), weight1.size(1), weight2.size(1),
            in(x), in(weight1), in(bias1), in(weight2), in(bias2), in(grad), in(direction),
            out(y), out(to_x), out(to_weight1), out(to_bias1), out(to_weight2)};
  }

  void run(int order) {
    if (x.size(0) == 0 || columns() == 0) {  // no output depends on x
      if (to_x.defined()) to_x.zero_();
      return;
    }
    if (x.scalar_type() == at::kFloat) return run_as<float>(order);
    TORCH_CHECK(x.scalar_type() == at::kDouble, "fused_mlp: no code for ", x.scalar_type());
    run_as<double>(order);
  }

  template <typename T>
  void run_as(int order) {
    const MlpArguments<T> all = arguments<T>();
    if (x.is_cpu()) {
      if (order == 0) mlp_outputs(all);
      else if (order == 1) mlp_gradient(all);
      else mlp_second(all);
      return;
    }
#ifdef MATE3D_CUDA
    const c10::cuda::CUDAGuard guard(x.device());
    MlpPartial<T> partial{};
    at::Tensor sums1, sums_bias, sums2;
    if (all.to_weight1) {
      // About 2048 blocks of four warps, each of which adds up by itself; a block takes 32 points at a time.
      const int64_t tiles = (all.points + 31) / 32, units = all.heads * ((all.width + 15) / 16);
      partial.slabs = 4 * std::min(tiles, std::max<int64_t>(2048 / units, 1));
      const auto sums = [&](const at::Tensor& like) {
        auto sizes = like.sizes().vec();
        sizes.insert(sizes.begin(), partial.slabs);
        return at::empty(sizes, x.options());
      };
      sums1 = sums(weight1), sums_bias = sums(bias1), sums2 = sums(weight2);
      partial.weight1 = static_cast<T*>(sums1.mutable_data_ptr());
      partial.bias1 = static_cast<T*>(sums_bias.mutable_data_ptr());
      partial.weight2 = static_cast<T*>(sums2.mutable_data_ptr());
    }
    const char* const error = mlp_cuda(order, all, partial, c10::cuda::getCurrentCUDAStream().stream());
    TORCH_CHECK(!error, "fused_mlp: ", error);
    if (all.to_weight1) {
      to_weight1 = at::sum(sums1, {0});
      to_bias1 = at::sum(sums_bias, {0});
      to_weight2 = at::sum(sums2, {0});
    }
#endif
  }

  at::Tensor x, weight1, bias1, weight2, bias2, grad, direction, y, to_x, to_weight1, to_bias1, to_weight2;
};

at::Tensor outputs(const at::Tensor& x, const at::Tensor& weight1, const at::Tensor& bias1, const at::Tensor& weight2,
                   const at::Tensor& bias2) {
  Call call(x, weight1, bias1, weight2);
  call.bias2 = bias2.contiguous();
  call.same(call.bias2);
  TORCH_CHECK(call.bias2.sizes() == call.weight2.sizes().slice(0, 2), "fused_mlp: b2 does not fit W2");
  call.want_outputs();
  call.run(0);
  return call.y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gradient(const at::Tensor& grad, const at::Tensor& x,
                                                                    const at::Tensor& weight1, const at::Tensor& bias1,
                                                                    const at::Tensor& weight2, bool weights) {
  Call call(x, weight1, bias1, weight2);
  call.set_grad(grad);
  call.want_inputs(weights);
  call.run(1);
  return {call.to_x, call.to_weight1, call.to_bias1, call.to_weight2};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> second(
    const at::Tensor& direction, const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight1,
    const at::Tensor& bias1, const at::Tensor& weight2, bool weights) {
  Call call(x, weight1, bias1, weight2);
  call.set_grad(grad);
  call.direction = direction.contiguous();
  call.same(call.direction);
  TORCH_CHECK(call.direction.sizes() == call.x.sizes(), "fused_mlp: the direction does not fit x");
  call.want_outputs();
  call.want_inputs(weights);
  call.run(2);
  return {call.y, call.to_x, call.to_weight1, call.to_bias1, call.to_weight2};
}

}  // namespace

// The signatures are defined in fused_mlp.py.
#define MATE3D_KERNELS(library)                   \
  library.impl("fused_mlp", &outputs);            \
  library.impl("fused_mlp_gradient", &gradient);  \
  library.impl("fused_mlp_second", &second);

TORCH_LIBRARY_IMPL(mate3d, CPU, library) { MATE3D_KERNELS(library) }

#ifdef MATE3D_CUDA
TORCH_LIBRARY_IMPL(mate3d, CUDA, library) { MATE3D_KERNELS(library) }
#endif

}  // namespace mate3d
