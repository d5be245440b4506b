// Rows of logits to what they say of their targets, and to the derivatives of their cross-entropy by them; and how sure rows are. A block for each row of `classes` numbers.
#include "common.cuh"

// What a row is: all that needs no target. Each thread of the block gets it.
struct Row {
  float max, sum;     // of exp(z - max)
  float along;        // sum of exp(z - max) (z - max)
  float second;       // the largest number below `max`
  float peaks, first; // how many are `max`, and the first of them
  __device__ __forceinline__ float largest() const { return 1.f / sum; }
  __device__ __forceinline__ float margin() const { return peaks > 1.f ? 0.f : largest() * (1.f - expf(second - max)); }
  __device__ __forceinline__ float entropy() const { return logf(sum) - along / sum; }
};

template <class Z> __device__ __forceinline__ Row row_of(Z z, int classes) {
  float max = -INFINITY;
  for (int i = threadIdx.x; i < classes; i += blockDim.x) max = fmaxf(max, z(i));
  max = of_block<Max>(max, -INFINITY);
  // Differences first: all logits may be far from 0.
  float sum = 0.f, along = 0.f, second = -INFINITY, peaks = 0.f, last = -INFINITY;
  for (int i = threadIdx.x; i < classes; i += blockDim.x) {
    float x = z(i), less = x - max, e = expf(less);
    sum += e, along += e > 0.f ? e * less : 0.f;
    if (x < max) second = fmaxf(second, x);
    if (x == max) peaks += 1.f, last = fmaxf(last, -(float)i);
  }
  sum = of_block<Add>(sum, 0.f), along = of_block<Add>(along, 0.f), second = of_block<Max>(second, -INFINITY);
  peaks = of_block<Add>(peaks, 0.f), last = of_block<Max>(last, -INFINITY);
  return {max, sum, along, second, peaks, -last};
}

// `says`: cross-entropy, whether the answer is right (of equal logits the first), largest probability, margin, entropy. `to`: derivatives times the row's weight, or null where
// nothing is learned. `bias` may be null. What weighs nothing says 0, whatever its logits are.
template <class T>
__device__ __forceinline__ void cross_entropy(const float *logits, const T *bias, T *to, const u32 *targets, const float *weights, float *says,
                                              int classes, float smoothing) {
  logits += (u64)blockIdx.x * classes, says += 5 * (u64)blockIdx.x;
  if (to) to += (u64)blockIdx.x * classes;
  float weight = weights[blockIdx.x];
  if (weight == 0.f) {
    if (threadIdx.x < 5) says[threadIdx.x] = 0.f;
    for (int i = threadIdx.x; to && i < classes; i += blockDim.x) put(to + i, 0.f);
    return;
  }
  auto z = [=](int i) { return logits[i] + (bias ? wide(bias[i]) : 0.f); };
  int target = targets[blockIdx.x];
  Row row = row_of(z, classes);
  float total = 0.f;
  if (smoothing > 0.f) {
    for (int i = threadIdx.x; i < classes; i += blockDim.x) total += z(i) - row.max;
    total = of_block<Add>(total, 0.f);
  }
  if (threadIdx.x == 0) {
    says[0] = logf(row.sum) + (1.f - smoothing) * (row.max - z(target)) - (smoothing > 0.f ? smoothing * total / classes : 0.f);
    says[1] = row.first == target;
    says[2] = row.largest(), says[3] = row.margin(), says[4] = row.entropy();
  }
  if (!to) return;
  for (int i = threadIdx.x; i < classes; i += blockDim.x) {
    float wanted = smoothing / classes + (i == target ? 1.f - smoothing : 0.f);
    put(to + i, weight * (expf(z(i) - row.max) / row.sum - wanted));
  }
}

// `says`: the answer (of equal logits the first), largest probability, margin, entropy; the last three NaN where a logit is not finite.
template <class T> __device__ __forceinline__ void certainty(const T *logits, float *says, int classes) {
  logits += (u64)blockIdx.x * classes, says += 4 * (u64)blockIdx.x;
  auto z = [=](int i) { return wide(logits[i]); };
  Row row = row_of(z, classes);
  float nothing = 0.f;  // or NaN
  for (int i = threadIdx.x; i < classes; i += blockDim.x) nothing += z(i) * 0.f;
  nothing = of_block<Add>(nothing, 0.f);
  if (threadIdx.x != 0) return;
  says[0] = row.first, says[1] = row.largest() + nothing, says[2] = row.margin() + nothing, says[3] = row.entropy() + nothing;
}

#define KERNEL(NAME, T)                                                                                                                    \
  extern "C" __global__ void cross_entropy_##NAME(const float *logits, const T *bias, T *to, const u32 *targets, const float *weights,      \
                                                  float *says, int classes, float smoothing) {                                             \
    cross_entropy(logits, bias, to, targets, weights, says, classes, smoothing);                                                           \
  }                                                                                                                                        \
  extern "C" __global__ void certainty_##NAME(const T *logits, float *says, int classes) { certainty(logits, says, classes); }
FOR_EACH_TYPE(KERNEL)

// Of each exit the sums over its rows, each times its weight; a block for each exit.
extern "C" __global__ void sum_up(const float *says, const float *weights, double *sums, u64 rows) {
  __shared__ double all[256][5];
  double own[5] = {0, 0, 0, 0, 0};
  says += 5 * rows * blockIdx.x;
  for (u64 row = threadIdx.x; row < rows; row += 256)
    for (int i = 0; i < 5; ++i) own[i] += (double)weights[row] * says[5 * row + i];
  for (int i = 0; i < 5; ++i) all[threadIdx.x][i] = own[i];
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      for (int i = 0; i < 5; ++i) all[threadIdx.x][i] += all[threadIdx.x + half][i];
  }
  if (threadIdx.x == 0)
    for (int i = 0; i < 5; ++i) sums[5 * blockIdx.x + i] = all[0][i];
}
