// Products of a backward pass, for XLA on CPUs.
//
//   d_weight    dW = (f * dy)^T x   [O, I]   of dy [T, O], x [T, I], one factor f for each of the T rows
//   d_features  dx = (dy W) f       [T, I]   of dy [T, O], W [O, I], one factor f
//
// Operands are float32 or bfloat16; x and W may be int8, which both hold exactly. Both are C = A B, summed over k in
// float32. Operands are multiplied as words of 32 bits: pairs of bfloat16 (k, k + 1) that lie side by side, to which
// they are rounded, or with FLOAT_WORDS one float32 each. So B is packed once as words of its rows, in panels of
// COLUMNS, and A by the thread that needs it, in panels of ROWS. A micro-kernel keeps a tile of C, ROWS x COLUMNS, in
// registers over DEPTH words. Rounding is part of packing.
//
// AMX multiplies squares of 16 x 16 words, and takes both panels row by row. AVX512_BF16, AVX-512 and AVX2 multiply
// vectors of words by one word: A is packed word by word where it is given so, and nothing is transposed.
//
// Every number of C is summed by one thread in a fixed order: the result does not depend on the number of threads.
// Without these instructions the same steps run in plain vectors, for tests; they are slow. EMULATED_TILES takes the
// steps of AMX there.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "threads.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif
#if defined __AMX_BF16__ && !defined EMULATED_TILES && !defined FLOAT_WORDS
#define AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined AMX || defined EMULATED_TILES
#define TILES
#endif

namespace ffi = xla::ffi;

namespace {

#if defined TILES
constexpr bool HAS_TILES = true;
constexpr int LANES = 16, ROWS = 2 * LANES, VECTORS = 2;
#elif defined __AVX512F__ || !defined FLOAT_WORDS
constexpr bool HAS_TILES = false;
constexpr int LANES = 16, ROWS = 8, VECTORS = 3;
#else
constexpr bool HAS_TILES = false;
constexpr int LANES = 8, ROWS = 4, VECTORS = 3;
#endif
#ifdef FLOAT_WORDS
constexpr int NUMBERS = 1;  // of a word
// Of C and of the rows of A that are packed: 0.85 of the time of 512 x 4096 x 256 (AVX2); of pairs not measured.
#define PREFETCH(address) __builtin_prefetch(address)
#else
constexpr int NUMBERS = 2;
#define PREFETCH(address)
#endif
constexpr int DEPTH = 512 / NUMBERS, COLUMNS = VECTORS * LANES;
// Rows of C that a thread takes at a time: its panels of A stay in the second cache.
constexpr int64_t BLOCK_ROWS = 96;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));  // the bits of bfloat16
typedef int8_t Bytes __attribute__((vector_size(LANES)));

// ---- Words

// Compilers widen vectors of small integers number by number.
#if defined __AVX512F__
Ints widened(Bytes x) { return (Ints)_mm512_cvtepi8_epi32((__m128i)x); }
Words widened(Halves x) { return (Words)_mm512_cvtepu16_epi32((__m256i)x); }
#elif defined __AVX2__ && defined FLOAT_WORDS
Ints widened(Bytes x) { return (Ints)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)x)); }
Words widened(Halves x) { return (Words)_mm256_cvtepu16_epi32((__m128i)x); }
#else
Ints widened(Bytes x) { return __builtin_convertvector(x, Ints); }
Words widened(Halves x) { return __builtin_convertvector(x, Words); }
#endif

#ifdef FLOAT_WORDS
Floats add_products(Floats sums, Words a, Words b) { return sums + (Floats)a * (Floats)b; }
#elif defined __AVX512BF16__
Words pairs(Floats low, Floats high) {
  auto rounded = [](Floats x) { return widened((Halves)_mm512_cvtneps_pbh((__m512)x)); };
  return rounded(low) | rounded(high) << 16;
}

Floats add_products(Floats sums, Words a, Words b) {
  return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
}
#else
Words rounded(Floats x) {
  Words bits = (Words)x, is_nan = (Words)(x != x);
  Words nearest_even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (nearest_even & ~is_nan) | (0x7fc0 & is_nan);
}

