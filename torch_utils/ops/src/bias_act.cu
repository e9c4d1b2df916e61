// The CUDA kernel of bias_act. No header of torch: this compiles in seconds, with any torch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "bias_act.h"
#include "division.h"

namespace mate3d {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = 2;  // that a thread has under way: enough bytes in flight to keep the memory busy

// What one instruction loads or stores.
template <typename T>
struct alignas(16) Vector {
  static constexpr int size = 16 / sizeof(T);
  T value[size];
};

// How the channel of an element is found, the same for all of a call. Vectors begin at multiples of their size.
struct Channels {
  enum Lie { rows, beside, anyhow } lie;  // a vector's elements are of at most two channels; of as many as they are
  bool aligned;                           // whether all pointers are those of vectors
  Division by_step, by_channels;
};

// What the channels of a vector that begins at element `at` add to its elements. `second` may be null.
template <int size, typename T, typename Compute>
__device__ __forceinline__ void add_by_channel(const Channels& find, int64_t channels, int64_t step, int64_t at,
                                               const T* first, const T* second, Compute (&to_first)[size],
                                               Compute (&to_second)[size]) {
  uint64_t row = at;
  if (find.lie == Channels::rows) {
    const int64_t left = step - int64_t(find.by_step.rest(row)), channel = find.by_channels.rest(row);
    const int64_t next = channel + 1 < channels ? channel + 1 : 0;
    const Compute here = first ? Compute(first[channel]) : Compute(0);
    const Compute there = first ? Compute(first[next]) : Compute(0);
    const Compute also_here = second ? Compute(second[channel]) : Compute(0);
    const Compute also_there = second ? Compute(second[next]) : Compute(0);
    const int same = left < size ? int(left) : size;
#pragma unroll
    for (int k = 0; k < size; ++k) {
      to_first[k] = k < same ? here : there;
      to_second[k] = k < same ? also_here : also_there;
    }
    return;
  }
  const int64_t beside = find.lie == Channels::beside ? int64_t(find.by_channels.rest(row)) : -1;
#pragma unroll
  for (int k = 0; k < size; ++k) {
    uint64_t element = at + k;
    int64_t channel = beside + k;
    if (beside < 0) {
      element = find.by_step(element);
      channel = find.by_channels.rest(element);
    }
    if (first) to_first[k] = Compute(first[channel]);
    if (second) to_second[k] = Compute(second[channel]);
  }
}

template <Activation act, Wanted wanted, typename T, typename Compute>
__global__ void __launch_bounds__(kThreads) bias_act_kernel(BiasActArguments<T, Compute> a, Channels find) {
  constexpr int size = Vector<T>::size, tile = kThreads * kVectors * size;
  const int64_t count = a.outer * a.channels * a.step;
  for (int64_t first = int64_t(blockIdx.x) * tile; first < count; first += int64_t(gridDim.x) * tile) {
    // All loads before anything waits for one of them.
    Vector<T> x[kVectors], factor[kVectors];
    const bool whole = find.aligned && count - first >= tile;
    if (whole) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = first + (v * kThreads + int(threadIdx.x)) * size;
        x[v] = *reinterpret_cast<const Vector<T>*>(a.x + at);
        if constexpr (wanted != Wanted::value) factor[v] = *reinterpret_cast<const Vector<T>*>(a.factor + at);
      }
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = first + (v * kThreads + int(threadIdx.x)) * size;
#pragma unroll
        for (int k = 0; k < size; ++k) {
          const bool inside = at + k < count;
          x[v].value[k] = inside ? a.x[at + k] : T(Compute(0));
          if constexpr (wanted != Wanted::value) factor[v].value[k] = inside ? a.factor[at + k] : T(Compute(0));
        }
      }
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = first + (v * kThreads + int(threadIdx.x)) * size;
      if (at >= count) break;
      Compute bias[size] = {}, spread[size] = {};
      if (a.bias || a.spread) {
        const T* added = wanted == Wanted::value ? nullptr : a.spread;
        add_by_channel<size>(find, a.channels, a.step, at, a.bias, added, bias, spread);
      }
      Vector<T> y;
#pragma unroll
      for (int k = 0; k < size; ++k) {
        const Compute scale = wanted == Wanted::value ? Compute(1) : Compute(factor[v].value[k]) + spread[k];
        const Compute each = Compute(x[v].value[k]);
        y.value[k] = T(element<act, wanted, Compute>(scale, each, bias[k], a.alpha, a.gain, a.clamp));
      }
      if (whole) {
        *reinterpret_cast<Vector<T>*>(a.y + at) = y;
      } else {
#pragma unroll
        for (int k = 0; k < size; ++k) {
          if (at + k < count) a.y[at + k] = y.value[k];
        }
      }
    }
  }
}

template <typename T>
bool is_aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(Vector<T>) == 0;  // null too
}

template <typename T, typename Compute>
const char* launch(Activation act, Wanted wanted, const BiasActArguments<T, Compute>& a, void* stream) {
  constexpr int64_t size = Vector<T>::size, tile = kThreads * kVectors * size;
  const int64_t count = a.outer * a.channels * a.step;
  const Channels find{a.step >= size                            ? Channels::rows
                      : a.step == 1 && a.channels % size == 0 ? Channels::beside
                                                                : Channels::anyhow,
                      is_aligned(a.x) && is_aligned(a.factor) && is_aligned(a.y), Division(a.step, count + size),
                      Division(a.channels, count + size)};
  const int64_t needed = (count + tile - 1) / tile, most = (int64_t(1) << 31) - 1;
  const unsigned blocks = unsigned(needed < most ? needed : most);
  const auto queue = static_cast<cudaStream_t>(stream);
  with_activation(act, wanted, [&]<Activation known, Wanted known_wanted>() {
    bias_act_kernel<known, known_wanted><<<blocks, kThreads, 0, queue>>>(a, find);
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
