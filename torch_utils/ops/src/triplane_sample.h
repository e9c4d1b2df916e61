// Bilinear interpolation in planes: which pixels a point reads, with which weights, and how these change with it. For
// the CPU loops and the CUDA kernels alike.
//
// The four pixels of a cell have the weights x_i y_j, where x_i is the hat function of the distance to pixel column
// i: 1 at the pixel, 0 at its neighbours and beyond. At the rim the cell is the last one inside the plane; of its
// pixels only those on the rim then have a weight.
#pragma once

#include <cstdint>

#ifndef MATE3D_INLINE
#ifdef __CUDACC__
#define MATE3D_INLINE __host__ __device__ __forceinline__
#else
#define MATE3D_INLINE inline __attribute__((always_inline))
#endif
#endif

namespace mate3d {

constexpr int kMaxPlanes = 4;

// How points (N, M, 3) fall on the planes.
template <typename T>
struct Projection {
  int planes;
  int axes[2 * kMaxPlanes];  // of a point: horizontal and vertical one of each plane
  int64_t height, width;     // at least 2
  int64_t points_per_scene;
  T per_unit_x, per_unit_y;  // pixels per world unit
  T scale;                   // factor of all weights
};

// Along one axis: the cell's first pixel, and the weights of this one and the next, with their derivatives.
template <typename T>
struct Hats {
  int64_t first;
  T low, high, low_slope, high_slope;
};

// `at`: 0 at the centre of the first of `size` pixels. A NaN gives a valid cell and weights that are NaN.
template <typename T>
MATE3D_INLINE Hats<T> hats(T at, int64_t size) {
  T first = at > T(0) ? at : T(0);
  first = first < T(size - 2) ? first : T(size - 2);
  Hats<T> h;
  const int32_t whole = int32_t(first);  // processors convert these by the vector
  h.first = whole;
  const T u = at - T(whole);
  h.low = T(1) - u, h.high = u, h.low_slope = T(-1), h.high_slope = T(1);
  if (u < T(0)) {
    const bool beyond = u < T(-1);
    h.low = beyond ? T(0) : T(1) + u, h.low_slope = beyond ? T(0) : T(1);
    h.high = h.high_slope = T(0);
  } else if (u > T(1)) {
    const bool beyond = u > T(2);
    h.high = beyond ? T(0) : T(2) - u, h.high_slope = beyond ? T(0) : T(-1);
    h.low = h.low_slope = T(0);
  }
  return h;
}

// The cell of a point on a plane.
template <typename T>
struct Cell {
  Hats<T> x, y;

  MATE3D_INLINE Cell(const Projection<T>& to, const T* point, int plane)
      : x(hats(point[to.axes[2 * plane]] * to.per_unit_x + T(to.width - 1) / 2, to.width)),
        y(hats(point[to.axes[2 * plane + 1]] * to.per_unit_y + T(to.height - 1) / 2, to.height)) {}

