// y = clamp(gain * act(x + bias)): the arithmetic of one element, for the CPU loop and the CUDA kernel alike.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define MATE3D_INLINE __host__ __device__ __forceinline__
#else
#define MATE3D_INLINE inline
#endif

namespace mate3d {

// In the order of ACTIVATIONS in torch_utils/ops/bias_act.py.
enum class Activation : int { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

// The order-th derivative of an activation at u.
template <Activation act, int order, typename T>
MATE3D_INLINE T derivative(T u, T alpha) {
  static_assert(order >= 0 && order <= 2);
  const T zero = 0, one = 1;
  if constexpr (act == Activation::linear) {
    return order == 0 ? u : order == 1 ? one : zero;
  } else if constexpr (act == Activation::relu) {
    if (order == 0) return u < zero ? zero : u;  // a NaN stays one
    return order == 1 && u > zero ? one : zero;
  } else if constexpr (act == Activation::lrelu) {
    if (order == 2) return zero;
    const T slope = u > zero ? one : alpha;
    return order == 0 ? slope * u : slope;
  } else if constexpr (act == Activation::tanh) {
    const T y = std::tanh(u);
    if (order == 0) return y;
    const T first = one - y * y;
    return order == 1 ? first : -2 * y * first;
  } else if constexpr (act == Activation::elu || act == Activation::selu) {
    const bool scaled = act == Activation::selu;
    const T scale = scaled ? T(1.0507009873554804934193349852946) : one;
    if (u > zero) return scale * (order == 0 ? u : order == 1 ? one : zero);
    const T below = scaled ? scale * T(1.6732632423543772848170429916717) : scale;
    return below * (order == 0 ? std::expm1(u) : std::exp(u));
  } else if constexpr (act == Activation::softplus) {
    if (order == 0) return u > zero ? u + std::log1p(std::exp(-u)) : std::log1p(std::exp(u));
    const T s = one / (one + std::exp(-u));
    return order == 1 ? s : s * (one - s);
  } else {
    const T s = one / (one + std::exp(-u));
    if constexpr (act == Activation::sigmoid) {
      return order == 0 ? s : s * (one - s) * (order == 1 ? one : one - 2 * s);
    } else {  // swish: u s(u)
      if (order == 0) return u * s;
      return order == 1 ? s * (one + u * (one - s)) : s * (one - s) * (2 + u * (one - 2 * s));
    }
  }
}

// One element of the result (order 0), or of its order-th derivative times `factor`.
// `clamp` is infinite where there is none; the derivative is zero beyond it.
template <Activation act, int order, typename T>
MATE3D_INLINE T element(T factor, T x, T bias, T alpha, T gain, T clamp) {
  const T u = x + bias;
  const T y = gain * derivative<act, 0, T>(u, alpha);
  if constexpr (order == 0) {
    return y < -clamp ? -clamp : y > clamp ? clamp : y;
  } else {
    const bool beyond = y < -clamp || y > clamp;
    return beyond ? T(0) : factor * gain * derivative<act, order, T>(u, alpha);
  }
}

// What a call works on. Element i has bias number (i / step) % channels.
template <typename T, typename Compute>
struct BiasActArguments {
  const T* x;
  const T* bias;    // or null
  const T* factor;  // null for order 0
  T* y;
  int64_t count, step, channels;
  Compute alpha, gain, clamp;
};

// Calls visit.template operator()<activation, order>() for the pair that is known at run time only.
template <typename Visit>
void with_activation(Activation act, int order, Visit visit) {
  auto with_order = [&]<Activation known>() {
    if (order == 0) visit.template operator()<known, 0>();
    else if (order == 1) visit.template operator()<known, 1>();
    else visit.template operator()<known, 2>();
  };
  switch (act) {
    case Activation::linear: return with_order.template operator()<Activation::linear>();
    case Activation::relu: return with_order.template operator()<Activation::relu>();
    case Activation::lrelu: return with_order.template operator()<Activation::lrelu>();
    case Activation::tanh: return with_order.template operator()<Activation::tanh>();
    case Activation::sigmoid: return with_order.template operator()<Activation::sigmoid>();
    case Activation::elu: return with_order.template operator()<Activation::elu>();
    case Activation::selu: return with_order.template operator()<Activation::selu>();
    case Activation::softplus: return with_order.template operator()<Activation::softplus>();
    case Activation::swish: return with_order.template operator()<Activation::swish>();
  }
}

}  // namespace mate3d
