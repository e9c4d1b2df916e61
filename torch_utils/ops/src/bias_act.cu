// The CUDA kernel of bias_act. No header of torch: this compiles in seconds, with any torch.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "bias_act.h"

namespace mate3d {
namespace {

template <Activation act, int order, typename T, typename Compute>
__global__ void bias_act_kernel(BiasActArguments<T, Compute> a) {
  const int64_t stride = int64_t(blockDim.x) * gridDim.x;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < a.count; i += stride) {
    const Compute bias = a.bias ? Compute(a.bias[(i / a.step) % a.channels]) : Compute(0);
    const Compute factor = order > 0 ? Compute(a.factor[i]) : Compute(1);
    a.y[i] = T(element<act, order, Compute>(factor, Compute(a.x[i]), bias, a.alpha, a.gain, a.clamp));
  }
}

template <typename T, typename Compute>
const char* launch(int act, int order, const BiasActArguments<T, Compute>& arguments, void* stream) {
  constexpr int threads = 256;
  const int64_t wanted = (arguments.count + threads - 1) / threads;
  const int blocks = int(wanted < 65536 ? wanted : 65536);
  with_activation(Activation(act), order, [&]<Activation known, int known_order>() {
    bias_act_kernel<known, known_order><<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
  });
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

// Null, or what went wrong. uint16_t stands for __half, which the host compiler does not know.
const char* bias_act_cuda(int act, int order, const BiasActArguments<float, float>& a, void* stream) {
  return launch(act, order, a, stream);
}

const char* bias_act_cuda(int act, int order, const BiasActArguments<double, double>& a, void* stream) {
  return launch(act, order, a, stream);
}

const char* bias_act_cuda(int act, int order, const BiasActArguments<uint16_t, float>& a, void* stream) {
  const BiasActArguments<__half, float> half{
      reinterpret_cast<const __half*>(a.x),      reinterpret_cast<const __half*>(a.bias),
      reinterpret_cast<const __half*>(a.factor), reinterpret_cast<__half*>(a.y),
      a.count, a.step, a.channels, a.alpha, a.gain, a.clamp};
  return launch(act, order, half, stream);
}

}  // namespace mate3d
