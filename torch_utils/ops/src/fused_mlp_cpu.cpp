// torch.ops.mate3d.fused_mlp, its gradient and the gradient's gradient, on a CPU.
//
// Points lie in the lanes. A chunk of points is turned so that each channel's values are neighbours; all products are
// then sums of (one weight) x (lanes of points), kept in registers for kRows weights and kPair vectors of points at a
// time. The hidden layer exists for one head and one chunk only.
#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "fused_mlp.h"
#include "lanes.h"
#include "softplus.h"

namespace mate3d {
namespace {

constexpr int64_t kPair = 2;                             // vectors of points in a register block
constexpr int64_t kRows = kLaneBytes == 64 ? 8 : 4;      // weights in a register block
// Partial sums of the weights' gradients: at most so many, each of so many chunks at least.
constexpr int64_t kSlabs = 64, kChunksOfSlab = 8;

template <typename T>
constexpr int64_t kTile = kPair * kLanes<T>;             // points in a register block
template <typename T>
constexpr int64_t kChunk = 8 * kTile<T>;                 // points at a time

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory for a vector of T, aligned to the lanes and zeroed.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : storage_(count + kLanes<T>) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    data_ = storage_.data() + (round_up(int64_t(address), kLaneBytes) - int64_t(address)) / int64_t(sizeof(T));
  }
  Buffer(const Buffer&) = delete;
  operator T*() const { return data_; }

 private:
  std::vector<T> storage_;
  T* data_;
};

// sums[j][i] += sum over n of a[n][j] * b[n][i-th vector of points]
template <typename T>
inline void multiply(int64_t n, const T* __restrict__ a, const T* __restrict__ b, int64_t stride,
                     Lanes<T> (&sums)[kRows][kPair]) {
  for (int64_t k = 0; k < n; ++k) {
    Lanes<T> points[kPair];
    for (int64_t i = 0; i < kPair; ++i) points[i] = load(b + k * stride + i * kLanes<T>);
    for (int64_t j = 0; j < kRows; ++j) {
      for (int64_t i = 0; i < kPair; ++i) sums[j][i] += a[k * kRows + j] * points[i];
    }
  }
}

// to[j][columns] += sum over points m of a[j][m] * rows[m][columns], for kRows rows j and `columns` whole vectors.
template <typename T, int64_t vectors>
inline void add_products(int64_t points, const T* __restrict__ a, int64_t stride, const T* __restrict__ rows,
                         int64_t row_stride, T* __restrict__ to, int64_t to_stride) {
  Lanes<T> sums[kRows][vectors];
  for (int64_t j = 0; j < kRows; ++j) {
    for (int64_t i = 0; i < vectors; ++i) sums[j][i] = load(to + j * to_stride + i * kLanes<T>);
  }
  for (int64_t m = 0; m < points; ++m) {
    Lanes<T> row[vectors];
    for (int64_t i = 0; i < vectors; ++i) row[i] = load(rows + m * row_stride + i * kLanes<T>);
    for (int64_t j = 0; j < kRows; ++j) {
      for (int64_t i = 0; i < vectors; ++i) sums[j][i] += a[j * stride + m] * row[i];
    }
  }
  for (int64_t j = 0; j < kRows; ++j) {
    for (int64_t i = 0; i < vectors; ++i) store(to + j * to_stride + i * kLanes<T>, sums[j][i]);
  }
}

template <typename T>
void add_outer(int64_t points, const T* a, int64_t count, const T* rows, int64_t columns, T* to) {
  for (int64_t j = 0; j < count; j += kRows) {
    int64_t c = 0;
    for (; c + 2 * kLanes<T> <= columns; c += 2 * kLanes<T>) {
      add_products<T, 2>(points, a + j * kChunk<T>, kChunk<T>, rows + c, columns, to + j * columns + c, columns);
    }
    for (; c < columns; c += kLanes<T>) {
      add_products<T, 1>(points, a + j * kChunk<T>, kChunk<T>, rows + c, columns, to + j * columns + c, columns);
    }
  }
}

