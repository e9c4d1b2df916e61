// The CUDA kernels of upfirdn2d. No header of torch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "division.h"
#include "upfirdn2d.h"

namespace mate3d {
namespace {

constexpr int kThreads = 256;

// Any filter, any up and down: a thread for each pixel of the result.
template <typename T, typename Compute>
__global__ void __launch_bounds__(kThreads) upfirdn2d_kernel(UpfirdnArguments<T, Compute> a) {
  const int64_t count = a.outer * a.rows.out * a.columns.out * a.inner;
  const int64_t stride_x = a.inner, stride_y = a.columns.in * a.inner, picture = a.rows.in * stride_y;
  const int64_t stride = int64_t(blockDim.x) * gridDim.x;
  const Compute* f = a.flip ? a.f : a.f + a.rows.taps * a.columns.taps - 1;
  const int64_t next = a.flip ? 1 : -1;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += stride) {
    const int64_t channel = i % a.inner, pixel = i / a.inner;
    const int64_t ox = pixel % a.columns.out, oy = pixel / a.columns.out % a.rows.out;
    const int64_t outer = pixel / a.columns.out / a.rows.out;
    const T* x = a.x + outer * picture + channel;
    a.y[i] = T(a.gain * filtered_pixel(x, stride_y, stride_x, f, next, a.rows, a.columns, oy, ox));
  }
}

// What follows is for filters of 4 x 4 taps and pictures that are blurred, doubled or halved. A thread makes a strip
// of pixels below each other, so that it loads a row of the picture once for all results that need it; beside it lie
// the strips of its neighbours, which need most of the same pixels while the first cache has them. Sums are added up
// in the order of filtered_pixel.
constexpr int kTaps = 4;

template <typename Compute>
struct alignas(16) FilterRow {
  Compute tap[kTaps];
};

// The sums of a strip of `length` results. first: the tap that the first of them begins with, as first_tap has it.
template <int up, int down, int first, int length>
struct Strip {
  static_assert(up <= 2 && length % up == 0);
  static constexpr int taps = kTaps / up;  // that meet pixels, and not the zeros between
  static constexpr int row_of(int r) { return up == 1 ? r * down : (r + 1 - first) / 2; }  // where result r begins
  static constexpr int rows = row_of(length - 1) + taps;

  // x: the first row's first pixel. inside: of which columns there are pixels; rows have some from begin to end, or
  // all of them where the strip is whole. results: how many to write.
  template <bool whole, typename T, typename Compute>
  static __device__ __forceinline__ void filter(const T* x, int64_t stride, int64_t inner, const bool (&inside)[taps],
                                                const Compute (&f)[kTaps][taps], Compute gain, int begin, int end,
                                                T* y, int64_t step, int results) {
    Compute sum[length] = {};
#pragma unroll
    for (int j = 0; j < rows; ++j, x += stride) {
      const bool within = whole || (j >= begin && j < end);
      Compute pixels[taps];
#pragma unroll
      for (int k = 0; k < taps; ++k) pixels[k] = within && inside[k] ? Compute(x[k * inner]) : Compute(0);
#pragma unroll
      for (int r = 0; r < length; ++r) {
        const int n = j - row_of(r);
        if (n < 0 || n >= taps) continue;
        const int ty = up == 1 ? n : ((first + r) & 1) + n * up;
#pragma unroll
        for (int k = 0; k < taps; ++k) sum[r] += f[ty][k] * pixels[k];
      }
    }
#pragma unroll
    for (int r = 0; r < length; ++r, y += step) {
      if (whole || r < results) *y = T(gain * sum[r]);
    }
  }
};

// How thread i finds its strip: channels are innermost, then columns, then strips, then pictures.
struct Strips {
  Division by_inner, by_columns, by_strips;
  int64_t strips, count;
};

// beside: whether channels lie beside each other.
template <int up, int down, int first, int length, bool beside, typename T, typename Compute>
__global__ void __launch_bounds__(kThreads) strip_kernel(UpfirdnArguments<T, Compute> a, Strips strips) {
  constexpr int taps = kTaps / up;
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i >= strips.count) return;
  const int64_t inner = beside ? a.inner : 1;
  const int64_t pixel = beside ? int64_t(strips.by_inner(i)) : i, channel = beside ? i - pixel * inner : 0;
  const int64_t strip_of_all = strips.by_columns(pixel), outer = strips.by_strips(strip_of_all);
  const int ox = int(pixel - strip_of_all * a.columns.out);
  const int oy = int(strip_of_all - outer * strips.strips) * length;

  const int corner = ox * down - int(a.columns.before);
  const int tap = up == 1 ? 0 : corner & 1, left = up == 1 ? corner : (corner + tap) >> 1;
  const int top = up == 1 ? oy * down - int(a.rows.before) : (oy - int(a.rows.before) + first) >> 1;
  const int height = int(a.rows.in), width = int(a.columns.in);

