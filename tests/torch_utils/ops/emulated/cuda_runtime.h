// As much of CUDA as the kernels use, on a CPU: blocks run one after the other, the threads of a block are threads.
#pragma once

#include <atomic>
#include <barrier>
#include <cstdint>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(count)
#define __shared__ static

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline std::barrier<>* block_barrier = nullptr;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

template <typename T>
T atomicAdd(T* to, T value) {
  return std::atomic_ref<T>(*to).fetch_add(value);
}

// What an emulator has no time for: blocks before the first are left out, and of kernels that share their work among as
// many blocks as there are, no more are started.
inline unsigned first_block = 0;
inline int64_t most_blocks = int64_t(1) << 31;

// What kernel<<<grid, block, shared, stream>>>(...) is replaced by.
template <typename Kernel>
void run_blocks(dim3 grid, dim3 block, std::size_t, cudaStream_t, Kernel kernel) {
  gridDim = grid, blockDim = block;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = first_block; x < grid.x; ++x) {
      std::barrier barrier(block.x);
      block_barrier = &barrier;
      std::vector<std::thread> threads;
      for (unsigned i = 0; i < block.x; ++i) {
        threads.emplace_back([&, i] {
          threadIdx = dim3(i, 0, 0), blockIdx = dim3(x, y, 0);
          kernel();
        });
      }
      for (auto& thread : threads) thread.join();
    }
  }
}