// Rows of numbers, `from_pitch` apart, to rows of the numbers that were below each other.
template <typename T>
void turn(const T* from, int64_t from_pitch, int64_t rows, int64_t columns, T* to, int64_t to_pitch) {
  constexpr int64_t side = kLanes<T>;
  if (rows < side || columns < side) {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = 0; r < rows; ++r) to[c * to_pitch + r] = from[r * from_pitch + c];
    }
    return;
  }
  for (int64_t r = 0; r < rows; r += side) {
    for (int64_t c = 0; c < columns; c += side) {  // the last squares overlap those before
      const int64_t row = std::min(r, rows - side), column = std::min(c, columns - side);
      Lanes<T> square[side];
      for (int64_t i = 0; i < side; ++i) square[i] = load(from + (row + i) * from_pitch + column);
      transpose<T>(square);
      for (int64_t i = 0; i < side; ++i) store(to + (column + i) * to_pitch + row, square[i]);
    }
  }
}

// A point's numbers, side by side, to columns of kChunk points; those after the last are zero.
template <typename T>
void turn_points(const T* from, int64_t points, int64_t columns, T* to) {
  turn(from, columns, points, columns, to, kChunk<T>);
  if (points == kChunk<T>) return;
  for (int64_t c = 0; c < columns; ++c) std::fill(to + c * kChunk<T> + points, to + (c + 1) * kChunk<T>, T(0));
}

template <typename T>
void pad_rows(const T* from, int64_t stride, int64_t points, int64_t columns, T* to, int64_t padded) {
  for (int64_t m = 0; m < points; ++m) std::copy_n(from + m * stride, columns, to + m * padded);
}

// What is computed: the outputs; from their gradient those of x (and the weights); or, from a direction v as well,
// the gradients of v . (gradient of x).
enum class Order { outputs, gradient, second };

// Weights in the order in which they are read, with zeros up to whole register blocks.
template <typename T>
struct Weights {
  explicit Weights(const MlpArguments<T>& a)
      : width(round_up(a.width, kRows)),
        channels(round_up(a.channels, kRows)),
        outputs(a.outputs == 1 ? 1 : round_up(a.outputs, kRows)),
        first(a.heads * width * a.channels),
        first_turned(a.heads * channels * width),
        bias(a.heads * width),
        second(a.heads * outputs * width),
        second_turned(a.heads * width * a.outputs),
        bias2(a.heads * outputs) {
    const int64_t block = a.outputs == 1 ? 1 : kRows;
    for (int64_t p = 0; p < a.heads; ++p) {
      for (int64_t k = 0; k < a.width; ++k) {
        for (int64_t c = 0; c < a.channels; ++c) {
          const T w = a.weight1[(p * a.width + k) * a.channels + c];
          first[((p * width + k / kRows * kRows) * a.channels) + c * kRows + k % kRows] = w;
          first_turned[(p * channels + c / kRows * kRows) * width + k * kRows + c % kRows] = w;
        }
        bias[p * width + k] = a.bias1[p * a.width + k];
        for (int64_t o = 0; o < a.outputs; ++o) {
          const T w = a.weight2[(p * a.outputs + o) * a.width + k];
          second[(p * outputs + o / block * block) * width + k * block + o % block] = w;
          second_turned[(p * width + k / kRows * kRows) * a.outputs + o * kRows + k % kRows] = w;
        }
      }
      for (int64_t o = 0; o < a.outputs && a.bias2; ++o) bias2[p * outputs + o] = a.bias2[p * a.outputs + o];
    }
  }

  int64_t width, channels, outputs;  // padded
  Buffer<T> first;                   // (heads, width / kRows, C, kRows)
  Buffer<T> first_turned;            // (heads, channels / kRows, width, kRows)
  Buffer<T> bias;                    // (heads, width)
  Buffer<T> second;                  // (heads, outputs / kRows, width, kRows), or (heads, width) for one output
  Buffer<T> second_turned;           // (heads, width / kRows, O, kRows)
  Buffer<T> bias2;                   // (heads, outputs)
};

// Sums over the points of a slab.
template <typename T>
struct Sums {
  Sums(const MlpArguments<T>& a, const Weights<T>& w)
      : channels(round_up(a.channels, kLanes<T>)),
        outputs(a.outputs == 1 ? kLanes<T> : round_up(a.outputs, kLanes<T>)),
        first(a.heads * w.width * channels),
        bias(a.heads * w.width * kLanes<T>),
        second(a.heads * w.width * outputs) {}

