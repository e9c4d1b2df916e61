// torch.ops.mate3d.bias_act and its gradient: checks, the CPU loops, and the way to the CUDA kernel. Schemas and
// derivatives: torch_utils/ops/bias_act.py.
#include "bias_act.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#ifdef MATE3D_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace mate3d {

#ifdef MATE3D_CUDA
// float, double; uint16_t stands for half, and for bfloat16 where `brain` says so.
const char* bias_act_cuda(Activation, Wanted, const BiasActArguments<float, float>&, void* stream);
const char* bias_act_cuda(Activation, Wanted, const BiasActArguments<double, double>&, void* stream);
const char* bias_act_cuda(Activation, Wanted, const BiasActArguments<uint16_t, float>&, bool brain, void* stream);
#endif

namespace {

constexpr int64_t kGrain = 32768;  // elements worth a thread
constexpr int64_t kPiece = 8192;   // elements whose sum is one float's work: their rounding stays below 1e-6
constexpr int64_t kPattern = 256;  // shortest run of channel-innermost elements that repays its loop

// In both loops y may be x: `omp simd` tells the compiler that elements do not depend on each other.

// `count` elements that share a bias and what is added to their factors. Returns the sum of what they become, which
// costs a derivative next to nothing and is 0 for the value.
template <Activation act, Wanted wanted, typename T>
T run_of_one_channel(const T* x, T bias, const T* factor, T spread, T* y, int64_t count, T alpha, T gain, T clamp) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    const T scale = wanted == Wanted::value ? T(1) : factor[i] + spread;
    y[i] = element<act, wanted, T>(scale, x[i], bias, alpha, gain, clamp);
    if constexpr (wanted != Wanted::value) sum += y[i];
  }
  return sum;
}

// `count` elements each of which has its own bias and addend to the factor; adds what they become to `sum`.
template <Activation act, Wanted wanted, typename T>
void run_across_channels(const T* x, const T* bias, const T* factor, const T* spread, T* y, T* sum, int64_t count,
                         T alpha, T gain, T clamp) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const T scale = wanted == Wanted::value ? T(1) : factor[i] + spread[i];
    y[i] = element<act, wanted, T>(scale, x[i], bias[i], alpha, gain, clamp);
    if constexpr (wanted != Wanted::value) sum[i] += y[i];
  }
}

// Channels outside: pieces of one row (outer, channel) each.
template <Activation act, Wanted wanted, typename T>
void cpu_rows(const BiasActArguments<T, T>& a, T* sums) {
  const int64_t rows = a.outer * a.channels;
  const int64_t pieces = (a.step + kPiece - 1) / kPiece;
  std::vector<T> partial(sums ? rows * pieces : 0);
  at::parallel_for(0, rows * pieces, std::max<int64_t>(1, kGrain / std::min(a.step, kPiece)),
                   [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / pieces, start = i % pieces * kPiece, at = row * a.step + start;
      const int64_t channel = row % a.channels;
      const T* factor = wanted == Wanted::value ? nullptr : a.factor + at;
      const T sum = run_of_one_channel<act, wanted>(
          a.x + at, a.bias ? a.bias[channel] : T(0), factor, a.spread ? a.spread[channel] : T(0), a.y + at,
          std::min(kPiece, a.step - start), a.alpha, a.gain, a.clamp);
      if (sums) partial[i] = sum;
    }
  });
  if (sums) {
    for (int64_t channel = 0; channel < a.channels; ++channel) {
      double sum = 0;
      for (int64_t outer = 0; outer < a.outer; ++outer) {
        const T* first = partial.data() + (outer * a.channels + channel) * pieces;
        for (int64_t i = 0; i < pieces; ++i) sum += first[i];
      }
      sums[channel] = T(sum);
    }
  }
}

