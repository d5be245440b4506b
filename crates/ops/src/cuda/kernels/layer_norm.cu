// y = (x - mean) / sqrt(variance + eps) * w + b, a row of `width` numbers for each warp. The variance is of a second pass.
#include "common.cuh"

struct Moments {
  float mean, scale;
};

template <class T> __device__ __forceinline__ Moments moments(const T *x, int width, float eps) {
  float sum = 0.f, squares = 0.f;
  for (int i = threadIdx.x % 32; i < width; i += 32) sum += wide(x[i]);
  float mean = of_warp<Add>(sum) / width;
  for (int i = threadIdx.x % 32; i < width; i += 32) {
    float centred = wide(x[i]) - mean;
    squares += centred * centred;
  }
  return {mean, rsqrtf(of_warp<Add>(squares) / width + eps)};
}

// The row of this warp; those behind the last have none.
__device__ __forceinline__ u64 row_of_warp() { return (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; }

template <class T>
__device__ __forceinline__ void forward(const T *x, const T *w, const T *b, T *y, u64 rows, int width, float eps) {
  u64 row = row_of_warp();
  if (row >= rows) return;
  x += row * width, y += row * width;
  Moments of = moments(x, width, eps);
  for (int i = threadIdx.x % 32; i < width; i += 32) put(y + i, (wide(x[i]) - of.mean) * of.scale * wide(w[i]) + wide(b[i]));
}

// dx, and beside it each row's mean and scale, for the sums over rows.
template <class T>
__device__ __forceinline__ void backward(const T *x, const T *w, const T *g, T *dx, float *stats, u64 rows, int width, float eps) {
  u64 row = row_of_warp();
  if (row >= rows) return;
  x += row * width, g += row * width, dx += row * width;
  Moments of = moments(x, width, eps);
  float sum = 0.f, along = 0.f;
  for (int i = threadIdx.x % 32; i < width; i += 32) {
    float gw = wide(g[i]) * wide(w[i]);
    sum += gw, along += gw * (wide(x[i]) - of.mean) * of.scale;
  }
  sum = of_warp<Add>(sum) / width, along = of_warp<Add>(along) / width;
  for (int i = threadIdx.x % 32; i < width; i += 32) {
    float normed = (wide(x[i]) - of.mean) * of.scale;
    put(dx + i, of.scale * (wide(g[i]) * wide(w[i]) - sum - normed * along));
  }
  if (threadIdx.x % 32 == 0) stats[2 * row] = of.mean, stats[2 * row + 1] = of.scale;
}

// Sums over a part's rows: of g times the normed x, and of g; `(parts, 2, width)`. Blocks of 32 columns by 8 rows; blockIdx.y is the part.
template <class T>
__device__ __forceinline__ void parameters(const T *x, const T *g, const float *stats, float *sums, u64 rows, int width) {
  __shared__ float dw[8][32], db[8][32];
  int column = blockIdx.x * 32 + threadIdx.x;
  u64 part = (rows + gridDim.y - 1) / gridDim.y, first = blockIdx.y * part, end = min(first + part, rows);
  float w = 0.f, b = 0.f;
  if (column < width)
    for (u64 row = first + threadIdx.y; row < end; row += 8) {
      float gradient = wide(g[row * width + column]);
      w += gradient * (wide(x[row * width + column]) - stats[2 * row]) * stats[2 * row + 1];
      b += gradient;
    }
  dw[threadIdx.y][threadIdx.x] = w, db[threadIdx.y][threadIdx.x] = b;
  __syncthreads();
  if (threadIdx.y > 0 || column >= width) return;
  w = b = 0.f;
  for (int i = 0; i < 8; ++i) w += dw[i][threadIdx.x], b += db[i][threadIdx.x];
  sums[(2 * blockIdx.y) * (u64)width + column] = w, sums[(2 * blockIdx.y + 1) * (u64)width + column] = b;
}

#define KERNEL(NAME, T)                                                                                                             \
  extern "C" __global__ void layer_norm_##NAME(const T *x, const T *w, const T *b, T *y, u64 rows, int width, float eps) {           \
    forward(x, w, b, y, rows, width, eps);                                                                                          \
  }                                                                                                                                 \
  extern "C" __global__ void layer_norm_dx_##NAME(const T *x, const T *w, const T *g, T *dx, float *stats, u64 rows, int width,      \
                                                  float eps) {                                                                      \
    backward(x, w, g, dx, stats, rows, width, eps);                                                                                 \
  }                                                                                                                                 \
  extern "C" __global__ void layer_norm_sums_##NAME(const T *x, const T *g, const float *stats, float *sums, u64 rows, int width) { \
    parameters(x, g, stats, sums, rows, width);                                                                                     \
  }
FOR_EACH_TYPE(KERNEL)
