// The product of a ternary linear with AVX2, for XLA on CPUs.
//
//   scaled_product   y = (x W^T) s   [T, O]   of int8 x [T, I], codes W [O, I] in {-1, 0, 1}, one factor s for each row
//
// AVX2 multiplies 32 unsigned bytes by signed ones and adds neighbours in 16 bits, four times as many as float32
// numbers (VPMADDUBSW, Intel's Software Developer's Manual). Two products of x + 128 and a code sum to 510 at most, so
// BLOCK such sums fit in 16 bits (32,640); then they are added up in 32 bits. The 128 W that are too much are subtracted at the
// end. Sums are exact, so they are those of every other form.
//
// W is packed once as words of four inputs, in panels of COLUMNS outputs; x by the thread that needs it, row by row. A
// tile of ROWS x COLUMNS sums of 16 bits stays in registers over a block. Elsewhere the same steps run in plain loops,
// for tests; they are slow.

#include <cstring>

#include "threads.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace ffi = xla::ffi;

namespace {

constexpr int LANES = 8, ROWS = 6, VECTORS = 2, COLUMNS = VECTORS * LANES, INPUTS = 4;
constexpr int64_t BLOCK = 64, BLOCK_ROWS = 96;
constexpr uint32_t SIGN_BITS = 0x80808080;

typedef int32_t Ints __attribute__((vector_size(32)));
typedef int16_t Shorts __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));

#ifdef __AVX2__
Shorts products(uint32_t features, const Ints& codes) {
  return (Shorts)_mm256_maddubs_epi16(_mm256_set1_epi32(features), (__m256i)codes);
}
Ints sums_of_neighbours(Shorts sums) { return (Ints)_mm256_madd_epi16((__m256i)sums, _mm256_set1_epi16(1)); }
#else
Shorts products(uint32_t features, const Ints& codes) {
  uint8_t unsigned_bytes[INPUTS];
  int8_t signed_bytes[sizeof(Ints)];
  std::memcpy(unsigned_bytes, &features, sizeof features);
  std::memcpy(signed_bytes, &codes, sizeof codes);
  Shorts found;
  for (int pair = 0; pair < 2 * LANES; pair++) {
    int at = 2 * pair;
    found[pair] = unsigned_bytes[at % INPUTS] * signed_bytes[at] + unsigned_bytes[at % INPUTS + 1] * signed_bytes[at + 1];
  }
  return found;
}
Ints sums_of_neighbours(Shorts sums) {
  Ints found;
  for (int lane = 0; lane < LANES; lane++) found[lane] = sums[2 * lane] + sums[2 * lane + 1];
  return found;
}
#endif

// Calls `use` with each word of a row of bytes and its number; after the end of the row are zeros.
template <typename Use>
void each_word(const int8_t* row, int64_t bytes, Use use) {
  int64_t whole = bytes / INPUTS;
  uint32_t found;
  for (int64_t word = 0; word < whole; word++) {
    std::memcpy(&found, row + word * INPUTS, INPUTS);
    use(word, found);
  }
  if (int64_t rest = bytes % INPUTS) {
    found = 0;
    std::memcpy(&found, row + whole * INPUTS, rest);
    use(whole, found);
  }
}

// Multiplies ROWS rows of words of x by a panel of W.
void multiply_panels(const uint32_t* x, int64_t stride, const Ints* w, int64_t words, Ints (&sums)[ROWS][VECTORS]) {
  for (auto& row : sums) {
    for (auto& sum : row) sum = Ints{};
  }
  for (int64_t begin = 0; begin < words; begin += BLOCK) {
    Shorts of_block[ROWS][VECTORS] = {};
    for (int64_t word = begin; word < std::min(begin + BLOCK, words); word++) {
      Ints codes[VECTORS];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) codes[v] = w[word * VECTORS + v];
#pragma GCC unroll 6
      for (int row = 0; row < ROWS; row++) {
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) of_block[row][v] += products(x[row * stride + word], codes[v]);
      }
    }
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; row++) {
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) sums[row][v] += sums_of_neighbours(of_block[row][v]);
    }
  }
}

ffi::Error scaled_product(ffi::ThreadPool pool, ffi::Buffer<ffi::S8> x, ffi::Buffer<ffi::S8> codes,
                          ffi::Buffer<ffi::F32> scale, ffi::ResultBuffer<ffi::F32> y) {
  int64_t T = x.dimensions()[0], O = codes.dimensions()[0], I = codes.dimensions()[1];
  if (x.dimensions()[1] != I || scale.dimensions()[0] != T) return different_sizes();
  int64_t words = (I + INPUTS - 1) / INPUTS, panels = (O + COLUMNS - 1) / COLUMNS;
  auto packed_codes = allocated<Ints>(panels * VECTORS * words);
  auto packed_excess = allocated<Ints>(panels * VECTORS);
  Ints *w = packed_codes.get(), *excess = packed_excess.get();
  const int8_t *of_x = x.typed_data(), *of_codes = codes.typed_data();
  const float* of_scale = scale.typed_data();
  float* of_y = y->typed_data();

  run_parallel(pool, panels, [=](int64_t panel) {
    for (int lane = 0; lane < COLUMNS; lane++) {
      // After the last output it comes again; what it gives there is not written.
      const int8_t* row = of_codes + std::min(panel * COLUMNS + lane, O - 1) * I;
      int32_t sum = 0;
      for (int64_t input = 0; input < I; input++) sum += row[input];
      reinterpret_cast<int32_t*>(excess + panel * VECTORS)[lane] = 128 * sum;
      auto* to = reinterpret_cast<uint32_t*>(w + panel * VECTORS * words) + lane;
      each_word(row, I, [=](int64_t word, uint32_t codes) { to[word * COLUMNS] = codes; });
    }
  });

  // A row does not begin where the one before it does in the first cache.
  int64_t part_rows = rows_of_part(pool, T, BLOCK_ROWS, ROWS), stride = words + 2 * LANES;
  run_parallel(pool, (T + part_rows - 1) / part_rows, [=](int64_t part) {
    int64_t first = part * part_rows, rows = std::min(part_rows, T - first);
    auto packed_x = allocated<uint32_t>((rows + ROWS) * stride);
    uint32_t* words_of_x = packed_x.get();
    for (int64_t row = 0; row < rows; row++) {
      uint32_t* to = words_of_x + row * stride;
      each_word(of_x + (first + row) * I, I, [=](int64_t word, uint32_t bytes) { to[word] = bytes ^ SIGN_BITS; });
    }
    for (int64_t panel = 0; panel < panels; panel++) {
      int64_t columns = std::min<int64_t>(COLUMNS, O - panel * COLUMNS);
      for (int64_t row = 0; row < rows; row += ROWS) {
        Ints sums[ROWS][VECTORS];
        multiply_panels(words_of_x + row * stride, stride, w + panel * VECTORS * words, words, sums);
        for (int64_t of = 0; of < std::min<int64_t>(ROWS, rows - row); of++) {
          int64_t token = first + row + of;
          Floats scaled[VECTORS];
          for (int v = 0; v < VECTORS; v++) {
            scaled[v] = __builtin_convertvector(sums[of][v] - excess[panel * VECTORS + v], Floats) * of_scale[token];
          }
          std::memcpy(of_y + token * O + panel * COLUMNS, scaled, columns * sizeof(float));
        }
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxlm_scaled_product, scaled_product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
