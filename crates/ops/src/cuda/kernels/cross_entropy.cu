// Rows of logits, f32, to what they say of their targets, and to the derivatives of their cross-entropy by them. A block for each row of `classes` numbers.
#include "common.cuh"

// `says`: cross-entropy, whether the answer is right, largest probability, margin, entropy. `to`: derivatives times the row's weight, or null where nothing is learned. `bias`
// may be null.
template <class T>
__device__ __forceinline__ void row(const float *logits, const T *bias, T *to, const u32 *targets, const float *weights, float *says, int classes,
                                    float smoothing) {
  logits += (u64)blockIdx.x * classes;
  auto z = [=](int i) { return logits[i] + (bias ? wide(bias[i]) : 0.f); };
  int target = targets[blockIdx.x];
  float hit = z(target), max = -INFINITY, total = 0.f;
  for (int i = threadIdx.x; i < classes; i += blockDim.x) {
    float x = z(i);
    max = fmaxf(max, x), total += x;
  }
  max = of_block<Max>(max, -INFINITY), total = of_block<Add>(total, 0.f);
  // Differences first: all logits may be far from 0.
  float sum = 0.f, along = 0.f, second = -INFINITY, peaks = 0.f, before = 0.f;
  for (int i = threadIdx.x; i < classes; i += blockDim.x) {
    float x = z(i), less = x - max, e = expf(less);
    sum += e, along += e > 0.f ? e * less : 0.f;
    if (x < max) second = fmaxf(second, x);
    if (x == max) peaks += 1.f, before += i < target;
  }
  sum = of_block<Add>(sum, 0.f), along = of_block<Add>(along, 0.f), second = of_block<Max>(second, -INFINITY);
  peaks = of_block<Add>(peaks, 0.f), before = of_block<Add>(before, 0.f);
  if (threadIdx.x == 0) {
    float log_sum = logf(sum), largest = 1.f / sum;
    says += 5 * (u64)blockIdx.x;
    says[0] = log_sum + (1.f - smoothing) * (max - hit) + (smoothing > 0.f ? smoothing * (max - total / classes) : 0.f);
    // Of equal logits the first is the answer.
    says[1] = hit == max && before == 0.f;
    says[2] = largest;
    says[3] = peaks > 1.f ? 0.f : largest * (1.f - expf(second - max));
    says[4] = log_sum - along / sum;
  }
  if (!to) return;
  to += (u64)blockIdx.x * classes;
  float weight = weights[blockIdx.x];
  for (int i = threadIdx.x; i < classes; i += blockDim.x) {
    float wanted = smoothing / classes + (i == target ? 1.f - smoothing : 0.f);
    put(to + i, weight * (expf(z(i) - max) / sum - wanted));
  }
}

#define KERNEL(NAME, T)                                                                                                                    \
  extern "C" __global__ void cross_entropy_##NAME(const float *logits, const T *bias, T *to, const u32 *targets, const float *weights,      \
                                                  float *says, int classes, float smoothing) {                                             \
    row(logits, bias, to, targets, weights, says, classes, smoothing);                                                                     \
  }
FOR_EACH_TYPE(KERNEL)

// Of each exit the sums over its rows, each times its weight; a block for each exit.
extern "C" __global__ void sum_up(const float *says, const float *weights, double *sums, u64 rows) {
  __shared__ double all[256][5];
  double own[5] = {0, 0, 0, 0, 0};
  says += 5 * rows * blockIdx.x;
  for (u64 row = threadIdx.x; row < rows; row += 256)
    for (int i = 0; i < 5; ++i)
      // What counts nothing may say anything.
      if (weights[row] != 0.f) own[i] += (double)weights[row] * says[5 * row + i];
  for (int i = 0; i < 5; ++i) all[threadIdx.x][i] = own[i];
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      for (int i = 0; i < 5; ++i) all[threadIdx.x][i] += all[threadIdx.x + half][i];
  }
  if (threadIdx.x == 0)
    for (int i = 0; i < 5; ++i) sums[5 * blockIdx.x + i] = all[0][i];
}
