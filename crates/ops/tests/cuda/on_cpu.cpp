// Launches one kernel: `on_cpu NAME GRID_X GRID_Y BLOCK_X BLOCK_Y REVERSE`. The arguments come from stdin, each as its kind (b: memory, i: int, l: u64, f: float, t: a table
// with pointers), its length in bytes (u64) and its bytes; h is memory that is no argument, and p a pointer: which table, where in it, and to which of all these. All memory
// but tables goes to stdout as it is afterwards.
#include "on_cpu.h"

#include <array>
#include <string>
#include FILE_OF_KERNELS

static std::vector<char> arguments;
static std::vector<std::vector<char>> values;
static std::vector<size_t> passed;

// Behind all memory where no address sanitizer looks: what is written there shows, what is read there does not.
#ifdef __SANITIZE_ADDRESS__
static const size_t GUARD = 0;
#else
static const size_t GUARD = 256;
#endif
static const char UNTOUCHED = 0x5a;

static void read(void *to, size_t bytes) {
  if (bytes && fread(to, bytes, 1, stdin) != 1) exit(2);
}

// An argument as the type that the kernel has there.
struct Any {
  size_t at;
  template <class T> operator T *() const {
    return (arguments[at] == 'b' || arguments[at] == 't') && values[at].size() > GUARD ? (T *)values[at].data() : nullptr;
  }
  template <class T> T value(char kind) const {
    if (arguments[at] != kind || values[at].size() != sizeof(T)) fprintf(stderr, "argument %zu\n", at), exit(2);
    T value;
    memcpy(&value, values[at].data(), sizeof value);
    return value;
  }
  operator int() const { return value<int>('i'); }
  operator u64() const { return value<u64>('l'); }
  operator float() const { return value<float>('f'); }
};

template <class... A, size_t... I> static void call(void (*kernel)(A...), std::index_sequence<I...>) {
  if (sizeof...(A) != passed.size()) fprintf(stderr, "%zu arguments, expected %zu\n", passed.size(), sizeof...(A)), exit(2);
  kernel((A)Any{passed[I]}...);
}

template <class... A> static void run(void (*kernel)(A...), dim3 grid, dim3 block, bool reverse) {
  launch(grid, block, reverse, [&] { call(kernel, std::index_sequence_for<A...>()); });
}

int main(int, char **argv) {
  std::vector<std::array<u64, 3>> pointers;
  for (int kind; (kind = getchar()) != EOF;) {
    u64 bytes;
    read(&bytes, sizeof bytes);
    if (kind == 'p') {
      read(pointers.emplace_back().data(), bytes);
      continue;
    }
    if (kind != 'h') passed.push_back(values.size());
    size_t guard = strchr("bht", kind) ? GUARD : 0;
    arguments.push_back(kind), values.emplace_back(bytes + guard, UNTOUCHED);
    read(values.back().data(), bytes);
  }
  for (auto [table, at, to] : pointers) {
    void *place = values[to].data();
    memcpy(values[table].data() + at, &place, sizeof place);
  }
  dim3 grid = {(unsigned)atoi(argv[2]), (unsigned)atoi(argv[3])}, block = {(unsigned)atoi(argv[4]), (unsigned)atoi(argv[5])};
#define TRY(NAME) \
  if (argv[1] == std::string(#NAME)) run(NAME, grid, block, atoi(argv[6]));
  KERNELS
  for (size_t i = 0; i < values.size(); ++i) {
    if (arguments[i] != 'b' && arguments[i] != 'h') continue;
    size_t bytes = values[i].size() - GUARD;
    for (size_t at = bytes; at < values[i].size(); ++at)
      if (values[i][at] != UNTOUCHED) fputs("a kernel wrote behind its memory\n", stderr), exit(4);
    fwrite(values[i].data(), 1, bytes, stdout);
  }
}
