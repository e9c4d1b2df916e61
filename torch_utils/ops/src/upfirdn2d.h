// Up-sampling, padding, FIR filter and down-sampling: which taps meet which pixels, for the CPU and the CUDA kernel
// alike.
#pragma once

#include "elementary.h"

namespace mate3d {

// One axis of the operation: `in` pixels become `out`. Up-sampled and padded by `before`, the picture is correlated
// with `taps` taps and every `down`-th result is kept.
struct Axis {
  int64_t in, out, up, down, before, taps;
};

// Result `o` is the sum of taps `tap`, tap + up, tap + 2 up ... times pixels `at`, at + 1, at + 2 ..., some of which
// may lie outside and are 0: the taps between meet zeros that up-sampling put in.
struct FirstTap {
  int64_t tap, at;
};

MATE3D_INLINE FirstTap first_tap(const Axis& axis, int64_t o) {
  const int64_t corner = o * axis.down - axis.before;  // where tap 0 lies in the up-sampled picture
  const int64_t past = corner % axis.up;               // C++ rounds to zero: the sign of `corner`
  const int64_t tap = past > 0 ? axis.up - past : -past;
  return {tap, (corner + tap) / axis.up};
}

// One pixel of the result, without the gain. f: the first of (y.taps, x.taps) taps as they are correlated, of which the
// others follow in steps of `next`, 1 or -1; strides are of the picture x, in elements.
template <typename T, typename Compute>
MATE3D_INLINE Compute filtered_pixel(const T* picture, int64_t stride_y, int64_t stride_x, const Compute* f,
                                     int64_t next, const Axis& y, const Axis& x, int64_t oy, int64_t ox) {
  const FirstTap row = first_tap(y, oy), column = first_tap(x, ox);
  Compute sum = 0;
  int64_t iy = row.at;
  for (int64_t ty = row.tap; ty < y.taps; ty += y.up, ++iy) {
    if (iy < 0 || iy >= y.in) continue;
    int64_t ix = column.at;
    for (int64_t tx = column.tap; tx < x.taps; tx += x.up, ++ix) {
      if (ix < 0 || ix >= x.in) continue;
      sum += f[(ty * x.taps + tx) * next] * Compute(picture[iy * stride_y + ix * stride_x]);
    }
  }
  return sum;
}

// What a call works on: dense pictures [outer][H][W][inner], of which `inner` channels lie beside each other.
// f: (rows.taps, columns.taps), correlated where `flip` says so, else convolved with, for which it is read backwards.
template <typename T, typename Compute>
struct UpfirdnArguments {
  const T* x;
  const Compute* f;
  T* y;
  int64_t outer, inner;
  Axis rows, columns;
  bool flip;
  Compute gain;  // that multiplies the results
};

}  // namespace mate3d