  int64_t channels, outputs;  // padded
  Buffer<T> first;            // (heads, width, channels)
  Buffer<T> bias;             // (heads, width, lanes)
  Buffer<T> second;           // (heads, width, outputs); of one output (heads, width, lanes)
};

template <typename T>
struct Workspace {
  Workspace(const MlpArguments<T>& a, const Weights<T>& w, Order order, bool weights)
      : x(a.channels * kChunk<T>),
        y(a.heads * w.outputs * kChunk<T>),
        values(w.width * kChunk<T>),
        grad(order == Order::outputs ? 0 : a.heads * a.outputs * kChunk<T>),
        to_x(order == Order::outputs ? 0 : w.channels * kChunk<T>),
        to_hidden(order == Order::outputs ? 0 : w.width * kChunk<T>),
        direction(order == Order::second ? a.channels * kChunk<T> : 0),
        to_u(order == Order::second ? w.width * kChunk<T> : 0),
        rows(weights ? kChunk<T> * (round_up(a.channels, kLanes<T>)) : 0),
        direction_rows(weights && order == Order::second ? kChunk<T> * round_up(a.channels, kLanes<T>) : 0),
        grad_rows(weights && a.outputs > 1 ? kChunk<T> * round_up(a.outputs, kLanes<T>) : 0) {}

  // All but the rows: (columns, kChunk).
  Buffer<T> x, y, values, grad, to_x, to_hidden, direction, to_u;
  Buffer<T> rows, direction_rows, grad_rows;  // (kChunk, padded columns)
};

template <typename T, Order order, bool weights>
class Chunk {
 public:
  Chunk(const MlpArguments<T>& a, const Weights<T>& w, Workspace<T>& space, Sums<T>* sums)
      : a(a), w(w), space(space), sums(sums) {}

  void run(int64_t begin, int64_t count) {
    const int64_t columns = a.heads * a.outputs;
    points = count;
    turn_points<T>(a.x + begin * a.channels, count, a.channels, space.x);
    if constexpr (order != Order::outputs) {
      turn_points<T>(a.grad + begin * columns, count, columns, space.grad);
      std::fill_n(static_cast<T*>(space.to_x), w.channels * kChunk<T>, T(0));
      if (weights) pad_rows<T>(a.x + begin * a.channels, a.channels, count, a.channels, space.rows, sums->channels);
    }
    if constexpr (order == Order::second) {
      turn_points<T>(a.direction + begin * a.channels, count, a.channels, space.direction);
      if (weights) {
        pad_rows<T>(a.direction + begin * a.channels, a.channels, count, a.channels, space.direction_rows,
                    sums->channels);
      }
    }
    for (int64_t p = 0; p < a.heads; ++p) {
      for (int64_t m = 0; m < count; m += kTile<T>) {
        if (a.outputs == 1) hidden<true>(p, m);
        else hidden<false>(p, m);
        if (order != Order::outputs) to_inputs(p, m);
        if (order != Order::gradient && a.outputs > 1) outputs(p, m);
      }
      if constexpr (weights) to_weights(p, begin);
    }
    if constexpr (order != Order::outputs) {
      turn<T>(space.to_x, kChunk<T>, a.channels, count, a.to_x + begin * a.channels, a.channels);
    }
    if constexpr (order != Order::gradient) {
      const int64_t each = w.outputs == a.outputs ? columns : a.outputs;  // columns without a gap
      for (int64_t done = 0, from = 0; done < columns; done += each, from += w.outputs) {
        turn<T>(space.y + from * kChunk<T>, kChunk<T>, each, count, a.y + begin * columns + done, columns);
      }
    }
  }

