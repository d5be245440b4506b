// A step of AdamW, and sums of squares, of all tensors in one launch. A block takes `PART` elements of one of them.
#include "common.cuh"

#define PART 4096

// Types of number, as they stand in tables.
enum Type { F32, F16, BF16 };

// `first`: the first block that is for a tensor; those of the first tensor begin at 0.
struct Numbers {
  const void *values;
  u64 count;
  u32 first, type;
};

struct Parameter {
  float *p, *m, *v;
  const void *gradient;
  void *copy;  // of `p` in another type; may be null
  u64 count;
  u32 first, gradient_type, copy_type;
  float scale;           // of the gradient
  float keep, rate;      // what weight decay leaves, and the learning rate over the first moment's correction
  float correction;      // of the second moment
  float beta1, beta2, fresh1, fresh2, eps;  // decay of the moments, and one less it
};

// The row of the table that this block is for.
template <class Row> __device__ __forceinline__ const Row &mine(const Row *table, int rows) {
  int low = 0, high = rows;
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (table[middle].first <= blockIdx.x) low = middle;
    else high = middle;
  }
  return table[low];
}

template <class G, class C> __device__ __forceinline__ void step(const Parameter &of) {
  const G *gradient = (const G *)of.gradient;
  C *copy = (C *)of.copy;
  u64 first = (u64)(blockIdx.x - of.first) * PART, end = min(first + PART, of.count);
  for (u64 i = first + threadIdx.x; i < end; i += blockDim.x) {
    float g = wide(gradient[i]) * of.scale;
    float m = of.m[i] = of.beta1 * of.m[i] + of.fresh1 * g;
    float v = of.v[i] = of.beta2 * of.v[i] + of.fresh2 * g * g;
    float p = of.p[i] = of.p[i] * of.keep - of.rate * m / (sqrtf(v * of.correction) + of.eps);
    if (copy) put(copy + i, p);
  }
}

template <class G> __device__ __forceinline__ void step_of(const Parameter &of) {
  switch (of.copy_type) {
    case F16: return step<G, f16>(of);
    case BF16: return step<G, bf16>(of);
    default: return step<G, float>(of);
  }
}

extern "C" __global__ void adamw(const Parameter *table, int rows) {
  const Parameter of = mine(table, rows);
  switch (of.gradient_type) {
    case F16: return step_of<f16>(of);
    case BF16: return step_of<bf16>(of);
    default: return step_of<float>(of);
  }
}

template <class T> __device__ __forceinline__ double squares(const Numbers &of) {
  const T *values = (const T *)of.values;
  u64 first = (u64)(blockIdx.x - of.first) * PART, end = min(first + PART, of.count);
  double sum = 0.;
  for (u64 i = first + threadIdx.x; i < end; i += blockDim.x) sum += (double)wide(values[i]) * wide(values[i]);
  return sum;
}

// One sum for each block, of 256 threads.
extern "C" __global__ void sums_of_squares(const Numbers *table, double *sums, int rows) {
  __shared__ double all[256];
  const Numbers of = mine(table, rows);
  all[threadIdx.x] = of.type == F16 ? squares<f16>(of) : of.type == BF16 ? squares<bf16>(of) : squares<float>(of);
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) all[threadIdx.x] += all[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = all[0];
}
