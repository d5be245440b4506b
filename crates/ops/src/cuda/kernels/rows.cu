// Rows of a matrix: some of them picked, and gradients added up where they were picked from. A block for each row of the result.
#include "common.cuh"

// A row that `xs`, of `count` rows, does not have is NaN.
template <class T> __device__ __forceinline__ void pick(const T *xs, const u32 *rows, T *to, u64 count, u64 width) {
  u64 row = rows[blockIdx.x];
  xs += row * width, to += blockIdx.x * width;
  for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
    if (row < count) to[i] = xs[i];
    else put(to + i, NAN);
  }
}

// Row `rows[k]` of `to` is the sum, in f32, of the rows `order[starts[k]..starts[k + 1]]` of `g`, one after the other.
template <class T>
__device__ __forceinline__ void add_up(const T *g, const u32 *rows, const u32 *starts, const u32 *order, T *to, u64 width) {
  to += rows[blockIdx.x] * width;
  u32 start = starts[blockIdx.x], end = starts[blockIdx.x + 1];
  for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
    float sum = 0.f;
    for (u32 at = start; at < end; ++at) sum += wide(g[order[at] * width + i]);
    put(to + i, sum);
  }
}

#define KERNEL(NAME, T)                                                                                                             \
  extern "C" __global__ void pick_##NAME(const T *xs, const u32 *rows, T *to, u64 count, u64 width) { pick(xs, rows, to, count, width); }  \
  extern "C" __global__ void add_up_##NAME(const T *g, const u32 *rows, const u32 *starts, const u32 *order, T *to, u64 width) {     \
    add_up(g, rows, starts, order, to, width);                                                                                      \
  }
FOR_EACH_TYPE(KERNEL)