 private:
  // The hidden layer of head p at the tile that begins at m, and what can be had of it there and then.
  template <bool single>
  void hidden(int64_t p, int64_t m) {
    Lanes<T> y[kPair] = {}, g[kPair];
    for (int64_t i = 0; i < kPair; ++i) {
      y[i] = order == Order::outputs ? y[i] + w.bias2[p * w.outputs] : y[i];
      if (order != Order::outputs && single) g[i] = load(space.grad + p * kChunk<T> + m + i * kLanes<T>);
    }
    for (int64_t k = 0; k < w.width; k += kRows) {
      Lanes<T> h[kRows][kPair], u[kRows][kPair] = {}, a_k[kRows][kPair] = {};
      const T* const first = w.first + (p * w.width + k) * a.channels;
      for (int64_t j = 0; j < kRows; ++j) {
        for (int64_t i = 0; i < kPair; ++i) h[j][i] = Lanes<T>{} + w.bias[p * w.width + k + j];
      }
      multiply<T>(a.channels, first, space.x + m, kChunk<T>, h);
      if constexpr (order == Order::second) multiply<T>(a.channels, first, space.direction + m, kChunk<T>, u);
      if constexpr (order != Order::outputs && !single) {
        const T* const second = w.second_turned + (p * w.width + k) * a.outputs;
        multiply<T>(a.outputs, second, space.grad + p * a.outputs * kChunk<T> + m, kChunk<T>, a_k);
      }
      for (int64_t j = 0; j < kRows; ++j) {
        const T second = single ? w.second[p * w.width + k + j] : T(0);
        Lanes<T> to_bias = {}, to_second = {};
        for (int64_t i = 0; i < kPair; ++i) {
          const int64_t at = (k + j) * kChunk<T> + m + i * kLanes<T>;
          Lanes<T> value = {};
          if constexpr (order == Order::outputs) {
            value = softplus(h[j][i]);
          } else {
            const Lanes<T> by_output = single ? second * g[i] : a_k[j][i];
            Lanes<T> slope;
            if constexpr (order == Order::second || !weights) slope = sigmoid(h[j][i]);
            else softplus_and_sigmoid(h[j][i], value, slope);
            const HiddenUnit<Lanes<T>> unit = order == Order::second ? second_order(slope, by_output, u[j][i])
                                                                     : first_order(value, slope, by_output);
            value = unit.value;
            if (weights && order == Order::second) store(space.to_u + at, unit.to_u);
            store(space.to_hidden + at, unit.to_h);
            to_bias += unit.to_h;
            if (single) to_second += g[i] * value;
          }
          if (single) y[i] += second * value;
          else store(space.values + at, value);
        }
        if constexpr (weights) {
          const int64_t at = (p * w.width + k + j) * kLanes<T>;
          store(sums->bias + at, load(sums->bias + at) + to_bias);
          if (single) store(sums->second + at, load(sums->second + at) + to_second);
        }
      }
    }
    if constexpr (order != Order::gradient && single) {
      for (int64_t i = 0; i < kPair; ++i) store(space.y + p * kChunk<T> + m + i * kLanes<T>, y[i]);
    }
  }

  // Several outputs of head p: W2 values + b2.
  void outputs(int64_t p, int64_t m) {
    for (int64_t o = 0; o < w.outputs; o += kRows) {
      Lanes<T> y[kRows][kPair];
      for (int64_t j = 0; j < kRows; ++j) {
        for (int64_t i = 0; i < kPair; ++i) {
          y[j][i] = Lanes<T>{} + (order == Order::outputs ? w.bias2[p * w.outputs + o + j] : T(0));
        }
      }
      multiply<T>(w.width, w.second + (p * w.outputs + o) * w.width, space.values + m, kChunk<T>, y);
      store_block(space.y + (p * w.outputs + o) * kChunk<T> + m, y);
    }
  }

  // to_x += W1^T to_hidden
  void to_inputs(int64_t p, int64_t m) {
    for (int64_t c = 0; c < w.channels; c += kRows) {
      Lanes<T> to_x[kRows][kPair];
      for (int64_t j = 0; j < kRows; ++j) {
        for (int64_t i = 0; i < kPair; ++i) to_x[j][i] = load(space.to_x + (c + j) * kChunk<T> + m + i * kLanes<T>);
      }
      multiply<T>(w.width, w.first_turned + (p * w.channels + c) * w.width, space.to_hidden + m, kChunk<T>, to_x);
      store_block(space.to_x + c * kChunk<T> + m, to_x);
    }
  }

