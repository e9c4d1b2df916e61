// The CUDA kernel of bias_act. No header of torch: this compiles in seconds, with any torch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "bias_act.h"

namespace mate3d {
namespace {

constexpr int kThreads = 256;

template <Activation act, Wanted wanted, typename T, typename Compute>
__global__ void __launch_bounds__(kThreads) bias_act_kernel(BiasActArguments<T, Compute> a) {
  const int64_t count = a.outer * a.channels * a.step, stride = int64_t(blockDim.x) * gridDim.x;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += stride) {
    const int64_t channel = a.bias || a.spread ? (i / a.step) % a.channels : 0;
    const Compute bias = a.bias ? Compute(a.bias[channel]) : Compute(0);
    const Compute spread = a.spread ? Compute(a.spread[channel]) : Compute(0);
    const Compute factor = wanted == Wanted::value ? Compute(1) : Compute(a.factor[i]) + spread;
    a.y[i] = T(element<act, wanted, Compute>(factor, Compute(a.x[i]), bias, a.alpha, a.gain, a.clamp));
  }
}

template <typename T, typename Compute>
const char* launch(Activation act, Wanted wanted, const BiasActArguments<T, Compute>& arguments, void* stream) {
  const int64_t count = arguments.outer * arguments.channels * arguments.step;
  const int64_t needed = (count + kThreads - 1) / kThreads;
  const int blocks = int(needed < 65536 ? needed : 65536);
  with_activation(act, wanted, [&]<Activation known, Wanted known_wanted>() {
    bias_act_kernel<known, known_wanted>
        <<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
  });
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The clamp is rounded as what it has clamped is: the derivative that is read off a value compares the two.
template <typename T>
BiasActArguments<T, float> as(const BiasActArguments<uint16_t, float>& a) {
  return {reinterpret_cast<const T*>(a.x), reinterpret_cast<const T*>(a.bias), reinterpret_cast<const T*>(a.factor),
          reinterpret_cast<const T*>(a.spread), reinterpret_cast<T*>(a.y), a.outer, a.channels, a.step, a.alpha, a.gain,
          float(T(a.clamp))};
}

}  // namespace

// Null, or what went wrong.
const char* bias_act_cuda(Activation act, Wanted wanted, const BiasActArguments<float, float>& a, void* stream) {
  return launch(act, wanted, a, stream);
}

const char* bias_act_cuda(Activation act, Wanted wanted, const BiasActArguments<double, double>& a, void* stream) {
  return launch(act, wanted, a, stream);
}

const char* bias_act_cuda(Activation act, Wanted wanted, const BiasActArguments<uint16_t, float>& a, bool brain,
                          void* stream) {
  return brain ? launch(act, wanted, as<__nv_bfloat16>(a), stream) : launch(act, wanted, as<__half>(a), stream);
}

}  // namespace mate3d
