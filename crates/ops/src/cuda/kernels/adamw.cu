// A step of AdamW; a block takes `PART` elements.
#include "common.cuh"

struct Step {
  float beta1, beta2, fresh1, fresh2;  // decay of the moments, and one less it
  float gradient;                      // its scale
  float keep, rate;                    // what weight decay leaves, and the learning rate over the first moment's correction
  float correction, eps;               // of the second moment
};

#define PART 4096

__device__ __forceinline__ float moved(float p, float g, float *m, float *v, const Step &step) {
  g *= step.gradient;
  float m1 = *m = step.beta1 * *m + step.fresh1 * g;
  float v1 = *v = step.beta2 * *v + step.fresh2 * g * g;
  return p * step.keep - step.rate * m1 / (sqrtf(v1 * step.correction) + step.eps);
}

template <class G>
__device__ __forceinline__ void adamw(float *p, const G *g, float *m, float *v, u64 count, const Step &step) {
  u64 first = (u64)blockIdx.x * PART, end = min(first + PART, count);
  for (u64 i = first + threadIdx.x; i < end; i += blockDim.x) p[i] = moved(p[i], wide(g[i]), m + i, v + i, step);
}

#define KERNEL(NAME, T)                                                                                                              \
  extern "C" __global__ void adamw_##NAME(float *p, const T *g, float *m, float *v, u64 count, float beta1, float beta2, float fresh1, \
                                          float fresh2, float gradient, float keep, float rate, float correction, float eps) {       \
    adamw(p, g, m, v, count, {beta1, beta2, fresh1, fresh2, gradient, keep, rate, correction, eps});                                 \
  }
FOR_EACH_TYPE(KERNEL)
