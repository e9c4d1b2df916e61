// torch.ops.mate3d.upfirdn2d: checks, and the way to the kernels. Schema and derivative: torch_utils/ops/upfirdn2d.py.
#include "upfirdn2d.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#ifdef MATE3D_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace mate3d {

void upfirdn2d_cpu(const UpfirdnArguments<float, float>&);
void upfirdn2d_cpu(const UpfirdnArguments<double, double>&);

#ifdef MATE3D_CUDA
// uint16_t stands for half, and for bfloat16 where `brain` says so. Null, or what went wrong.
const char* upfirdn2d_cuda(const UpfirdnArguments<float, float>&, void* stream);
const char* upfirdn2d_cuda(const UpfirdnArguments<double, double>&, void* stream);
const char* upfirdn2d_cuda(const UpfirdnArguments<uint16_t, float>&, bool brain, void* stream);
#endif

namespace {

Axis axis(int64_t in, int64_t up, int64_t down, int64_t before, int64_t after, int64_t taps) {
  TORCH_CHECK(up >= 1 && down >= 1, "upfirdn2d: up and down must be at least 1");
  const int64_t padded = in * up + before + after;
  TORCH_CHECK(padded >= taps && taps >= 1, "upfirdn2d: the filter has ", taps, " taps for a picture of ", padded);
  return {in, (padded - taps) / down + 1, up, down, before, taps};
}

// f (fh, fw) is correlated where `flip` says so, else convolved with. up, down: (x, y); padding: left, right, top,
// bottom.
at::Tensor upfirdn2d(const at::Tensor& x_any, const at::Tensor& f_any, at::IntArrayRef up, at::IntArrayRef down,
                     at::IntArrayRef padding, bool flip, double gain) {
  TORCH_CHECK(x_any.dim() == 4 && f_any.dim() == 2, "upfirdn2d: x is (N, C, H, W) and f is (fh, fw)");
  TORCH_CHECK(up.size() == 2 && down.size() == 2 && padding.size() == 4, "upfirdn2d: up, down or padding is short");
  const bool single = x_any.scalar_type() != at::kDouble;
  TORCH_CHECK(f_any.scalar_type() == (single ? at::kFloat : at::kDouble) && f_any.device() == x_any.device(),
              "upfirdn2d: the filter's type or device does not fit x");
  const bool pixels = !x_any.is_contiguous() && x_any.is_contiguous(at::MemoryFormat::ChannelsLast);
  const auto format = pixels ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const at::Tensor x = x_any.contiguous(format), f = f_any.contiguous();
  const Axis columns = axis(x.size(3), up[0], down[0], padding[0], padding[1], f.size(1));
  const Axis rows = axis(x.size(2), up[1], down[1], padding[2], padding[3], f.size(0));
  const at::Tensor y = at::empty({x.size(0), x.size(1), rows.out, columns.out}, x.options().memory_format(format));
  if (y.numel() == 0) return y;

  auto arguments = [&]<typename T, typename Compute>() {
    return UpfirdnArguments<T, Compute>{static_cast<const T*>(x.const_data_ptr()),
                                        static_cast<const Compute*>(f.const_data_ptr()),
                                        static_cast<T*>(y.mutable_data_ptr()),
                                        pixels ? x.size(0) : x.size(0) * x.size(1),
                                        pixels ? x.size(1) : 1, rows, columns, flip, Compute(gain)};
  };
  if (x.is_cpu()) {
    if (x.scalar_type() == at::kFloat) {
      upfirdn2d_cpu(arguments.template operator()<float, float>());
    } else {
      TORCH_CHECK(x.scalar_type() == at::kDouble, "upfirdn2d: no CPU code for ", x.scalar_type());
      upfirdn2d_cpu(arguments.template operator()<double, double>());
    }
    return y;
  }
#ifdef MATE3D_CUDA
  const c10::cuda::CUDAGuard guard(x.device());
  void* stream = c10::cuda::getCurrentCUDAStream().stream();
  const char* error = nullptr;
  if (x.scalar_type() == at::kFloat) {
    error = upfirdn2d_cuda(arguments.template operator()<float, float>(), stream);
  } else if (x.scalar_type() == at::kDouble) {
    error = upfirdn2d_cuda(arguments.template operator()<double, double>(), stream);
  } else {
    const bool brain = x.scalar_type() == at::kBFloat16;
    TORCH_CHECK(brain || x.scalar_type() == at::kHalf, "upfirdn2d: no CUDA code for ", x.scalar_type());
    error = upfirdn2d_cuda(arguments.template operator()<uint16_t, float>(), brain, stream);
  }
  TORCH_CHECK(!error, "upfirdn2d: ", error);
  return y;
#else
  TORCH_CHECK(false, "upfirdn2d: built without CUDA");
#endif
}

}  // namespace

TORCH_LIBRARY_IMPL(mate3d, CPU, library) { library.impl("upfirdn2d", &upfirdn2d); }

#ifdef MATE3D_CUDA
TORCH_LIBRARY_IMPL(mate3d, CUDA, library) { library.impl("upfirdn2d", &upfirdn2d); }
#endif

}  // namespace mate3d