  static void store_block(T* to, const Lanes<T> (&block)[kRows][kPair]) {
    for (int64_t j = 0; j < kRows; ++j) {
      for (int64_t i = 0; i < kPair; ++i) store(to + j * kChunk<T> + i * kLanes<T>, block[j][i]);
    }
  }

  void to_weights(int64_t p, int64_t begin) {
    T* const first = sums->first + p * w.width * sums->channels;
    add_outer<T>(points, space.to_hidden, w.width, space.rows, sums->channels, first);
    if (order == Order::second) {
      add_outer<T>(points, space.to_u, w.width, space.direction_rows, sums->channels, first);
    }
    if (a.outputs > 1) {
      const int64_t columns = a.heads * a.outputs;
      pad_rows<T>(a.grad + begin * columns + p * a.outputs, columns, points, a.outputs, space.grad_rows,
                  sums->outputs);
      add_outer<T>(points, space.values, w.width, space.grad_rows, sums->outputs,
                   sums->second + p * w.width * sums->outputs);
    }
  }

  const MlpArguments<T>& a;
  const Weights<T>& w;
  Workspace<T>& space;
  Sums<T>* sums;
  int64_t points = 0;
};

template <typename T>
void add_up(const MlpArguments<T>& a, const Weights<T>& w, const std::vector<std::unique_ptr<Sums<T>>>& slabs) {
  for (const auto& slab : slabs) {
    for (int64_t p = 0; p < a.heads; ++p) {
      for (int64_t k = 0; k < a.width; ++k) {
        const int64_t from = p * w.width + k, to = p * a.width + k;
        for (int64_t c = 0; c < a.channels; ++c) {
          a.to_weight1[to * a.channels + c] += slab->first[from * slab->channels + c];
        }
        a.to_bias1[to] += sum_of<T>(load(slab->bias + from * kLanes<T>));
        for (int64_t o = 0; o < a.outputs; ++o) {
          a.to_weight2[(p * a.outputs + o) * a.width + k] +=
              a.outputs == 1 ? sum_of<T>(load(slab->second + from * kLanes<T>))
                             : slab->second[from * slab->outputs + o];
        }
      }
    }
  }
}

// Points are dealt out in slabs that depend on their number alone, so the result does not depend on the threads.
template <typename T, Order order, bool weights>
void run(const MlpArguments<T>& a) {
  if (a.points == 0) return;
  const Weights<T> w(a);
  const int64_t chunks = (a.points + kChunk<T> - 1) / kChunk<T>;
  const int64_t slabs = weights ? std::clamp<int64_t>(chunks / kChunksOfSlab, 1, kSlabs) : chunks;
  std::vector<std::unique_ptr<Sums<T>>> sums(weights ? slabs : 0);
  at::parallel_for(0, slabs, 1, [&](int64_t begin, int64_t end) {
    Workspace<T> space(a, w, order, weights);
    for (int64_t slab = begin; slab < end; ++slab) {
      if (weights) sums[slab] = std::make_unique<Sums<T>>(a, w);
      Chunk<T, order, weights> chunk(a, w, space, weights ? sums[slab].get() : nullptr);
      for (int64_t i = slab * chunks / slabs; i < (slab + 1) * chunks / slabs; ++i) {
        const int64_t first = i * kChunk<T>;
        chunk.run(first, std::min(kChunk<T>, a.points - first));
      }
    }
  });
  if (weights) add_up(a, w, sums);
}

template <typename T, Order order>
void run(const MlpArguments<T>& a) {
  if (a.to_weight1) run<T, order, true>(a);
  else run<T, order, false>(a);
}

}  // namespace

template <typename T>
void mlp_outputs(const MlpArguments<T>& a) {
  run<T, Order::outputs, false>(a);
}

template <typename T>
void mlp_gradient(const MlpArguments<T>& a) {
  run<T, Order::gradient>(a);
}

template <typename T>
void mlp_second(const MlpArguments<T>& a) {
  run<T, Order::second>(a);
}

template void mlp_outputs(const MlpArguments<float>&);
template void mlp_outputs(const MlpArguments<double>&);
template void mlp_gradient(const MlpArguments<float>&);
template void mlp_gradient(const MlpArguments<double>&);
template void mlp_second(const MlpArguments<float>&);
template void mlp_second(const MlpArguments<double>&);

}  // namespace mate3d
