// Products of a backward pass, of operands rounded to bfloat16 and sums in float32, for XLA on CPUs.
//
//   d_weight    dW = (f * dy)^T x   [O, I]   of dy [T, O], x [T, I], one factor f for each of the T rows
//   d_features  dx = (dy W) f       [T, I]   of dy [T, O], W [O, I], one factor f
//
// Operands are float32 or bfloat16; x and W may be int8, which bfloat16 holds exactly. Both are C = A B, summed over k.
// AVX512_BF16 multiplies pairs of bfloat16 (k, k + 1) that lie side by side in 32 bits. So B is packed once as pairs of
// its rows, in panels of COLUMNS, and A by the thread that needs it, in panels of ROWS. A micro-kernel keeps a tile of
// C, ROWS x COLUMNS, in registers over DEPTH pairs. Rounding is part of packing, and no operand is transposed.
//
// Every number of C is summed by one thread in a fixed order: the result does not depend on the number of threads.
// Without the instruction the same steps run in plain vectors, for tests; they are slow.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <type_traits>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int LANES = 16, ROWS = 8, VECTORS = 3, COLUMNS = VECTORS * LANES, DEPTH = 256;
// Rows of C that a thread takes at a time: its panels of A stay in the second cache.
constexpr int64_t BLOCK_ROWS = 96;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Pairs __attribute__((vector_size(64)));

// ---- Pairs of bfloat16

#ifdef __AVX512BF16__
Pairs pairs(Floats low, Floats high) {
  auto widened = [](Floats x) { return (Pairs)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x)); };
  return widened(low) | widened(high) << 16;
}

Floats add_products(Floats sums, Pairs a, Pairs b) {
  return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
}
#else
Pairs rounded(Floats x) {
  Pairs bits = (Pairs)x, is_nan = (Pairs)(x != x);
  Pairs nearest_even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (nearest_even & ~is_nan) | (0x7fc0 & is_nan);
}

Pairs pairs(Floats low, Floats high) { return rounded(low) | rounded(high) << 16; }

Floats add_products(Floats sums, Pairs a, Pairs b) {
  return sums + (Floats)(a << 16) * (Floats)(b << 16) + (Floats)(a & 0xffff0000) * (Floats)(b & 0xffff0000);
}
#endif

// ---- Operands: `load` returns up to LANES numbers as floats, with zeros after them.

template <typename Number>
struct Operand {
  const Number* numbers;

  Floats load(int64_t index, int64_t count) const {
    if (count >= LANES) return widened(numbers + index);
    Number few[LANES] = {};
    if (count > 0) std::memcpy(few, numbers + index, count * sizeof(Number));
    return widened(few);
  }

  static Floats widened(const Number* from) {
    typedef Number Vector __attribute__((vector_size(LANES * sizeof(Number))));
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    if constexpr (std::is_same_v<Number, float>) {
      return vector;
    } else if constexpr (std::is_same_v<Number, uint16_t>) {  // the bits of a bfloat16
      return (Floats)(__builtin_convertvector(vector, Pairs) << 16);
    } else {
      return __builtin_convertvector(__builtin_convertvector(vector, Ints), Floats);
    }
  }
};

// Columns `column` to `column + LANES` of the rows 2 * pair and 2 * pair + 1 of a matrix [rows, columns].
template <typename Number>
Pairs pair_of_rows(Operand<Number> x, const float* factors, int64_t rows, int64_t columns, int64_t pair,
                   int64_t column) {
  int64_t row = 2 * pair, count = columns - column;
  Floats low = x.load(row * columns + column, count), high = {};
  if (factors) low *= factors[row];
  if (row + 1 < rows) {
    high = x.load((row + 1) * columns + column, count);
    if (factors) high *= factors[row + 1];
  }
  return pairs(low, high);
}

