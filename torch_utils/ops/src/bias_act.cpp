// torch.ops.mate3d.bias_act: checks, the CPU loop, and the way to the CUDA kernel.
#include "bias_act.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>

#ifdef MATE3D_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace mate3d {

#ifdef MATE3D_CUDA
const char* bias_act_cuda(int act, int order, const BiasActArguments<float, float>&, void* stream);
const char* bias_act_cuda(int act, int order, const BiasActArguments<double, double>&, void* stream);
const char* bias_act_cuda(int act, int order, const BiasActArguments<uint16_t, float>&, void* stream);
#endif

namespace {

constexpr int64_t kGrain = 32768;  // elements worth a thread

// One run of elements; `bias` is shared by all of them, or advances with them. Plain pointers that the compiler may
// take for distinct, so that it computes several elements at once.
template <Activation act, int order, bool advance, typename T>
void cpu_run(const T* __restrict__ x, const T* __restrict__ bias, const T* __restrict__ factor, T* __restrict__ y,
             int64_t count, T alpha, T gain, T clamp) {
  const T shared = bias ? *bias : T(0);
  for (int64_t i = 0; i < count; ++i) {
    y[i] = element<act, order, T>(order ? factor[i] : T(1), x[i], advance ? bias[i] : shared, alpha, gain, clamp);
  }
}

// Elements begin ... end, in runs that share a bias (or, where the channel is innermost, that pass through all).
template <Activation act, int order, typename T>
void cpu_range(const BiasActArguments<T, T>& a, int64_t begin, int64_t end) {
  const bool innermost = a.bias && a.step == 1;
  for (int64_t i = begin; i < end;) {
    const int64_t run = !a.bias ? end - i : innermost ? a.channels - i % a.channels : a.step - i % a.step;
    const int64_t count = std::min(end - i, run);
    const T* bias = a.bias ? a.bias + (i / a.step) % a.channels : nullptr;
    const T* factor = order ? a.factor + i : nullptr;
    if (innermost) {
      cpu_run<act, order, true>(a.x + i, bias, factor, a.y + i, count, a.alpha, a.gain, a.clamp);
    } else {
      cpu_run<act, order, false>(a.x + i, bias, factor, a.y + i, count, a.alpha, a.gain, a.clamp);
    }
    i += count;
  }
}

template <typename T>
void bias_act_cpu(int act, int order, const BiasActArguments<T, T>& arguments) {
  with_activation(Activation(act), order, [&]<Activation known, int known_order>() {
    at::parallel_for(0, arguments.count, kGrain, [&](int64_t begin, int64_t end) {
      cpu_range<known, known_order, T>(arguments, begin, end);
    });
  });
}

// x in memory order: the kernels walk through memory, whatever the order of the dimensions.
bool is_dense(const at::Tensor& x) { return x.is_non_overlapping_and_dense(); }

at::Tensor bias_act(const at::Tensor& x_any, const std::optional<at::Tensor>& bias_any,
                    const std::optional<at::Tensor>& factor_any, int64_t dim, int64_t act, int64_t order,
                    double alpha, double gain, std::optional<double> clamp) {
  TORCH_CHECK(act >= 0 && act <= int64_t(Activation::swish), "bias_act: no activation ", act);
  TORCH_CHECK(order >= 0 && order <= 2, "bias_act: no derivative of order ", order);
  TORCH_CHECK((order > 0) == factor_any.has_value(), "bias_act: a factor belongs to a derivative");
  TORCH_CHECK(dim >= 0 && dim < x_any.dim(), "bias_act: no dimension ", dim);
  const at::Tensor x = is_dense(x_any) ? x_any : x_any.contiguous();
  const at::Tensor y = at::empty_like(x);
  at::Tensor bias, factor;
  if (bias_any.has_value()) {
    bias = bias_any->contiguous();
    TORCH_CHECK(bias.dim() == 1 && bias.size(0) == x.size(dim), "bias_act: the bias does not fit dimension ", dim);
    TORCH_CHECK(bias.scalar_type() == x.scalar_type() && bias.device() == x.device(),
                "bias_act: x and bias differ in type or device");
  }
  if (factor_any.has_value()) {
    factor = *factor_any;
    TORCH_CHECK(factor.sizes() == x.sizes() && factor.scalar_type() == x.scalar_type() &&
                    factor.device() == x.device(),
                "bias_act: x and factor differ in shape, type or device");
    if (factor.strides() != x.strides()) factor = at::empty_like(x).copy_(factor);
  }
  if (x.numel() == 0) return y;

  auto arguments = [&]<typename T, typename Compute>() {
    return BiasActArguments<T, Compute>{
        static_cast<const T*>(x.const_data_ptr()),
        bias.defined() ? static_cast<const T*>(bias.const_data_ptr()) : nullptr,
        factor.defined() ? static_cast<const T*>(factor.const_data_ptr()) : nullptr,
        static_cast<T*>(y.mutable_data_ptr()),
        x.numel(), std::max<int64_t>(x.stride(dim), 1), x.size(dim),
        Compute(alpha), Compute(gain), Compute(clamp.value_or(std::numeric_limits<double>::infinity()))};
  };
  if (x.is_cpu()) {
    if (x.scalar_type() == at::kFloat) {
      bias_act_cpu(int(act), int(order), arguments.template operator()<float, float>());
    } else {
      TORCH_CHECK(x.scalar_type() == at::kDouble, "bias_act: no CPU code for ", x.scalar_type());
      bias_act_cpu(int(act), int(order), arguments.template operator()<double, double>());
    }
    return y;
  }
#ifdef MATE3D_CUDA
  const c10::cuda::CUDAGuard guard(x.device());
  void* stream = c10::cuda::getCurrentCUDAStream().stream();
  const char* error = nullptr;
  if (x.scalar_type() == at::kFloat) {
    error = bias_act_cuda(int(act), int(order), arguments.template operator()<float, float>(), stream);
  } else if (x.scalar_type() == at::kDouble) {
    error = bias_act_cuda(int(act), int(order), arguments.template operator()<double, double>(), stream);
  } else {
    TORCH_CHECK(x.scalar_type() == at::kHalf, "bias_act: no CUDA code for ", x.scalar_type());
    error = bias_act_cuda(int(act), int(order), arguments.template operator()<uint16_t, float>(), stream);
  }
  TORCH_CHECK(!error, "bias_act: ", error);
  return y;
#else
  TORCH_CHECK(false, "bias_act: built without CUDA");
#endif
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mate3d, library) {
  library.def(
      "bias_act(Tensor x, Tensor? bias, Tensor? factor, int dim, int act, int order, float alpha, float gain, "
      "float? clamp) -> Tensor");
}

TORCH_LIBRARY_IMPL(mate3d, CPU, library) { library.impl("bias_act", &bias_act); }

#ifdef MATE3D_CUDA
TORCH_LIBRARY_IMPL(mate3d, CUDA, library) { library.impl("bias_act", &bias_act); }
#endif

}  // namespace mate3d
