// Rows of attention scores, f32, to probabilities of any type and back; a block for each row of `keys` numbers.
#include "dropout.cuh"

// Which keys a query sees, and what dropout leaves of its probabilities.
struct Seen {
  const unsigned char *mask;  // (samples, keys), or null: nothing is padding
  int keys, queries, heads;
  int causal;
  u64 first;                   // row of all scores that the first one here is
  float scale;                 // of the scores
  Keep keep;                   // of probabilities
};

__device__ __forceinline__ bool sees(const Seen &of, u64 row, int key) {
  int query = row % of.queries;
  if (of.causal && key > query + of.keys - of.queries) return false;
  return !of.mask || of.mask[row / of.queries / of.heads * of.keys + key];
}

__device__ __forceinline__ float drop(const Seen &of, u64 row, int key) { return factor(of.keep, row * of.keys + key); }

// The largest scaled score of those seen and the sum of the exponentials of their differences to it; a NaN or +inf among them makes the sum NaN.
struct Peak {
  float max, sum;
};

__device__ __forceinline__ Peak peak(const float *scores, const Seen &of, u64 row) {
  float max = -INFINITY, sum = 0.f;
  for (int key = threadIdx.x; key < of.keys; key += blockDim.x)
    if (sees(of, row, key)) max = fmaxf(max, scores[key] * of.scale);
  max = of_block<Max>(max, -INFINITY);
  for (int key = threadIdx.x; key < of.keys; key += blockDim.x)
    if (sees(of, row, key)) sum += expf(scores[key] * of.scale - max);
  return {max, of_block<Add>(sum, 0.f)};
}

// Probabilities of scores; a query that sees nothing has 0. With dropout.
template <class T> __device__ __forceinline__ void forward(const float *scores, T *to, const Seen &of) {
  u64 row = of.first + blockIdx.x;
  scores += (u64)blockIdx.x * of.keys, to += (u64)blockIdx.x * of.keys;
  Peak peaks = peak(scores, of, row);
  for (int key = threadIdx.x; key < of.keys; key += blockDim.x) {
    float p = sees(of, row, key) ? expf(scores[key] * of.scale - peaks.max) / peaks.sum : 0.f;
    put(to + key, p * drop(of, row, key));
  }
}

// From the scores and gradients by the dropped probabilities those by the scores.
template <class T> __device__ __forceinline__ void backward(const float *scores, const float *gradients, T *to, const Seen &of) {
  u64 row = of.first + blockIdx.x, at = (u64)blockIdx.x * of.keys;
  scores += at, gradients += at, to += at;
  Peak peaks = peak(scores, of, row);
  float along = 0.f;
  for (int key = threadIdx.x; key < of.keys; key += blockDim.x)
    if (sees(of, row, key))
      along += expf(scores[key] * of.scale - peaks.max) / peaks.sum * gradients[key] * drop(of, row, key);
  along = of_block<Add>(along, 0.f);
  for (int key = threadIdx.x; key < of.keys; key += blockDim.x) {
    float p = sees(of, row, key) ? expf(scores[key] * of.scale - peaks.max) / peaks.sum : 0.f;
    put(to + key, of.scale * p * (gradients[key] * drop(of, row, key) - along));
  }
}

// Softmax of rows of `width` numbers, and its gradients from the probabilities, which are kept.
template <class T> __device__ __forceinline__ void whole(const T *x, T *y, int width) {
  u64 first = (u64)blockIdx.x * width;
  x += first, y += first;
  float max = -INFINITY, sum = 0.f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) max = fmaxf(max, wide(x[i]));
  max = of_block<Max>(max, -INFINITY);
  for (int i = threadIdx.x; i < width; i += blockDim.x) sum += expf(wide(x[i]) - max);
  sum = of_block<Add>(sum, 0.f);
  for (int i = threadIdx.x; i < width; i += blockDim.x) put(y + i, expf(wide(x[i]) - max) / sum);
}

template <class T> __device__ __forceinline__ void kept(const T *p, const T *g, T *dx, int width) {
  u64 first = (u64)blockIdx.x * width;
  p += first, g += first, dx += first;
  float along = 0.f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) along += wide(p[i]) * wide(g[i]);
  along = of_block<Add>(along, 0.f);
  for (int i = threadIdx.x; i < width; i += blockDim.x) put(dx + i, wide(p[i]) * (wide(g[i]) - along));
}

#define SEEN                                                                                                                         \
  const unsigned char *mask, int keys, int queries, int heads, int causal, u64 first, float scale, u64 seed, u64 dropped, float kept_scale
#define OF {mask, keys, queries, heads, causal, first, scale, {seed, dropped, kept_scale}}
#define KERNEL(NAME, T)                                                                                                              \
  extern "C" __global__ void probabilities_##NAME(const float *scores, T *to, SEEN) { forward(scores, to, OF); }                     \
  extern "C" __global__ void probabilities_dx_##NAME(const float *scores, const float *gradients, T *to, SEEN) {                     \
    backward(scores, gradients, to, OF);                                                                                             \
  }                                                                                                                                  \
  extern "C" __global__ void softmax_##NAME(const T *x, T *y, int width) { whole(x, y, width); }                                     \
  extern "C" __global__ void softmax_dx_##NAME(const T *p, const T *g, T *dx, int width) { kept(p, g, dx, width); }
FOR_EACH_TYPE(KERNEL)
