// The CUDA kernels of triplane_sample. No header of torch: this compiles with any torch.
#include <cuda_runtime.h>

#include "triplane_sample.h"

namespace mate3d {
namespace {

constexpr int kThreads = 256;

// Calls visit(i) for i below `count`, whatever the size of the grid.
template <typename Visit>
__device__ void each(int64_t count, Visit visit) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) visit(i);
}

// A thread takes a point.
template <typename T>
__global__ __launch_bounds__(kThreads) void corners_kernel(CornerArguments<T> a) {
  each(a.count, [&](int64_t b) { visit_point(a, b); });
}

// A thread takes a channel of a point, so that neighbouring threads read neighbouring numbers of a row.
template <typename T>
__global__ __launch_bounds__(kThreads) void gather_kernel(Rows<T> r, const T* table, T* values) {
  each(r.points * r.channels, [&](int64_t i) {
    const int64_t b = i / r.channels, c = i % r.channels;
    T sum = 0;
    for (int64_t k = 0; k < 4 * r.planes; ++k) {
      sum += r.weight[b * 4 * r.planes + k] * table[r.row(b, k) * r.channels + c];
    }
    values[i] = sum;
  });
}

// The order of the additions, hence their rounding, differs between runs.
template <typename T>
__global__ __launch_bounds__(kThreads) void scatter_kernel(Rows<T> r, const T* values, T* table) {
  each(r.points * r.channels, [&](int64_t i) {
    const int64_t b = i / r.channels, c = i % r.channels;
    const T value = values[i];
    for (int64_t k = 0; k < 4 * r.planes; ++k) {
      atomicAdd(table + r.row(b, k) * r.channels + c, r.weight[b * 4 * r.planes + k] * value);
    }
  });
}

// A thread takes a corner of a point.
template <typename T>
__global__ __launch_bounds__(kThreads) void dot_kernel(Rows<T> r, const T* table, const T* values, T* dots) {
  each(r.points * 4 * r.planes, [&](int64_t i) {
    const int64_t b = i / (4 * r.planes);
    const T *row = table + r.row(b, i % (4 * r.planes)) * r.channels, *value = values + b * r.channels;
    T sum = 0;
    for (int64_t c = 0; c < r.channels; ++c) sum += row[c] * value[c];
    dots[i] = sum;
  });
}

int blocks_for(int64_t count) {
  const int64_t wanted = (count + kThreads - 1) / kThreads;
  return int(wanted < 1 ? 1 : wanted < 1 << 20 ? wanted : 1 << 20);
}

const char* problem() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

// Null, or what went wrong.
template <typename T>
const char* corners_cuda(const CornerArguments<T>& a, void* stream) {
  corners_kernel<<<blocks_for(a.count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return problem();
}

template <typename T>
const char* gather_cuda(const Rows<T>& r, const T* table, T* values, void* stream) {
  const int blocks = blocks_for(r.points * r.channels);
  gather_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(r, table, values);
  return problem();
}

template <typename T>
const char* scatter_cuda(const Rows<T>& r, const T* values, T* table, void* stream) {
  const int blocks = blocks_for(r.points * r.channels);
  scatter_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(r, values, table);
  return problem();
}

template <typename T>
const char* dot_cuda(const Rows<T>& r, const T* table, const T* values, T* dots, void* stream) {
  const int blocks = blocks_for(r.points * 4 * r.planes);
  dot_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(r, table, values, dots);
  return problem();
}

#define MATE3D_INSTANCES(T)                                                      \
  template const char* corners_cuda(const CornerArguments<T>&, void*);           \
  template const char* gather_cuda(const Rows<T>&, const T*, T*, void*);         \
  template const char* scatter_cuda(const Rows<T>&, const T*, T*, void*);        \
  template const char* dot_cuda(const Rows<T>&, const T*, const T*, T*, void*);
MATE3D_INSTANCES(float)
MATE3D_INSTANCES(double)

}  // namespace mate3d
