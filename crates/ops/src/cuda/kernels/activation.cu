// Activations elementwise, of x plus a bias if there is one: `y = act(x + b)`; `dx = g act'(x + b)`.
#include "common.cuh"

struct Identity {
  static __device__ __forceinline__ float value(float x) { return x; }
};

struct Gelu {
  static __device__ __forceinline__ float value(float x) { return .5f * x * (1.f + erff(x * .70710678118654752f)); }
  static __device__ __forceinline__ float slope(float x) {
    return .5f * (1.f + erff(x * .70710678118654752f)) + x * .3989422804014327f * expf(-.5f * x * x);
  }
};

struct GeluTanh {
  static __device__ __forceinline__ float inner(float x) { return .7978845608028654f * (x + .044715f * x * x * x); }
  static __device__ __forceinline__ float value(float x) { return .5f * x * (1.f + tanhf(inner(x))); }
  static __device__ __forceinline__ float slope(float x) {
    float t = tanhf(inner(x));
    return .5f * (1.f + t) + .5f * x * (1.f - t * t) * .7978845608028654f * (1.f + .134145f * x * x);
  }
};

struct Relu {
  static __device__ __forceinline__ float value(float x) { return x > 0.f ? x : x != x ? x : 0.f; }
  static __device__ __forceinline__ float slope(float x) { return x > 0.f ? 1.f : 0.f; }
};

struct Silu {
  static __device__ __forceinline__ float value(float x) { return x / (1.f + expf(-x)); }
  static __device__ __forceinline__ float slope(float x) {
    float s = 1.f / (1.f + expf(-x));
    return s * (1.f + x * (1.f - s));
  }
};

template <class Act, class T> __device__ __forceinline__ void forward(const T *x, const T *bias, T *y, u64 count, int width) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x)
    put(y + i, Act::value(wide(x[i]) + (bias ? wide(bias[i % width]) : 0.f)));
}

template <class Act, class T>
__device__ __forceinline__ void backward(const T *x, const T *bias, const T *g, T *dx, u64 count, int width) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x)
    put(dx + i, wide(g[i]) * Act::slope(wide(x[i]) + (bias ? wide(bias[i % width]) : 0.f)));
}

#define FORWARD(ACT, NAME, SUFFIX, T)                                                                                       \
  extern "C" __global__ void NAME##_##SUFFIX(const T *x, const T *bias, T *y, u64 count, int width) {                       \
    forward<ACT>(x, bias, y, count, width);                                                                                 \
  }
#define BOTH(ACT, NAME, SUFFIX, T)                                                                                          \
  FORWARD(ACT, NAME, SUFFIX, T)                                                                                             \
  extern "C" __global__ void NAME##_dx_##SUFFIX(const T *x, const T *bias, const T *g, T *dx, u64 count, int width) {       \
    backward<ACT>(x, bias, g, dx, count, width);                                                                            \
  }
#define KERNEL(NAME, T)                                                                                                     \
  FORWARD(Identity, identity, NAME, T)                                                                                      \
  BOTH(Gelu, gelu, NAME, T) BOTH(GeluTanh, gelu_tanh, NAME, T) BOTH(Relu, relu, NAME, T) BOTH(Silu, silu, NAME, T)
FOR_EACH_TYPE(KERNEL)
