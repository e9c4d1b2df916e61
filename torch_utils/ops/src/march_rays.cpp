// torch.ops.mate3d.march_rays and its gradient: checks, and the way to the kernels. Schemas and derivatives:
// torch_utils/ops/march_rays.py.
#include "march_rays.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#ifdef MATE3D_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace mate3d {

void march_rays_cpu(const Rays<float>&, const Marched<float>&);
void march_rays_cpu(const Rays<double>&, const Marched<double>&);
void march_rays_gradient_cpu(const Rays<float>&, const RayGradients<float>&);
void march_rays_gradient_cpu(const Rays<double>&, const RayGradients<double>&);

#ifdef MATE3D_CUDA
// Null, or what went wrong.
const char* march_rays_cuda(const Rays<float>&, const Marched<float>&, void* stream);
const char* march_rays_cuda(const Rays<double>&, const Marched<double>&, void* stream);
const char* march_rays_gradient_cuda(const Rays<float>&, const RayGradients<float>&, void* stream);
const char* march_rays_gradient_cuda(const Rays<double>&, const RayGradients<double>&, void* stream);
#endif

namespace {

using Optional = std::optional<at::Tensor>;

template <typename T>
const T* in(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<T>() : nullptr;
}

template <typename T>
T* out(const at::Tensor& x) {
  return x.numel() > 0 ? x.mutable_data_ptr<T>() : nullptr;
}

// Contiguous inputs.
struct Inputs {
  Inputs(const at::Tensor& density_any, const at::Tensor& depth_any, const at::Tensor& colour_any,
         const Optional& part_sdf_any, const Optional& normal_any)
      : density(density_any.contiguous()), depth(depth_any.contiguous()), colour(colour_any.contiguous()) {
    TORCH_CHECK(density.dim() == 2 && depth.sizes() == density.sizes() && density.size(1) >= 1,
                "march_rays: density and depth are (R, S), with at least one sample");
    check(colour);
    if (part_sdf_any.has_value()) check(part_sdf = part_sdf_any->contiguous());
    if (normal_any.has_value()) check(normal = normal_any->contiguous());
    TORCH_CHECK(!normal.defined() || normal.size(2) == 3, "march_rays: a normal has 3 components");
    TORCH_CHECK(depth.scalar_type() == density.scalar_type() && depth.device() == density.device(),
                "march_rays: inputs differ in type or device");
  }

  void check(const at::Tensor& x) const {
    TORCH_CHECK(x.dim() == 3 && x.sizes().slice(0, 2) == density.sizes(),
                "march_rays: values at the samples are (R, S, ...)");
    TORCH_CHECK(x.scalar_type() == density.scalar_type() && x.device() == density.device(),
                "march_rays: inputs differ in type or device");
  }

  int64_t parts() const { return part_sdf.defined() ? part_sdf.size(2) : 0; }
  at::Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, density.options()); }

  template <typename T>
  Rays<T> rays(bool published, double sharpness) const {
    return {density.size(0), density.size(1), colour.size(2), parts(), published, T(sharpness), in<T>(density),
            in<T>(depth), in<T>(colour), in<T>(part_sdf), in<T>(normal)};
  }

  at::Tensor density, depth, colour, part_sdf, normal;
};

// Calls visit.template operator()<T>() for the type of the tensors.
template <typename Visit>
void with_type(const at::Tensor& x, Visit visit) {
  if (x.scalar_type() == at::kFloat) return visit.template operator()<float>();
  TORCH_CHECK(x.scalar_type() == at::kDouble, "march_rays: no code for ", x.scalar_type());
  visit.template operator()<double>();
}

