// Numbers in memory are f32, f16 or bf16; sums are f32.
#pragma once
#ifndef CUDA_ON_CPU
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef __half f16;
typedef __nv_bfloat16 bf16;
__device__ __forceinline__ float wide(f16 x) { return __half2float(x); }
__device__ __forceinline__ float wide(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void put(f16 *to, float x) { *to = __float2half_rn(x); }
__device__ __forceinline__ void put(bf16 *to, float x) { *to = __float2bfloat16_rn(x); }
#endif
__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ void put(float *to, float x) { *to = x; }

typedef unsigned long long u64;
typedef unsigned int u32;

struct Add {
  static __device__ __forceinline__ float of(float a, float b) { return a + b; }
};
struct Max {
  static __device__ __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
};

// Of all 32 lanes; each gets it.
template <class Op> __device__ __forceinline__ float of_warp(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x = Op::of(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}

// Of all threads of a block of whole warps; each gets it. `none` changes nothing.
template <class Op> __device__ __forceinline__ float of_block(float x, float none) {
  __shared__ float warps[32];
  x = of_warp<Op>(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  return of_warp<Op>(threadIdx.x % 32 < blockDim.x / 32 ? warps[threadIdx.x % 32] : none);
}

// A kernel for each type of number: NAME_f32, NAME_f16, NAME_bf16.
#define FOR_EACH_TYPE(KERNEL) KERNEL(f32, float) KERNEL(f16, f16) KERNEL(bf16, bf16)