  Compute f[kTaps][taps];
#pragma unroll
  for (int ty = 0; ty < kTaps; ++ty) {
    const FilterRow<Compute> row = reinterpret_cast<const FilterRow<Compute>*>(a.f)[a.flip ? ty : kTaps - 1 - ty];
    const auto tap_of = [&](int i) { return a.flip ? row.tap[i] : row.tap[kTaps - 1 - i]; };
#pragma unroll
    for (int k = 0; k < taps; ++k) f[ty][k] = up == 2 && tap ? tap_of(k * up + up - 1) : tap_of(k * up);
  }
  bool inside[taps];
#pragma unroll
  for (int k = 0; k < taps; ++k) inside[k] = unsigned(left + k) < unsigned(width);

  const int64_t stride = width * inner, step = a.columns.out * inner;
  const T* x = a.x + ((outer * height + top) * width + left) * inner + channel;
  T* y = a.y + ((outer * a.rows.out + oy) * a.columns.out + ox) * inner + channel;
  // Most strips need no look at their rows' limits. Those of a warp mostly agree on that.
  using To = Strip<up, down, first, length>;
  if (top >= 0 && top + To::rows <= height && oy + length <= int(a.rows.out)) {
    To::template filter<true>(x, stride, inner, inside, f, a.gain, 0, To::rows, y, step, length);
  } else {
    To::template filter<false>(x, stride, inner, inside, f, a.gain, -top, height - top, y, step,
                                int(a.rows.out) - oy);
  }
}

constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;
constexpr int64_t kEnoughThreads = int64_t(1) << 17;  // for a large GPU; below, shorter strips make more of them

// Whether the kernel of strips can do it: an axis of the filter's size, and of lengths that an int holds.
inline bool is_short(const Axis& axis) {
  const int64_t most = int64_t(1) << 28, before = axis.before < 0 ? -axis.before : axis.before;
  return axis.taps == kTaps && axis.in < most && axis.out < most && before < most;
}

template <int up, int down, int first, int length, typename T, typename Compute>
bool launched(const UpfirdnArguments<T, Compute>& a, cudaStream_t queue) {
  Strips strips{Division(1, 1), Division(1, 1), Division(1, 1), (a.rows.out + length - 1) / length, 0};
  strips.count = a.outer * strips.strips * a.columns.out * a.inner;
  if (length > 2 && strips.count < kEnoughThreads) return false;
  const int64_t blocks = (strips.count + kThreads - 1) / kThreads;
  if (blocks > kMostBlocks) return false;
  strips.by_inner = Division(a.inner, strips.count);
  strips.by_columns = Division(a.columns.out, strips.count);
  strips.by_strips = Division(strips.strips, strips.count);
  if (a.inner > 1) {
    strip_kernel<up, down, first, length, true><<<unsigned(blocks), kThreads, 0, queue>>>(a, strips);
  } else {
    strip_kernel<up, down, first, length, false><<<unsigned(blocks), kThreads, 0, queue>>>(a, strips);
  }
  return true;
}

template <int up, int down, int first, typename T, typename Compute>
bool launched(const UpfirdnArguments<T, Compute>& a, cudaStream_t queue) {
  return launched<up, down, first, 8 * up>(a, queue) || launched<up, down, first, 2>(a, queue);
}

template <typename T, typename Compute>
bool launched_strips(const UpfirdnArguments<T, Compute>& a, cudaStream_t queue) {
  const int64_t up = a.rows.up, down = a.rows.down;
  const bool fits = is_short(a.rows) && is_short(a.columns) && a.columns.up == up && a.columns.down == down &&
                    reinterpret_cast<uintptr_t>(a.f) % sizeof(FilterRow<float>) == 0;
  if (!fits) return false;
  if (up == 1 && down == 1) return launched<1, 1, 0>(a, queue);
  if (up == 1 && down == 2) return launched<1, 2, 0>(a, queue);
  if (up == 2 && down == 1) {
    return first_tap(a.rows, 0).tap == 0 ? launched<2, 1, 0>(a, queue) : launched<2, 1, 1>(a, queue);
  }
  return false;
}

template <typename T, typename Compute>
const char* launch(const UpfirdnArguments<T, Compute>& a, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (!launched_strips(a, queue)) {
    const int64_t count = a.outer * a.rows.out * a.columns.out * a.inner;
    const int64_t needed = (count + kThreads - 1) / kThreads;
    const int blocks = int(needed < 65536 ? needed : 65536);
    upfirdn2d_kernel<<<blocks, kThreads, 0, queue>>>(a);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename T>
UpfirdnArguments<T, float> as(const UpfirdnArguments<uint16_t, float>& a) {
  return {reinterpret_cast<const T*>(a.x), a.f, reinterpret_cast<T*>(a.y), a.outer, a.inner, a.rows, a.columns, a.flip,
          a.gain};
}

}  // namespace

const char* upfirdn2d_cuda(const UpfirdnArguments<float, float>& a, void* stream) { return launch(a, stream); }
const char* upfirdn2d_cuda(const UpfirdnArguments<double, double>& a, void* stream) { return launch(a, stream); }
const char* upfirdn2d_cuda(const UpfirdnArguments<uint16_t, float>& a, bool brain, void* stream) {
  return brain ? launch(as<__nv_bfloat16>(a), stream) : launch(as<__half>(a), stream);
}

}  // namespace mate3d
