// Per-row arithmetic of the linear maps behind triplane_sample, shared by the CPU loop and the CUDA kernel.
//
// A row b of a sparse matrix has K entries w[k] at columns i[k]; T is a table with C channels per row.
// (The third map, gather, y_c = sum_k w_k T[i_k]_c, is PyTorch's embedding_bag, which is as fast as it can be.)
//   scatter  T[i_k]_c += w_k y_c
//   dot      d_k    = sum_c T[i_k]_c y_c
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MATE3D_INLINE __host__ __device__ __forceinline__
#else
#define MATE3D_INLINE inline
#endif

namespace mate3d {

template <typename T>
MATE3D_INLINE void scatter_row(const T* values, const int64_t* index, const T* weight, int64_t entries,
                               int64_t channels, T* table) {
    for (int64_t k = 0; k < entries; ++k) {
        const T w = weight[k];
        T* row = table + index[k] * channels;
        for (int64_t c = 0; c < channels; ++c) row[c] += w * values[c];
    }
}

// Independent partial sums: a single one would forbid the compiler to vectorise, since it may not reorder additions.
constexpr int64_t kBlock = 8;

template <typename T>
MATE3D_INLINE void dot_row(const T* table, const int64_t* index, const T* values, int64_t entries, int64_t channels,
                           T* out) {
    for (int64_t k = 0; k < entries; ++k) {
        const T* row = table + index[k] * channels;
        T partial[kBlock] = {};
        int64_t c = 0;
        for (; c + kBlock <= channels; c += kBlock) {
            for (int64_t j = 0; j < kBlock; ++j) partial[j] += row[c + j] * values[c + j];
        }
        T sum = T(0);
        for (; c < channels; ++c) sum += row[c] * values[c];
        for (int64_t j = 0; j < kBlock; ++j) sum += partial[j];
        out[k] = sum;
    }
}

// The four corners of the pixel cell around (x, y), in pixels with 0 at the first pixel's centre, on a plane of height
// x width that begins at row `first` of the table. A corner outside the plane has weight 0 (and some valid index).
template <typename T>
MATE3D_INLINE void cell_corners(T x, T y, int64_t height, int64_t width, int64_t first, T scale, int64_t* index,
                                T* weight) {
    // Far outside, the cast to an integer would overflow; all weights are 0 there anyway.
    x = x < T(-2) ? T(-2) : (x > T(width + 1) ? T(width + 1) : x);
    y = y < T(-2) ? T(-2) : (y > T(height + 1) ? T(height + 1) : y);
    const int64_t x0 = static_cast<int64_t>(x + T(2)) - 2, y0 = static_cast<int64_t>(y + T(2)) - 2;  // floor
    const T fx = x - T(x0), fy = y - T(y0);
    for (int64_t k = 0; k < 4; ++k) {
        const int64_t xi = x0 + (k & 1), yi = y0 + (k >> 1);
        const bool inside = xi >= 0 && xi < width && yi >= 0 && yi < height;
        weight[k] = inside ? scale * ((k & 1) ? fx : T(1) - fx) * ((k >> 1) ? fy : T(1) - fy) : T(0);
        index[k] = first + (inside ? yi * width + xi : 0);
    }
}

}  // namespace mate3d
