// The CUDA kernels of fused_mlp. No header of torch: this compiles with any torch.
#include <cuda_runtime.h>

#include "fused_mlp.h"
#include "softplus.h"

namespace mate3d {
namespace {

constexpr int kThreads = 128;
constexpr int kUnits = 16;  // hidden units whose weights are in shared memory at a time
constexpr int kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kTilePoints = 32;  // of the weights' gradients

// What is computed: the outputs; the gradient of x; or from a direction v the gradients of v . (gradient of x).
enum class Order : int { outputs, gradient, second };

// The weights of hidden units k0 ... of head p, with zeros where there is nothing. C and O are upper bounds.
template <typename T, int C, int O>
struct Units {
  // aligned, so that four numbers are read at once: reading one by one takes longer than multiplying
  alignas(16) T weight1[kUnits][C];
  alignas(16) T weight2[kUnits][O];
  T bias1[kUnits];

  __device__ void load(const MlpArguments<T>& a, int64_t p, int64_t k0) {
    for (int i = threadIdx.x; i < kUnits * C; i += kThreads) {
      const int64_t k = k0 + i / C, c = i % C;
      const bool there = k < a.width && c < a.channels;
      weight1[i / C][c] = there ? a.weight1[(p * a.width + k) * a.channels + c] : T(0);
    }
    for (int i = threadIdx.x; i < kUnits * O; i += kThreads) {
      const int64_t k = k0 + i % kUnits, o = i / kUnits;
      const bool there = k < a.width && o < a.outputs;
      weight2[i % kUnits][o] = there ? a.weight2[(p * a.outputs + o) * a.width + k] : T(0);
    }
    if (threadIdx.x < kUnits) {
      const int64_t k = k0 + threadIdx.x;
      bias1[threadIdx.x] = k < a.width ? a.bias1[p * a.width + k] : T(0);
    }
  }
};

// Calls visit(k) for all hidden units of head p, of which `units` then holds number k. By all threads of a block together.
template <typename T, int C, int O, typename Visit>
__device__ __forceinline__ void each_unit(Units<T, C, O>& units, const MlpArguments<T>& a, int64_t p, Visit visit) {
  for (int64_t k0 = 0; k0 < a.width; k0 += kUnits) {
    __syncthreads();
    units.load(a, p, k0);
    __syncthreads();
    const int count = int(a.width - k0 < kUnits ? a.width - k0 : kUnits);
    for (int k = 0; k < count; ++k) visit(k);
  }
}

template <int n, typename T, typename A, typename B>
__device__ T dot(T sum, const A& a, const B& b) {
#pragma unroll
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <int n, typename T, typename B>
__device__ void add_multiple(T (&sums)[n], T factor, const B& b) {
#pragma unroll
  for (int i = 0; i < n; ++i) sums[i] += factor * b[i];
}

// The first `count` of n numbers, zeros after them; nothing is read where `count` is 0.
template <int n, typename T>
__device__ void load_row(T (&row)[n], const T* from, int64_t count) {
#pragma unroll
  for (int i = 0; i < n; ++i) row[i] = i < count ? from[i] : T(0);
}

template <int n, typename T>
__device__ void store_row(T* to, const T (&row)[n], int64_t count) {
#pragma unroll
  for (int i = 0; i < n; ++i) {
    if (i < count) to[i] = row[i];
  }
}

// How many points a thread computes outputs of, where its registers have room: a weight that it reads from shared memory
// then serves all of them, and reading takes no longer than multiplying.
template <typename T, int C, int O>
constexpr int kPoints = (C + O) * sizeof(T) <= 192 ? 2 : 1;

constexpr int kEnoughBlocks = 1024;  // for a large GPU: where points make fewer, blocks share the heads among them

// The outputs. A thread holds kPoints points; the block walks together through all hidden units of every gridDim.y-th
// head.
template <typename T, int C, int O>
__global__ __launch_bounds__(kThreads) void outputs_kernel(MlpArguments<T> a) {
  constexpr int each = kPoints<T, C, O>;
  __shared__ Units<T, C, O> units;
  const int64_t columns = a.heads * a.outputs, step = int64_t(gridDim.x) * kThreads * each;
  for (int64_t base = int64_t(blockIdx.x) * kThreads * each; base < a.points; base += step) {
    const int64_t m = base + threadIdx.x;  // the first of them; the others follow in steps of kThreads
    T x[each][C];
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int64_t point = m + i * kThreads;
      load_row(x[i], a.x + point * a.channels, point < a.points ? a.channels : 0);
    }
    for (int64_t p = blockIdx.y; p < a.heads; p += gridDim.y) {
      T y[each][O];
#pragma unroll
      for (int i = 0; i < each; ++i) load_row(y[i], a.bias2 + p * a.outputs, a.outputs);
      each_unit(units, a, p, [&](int k) {
        T h[each];
#pragma unroll
        for (int i = 0; i < each; ++i) h[i] = units.bias1[k];
#pragma unroll
        for (int c = 0; c < C; ++c) {
          const T weight = units.weight1[k][c];
#pragma unroll
          for (int i = 0; i < each; ++i) h[i] += weight * x[i][c];
        }
#pragma unroll
        for (int i = 0; i < each; ++i) add_multiple<O>(y[i], softplus(h[i]), units.weight2[k]);
      });
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const int64_t point = m + i * kThreads;
        if (point < a.points) store_row(a.y + point * columns + p * a.outputs, y[i], a.outputs);
      }
    }
  }
}

// What the gradients by x and, in second order, by the outputs' cotangents need. A thread holds a point.
template <typename T, int C, int O, Order order>
__global__ __launch_bounds__(kThreads) void points_kernel(MlpArguments<T> a) {
  static_assert(order != Order::outputs);
  __shared__ Units<T, C, O> units;
  const int64_t columns = a.heads * a.outputs, step = int64_t(gridDim.x) * kThreads;
  for (int64_t base = int64_t(blockIdx.x) * kThreads; base < a.points; base += step) {
    const int64_t m = base + threadIdx.x;
    const bool inside = m < a.points;
    T x[C], direction[C] = {}, to_x[C] = {};
    load_row(x, a.x + m * a.channels, inside ? a.channels : 0);
    if (order == Order::second) load_row(direction, a.direction + m * a.channels, inside ? a.channels : 0);
    for (int64_t p = 0; p < a.heads; ++p) {
      T y[O] = {}, grad[O];
      load_row(grad, a.grad + m * columns + p * a.outputs, inside ? a.outputs : 0);
      each_unit(units, a, p, [&](int k) {
        const T h = dot<C>(units.bias1[k], units.weight1[k], x);
        const T by_output = dot<O>(T(0), units.weight2[k], grad), slope = sigmoid(h);
        HiddenUnit<T> unit = first_order(T(0), slope, by_output);
        if (order == Order::second) {
          unit = second_order(slope, by_output, dot<C>(T(0), units.weight1[k], direction));
          add_multiple<O>(y, unit.value, units.weight2[k]);
        }
        add_multiple<C>(to_x, unit.to_h, units.weight1[k]);
      });
      if (order == Order::second && inside) store_row(a.y + m * columns + p * a.outputs, y, a.outputs);
    }
    if (inside) store_row(a.to_x + m * a.channels, to_x, a.channels);
  }
}

// A tile of rows in shared memory; the pitch keeps threads that read one column each apart.
template <typename T, int n>
struct Tile {
  alignas(16) T row[kTilePoints][n + (n > 1 ? 4 : 0)];