using Six = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Colour, depth, weight, mask, normal (empty where there is none), and the samples' weights.
Six march_rays(const at::Tensor& density, const at::Tensor& depth, const at::Tensor& colour, const Optional& part_sdf,
               const Optional& normal, bool published, double sharpness) {
  const Inputs x(density, depth, colour, part_sdf, normal);
  const int64_t rays = x.density.size(0), samples = x.density.size(1);
  const Six result{x.empty({rays, x.colour.size(2)}), x.empty({rays}), x.empty({rays}), x.empty({rays, x.parts()}),
                   x.empty({rays, x.normal.defined() ? 3 : 0}), x.empty({rays, samples})};
  if (rays == 0) return result;
  with_type(x.density, [&]<typename T>() {
    const auto& [to_colour, to_depth, to_weight, to_mask, to_normal, to_weights] = result;
    const Marched<T> marched{out<T>(to_colour), out<T>(to_depth),  out<T>(to_weight),
                             out<T>(to_mask),   out<T>(to_normal), out<T>(to_weights)};
    if (x.density.is_cpu()) return march_rays_cpu(x.rays<T>(published, sharpness), marched);
#ifdef MATE3D_CUDA
    const c10::cuda::CUDAGuard guard(x.density.device());
    const char* error = march_rays_cuda(x.rays<T>(published, sharpness), marched,
                                        c10::cuda::getCurrentCUDAStream().stream());
    TORCH_CHECK(!error, "march_rays: ", error);
#endif
  });
  return result;
}

// Derivatives by density, colour, part_sdf and normal; empty where they are not needed or there is nothing to derive.
Four march_rays_gradient(const at::Tensor& density, const at::Tensor& depth, const at::Tensor& colour,
                         const Optional& part_sdf, const Optional& normal, const at::Tensor& weights_any,
                         const Optional& by_colour, const Optional& by_depth, const Optional& by_weight,
                         const Optional& by_mask, const Optional& by_normal, bool published, double sharpness) {
  const Inputs x(density, depth, colour, part_sdf, normal);
  const int64_t rays = x.density.size(0);
  auto contiguous = [&](const Optional& any, at::IntArrayRef shape) {
    if (!any.has_value()) return at::Tensor();
    TORCH_CHECK(any->sizes() == shape && any->scalar_type() == x.density.scalar_type() &&
                    any->device() == x.density.device(),
                "march_rays: a derivative does not fit what was marched");
    return any->contiguous();
  };
  const at::Tensor weights = contiguous(weights_any, x.density.sizes());
  const at::Tensor colours = contiguous(by_colour, {rays, x.colour.size(2)});
  const at::Tensor depths = contiguous(by_depth, {rays}), totals = contiguous(by_weight, {rays});
  const at::Tensor masks = x.part_sdf.defined() ? contiguous(by_mask, {rays, x.parts()}) : at::Tensor();
  const at::Tensor normals = x.normal.defined() ? contiguous(by_normal, {rays, 3}) : at::Tensor();
  auto like = [&](const at::Tensor& given, const at::Tensor& by) {
    return by.defined() ? at::empty(given.sizes(), given.options()) : x.empty({0});
  };
  const Four result{x.empty(x.density.sizes()), like(x.colour, colours), like(x.part_sdf, masks),
                    like(x.normal, normals)};
  if (rays == 0) return result;
  with_type(x.density, [&]<typename T>() {
    const auto& [to_density, to_colour, to_part_sdf, to_normal] = result;
    const RayGradients<T> gradients{in<T>(weights), in<T>(colours), in<T>(depths), in<T>(totals), in<T>(masks),
                                    in<T>(normals), out<T>(to_density), out<T>(to_colour), out<T>(to_part_sdf),
                                    out<T>(to_normal)};
    if (x.density.is_cpu()) return march_rays_gradient_cpu(x.rays<T>(published, sharpness), gradients);
#ifdef MATE3D_CUDA
    const c10::cuda::CUDAGuard guard(x.density.device());
    const char* error = march_rays_gradient_cuda(x.rays<T>(published, sharpness), gradients,
                                                 c10::cuda::getCurrentCUDAStream().stream());
    TORCH_CHECK(!error, "march_rays: ", error);
#endif
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(mate3d, CPU, library) {
  library.impl("march_rays", &march_rays);
  library.impl("march_rays_gradient", &march_rays_gradient);
}

#ifdef MATE3D_CUDA
TORCH_LIBRARY_IMPL(mate3d, CUDA, library) {
  library.impl("march_rays", &march_rays);
  library.impl("march_rays_gradient", &march_rays_gradient);
}
#endif

}  // namespace mate3d
