// What the kernels of fused_mlp work on: heads p of one hidden layer each, on M points x.
//
//   h_mpk = sum_c W1_pkc x_mc + b1_pk        y_mpo = sum_k W2_pok softplus(h_mpk) + b2_po
#pragma once

#include <cstdint>

namespace mate3d {

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

// On the CPU.
template <typename T>
void mlp_outputs(const MlpArguments<T>&);
template <typename T>
void mlp_gradient(const MlpArguments<T>&);
template <typename T>
void mlp_second(const MlpArguments<T>&);

}  // namespace mate3d