  __device__ void load(const T* from, int64_t first, int64_t points, int64_t stride, int64_t count) {
    for (int i = threadIdx.x; i < kTilePoints * n; i += kThreads) {
      const int64_t m = first + i / n, c = i % n;
      row[i / n][c] = m < points && c < count ? from[m * stride + c] : T(0);
    }
  }
};

// Sums of products over the points of a tile, one in kWarps of them: units x columns of a tile, a block of which belongs
// to each thread of a warp.
template <typename T, int n>
struct Products {
  static constexpr int kColumns = 4, kAcross = n / kColumns, kDown = kUnits / (kWarp / kAcross);
  T sums[kDown][kColumns] = {};

  __device__ static int first_unit() { return threadIdx.x % kWarp / kAcross * kDown; }
  __device__ static int first_column() { return threadIdx.x % kAcross * kColumns; }

  __device__ void add(const T* units, const T* columns) {
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sums[i][j] += units[first_unit() + i] * columns[first_column() + j];
    }
  }

  // to[unit * unit_stride + column * column_stride]
  __device__ void store(T* to, int64_t units, int64_t unit_stride, int64_t columns, int64_t column_stride) const {
    for (int i = 0; i < kDown; ++i) {
      for (int j = 0; j < kColumns; ++j) {
        const int64_t unit = first_unit() + i, column = first_column() + j;
        if (unit < units && column < columns) to[unit * unit_stride + column * column_stride] = sums[i][j];
      }
    }
  }
};

