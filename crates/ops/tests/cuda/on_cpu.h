// Runs CUDA kernels on the CPU, to test their arithmetic and their barriers without a GPU.
//
// Blocks run one after the other, and each thread of a block is a fiber that gives way only where it waits for others. A barrier that some thread never reaches ends the
// program. With `reverse` the last warp runs first: a barrier that is missing then nearly always shows in the numbers. It knows full-mask shuffles, static shared memory and
// 1024 threads a block; it says nothing of alignment, of speed, or of what nvcc's fused multiply-adds do to the last bit.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define CUDA_ON_CPU
#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
using std::max;
using std::min;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct Barrier {
  unsigned alive = 0, waiting = 0, generation = 0;
  void release() {
    if (waiting == alive) waiting = 0, ++generation;
  }
};

struct Fiber {
  ucontext_t context;
  dim3 thread;
  bool done;
  alignas(16) unsigned char lane[16];  // what this lane shows to the others of its warp
  std::vector<char> stack = std::vector<char>(64 << 10);
};

static std::vector<Fiber> fibers;
static unsigned current;
static ucontext_t scheduler;
static std::function<void()> body;
static dim3 blockIdx, blockDim, gridDim;
#define threadIdx (fibers[current].thread)

static Barrier block_barrier, warp_barrier[32];
static unsigned progress;

static void wait(Barrier &barrier) {
  unsigned generation = barrier.generation;
  ++progress, ++barrier.waiting;
  barrier.release();
  while (barrier.generation == generation) swapcontext(&fibers[current].context, &scheduler);
}

static void __syncthreads() { wait(block_barrier); }

template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
  memcpy(fibers[current].lane, &value, sizeof value);
  wait(warp_barrier[current / 32]);
  unsigned from = current / 32 * 32 + ((current % 32) ^ mask);
  if (from < fibers.size()) memcpy(&value, fibers[from].lane, sizeof value);
  wait(warp_barrier[current / 32]);
  return value;
}

inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }

inline uint32_t bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

struct bf16 {
  uint16_t bits;
};

struct f16 {
  uint16_t bits;
};

inline float wide(bf16 x) { return of_bits((uint32_t)x.bits << 16); }

inline void put(bf16 *to, float x) {
  uint32_t all = bits(x);
  // To the nearest, of two the even one.
  *to = {(uint16_t)(x != x ? 0x7fff : (all + 0x7fff + (all >> 16 & 1)) >> 16)};
}

inline float wide(f16 x) {
  int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  float sign = x.bits >> 15 ? -1.f : 1.f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.f + fraction, exponent - 25) : std::ldexp((float)fraction, -24));
}

inline void put(f16 *to, float x) {
  uint16_t sign = bits(x) >> 31 << 15;
  float size = std::fabs(x);
  if (x != x) *to = {(uint16_t)(sign | 0x7e00)};
  else if (size >= 65520.f) *to = {(uint16_t)(sign | 0x7c00)};
  else if (size < std::ldexp(1.f, -14)) *to = {(uint16_t)(sign | (int)std::nearbyint(std::ldexp(size, 24)))};
  else {
    int exponent;
    float fraction = std::frexp(size, &exponent);
    // A fraction that rounds up to 2048 carries into the exponent.
    *to = {(uint16_t)(sign | (((exponent + 13) << 10) + (int)std::nearbyint(std::ldexp(fraction, 11))))};
  }
}

static void enter() {
  body();
  fibers[current].done = true, ++progress;
  for (Barrier *barrier : {&block_barrier, &warp_barrier[current / 32]}) {
    --barrier->alive;
    if (barrier->waiting) barrier->release();
  }
  setcontext(&scheduler);
}

template <class F> static void launch(dim3 grid, dim3 block, bool reverse, F kernel) {
  gridDim = grid, blockDim = block, body = kernel;
  unsigned threads = block.x * block.y * block.z, warps = (threads + 31) / 32;
  fibers.resize(threads);
  for (unsigned b = 0; b < grid.x * grid.y * grid.z; ++b) {
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
    block_barrier = {threads};
    for (unsigned w = 0; w < warps; ++w) warp_barrier[w] = {std::min(32u, threads - w * 32)};
    for (unsigned t = 0; t < threads; ++t) {
      Fiber &fiber = fibers[t];
      fiber.thread = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, enter, 0);
    }
    for (bool live = true; live;) {
      unsigned round_start = progress;
      live = false;
      for (unsigned i = 0; i < warps; ++i) {  // each warp runs as far ahead as it can
        unsigned warp = reverse ? warps - 1 - i : i, last = std::min(threads, warp * 32 + 32);
        for (unsigned start = progress + 1; start != progress;) {
          start = progress;
          for (current = warp * 32; current < last; ++current)
            if (!fibers[current].done) swapcontext(&scheduler, &fibers[current].context);
        }
        for (unsigned t = warp * 32; t < last; ++t) live |= !fibers[t].done;
      }
      if (live && round_start == progress) {
        fputs("a barrier was not reached by every thread\n", stderr);
        exit(3);
      }
    }
  }
}