// Channels innermost: runs of whole pixels, enough of them to fill a loop.
template <Activation act, Wanted wanted, typename T>
void cpu_pixels(const BiasActArguments<T, T>& a, T* sums) {
  const int64_t pixels = std::max<int64_t>(1, std::min(a.outer, kPattern / a.channels)), run = pixels * a.channels;
  const int64_t total = a.outer * a.channels;
  // Sums are those of fixed blocks, so that they do not depend on the number of threads.
  const int64_t block = std::max<int64_t>(1, kGrain / run) * run, blocks = (total + block - 1) / block;
  std::vector<T> bias(run, T(0)), spread(run, T(0)), partial(wanted == Wanted::value ? 0 : blocks * run, T(0));
  for (int64_t i = 0; a.bias && i < run; ++i) bias[i] = a.bias[i % a.channels];
  for (int64_t i = 0; a.spread && i < run; ++i) spread[i] = a.spread[i % a.channels];
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      T* sum = wanted == Wanted::value ? nullptr : partial.data() + b * run;
      for (int64_t at = b * block; at < std::min(total, (b + 1) * block); at += run) {
        const T* factor = wanted == Wanted::value ? nullptr : a.factor + at;
        run_across_channels<act, wanted>(a.x + at, bias.data(), factor, spread.data(), a.y + at, sum,
                                         std::min(run, total - at), a.alpha, a.gain, a.clamp);
      }
    }
  });
  if (sums) {
    std::vector<double> total_sum(a.channels, 0.0);
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t i = 0; i < run; ++i) total_sum[i % a.channels] += partial[b * run + i];
    }
    for (int64_t channel = 0; channel < a.channels; ++channel) sums[channel] = T(total_sum[channel]);
  }
}

template <typename T>
void bias_act_cpu(Activation act, Wanted wanted, const BiasActArguments<T, T>& a, T* sums) {
  with_activation(act, wanted, [&]<Activation known, Wanted known_wanted>() {
    if (a.step == 1) cpu_pixels<known, known_wanted>(a, sums);
    else cpu_rows<known, known_wanted>(a, sums);
  });
}

struct Call {
  int64_t dim;
  Activation act;
  Wanted wanted;
  double alpha, gain, clamp;
  bool sum;
  bool in_place = false;  // the result takes the place of x, which must be dense
};

// The result, and its sum over all but `dim` if that is wanted (else no elements).
std::tuple<at::Tensor, at::Tensor> compute(const at::Tensor& x_any, const std::optional<at::Tensor>& bias_any,
                                           const std::optional<at::Tensor>& factor_any,
                                           const std::optional<at::Tensor>& spread_any, const Call& call) {
  TORCH_CHECK(call.dim >= 0 && call.dim < x_any.dim(), "bias_act: no dimension ", call.dim);
  // The kernels walk through memory, whatever the order of the dimensions. Where x has gaps, it is brought to the
  // order of the result, which is what the fake kernel says.
  const bool dense = x_any.is_non_overlapping_and_dense();
  TORCH_CHECK(!call.in_place || dense, "bias_act_: x has gaps in memory or overlaps itself");
  const at::Tensor x = dense ? x_any : at::empty_like(x_any).copy_(x_any);
  const at::Tensor y = call.in_place ? x : at::empty_like(x);
  auto by_channel = [&](const std::optional<at::Tensor>& given, const char* name) {
    if (!given.has_value()) return at::Tensor();
    TORCH_CHECK(given->dim() == 1 && given->size(0) == x.size(call.dim), "bias_act: the ", name,
                " does not fit dimension ", call.dim);
    TORCH_CHECK(given->scalar_type() == x.scalar_type() && given->device() == x.device(), "bias_act: x and ", name,
                " differ in type or device");
    return given->contiguous();
  };
  const at::Tensor bias = by_channel(bias_any, "bias"), spread = by_channel(spread_any, "spread");
  at::Tensor factor;
  if (factor_any.has_value()) {
    factor = *factor_any;
    TORCH_CHECK(factor.sizes() == x.sizes() && factor.scalar_type() == x.scalar_type() &&
                    factor.device() == x.device(),
                "bias_act: x and factor differ in shape, type or device");
    if (factor.strides() != x.strides()) factor = at::empty_like(x).copy_(factor);
  }
  const int64_t channels = x.size(call.dim);
  at::Tensor sums = at::empty({call.sum ? channels : 0}, x.options());
  if (x.numel() == 0) {
    sums.zero_();
    return {y, sums};
  }
  // Dense, so what lies below one step along `dim` is whole. A dimension of size 1 may have any stride.
  const int64_t step = channels == 1 ? x.numel() : x.stride(call.dim);

  auto arguments = [&]<typename T, typename Compute>() {
    return BiasActArguments<T, Compute>{
        static_cast<const T*>(x.const_data_ptr()),
        bias.defined() ? static_cast<const T*>(bias.const_data_ptr()) : nullptr,
        factor.defined() ? static_cast<const T*>(factor.const_data_ptr()) : nullptr,
        spread.defined() ? static_cast<const T*>(spread.const_data_ptr()) : nullptr,
        static_cast<T*>(y.mutable_data_ptr()),
        x.numel() / (channels * step), channels, step,
        Compute(call.alpha), Compute(call.gain), Compute(call.clamp)};
  };
  if (x.is_cpu()) {
    if (x.scalar_type() == at::kFloat) {
      bias_act_cpu(call.act, call.wanted, arguments.template operator()<float, float>(),
                   call.sum ? sums.mutable_data_ptr<float>() : nullptr);
    } else {
      TORCH_CHECK(x.scalar_type() == at::kDouble, "bias_act: no CPU code for ", x.scalar_type());
      bias_act_cpu(call.act, call.wanted, arguments.template operator()<double, double>(),
                   call.sum ? sums.mutable_data_ptr<double>() : nullptr);
    }
    return {y, sums};
  }
#ifdef MATE3D_CUDA
  const c10::cuda::CUDAGuard guard(x.device());
  void* stream = c10::cuda::getCurrentCUDAStream().stream();
  const char* error = nullptr;
  if (x.scalar_type() == at::kFloat) {
    error = bias_act_cuda(call.act, call.wanted, arguments.template operator()<float, float>(), stream);
  } else if (x.scalar_type() == at::kDouble) {
    error = bias_act_cuda(call.act, call.wanted, arguments.template operator()<double, double>(), stream);
  } else {
    const bool brain = x.scalar_type() == at::kBFloat16;
    TORCH_CHECK(brain || x.scalar_type() == at::kHalf, "bias_act: no CUDA code for ", x.scalar_type());
    error = bias_act_cuda(call.act, call.wanted, arguments.template operator()<uint16_t, float>(), brain, stream);
  }
  TORCH_CHECK(!error, "bias_act: ", error);
  if (call.sum) {
    std::vector<int64_t> others;
    for (int64_t i = 0; i < y.dim(); ++i) {
      if (i != call.dim) others.push_back(i);
    }
    sums = others.empty() ? y.clone() : at::sum(y, others);
  }
  return {y, sums};
#else
  TORCH_CHECK(false, "bias_act: built without CUDA");
#endif
}

