// y = x where it is kept, times 1 / (1 - p); the gradient is the same of the gradient.
#include "dropout.cuh"

template <class T> __device__ __forceinline__ void drop(const T *x, T *y, u64 count, const Keep &keep) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x)
    put(y + i, wide(x[i]) * factor(keep, i));
}

#define KERNEL(NAME, T)                                                                                               \
  extern "C" __global__ void dropout_##NAME(const T *x, T *y, u64 count, u64 seed, u64 dropped, float scale) {         \
    drop(x, y, count, {seed, dropped, scale});                                                                        \
  }
FOR_EACH_TYPE(KERNEL)
