// The CUDA kernel of upfirdn2d: a thread for each pixel of the result. No header of torch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "upfirdn2d.h"

namespace mate3d {
namespace {

constexpr int kThreads = 256;

template <typename T, typename Compute>
__global__ void __launch_bounds__(kThreads) upfirdn2d_kernel(UpfirdnArguments<T, Compute> a) {
  const int64_t count = a.outer * a.rows.out * a.columns.out * a.inner;
  const int64_t stride_x = a.inner, stride_y = a.columns.in * a.inner, picture = a.rows.in * stride_y;
  const int64_t stride = int64_t(blockDim.x) * gridDim.x;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += stride) {
    const int64_t channel = i % a.inner, pixel = i / a.inner;
    const int64_t ox = pixel % a.columns.out, oy = pixel / a.columns.out % a.rows.out;
    const int64_t outer = pixel / a.columns.out / a.rows.out;
    a.y[i] = T(filtered_pixel(a.x + outer * picture + channel, stride_y, stride_x, a.f, a.rows, a.columns, oy, ox));
  }
}

template <typename T, typename Compute>
const char* launch(const UpfirdnArguments<T, Compute>& arguments, void* stream) {
  const int64_t count = arguments.outer * arguments.rows.out * arguments.columns.out * arguments.inner;
  const int64_t needed = (count + kThreads - 1) / kThreads;
  const int blocks = int(needed < 65536 ? needed : 65536);
  upfirdn2d_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename T>
UpfirdnArguments<T, float> as(const UpfirdnArguments<uint16_t, float>& a) {
  return {reinterpret_cast<const T*>(a.x), a.f, reinterpret_cast<T*>(a.y), a.outer, a.inner, a.rows, a.columns};
}

}  // namespace

const char* upfirdn2d_cuda(const UpfirdnArguments<float, float>& a, void* stream) { return launch(a, stream); }
const char* upfirdn2d_cuda(const UpfirdnArguments<double, double>& a, void* stream) { return launch(a, stream); }
const char* upfirdn2d_cuda(const UpfirdnArguments<uint16_t, float>& a, bool brain, void* stream) {
  return brain ? launch(as<__nv_bfloat16>(a), stream) : launch(as<__half>(a), stream);
}

}  // namespace mate3d
