// What the kernels of fused_mlp work on: heads p of one hidden layer each, on M points x.
//
//   h_mpk = sum_c W1_pkc x_mc + b1_pk        y_mpo = sum_k W2_pok softplus(h_mpk) + b2_po
#pragma once

#include <cstdint>

#include "softplus.h"

namespace mate3d {

// A hidden unit's part in the derivatives, for the CPU's lanes and the CUDA kernel alike: what the gradients by its input
// h and by its output's weights are made of. a = sum_o W2_o g_o, s = softplus'(h) = sigmoid(h).
template <typename V>
struct HiddenUnit {
  V value;  // times g_o: the gradient by W2_o
  V to_h;   // times x: the gradient by W1; times W1: that by x
  V to_u;   // second order only. Times v: the gradient by W1
};

// Of y by x.
template <typename V>
MATE3D_INLINE HiddenUnit<V> first_order(V activation, V slope, V by_output) {
  return {activation, by_output * slope, V{}};
}

// Of v . (gradient of y by x) = sum_k a_k s_k u_k with u = W1 v; softplus''(h) = s (1 - s).
template <typename V>
MATE3D_INLINE HiddenUnit<V> second_order(V slope, V by_output, V u) {
  const V value = slope * u;
  return {value, by_output * value * (1.0f - slope), by_output * slope};
}

// All contiguous. Null: b2 but for the outputs; gradients that are not wanted.
template <typename T>
struct MlpArguments {
  int64_t points, channels, heads, width, outputs;
  const T* x;          // (M, C)
  const T* weight1;    // (P, K, C)
  const T* bias1;      // (P, K)
  const T* weight2;    // (P, O, K)
  const T* bias2;      // (P, O)
  const T* grad;       // (M, P O), of the outputs
  const T* direction;  // (M, C): the second derivative is that of <direction, to_x>
  T* y;                // (M, P O): the outputs, or the second derivative's part by `grad`
  T* to_x;             // (M, C)
  T* to_weight1;       // (P, K, C), zero at first, as the next two
  T* to_bias1;         // (P, K)
  T* to_weight2;       // (P, O, K)
};

// Sums over a part of the points each: (slabs, shape of the gradient). A multiple of 4 slabs. All null where the
// weights' gradients are not wanted.
template <typename T>
struct MlpPartial {
  int64_t slabs;
  T *weight1, *bias1, *weight2;
};

// On the CPU.
template <typename T>
void mlp_outputs(const MlpArguments<T>&);
template <typename T>
void mlp_gradient(const MlpArguments<T>&);
template <typename T>
void mlp_second(const MlpArguments<T>&);

// On a GPU; `order` 0 for the outputs, 1 for the gradient, 2 for the second derivative. The weights' gradients go to
// `partial`. Returns null, or what went wrong.
const char* mlp_cuda(int order, const MlpArguments<float>&, const MlpPartial<float>& partial, void* stream);
const char* mlp_cuda(int order, const MlpArguments<double>&, const MlpPartial<double>& partial, void* stream);

}  // namespace mate3d