Words pairs(Floats low, Floats high) { return rounded(low) | rounded(high) << 16; }

Floats add_products(Floats sums, Words a, Words b) {
  return sums + (Floats)(a << 16) * (Floats)(b << 16) + (Floats)(a & 0xffff0000) * (Floats)(b & 0xffff0000);
}
#endif

// ---- Operands: `load` returns up to LANES numbers as floats, with zeros after them.

template <typename Number>
struct Operand {
  const Number* numbers;

  Floats load(int64_t index, int64_t count) const {
    if (count >= LANES) return floats(numbers + index);
    Number few[LANES] = {};
    if (count > 0) std::memcpy(few, numbers + index, count * sizeof(Number));
    return floats(few);
  }

  static Floats floats(const Number* from) {
    typedef Number Vector __attribute__((vector_size(LANES * sizeof(Number))));
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    if constexpr (std::is_same_v<Number, float>) {
      return vector;
    } else if constexpr (std::is_same_v<Number, uint16_t>) {
      return (Floats)(widened(vector) << 16);
    } else {
      return __builtin_convertvector(widened(vector), Floats);
    }
  }
};

// Columns `column` to `column + LANES` of the rows of word `word` of a matrix [rows, columns].
template <typename Number>
Words words_of_rows(Operand<Number> x, const float* factors, int64_t rows, int64_t columns, int64_t word,
                    int64_t column) {
  auto of_row = [=](int64_t row) {
    if (row >= rows) return Floats{};
    Floats numbers = x.load(row * columns + column, columns - column);
    return factors ? numbers * factors[row] : numbers;
  };
#ifdef FLOAT_WORDS
  return (Words)of_row(word);
#else
  return pairs(of_row(2 * word), of_row(2 * word + 1));
#endif
}

// The LANES words from the number `column` on of a row of a matrix [rows, columns].
template <typename Number>
Words words_of_row(Operand<Number> x, int64_t columns, int64_t row, int64_t column) {
  int64_t index = row * columns + column, count = columns - column;
#ifdef FLOAT_WORDS
  return (Words)x.load(index, count);
#else
  Floats a = x.load(index, count), b = x.load(index + LANES, count - LANES);
  return pairs(__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
               __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
#endif
}

// ---- Tiles of 16 x 16 words, of which each thread has eight

#ifdef TILES
// Exchanges the upper right and the lower left square of SIZE x SIZE, in each square of twice that size.
template <int SIZE>
void exchange(Words* rows) {
  auto from_first = [](int lane) constexpr { return lane & SIZE ? LANES + (lane ^ SIZE) : lane; };
  auto from_second = [](int lane) constexpr { return lane & SIZE ? LANES + lane : lane ^ SIZE; };
#define EACH_LANE(of)                                                                                              \
  of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7), of(8), of(9), of(10), of(11), of(12), of(13), of(14), of(15)
  for (int row = 0; row < LANES; row++) {
    if (row & SIZE) continue;
    Words first = rows[row], second = rows[row + SIZE];
    rows[row] = __builtin_shufflevector(first, second, EACH_LANE(from_first));
    rows[row + SIZE] = __builtin_shufflevector(first, second, EACH_LANE(from_second));
  }
#undef EACH_LANE
}

// Transposes a square of 16 x 16 words.
void transpose(Words* rows) {
  exchange<8>(rows);
  exchange<4>(rows);
  exchange<2>(rows);
  exchange<1>(rows);
}

#ifdef AMX
#define ZERO_TILE(tile) _tile_zero(tile)
#define LOAD_TILE(tile, from, stride) _tile_loadd(tile, from, (stride) * sizeof(float))
#define STORE_TILE(tile, to, stride) _tile_stored(tile, to, (stride) * sizeof(float))
#define ADD_TILES(sums, a, b) _tile_dpbf16ps(sums, a, b)

// The compiler does not know that the instructions read memory.
void finish_writing() { asm volatile("" ::: "memory"); }

// Gives the tiles of this thread their shape, as long as it lives.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    finish_writing();
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
};

