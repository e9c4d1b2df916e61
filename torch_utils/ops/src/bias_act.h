// y = clamp(gain * act(x + bias)): the arithmetic of one element, for the CPU loop and the CUDA kernel alike.
#pragma once

#include "elementary.h"

namespace mate3d {

// In the order of ACTIVATIONS in torch_utils/ops/bias_act.py.
enum class Activation : int { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

// What is computed: the value; `factor` times the first or second derivative at x; or `factor` times the first
// derivative, read off the value itself, which takes the place of x (homogeneous activations only).
enum class Wanted : int { value, first, second, first_of_value };

constexpr bool is_homogeneous(Activation act) {
  return act == Activation::linear || act == Activation::relu || act == Activation::lrelu;
}

// The order-th derivative of an activation at u.
template <Activation act, int order, typename T>
MATE3D_INLINE T derivative(T u, T alpha) {
  static_assert(order >= 0 && order <= 2);
  const T zero = 0, one = 1;
  if constexpr (act == Activation::linear) {
    return order == 0 ? u : order == 1 ? one : zero;
  } else if constexpr (act == Activation::relu) {
    if (order == 0) return u < zero ? zero : u;  // a NaN stays one, here and in the gradient: its slope is 1
    return order == 2 || u <= zero ? zero : one;
  } else if constexpr (act == Activation::lrelu) {
    if (order == 2) return zero;
    const T slope = u > zero ? one : alpha;
    return order == 0 ? slope * u : slope;
  } else if constexpr (act == Activation::tanh) {
    const T y = hyperbolic_tangent(u);
    if (order == 0) return y;
    const T first = one - y * y;
    return order == 1 ? first : -2 * y * first;
  } else if constexpr (act == Activation::elu || act == Activation::selu) {
    const bool scaled = act == Activation::selu;
    const T scale = scaled ? T(1.0507009873554804934193349852946) : one;
    const T below = scaled ? scale * T(1.6732632423543772848170429916717) : scale;
    const T curve = below * (order == 0 ? exponential_minus_one(u) : exponential(u));
    return u > zero ? scale * (order == 0 ? u : order == 1 ? one : zero) : curve;
  } else if constexpr (act == Activation::softplus) {
    if (order == 0) return soft_plus(u);
    const T s = logistic(u);
    return order == 1 ? s : s * (one - s);
  } else {
    const T s = logistic(u);
    if constexpr (act == Activation::sigmoid) {
      return order == 0 ? s : s * (one - s) * (order == 1 ? one : one - 2 * s);
    } else {  // swish: u s(u)
      if (order == 0) return u * s;
      return order == 1 ? s * (one + u * (one - s)) : s * (one - s) * (2 + u * (one - 2 * s));
    }
  }
}

// One element of what is wanted. `clamp` is NaN where there is none; derivatives are zero beyond it.
template <Activation act, Wanted wanted, typename T>
MATE3D_INLINE T element(T factor, T x, T bias, T alpha, T gain, T clamp) {
  if constexpr (wanted == Wanted::first_of_value) {
    const T slope = gain * derivative<act, 1, T>(x, alpha);  // x, the value, has the sign of the activation's input
    return x <= -clamp || x >= clamp ? T(0) : factor * slope;
  } else {
    const T u = x + bias;
    const T y = gain * derivative<act, 0, T>(u, alpha);
    if constexpr (wanted == Wanted::value) {
      return y < -clamp ? -clamp : y > clamp ? clamp : y;
    } else {
      const T slope = gain * derivative<act, wanted == Wanted::first ? 1 : 2, T>(u, alpha);
      return y < -clamp || y > clamp ? T(0) : factor * slope;
    }
  }
}

// What a call works on: elements [outer][channels][step], dense in memory. Each channel has its bias.
template <typename T, typename Compute>
struct BiasActArguments {
  const T* x;
  const T* bias;    // or null
  const T* factor;  // null for the value
  const T* spread;  // what is added to the factor, a number per channel; or null
  T* y;
  int64_t outer, channels, step;
  Compute alpha, gain, clamp;
};

// Calls visit.template operator()<activation, wanted>() for the pair that is known at run time only.
template <typename Visit>
void with_activation(Activation act, Wanted wanted, Visit visit) {
  auto with_wanted = [&]<Activation known>() {
    switch (wanted) {
      case Wanted::value: return visit.template operator()<known, Wanted::value>();
      case Wanted::first: return visit.template operator()<known, Wanted::first>();
      case Wanted::second: return visit.template operator()<known, Wanted::second>();
      case Wanted::first_of_value:
        if constexpr (is_homogeneous(known)) visit.template operator()<known, Wanted::first_of_value>();
    }
  };
  switch (act) {
    case Activation::linear: return with_wanted.template operator()<Activation::linear>();
    case Activation::relu: return with_wanted.template operator()<Activation::relu>();
    case Activation::lrelu: return with_wanted.template operator()<Activation::lrelu>();
    case Activation::tanh: return with_wanted.template operator()<Activation::tanh>();
    case Activation::sigmoid: return with_wanted.template operator()<Activation::sigmoid>();
    case Activation::elu: return with_wanted.template operator()<Activation::elu>();
    case Activation::selu: return with_wanted.template operator()<Activation::selu>();
    case Activation::softplus: return with_wanted.template operator()<Activation::softplus>();
    case Activation::swish: return with_wanted.template operator()<Activation::swish>();
  }
}

}  // namespace mate3d