  // Row of its first pixel in the table of all pixels of all planes of all scenes.
  MATE3D_INLINE int64_t row(const Projection<T>& to, int64_t scene, int plane) const {
    return ((scene * to.planes + plane) * to.height + y.first) * to.width + x.first;
  }
};

// Weights of the four pixels: itself, right, below, below right.
template <typename T>
MATE3D_INLINE void corner_weights(const Projection<T>& to, const Cell<T>& c, T* weight) {
  weight[0] = to.scale * c.x.low * c.y.low;
  weight[1] = to.scale * c.x.high * c.y.low;
  weight[2] = to.scale * c.x.low * c.y.high;
  weight[3] = to.scale * c.x.high * c.y.high;
}

// Their derivative along `direction`, (3,).
template <typename T>
MATE3D_INLINE void corner_slopes(const Projection<T>& to, const Cell<T>& c, int plane, const T* direction, T* slope) {
  const T x = to.scale * to.per_unit_x * direction[to.axes[2 * plane]];
  const T y = to.scale * to.per_unit_y * direction[to.axes[2 * plane + 1]];
  slope[0] = x * c.x.low_slope * c.y.low + y * c.x.low * c.y.low_slope;
  slope[1] = x * c.x.high_slope * c.y.low + y * c.x.high * c.y.low_slope;
  slope[2] = x * c.x.low_slope * c.y.high + y * c.x.low * c.y.high_slope;
  slope[3] = x * c.x.high_slope * c.y.high + y * c.x.high * c.y.high_slope;
}

// The transpose: adds to `point`, (3,), the gradient of sum_k by_weight_k weight_k.
template <typename T>
MATE3D_INLINE void add_corner_gradient(const Projection<T>& to, const Cell<T>& c, int plane, const T* by_weight,
                                       T* point) {
  const T above = c.x.low_slope * by_weight[0] + c.x.high_slope * by_weight[1];
  const T below = c.x.low_slope * by_weight[2] + c.x.high_slope * by_weight[3];
  const T left = c.y.low_slope * by_weight[0] + c.y.high_slope * by_weight[2];
  const T right = c.y.low_slope * by_weight[1] + c.y.high_slope * by_weight[3];
  point[to.axes[2 * plane]] += to.scale * to.per_unit_x * (c.y.low * above + c.y.high * below);
  point[to.axes[2 * plane + 1]] += to.scale * to.per_unit_y * (c.x.low * left + c.x.high * right);
}

// Adds to `point` the gradient of sum_k by_weight_k slope_k: only the mixed derivative is not zero.
template <typename T>
MATE3D_INLINE void add_corner_curvature(const Projection<T>& to, const Cell<T>& c, int plane, const T* direction,
                                        const T* by_weight, T* point) {
  const T above = c.x.low_slope * by_weight[0] + c.x.high_slope * by_weight[1];
  const T below = c.x.low_slope * by_weight[2] + c.x.high_slope * by_weight[3];
  const T mixed =
      to.scale * to.per_unit_x * to.per_unit_y * (c.y.low_slope * above + c.y.high_slope * below);
  const int x = to.axes[2 * plane], y = to.axes[2 * plane + 1];
  point[x] += mixed * direction[y];
  point[y] += mixed * direction[x];
}

// What is to be found of the corners of points: cells and weights; the slopes of weights along a direction; the
// gradient by the points of sum by_weight . weight; or that of sum by_weight . slope.
enum class Corners : int { weights, slopes, gradient, curvature };

template <typename T>
struct CornerArguments {
  Corners wanted;
  Projection<T> to;
  int64_t count;       // points B = N M
  const T* points;     // (B, 3)
  const T* direction;  // (B, 3), or null
  const T* by_weight;  // (B, P, 4), or null
  int32_t* cells;      // (B, P), or null
  T* weight;           // (B, P, 4): weights or slopes, or null
  T* by_points;        // (B, 3), or null
};

// All corners of point b.
template <typename T>
MATE3D_INLINE void visit_point(const CornerArguments<T>& a, int64_t b) {
  const Projection<T>& to = a.to;
  const int64_t scene = b / to.points_per_scene;
  T sum[3] = {};
  for (int p = 0; p < to.planes; ++p) {
    const int64_t at = b * to.planes + p;
    const Cell<T> cell(to, a.points + 3 * b, p);
    if (a.wanted == Corners::weights) {
      a.cells[at] = int32_t(cell.row(to, scene, p));
      corner_weights(to, cell, a.weight + 4 * at);
    } else if (a.wanted == Corners::slopes) {
      corner_slopes(to, cell, p, a.direction + 3 * b, a.weight + 4 * at);
    } else if (a.wanted == Corners::gradient) {
      add_corner_gradient(to, cell, p, a.by_weight + 4 * at, sum);
    } else {
      add_corner_curvature(to, cell, p, a.direction + 3 * b, a.by_weight + 4 * at, sum);
    }
  }
  for (int i = 0; i < 3 && a.by_points; ++i) a.by_points[3 * b + i] = sum[i];
}

// What the three maps between a table's rows and points work on.
template <typename T>
struct Rows {
  int64_t points, planes, channels, pitch;
  const int32_t* cells;  // (B, P)
  const T* weight;       // (B, P, 4), or null

  // Row of corner k of point b, 0 <= k < 4 P.
  MATE3D_INLINE int64_t row(int64_t b, int64_t k) const {
    return cells[b * planes + k / 4] + (k & 1) + (k & 2) / 2 * pitch;
  }
};

// Values (B, C), table (R, C), dots (B, P, 4). The CUDA functions return null, or what went wrong.
template <typename T>
void corners_cpu(const CornerArguments<T>&);
template <typename T>
void gather_cpu(const Rows<T>&, const T* table, T* values);
template <typename T>
void scatter_cpu(const Rows<T>&, int64_t groups, const T* values, T* table);
template <typename T>
void dot_cpu(const Rows<T>&, const T* table, const T* values, T* dots);

// The values at a's points: corners_cpu and gather_cpu in one.
template <typename T>
void sample_cpu(const CornerArguments<T>& a, const T* table, int64_t channels, T* values);
// Each of `count` matrices, (rows, columns), turned about its diagonal.
template <typename T>
void turn_cpu(const T* matrices, T* turned, int64_t count, int64_t rows, int64_t columns);

template <typename T>
const char* corners_cuda(const CornerArguments<T>&, void* stream);
template <typename T>
const char* gather_cuda(const Rows<T>&, const T* table, T* values, void* stream);
template <typename T>
const char* scatter_cuda(const Rows<T>&, const T* values, T* table, void* stream);
template <typename T>
const char* dot_cuda(const Rows<T>&, const T* table, const T* values, T* dots, void* stream);

}  // namespace mate3d