// The numbers `column` to `column + 2 * LANES` of a row of a matrix [rows, columns], two by two.
template <typename Number>
Pairs pairs_of_row(Operand<Number> x, int64_t columns, int64_t row, int64_t column) {
  int64_t index = row * columns + column, count = columns - column;
  Floats a = x.load(index, count), b = x.load(index + LANES, count - LANES);
  return pairs(__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
               __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
}

// ---- Threads

// Runs work(0) to work(count - 1), on XLA's threads and the calling one, which waits for none that has not begun.
void run_parallel(ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> work) {
  struct Tasks {
    std::function<void(int64_t)> work;
    int64_t count;
    std::atomic<int64_t> next{0}, done{0};

    void run() {
      for (int64_t task; (task = next.fetch_add(1)) < count;) {
        work(task);
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };
  auto tasks = std::make_shared<Tasks>();
  tasks->work = std::move(work);
  tasks->count = count;
  for (int64_t thread = 1; thread < std::min<int64_t>(pool.num_threads(), count); thread++) {
    pool.Schedule([tasks] { tasks->run(); });
  }
  tasks->run();
  while (tasks->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

std::unique_ptr<Pairs[], decltype(&std::free)> allocated(int64_t vectors) {
  return {static_cast<Pairs*>(std::aligned_alloc(64, vectors * sizeof(Pairs))), &std::free};
}

// ---- The product

// Adds the products of a panel of A and one of B to a tile of C. A's number of row r and pair p is at r * ROW + p * PAIR.
template <int WIDTH, int ROW, int PAIR>
void add_tile(const uint32_t* a, const Pairs* b, int64_t depth, float factor, bool is_first, float* c, int64_t stride,
              int64_t rows, int64_t columns) {
  Floats sums[ROWS][WIDTH] = {};
  for (int64_t pair = 0; pair < depth; pair++) {
    Pairs of_b[WIDTH];
#pragma GCC unroll 3
    for (int v = 0; v < WIDTH; v++) of_b[v] = b[pair * WIDTH + v];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
      Pairs of_a = a[row * ROW + pair * PAIR] + Pairs{};
#pragma GCC unroll 3
      for (int v = 0; v < WIDTH; v++) sums[row][v] = add_products(sums[row][v], of_a, of_b[v]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row++) {
    if (row >= rows) break;
#pragma GCC unroll 3
    for (int v = 0; v < WIDTH; v++) {
      float* to = c + row * stride + v * LANES;
      int64_t count = std::min<int64_t>(LANES, columns - v * LANES);
      if (count <= 0) break;
      Floats sum = sums[row][v] * factor;
      if (!is_first) sum += Operand<float>{to}.load(0, count);
      if (count == LANES) {
        std::memcpy(to, &sum, sizeof sum);
      } else {
        std::memcpy(to, &sum, count * sizeof(float));
      }
    }
  }
}

// C [M, N] = factor * A B, B [K, N]. With IS_TRANSPOSED A is given as [K, M], with a factor for each k, else as [M, K].
template <bool IS_TRANSPOSED, typename NumberA, typename NumberB>
void multiply(ffi::ThreadPool& pool, Operand<NumberA> A, const float* factors, Operand<NumberB> B, float factor, float* C,
              int64_t M, int64_t N, int64_t K) {
  int64_t pairs_of_k = (K + 1) / 2, blocks = (pairs_of_k + DEPTH - 1) / DEPTH;
  int64_t width = (N + LANES - 1) / LANES, panels = (width + VECTORS - 1) / VECTORS;  // in vectors, in panels
  auto packed_b = allocated(pairs_of_k * width);
  Pairs* b = packed_b.get();
  auto depth_of = [=](int64_t block) { return std::min<int64_t>(DEPTH, pairs_of_k - block * DEPTH); };
  auto width_of = [=](int64_t panel) { return std::min<int64_t>(VECTORS, width - panel * VECTORS); };
  auto panel_of_b = [=](int64_t block, int64_t panel) {
    return b + block * DEPTH * width + panel * VECTORS * depth_of(block);
  };

  run_parallel(pool, blocks * panels, [=](int64_t task) {
    int64_t block = task / panels, panel = task % panels;
    Pairs* to = panel_of_b(block, panel);
    for (int64_t pair = 0; pair < depth_of(block); pair++) {
      for (int64_t v = 0; v < width_of(panel); v++) {
        *to++ = pair_of_rows(B, nullptr, K, N, block * DEPTH + pair, (panel * VECTORS + v) * LANES);
      }
    }
  });

  // As many blocks of rows as threads, or a multiple.
  int64_t threads = std::max<int64_t>(1, pool.num_threads());
  int64_t parts = (M + BLOCK_ROWS * threads - 1) / (BLOCK_ROWS * threads) * threads;
  int64_t part_rows = (M + parts * ROWS - 1) / (parts * ROWS) * ROWS;
  // A row of pairs does not begin where the one before it does in the first cache.
  constexpr int ROW = IS_TRANSPOSED ? 1 : DEPTH + LANES, PAIR = IS_TRANSPOSED ? ROWS : 1;
  constexpr int64_t PANEL = ROWS * (DEPTH + LANES);  // numbers of 32 bits

  run_parallel(pool, (M + part_rows - 1) / part_rows, [=](int64_t part) {
    int64_t first = part * part_rows, rows = std::min(part_rows, M - first);
    auto packed_a = allocated((rows / ROWS + 2) * PANEL / LANES);
    auto* a = reinterpret_cast<uint32_t*>(packed_a.get());
    for (int64_t block = 0; block < blocks; block++) {
      int64_t begin = block * DEPTH, depth = depth_of(block);
      if constexpr (IS_TRANSPOSED) {
        for (int64_t pair = 0; pair < depth; pair++) {
          for (int64_t row = 0; row < rows; row += LANES) {  // two panels
            Pairs found = pair_of_rows(A, factors, K, M, begin + pair, first + row);
            uint32_t* to = a + row / ROWS * PANEL + pair * ROWS;
            std::memcpy(to, &found, sizeof found / 2);
            std::memcpy(to + PANEL, reinterpret_cast<uint32_t*>(&found) + ROWS, sizeof found / 2);
          }
        }
      } else {
        for (int64_t row = 0; row < rows; row++) {
          uint32_t* to = a + row / ROWS * PANEL + row % ROWS * ROW;
          for (int64_t pair = 0; pair < depth; pair += LANES) {
            Pairs found = pairs_of_row(A, K, first + row, 2 * (begin + pair));
            std::memcpy(to + pair, &found, sizeof found);
          }
        }
      }
      for (int64_t panel = 0; panel < panels; panel++) {
        int64_t column = panel * COLUMNS;
        for (int64_t row = 0; row < rows; row += ROWS) {
          auto add = width_of(panel) == 3   ? add_tile<3, ROW, PAIR>
                     : width_of(panel) == 2 ? add_tile<2, ROW, PAIR>
                                            : add_tile<1, ROW, PAIR>;
          add(a + row / ROWS * PANEL, panel_of_b(block, panel), depth, factor, block == 0, C + (first + row) * N + column,
              N, rows - row, N - column);
        }
      }
    }
  });
}

// Calls `use` with a buffer as the Operand of its type.
template <typename Use>
ffi::Error with_operand(ffi::AnyBuffer x, Use use) {
  switch (x.element_type()) {
    case ffi::F32: use(Operand<float>{x.typed_data<float>()}); break;
    case ffi::BF16: use(Operand<uint16_t>{static_cast<const uint16_t*>(x.untyped_data())}); break;
    case ffi::S8: use(Operand<int8_t>{x.typed_data<int8_t>()}); break;
    default: return ffi::Error::InvalidArgument("expected float32, bfloat16 or int8");
  }
  return ffi::Error::Success();
}

ffi::Error d_weight(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::Buffer<ffi::F32> factors, ffi::AnyBuffer x,
                    ffi::ResultBuffer<ffi::F32> dweight) {
  int64_t T = dy.dimensions()[0], O = dy.dimensions()[1], I = x.dimensions()[1];
  return with_operand(dy, [&](auto a) {
    with_operand(x, [&](auto b) {
      multiply<true>(pool, a, factors.typed_data(), b, 1, dweight->typed_data(), O, I, T);
    });
  });
}

ffi::Error d_features(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer weight, ffi::Buffer<ffi::F32> factor,
                      ffi::ResultBuffer<ffi::F32> dx) {
  int64_t T = dy.dimensions()[0], O = dy.dimensions()[1], I = weight.dimensions()[1];
  return with_operand(dy, [&](auto a) {
    with_operand(weight, [&](auto b) {
      multiply<false>(pool, a, nullptr, b, factor.typed_data()[0], dx->typed_data(), T, I, O);
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxlm_d_weight, d_weight,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxlm_d_features, d_features,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