Activation checked_activation(int64_t act) {
  TORCH_CHECK(act >= 0 && act <= int64_t(Activation::swish), "bias_act: no activation ", act);
  return Activation(act);
}

// A comparison with NaN is false, so it clamps nothing.
double bound(std::optional<double> clamp) { return clamp.value_or(std::numeric_limits<double>::quiet_NaN()); }

at::Tensor bias_act(const at::Tensor& x, const std::optional<at::Tensor>& bias, int64_t dim, int64_t act, double alpha,
                    double gain, std::optional<double> clamp) {
  const Call call{dim, checked_activation(act), Wanted::value, alpha, gain, bound(clamp), false};
  return std::get<0>(compute(x, bias, std::nullopt, std::nullopt, call));
}

void bias_act_(at::Tensor& x, const std::optional<at::Tensor>& bias, int64_t dim, int64_t act, double alpha,
               double gain, std::optional<double> clamp) {
  Call call{dim, checked_activation(act), Wanted::value, alpha, gain, bound(clamp), false};
  call.in_place = true;
  compute(x, bias, std::nullopt, std::nullopt, call);
}

std::tuple<at::Tensor, at::Tensor> bias_act_gradient(const at::Tensor& factor,
                                                     const std::optional<at::Tensor>& spread, const at::Tensor& x,
                                                     const std::optional<at::Tensor>& bias, int64_t dim, int64_t act,
                                                     int64_t wanted, double alpha, double gain,
                                                     std::optional<double> clamp, bool sum) {
  const Activation known = checked_activation(act);
  TORCH_CHECK(wanted >= int64_t(Wanted::first) && wanted <= int64_t(Wanted::first_of_value),
              "bias_act: no derivative ", wanted);
  TORCH_CHECK(Wanted(wanted) != Wanted::first_of_value || is_homogeneous(known),
              "bias_act: the value of this activation does not tell its derivative");
  return compute(x, bias, factor, spread, Call{dim, known, Wanted(wanted), alpha, gain, bound(clamp), sum});
}

}  // namespace

TORCH_LIBRARY_IMPL(mate3d, CPU, library) {
  library.impl("bias_act", &bias_act);
  library.impl("bias_act_", &bias_act_);
  library.impl("bias_act_gradient", &bias_act_gradient);
}

#ifdef MATE3D_CUDA
TORCH_LIBRARY_IMPL(mate3d, CUDA, library) {
  library.impl("bias_act", &bias_act);
  library.impl("bias_act_", &bias_act_);
  library.impl("bias_act_gradient", &bias_act_gradient);
}
#endif

}  // namespace mate3d