// Asks the system for the tiles (Linux's arch_prctl).
bool has_tiles() {
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#else
thread_local Words all_tiles[8][LANES];
#define ZERO_TILE(tile) std::memset(all_tiles[tile], 0, sizeof *all_tiles)
#define LOAD_TILE(tile, from, stride) copy_rows(all_tiles[tile], LANES, from, stride)
#define STORE_TILE(tile, to, stride) copy_rows(to, stride, all_tiles[tile], LANES)
#define ADD_TILES(sums, a, b) add_tiles(all_tiles[sums], all_tiles[a], all_tiles[b])

void copy_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride) {
  for (int row = 0; row < LANES; row++) {
    std::memcpy((uint32_t*)to + row * to_stride, (const uint32_t*)from + row * from_stride, sizeof(Words));
  }
}

void add_tiles(Words* sums, const Words* a, const Words* b) {
  for (int row = 0; row < LANES; row++) {
    for (int word = 0; word < LANES; word++) {
      sums[row] = (Words)add_products((Floats)sums[row], a[row][word] + Words{}, b[word]);
    }
  }
}

void finish_writing() {}
#endif
#endif

#ifndef AMX
struct Tiles {
  ~Tiles() {}
};
bool has_tiles() { return true; }
#endif

// ---- The product

// Adds `factor * sums` to a row of C, or writes it there.
template <int WIDTH>
[[gnu::always_inline]] inline void add_row(const Floats* sums, float factor, bool is_first, float* c, int64_t columns) {
  typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4)));
#pragma GCC unroll 3
  for (int v = 0; v < WIDTH; v++) {
    float* to = c + v * LANES;
    int64_t count = columns - v * LANES;
    Floats sum = sums[v] * factor;
    if (count >= LANES) {
      if (!is_first) sum += *(Unaligned*)to;
      *(Unaligned*)to = sum;
    } else if (count > 0) {
      if (!is_first) sum += Operand<float>{to}.load(0, count);
      std::memcpy(to, &sum, count * sizeof(float));
    }
  }
}

// The compiler would load the vector anew for each row: four loads in place of one, more than AVX2 has ports for.
#if defined __AVX2__ && defined FLOAT_WORDS
#define KEEP_IN_REGISTER(vector) asm("" : "+x"(vector))
#else
#define KEEP_IN_REGISTER(vector)
#endif

// Multiplies a panel of A by one of B. A's word p of row r is at r * ROW + p * WORD, or with a ROW of 0 at
// r * row_words + p.
template <int WIDTH, int ROW, int WORD>
void multiply_panels(const uint32_t* a, int64_t row_words, const Words* b, int64_t depth, Floats (&sums)[ROWS][WIDTH]) {
#ifdef TILES
  static_assert(WORD == 1);
  finish_writing();
  constexpr int B_ROW = WIDTH * LANES;
  ZERO_TILE(0);
  ZERO_TILE(1);
  ZERO_TILE(2);
  ZERO_TILE(3);
  for (int64_t word = 0; word < depth; word += LANES) {
    LOAD_TILE(4, a + word, ROW);
    LOAD_TILE(6, b + word * WIDTH, B_ROW);
    ADD_TILES(0, 4, 6);
    LOAD_TILE(5, a + LANES * ROW + word, ROW);
    ADD_TILES(1, 5, 6);
    if constexpr (WIDTH == 2) {
      LOAD_TILE(7, b + word * WIDTH + 1, B_ROW);
      ADD_TILES(2, 4, 7);
      ADD_TILES(3, 5, 7);
    }
  }
  STORE_TILE(0, &sums[0][0], B_ROW);
  STORE_TILE(1, &sums[LANES][0], B_ROW);
  if constexpr (WIDTH == 2) {
    STORE_TILE(2, &sums[0][1], B_ROW);
    STORE_TILE(3, &sums[LANES][1], B_ROW);
  }
#else
  for (auto& row : sums) {
    for (auto& sum : row) sum = Floats{};
  }
  for (int64_t word = 0; word < depth; word++) {
    Words of_b[WIDTH];
#pragma GCC unroll 3
    for (int v = 0; v < WIDTH; v++) {
      of_b[v] = b[word * WIDTH + v];
      KEEP_IN_REGISTER(of_b[v]);
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
      Words of_a = a[row * (ROW ? ROW : row_words) + word * WORD] + Words{};
#pragma GCC unroll 3
      for (int v = 0; v < WIDTH; v++) sums[row][v] = add_products(sums[row][v], of_a, of_b[v]);
    }
  }
#endif
}

