// The CUDA kernels of march_rays: a block for each ray, which sorts its samples in shared memory. No header of torch.
#include <cuda_runtime.h>

#include "march_rays.h"

namespace mate3d {
namespace {

constexpr int kThreads = 64;
constexpr int64_t kMaxSamples = 1024;  // 44 bytes each in double precision, of the 48 KB that any GPU lends a block

// A ray's samples by depth. `order` says which sample is the i-th.
template <typename T>
struct Shared {
  __device__ explicit Shared(int64_t samples) {
    extern __shared__ double memory[];
    depth = reinterpret_cast<T*>(memory);
    density = depth + samples;
    thick = density + samples;
    before = thick + samples;
    weight = before + samples;
    order = reinterpret_cast<int*>(weight + samples);
  }

  T *depth, *density, *thick, *before, *weight;
  int* order;
};

template <typename T>
constexpr size_t shared_bytes(int64_t samples) {
  return size_t(samples) * (5 * sizeof(T) + sizeof(int));
}

template <typename T>
__device__ void load(const Rays<T>& rays, int64_t r, const Shared<T>& shared) {
  const int samples = int(rays.samples);
  const T *depth = rays.depth + r * samples, *density = rays.density + r * samples;
  for (int s = threadIdx.x; s < samples; s += blockDim.x) shared.thick[s] = sorting_key(depth[s]);
  __syncthreads();
  for (int s = threadIdx.x; s < samples; s += blockDim.x) {
    int rank = 0;
    for (int other = 0; other < samples; ++other) rank += comes_before(shared.thick, other, s);
    shared.order[rank] = s;
    shared.depth[rank] = depth[s];
    shared.density[rank] = density[s];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < samples - 1; i += blockDim.x) {
    shared.thick[i] = thickness(shared.density[i], shared.density[i + 1], shared.depth[i], shared.depth[i + 1],
                                rays.published);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    T before = 0;
    for (int i = 0; i < samples; ++i) {
      shared.before[i] = before;
      if (i < samples - 1) before += shared.thick[i];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < samples; i += blockDim.x) {
    shared.weight[i] = i < samples - 1 ? interval_weight(shared.before[i], shared.thick[i]) : T(0);
  }
  __syncthreads();
}

template <typename T>
__global__ void __launch_bounds__(kThreads) march_kernel(Rays<T> rays, Marched<T> out) {
  const Shared<T> shared(rays.samples);
  const int samples = int(rays.samples);
  for (int64_t r = blockIdx.x; r < rays.rays; r += gridDim.x) {
    load(rays, r, shared);
    T* v = out.weights + r * samples;
    for (int i = threadIdx.x; i < samples; i += blockDim.x) {
      v[shared.order[i]] = half_of_both(i > 0 ? shared.weight[i - 1] : T(0), shared.weight[i]);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      T total = 0, far = 0;
      for (int s = 0; s < samples; ++s) {
        total += v[s];
        far += v[s] * rays.depth[r * samples + s];
      }
      out.weight[r] = total;
      out.depth[r] = mean_depth(total, far);
    }
    const int64_t first = r * samples;
    for (int64_t f = threadIdx.x; f < rays.features; f += blockDim.x) {
      T sum = 0;
      for (int s = 0; s < samples; ++s) sum += v[s] * rays.colour[(first + s) * rays.features + f];
      out.colour[r * rays.features + f] = sum;
    }
    for (int64_t p = threadIdx.x; p < rays.parts; p += blockDim.x) {
      T sum = 0;
      for (int s = 0; s < samples; ++s) {
        sum += v[s] * mask_value(rays.sharpness, rays.part_sdf[(first + s) * rays.parts + p]);
      }
      out.mask[r * rays.parts + p] = sum;
    }
    for (int c = threadIdx.x; rays.normal && c < 3; c += blockDim.x) {
      T sum = 0;
      for (int s = 0; s < samples; ++s) sum += v[s] * rays.normal[(first + s) * 3 + c];
      out.normal[r * 3 + c] = sum;
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(Rays<T> rays, RayGradients<T> g) {
  const Shared<T> shared(rays.samples);
  const int samples = int(rays.samples);
  for (int64_t r = blockIdx.x; r < rays.rays; r += gridDim.x) {
    load(rays, r, shared);
    const int64_t first = r * samples;
    const T *v = g.weights + first, *z = rays.depth + first;
    T total = 0, far = 0;
    for (int s = 0; s < samples; ++s) {
      total += v[s];
      far += v[s] * z[s];
    }
    const ByWeight<T> by_weight(g.by_weight ? g.by_weight[r] : T(0), g.by_depth ? g.by_depth[r] : T(0), total, far);
    // The derivative by each sample's weight, in the order of depth; the thicknesses are not needed any more.
    T* by_weights = shared.thick;
    for (int i = threadIdx.x; i < samples; i += blockDim.x) {
      const int s = shared.order[i];
      T sum = by_weight.at(z[s]);
      for (int64_t f = 0; g.by_colour && f < rays.features; ++f) {
        sum += rays.colour[(first + s) * rays.features + f] * g.by_colour[r * rays.features + f];
      }
      for (int c = 0; g.by_normal && c < 3; ++c) sum += rays.normal[(first + s) * 3 + c] * g.by_normal[r * 3 + c];
      by_weights[i] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0 && g.density) {
      DensityGradient<T> found;
      for (int i = samples - 1; i > 0; --i) {
        const T slope = thickness_slope(shared.density[i - 1], shared.density[i], shared.depth[i - 1], shared.depth[i],
                                        rays.published);
        g.density[first + shared.order[i]] = found.step(half_of_both(by_weights[i - 1], by_weights[i]),
                                                        shared.weight[i - 1], exponential(-shared.before[i]), slope);
      }
      g.density[first + shared.order[0]] = found.behind;
    }
    for (int64_t i = threadIdx.x; g.colour && i < samples * rays.features; i += blockDim.x) {
      g.colour[first * rays.features + i] = v[i / rays.features] * g.by_colour[r * rays.features + i % rays.features];
    }
    for (int64_t i = threadIdx.x; g.normal && i < samples * 3; i += blockDim.x) {
      g.normal[first * 3 + i] = v[i / 3] * g.by_normal[r * 3 + i % 3];
    }
    for (int64_t i = threadIdx.x; g.part_sdf && i < samples * rays.parts; i += blockDim.x) {
      g.part_sdf[first * rays.parts + i] = v[i / rays.parts] * g.by_mask[r * rays.parts + i % rays.parts] *
                                           mask_slope(rays.sharpness, rays.part_sdf[first * rays.parts + i]);
    }
    __syncthreads();
  }
}

template <typename T, typename Kernel, typename Argument>
const char* launch(Kernel kernel, const Rays<T>& rays, const Argument& argument, void* stream) {
  if (rays.samples > kMaxSamples) return "more than 1024 samples on a ray";
  const int blocks = int(rays.rays < 65536 ? rays.rays : 65536);
  kernel<<<blocks, kThreads, shared_bytes<T>(rays.samples), static_cast<cudaStream_t>(stream)>>>(rays, argument);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* march_rays_cuda(const Rays<float>& rays, const Marched<float>& out, void* stream) {
  return launch(march_kernel<float>, rays, out, stream);
}
const char* march_rays_cuda(const Rays<double>& rays, const Marched<double>& out, void* stream) {
  return launch(march_kernel<double>, rays, out, stream);
}
const char* march_rays_gradient_cuda(const Rays<float>& rays, const RayGradients<float>& g, void* stream) {
  return launch(gradient_kernel<float>, rays, g, stream);
}
const char* march_rays_gradient_cuda(const Rays<double>& rays, const RayGradients<double>& g, void* stream) {
  return launch(gradient_kernel<double>, rays, g, stream);
}

}  // namespace mate3d
