// Which elements dropout keeps: a function of seed and index, the same as on the CPU.
#pragma once
#include "common.cuh"

struct Keep {
  u64 seed, dropped;  // of 2^32 hashes, those below are dropped; 0: none
  float scale;        // of what is kept
};

__device__ __forceinline__ u64 splitmix(u64 seed, u64 i) {
  u64 z = seed + (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

__device__ __forceinline__ float factor(const Keep &keep, u64 i) {
  if (!keep.dropped) return 1.f;
  return splitmix(keep.seed, i) >> 32 >= keep.dropped ? keep.scale : 0.f;
}