// Adds the products of a panel of A and one of B to a tile of C.
template <int WIDTH, int ROW, int WORD>
void add_tile(const uint32_t* a, int64_t row_words, const Words* b, int64_t depth, float factor, bool is_first,
              float* c, int64_t stride, int64_t rows, int64_t columns) {
  for (int row = 0; row < ROWS; row++) {
    for (int v = 0; v < WIDTH; v++) PREFETCH(c + row * stride + v * LANES);
  }
  Floats sums[ROWS][WIDTH];
  multiply_panels<WIDTH, ROW, WORD>(a, row_words, b, depth, sums);
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row++) {
    if (row >= rows) break;
    add_row<WIDTH>(sums[row], factor, is_first, c + row * stride, columns);
  }
}

// Returns `add_tile` for a panel of B of some vectors.
template <int ROW, int WORD>
auto add_tile_of(int64_t width) {
  return width == 3 ? add_tile<3, ROW, WORD> : width == 2 ? add_tile<2, ROW, WORD> : add_tile<1, ROW, WORD>;
}

// C [M, N] = factor * A B, B [K, N]. With IS_TRANSPOSED A is given as [K, M], with a factor for each k, else as [M, K].
template <bool IS_TRANSPOSED, typename NumberA, typename NumberB>
void multiply(ffi::ThreadPool& pool, Operand<NumberA> A, const float* factors, Operand<NumberB> B, float factor, float* C,
              int64_t M, int64_t N, int64_t K) {
  constexpr int STEP = HAS_TILES ? LANES : 1;  // words
  if (K == 0) std::fill(C, C + M * N, 0);
  int64_t words_of_k = ((K + NUMBERS - 1) / NUMBERS + STEP - 1) / STEP * STEP, blocks = (words_of_k + DEPTH - 1) / DEPTH;
  int64_t width = (N + LANES - 1) / LANES, panels = (width + VECTORS - 1) / VECTORS;  // in vectors, in panels
  auto packed_b = allocated<Words>(words_of_k * width);
  Words* b = packed_b.get();
  auto depth_of = [=](int64_t block) { return std::min<int64_t>(DEPTH, words_of_k - block * DEPTH); };
  auto width_of = [=](int64_t panel) { return std::min<int64_t>(VECTORS, width - panel * VECTORS); };
  auto panel_of_b = [=](int64_t block, int64_t panel) {
    return b + block * DEPTH * width + panel * VECTORS * depth_of(block);
  };

  run_parallel(pool, blocks * panels, [=](int64_t task) {
    int64_t block = task / panels, panel = task % panels;
    Words* to = panel_of_b(block, panel);
    for (int64_t word = 0; word < depth_of(block); word++) {
      for (int64_t v = 0; v < width_of(panel); v++) {
        *to++ = words_of_rows(B, nullptr, K, N, block * DEPTH + word, (panel * VECTORS + v) * LANES);
      }
    }
  });

  int64_t part_rows = rows_of_part(pool, M, BLOCK_ROWS, ROWS);
  // Whole panels of A are read where they lie, if its rows are words already: 0.95 of the time (AVX2).
  constexpr bool MAY_BE_DIRECT = !IS_TRANSPOSED && !HAS_TILES && NUMBERS * sizeof(NumberA) == sizeof(uint32_t);
  bool is_direct = MAY_BE_DIRECT && K % NUMBERS == 0;
  // A row of words does not begin where the one before it does in the first cache.
  constexpr bool IS_BY_WORD = IS_TRANSPOSED && !HAS_TILES;
  constexpr int ROW = IS_BY_WORD ? 1 : DEPTH + LANES, WORD = IS_BY_WORD ? ROWS : 1;
  constexpr int64_t PANEL = ROWS * (DEPTH + LANES);  // numbers of 32 bits

  run_parallel(pool, (M + part_rows - 1) / part_rows, [=](int64_t part) {
    int64_t first = part * part_rows, rows = std::min(part_rows, M - first);
    Tiles tiles;
    auto packed_a = allocated<Words>((rows / ROWS + 2) * PANEL / LANES);
    auto* a = reinterpret_cast<uint32_t*>(packed_a.get());
    for (int64_t block = 0; block < blocks; block++) {
      int64_t begin = block * DEPTH, depth = depth_of(block);
#ifdef TILES
      if constexpr (IS_TRANSPOSED) {
        for (int64_t word = 0; word < depth; word += LANES) {
          for (int64_t row = 0; row < rows; row += LANES) {
            Words found[LANES];
            for (int of = 0; of < LANES; of++) found[of] = words_of_rows(A, factors, K, M, begin + word + of, first + row);
            transpose(found);
            uint32_t* to = a + row / ROWS * PANEL + row % ROWS * ROW + word;
            for (int of = 0; of < LANES; of++) std::memcpy(to + of * ROW, found + of, sizeof *found);
          }
        }
      }
#else
      if constexpr (IS_TRANSPOSED) {
        for (int64_t word = 0; word < depth; word++) {
          for (int64_t row = 0; row < rows; row += LANES) {  // two panels
            PREFETCH(A.numbers + (begin + word + 16) * M + first + row);
            Words found = words_of_rows(A, factors, K, M, begin + word, first + row);
            uint32_t* to = a + row / ROWS * PANEL + word * ROWS;
            std::memcpy(to, &found, sizeof found / 2);
            std::memcpy(to + PANEL, reinterpret_cast<uint32_t*>(&found) + ROWS, sizeof found / 2);
          }
        }
      }
#endif
      if constexpr (!IS_TRANSPOSED) {
        for (int64_t row = is_direct ? rows / ROWS * ROWS : 0; row < rows; row++) {
          uint32_t* to = a + row / ROWS * PANEL + row % ROWS * ROW;
          for (int64_t word = 0; word < depth; word += LANES) {
            Words found = words_of_row(A, K, first + row, NUMBERS * (begin + word));
            std::memcpy(to + word, &found, sizeof found);
          }
        }
      }
      for (int64_t panel = 0; panel < panels; panel++) {
        int64_t column = panel * COLUMNS;
        for (int64_t row = 0; row < rows; row += ROWS) {
          auto add = add_tile_of<ROW, WORD>(width_of(panel));
          const uint32_t* of_a = a + row / ROWS * PANEL;
          if constexpr (MAY_BE_DIRECT) {
            if (is_direct && rows - row >= ROWS) {
              add = add_tile_of<0, 1>(width_of(panel));
              of_a = reinterpret_cast<const uint32_t*>(A.numbers + (first + row) * K) + begin;
            }
          }
          add(of_a, K / NUMBERS, panel_of_b(block, panel), depth, factor, block == 0, C + (first + row) * N + column, N,
              rows - row, N - column);
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
  if (x.dimensions()[0] != T || factors.dimensions()[0] != T) return different_sizes();
  return with_operand(dy, [&](auto a) {
    with_operand(x, [&](auto b) {
      multiply<true>(pool, a, factors.typed_data(), b, 1, dweight->typed_data(), O, I, T);
    });
  });
}

ffi::Error d_features(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer weight, ffi::Buffer<ffi::F32> factor,
                      ffi::ResultBuffer<ffi::F32> dx) {
  int64_t T = dy.dimensions()[0], O = dy.dimensions()[1], I = weight.dimensions()[1];
  if (weight.dimensions()[0] != O) return different_sizes();
  return with_operand(dy, [&](auto a) {
    with_operand(weight, [&](auto b) {
      multiply<false>(pool, a, nullptr, b, factor.typed_data()[0], dx->typed_data(), T, I, O);
    });
  });
}

}  // namespace

// Whether this process may use the instructions that this library was built for.
extern "C" bool jaxlm_may_run() { return has_tiles(); }

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