// Block (slab, units of a head) adds up over every gridDim.x-th tile of points; each warp writes a partial sum of its
// own, so that the result does not depend on the order in which blocks run.
template <typename T, int C, int O, Order order>
__global__ __launch_bounds__(kThreads) void weights_kernel(MlpArguments<T> a, MlpPartial<T> partial) {
  constexpr bool second = order == Order::second;
  __shared__ Units<T, C, O> units;
  __shared__ Tile<T, C> x, direction;
  __shared__ Tile<T, O> grad;
  __shared__ Tile<T, kUnits> to_h, to_u, value;
  const int64_t tiles_of_units = (a.width + kUnits - 1) / kUnits;
  const int64_t p = blockIdx.y / tiles_of_units, k0 = blockIdx.y % tiles_of_units * kUnits;
  const int64_t columns = a.heads * a.outputs;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  units.load(a, p, k0);
  Products<T, C> first;
  Products<T, O == 1 ? 8 : O> several;  // not used for one output
  T bias = 0, single = 0;  // of unit `lane`
  for (int64_t m = int64_t(blockIdx.x) * kTilePoints; m < a.points; m += int64_t(gridDim.x) * kTilePoints) {
    __syncthreads();
    x.load(a.x, m, a.points, a.channels, a.channels);
    if constexpr (second) direction.load(a.direction, m, a.points, a.channels, a.channels);
    grad.load(a.grad + p * a.outputs, m, a.points, columns, a.outputs);
    __syncthreads();
    for (int k = warp; k < kUnits; k += kWarps) {  // a thread holds point `lane`
      const T h = dot<C>(units.bias1[k], units.weight1[k], x.row[lane]);
      const T by_output = dot<O>(T(0), units.weight2[k], grad.row[lane]);
      T activation, slope;
      softplus_and_sigmoid(h, activation, slope);
      HiddenUnit<T> unit = first_order(activation, slope, by_output);
      if constexpr (second) {
        unit = second_order(slope, by_output, dot<C>(T(0), units.weight1[k], direction.row[lane]));
        to_u.row[lane][k] = unit.to_u;
      }
      to_h.row[lane][k] = unit.to_h;
      value.row[lane][k] = unit.value;
    }
    __syncthreads();
    for (int i = warp; i < kTilePoints; i += kWarps) {
      first.add(to_h.row[i], x.row[i]);
      if constexpr (second) first.add(to_u.row[i], direction.row[i]);
      if constexpr (O > 1) several.add(value.row[i], grad.row[i]);
      if (lane < kUnits) {
        bias += to_h.row[i][lane];
        if (O == 1) single += value.row[i][lane] * grad.row[i][0];
      }
    }
  }
  const int64_t slab = int64_t(blockIdx.x) * kWarps + warp, unit = p * a.width + k0, there = a.width - k0;
  const int64_t all = a.heads * a.width;
  first.store(partial.weight1 + (slab * all + unit) * a.channels, there, a.channels, a.channels, 1);
  T* const second_layer = partial.weight2 + slab * a.outputs * all + p * a.outputs * a.width + k0;
  if constexpr (O > 1) several.store(second_layer, there, 1, a.outputs, a.width);
  if (lane < kUnits && lane < there) {
    partial.bias1[slab * all + unit + lane] = bias;
    if (O == 1) second_layer[lane] = single;
  }
}

template <typename T, int C, int O>
const char* launch(int order, const MlpArguments<T>& a, const MlpPartial<T>& partial, cudaStream_t stream) {
  const int64_t each = kThreads * (order == int(Order::outputs) ? kPoints<T, C, O> : 1);
  const int64_t wanted = (a.points + each - 1) / each;
  const int blocks = int(wanted < 65536 ? wanted : 65536);
  const int64_t unit_tiles = a.heads * ((a.width + kUnits - 1) / kUnits);
  const dim3 grid(unsigned(partial.slabs / kWarps), unsigned(unit_tiles));
  if (partial.weight1 && unit_tiles > 65535) return "too many heads";
  if (order == int(Order::outputs)) {
    const int64_t shares = (kEnoughBlocks + blocks - 1) / blocks;
    const dim3 shared(unsigned(blocks), unsigned(shares < a.heads ? shares : a.heads));
    outputs_kernel<T, C, O><<<shared, kThreads, 0, stream>>>(a);
  } else if (order == int(Order::gradient)) {
    points_kernel<T, C, O, Order::gradient><<<blocks, kThreads, 0, stream>>>(a);
    if (partial.weight1) weights_kernel<T, C, O, Order::gradient><<<grid, kThreads, 0, stream>>>(a, partial);
  } else {
    points_kernel<T, C, O, Order::second><<<blocks, kThreads, 0, stream>>>(a);
    if (partial.weight1) weights_kernel<T, C, O, Order::second><<<grid, kThreads, 0, stream>>>(a, partial);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename T, int C, int O>
const char* by_outputs(int order, const MlpArguments<T>& a, const MlpPartial<T>& partial, cudaStream_t stream) {
  return a.outputs == 1 ? launch<T, C, 1>(order, a, partial, stream) : launch<T, C, O>(order, a, partial, stream);
}

}  // namespace

// Null, or what went wrong. The bounds are those of fused_mlp.py, with one channel more.
const char* mlp_cuda(int order, const MlpArguments<float>& a, const MlpPartial<float>& partial, void* stream_any) {
  const auto stream = static_cast<cudaStream_t>(stream_any);
  if (a.channels > 64 || a.outputs > 32) return "more channels or outputs than the kernels have room for";
  if (a.channels > 32) return by_outputs<float, 64, 32>(order, a, partial, stream);
  return by_outputs<float, 32, 32>(order, a, partial, stream);
}

const char* mlp_cuda(int order, const MlpArguments<double>& a, const MlpPartial<double>& partial, void* stream_any) {
  const auto stream = static_cast<cudaStream_t>(stream_any);
  if (a.channels > 32 || a.outputs > 16) return "more channels or outputs than the kernels have room for";
  return by_outputs<double, 32, 16>(order, a, partial, stream);
}

}  // namespace mate3d
