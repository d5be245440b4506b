// Sums over rows, in parts.
#include "common.cuh"

// Over a part's rows, `(parts, width)`. Blocks of 32 columns by 8 rows; blockIdx.y is the part.
template <class T> __device__ __forceinline__ void add(const T *xs, float *sums, u64 rows, int width) {
  __shared__ float all[8][32];
  int column = blockIdx.x * 32 + threadIdx.x;
  u64 part = (rows + gridDim.y - 1) / gridDim.y, first = blockIdx.y * part, end = min(first + part, rows);
  float sum = 0.f;
  if (column < width)
    for (u64 row = first + threadIdx.y; row < end; row += 8) sum += wide(xs[row * width + column]);
  all[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= width) return;
  sum = 0.f;
  for (int i = 0; i < 8; ++i) sum += all[i][threadIdx.x];
  sums[blockIdx.y * (u64)width + column] = sum;
}

#define KERNEL(NAME, T) \
  extern "C" __global__ void column_sums_##NAME(const T *xs, float *sums, u64 rows, int width) { add(xs, sums, rows, width); }
FOR_EACH_TYPE(KERNEL)
