// neighbouring channels in registers
#pragma once

#include "numbers.h"

// everything is inlined: no vector is handed over by a convention that the instruction set could change
#pragma GCC diagnostic ignored "-Wpsabi"

#define DCNV4_INLINE inline __attribute__((always_inline))

// two names for a permutation by constants
#if defined(__clang__) || __GNUC__ >= 12
#define DCNV4_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define DCNV4_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (decltype(a < b)){__VA_ARGS__})
#endif

namespace yolo_dcnv4 {
namespace DCNV4_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

// numbers in a register
template <typename A>
constexpr int kRegister = kRegisterBytes / static_cast<int>(sizeof(A));

template <typename A, int width>
struct Vector {
  typedef A type __attribute__((vector_size(width * sizeof(A))));
};

template <typename V, typename E>
DCNV4_INLINE void put(const V& lanes, E* to) {
  memcpy(to, &lanes, sizeof lanes);
}

template <int width>
DCNV4_INLINE typename Vector<uint32_t, width>::type widened(const typename Vector<uint16_t, width>::type& halves) {
  // g++ 12 takes several instructions where one does
#if defined(__SSE2__)
  if constexpr (width == 4) {
    __m128i low = {};
    memcpy(&low, &halves, sizeof halves);
    return reinterpret_cast<typename Vector<uint32_t, width>::type>(_mm_unpacklo_epi16(low, _mm_setzero_si128()));
  }
#endif
#if defined(__AVX2__)
  if constexpr (width == 8) {
    return reinterpret_cast<typename Vector<uint32_t, width>::type>(
        _mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(halves)));
  }
#endif
#if defined(__AVX512F__)
  if constexpr (width == 16) {
    return reinterpret_cast<typename Vector<uint32_t, width>::type>(
        _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(halves)));
  }
#endif
  return __builtin_convertvector(halves, typename Vector<uint32_t, width>::type);
}

template <int width, typename T, typename A>
DCNV4_INLINE typename Vector<A, width>::type load_vector(const T* from) {
  typename Vector<A, width>::type to = {};
  if constexpr (sizeof(T) == sizeof(A)) {
    memcpy(&to, from, sizeof to);
    return to;
  } else if constexpr (kSame<T, BFloat16>) {
    typename Vector<uint16_t, width>::type bits;
    memcpy(&bits, from, sizeof bits);
    const auto words = widened<width>(bits) << 16;
    memcpy(&to, &words, sizeof to);
    return to;
#if defined(__ARM_FP16_FORMAT_IEEE)
  } else if constexpr (width == 4) {
    typename Vector<__fp16, width>::type halves;
    memcpy(&halves, from, sizeof halves);
    return __builtin_convertvector(halves, typename Vector<A, width>::type);
#endif
#if defined(__AVX512F__)
  } else if constexpr (width == 16) {
    __m256i bits;
    memcpy(&bits, from, sizeof bits);
    // the form without a mask makes g++ 12 warn of an uninitialised vector
    const __m512 values = _mm512_maskz_cvtph_ps(0xffff, bits);
    memcpy(&to, &values, sizeof to);
    return to;
#endif
#if defined(__F16C__)
  } else if constexpr (width == 8) {
    __m128i bits;
    memcpy(&bits, from, sizeof bits);
    const __m256 values = _mm256_cvtph_ps(bits);
    memcpy(&to, &values, sizeof to);
    return to;
  } else if constexpr (width == 4) {
    const __m128 values = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    memcpy(&to, &values, sizeof to);
    return to;
#endif
  }
  for (int i = 0; i < width; ++i) to[i] = load(from[i]);
  return to;
}

template <int width, typename T, typename A>
DCNV4_INLINE void store_vector(const typename Vector<A, width>::type& from, T* to) {
  if constexpr (sizeof(T) == sizeof(A)) {
    memcpy(to, &from, sizeof from);
    return;
#if defined(__AVX512F__)
  } else if constexpr (kSame<T, Half> && width == 16) {
    __m512 values;
    memcpy(&values, &from, sizeof values);
    const __m256i bits = _mm512_maskz_cvtps_ph(0xffff, values, _MM_FROUND_TO_NEAREST_INT);
    memcpy(to, &bits, sizeof bits);
    return;
#endif
#if defined(__F16C__)
  } else if constexpr (kSame<T, Half> && width == 8) {
    __m256 values;
    memcpy(&values, &from, sizeof values);
    const __m128i bits = _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
    memcpy(to, &bits, sizeof bits);
    return;
#endif
  }
  if constexpr (kSame<T, BFloat16>) {
    using Words = typename Vector<uint32_t, width>::type;
    Words bits;
    memcpy(&bits, &from, sizeof bits);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, quiet = (bits >> 16) | 0x40u;
    const Words is_nan = reinterpret_cast<Words>(from != from);
    const auto halves =
        __builtin_convertvector((quiet & is_nan) | (rounded & ~is_nan), typename Vector<uint16_t, width>::type);
    memcpy(to, &halves, sizeof halves);
    return;
  }
  for (int i = 0; i < width; ++i) store(from[i], to + i);
}

// `width` neighbouring channels in whole registers: a vector wider than those would live in memory
template <typename A, int width>
struct Lanes {
  static constexpr int kEach = width < kRegister<A> ? width : kRegister<A>;
  static constexpr int kParts = width / kEach;

  typename Vector<A, kEach>::type part[kParts];

  template <typename T>
  DCNV4_INLINE void load_from(const T* from) {
    for (int i = 0; i < kParts; ++i) part[i] = load_vector<kEach, T, A>(from + i * kEach);
  }
  template <typename T>
  DCNV4_INLINE void store_to(T* to) const {
    for (int i = 0; i < kParts; ++i) store_vector<kEach, T, A>(part[i], to + i * kEach);
  }
  DCNV4_INLINE void add_product(A factor, const Lanes& other) {
    for (int i = 0; i < kParts; ++i) part[i] += factor * other.part[i];
  }
  DCNV4_INLINE void add(const Lanes& other) {
    for (int i = 0; i < kParts; ++i) part[i] += other.part[i];
  }
};

template <typename A, int width>
DCNV4_INLINE A sum_of(const typename Vector<A, width>::type& v) {
  if constexpr (width > 2) {
    typename Vector<A, width / 2>::type half[2];
    memcpy(half, &v, sizeof half);
    return sum_of<A, width / 2>(half[0] + half[1]);
  } else {
    return v[0] + v[1];
  }
}

template <typename A>
DCNV4_INLINE A dot(const A* a, const A* b, const int count) {
  constexpr int width = kRegister<A>;
  typename Vector<A, width>::type sums = {};
  A rest = 0;
  int i = 0;
  for (; i + width <= count; i += width) sums += load_vector<width, A, A>(a + i) * load_vector<width, A, A>(b + i);
  for (; i < count; ++i) rest += a[i] * b[i];
  return sum_of<A, width>(sums) + rest;
}

// whether all that it saw was finite: anything else times zero is NaN
template <typename A>
class Probe {
 public:
  template <int width>
  DCNV4_INLINE void see(const Lanes<A, width>& lanes) {
    for (int i = 0; i < Lanes<A, width>::kParts; ++i) {
      if constexpr (Lanes<A, width>::kEach == kRegister<A>) {
        zeros_ += lanes.part[i] * 0;
      } else {
        for (int lane = 0; lane < width; ++lane) zero_ += lanes.part[i][lane] * 0;
      }
    }
  }
  DCNV4_INLINE bool finite() const { return zero_ + sum_of<A, kRegister<A>>(zeros_) == 0; }

 private:
  typename Vector<A, kRegister<A>>::type zeros_ = {};
  A zero_ = 0;
};

// The sums of the lanes of four vectors of `width`. Blocks of four lanes are transposed and added up.
template <typename A, int width>
DCNV4_INLINE typename Vector<A, 4>::type sums_of(const typename Vector<A, width>::type (&v)[4]) {
  using V = typename Vector<A, width>::type;
  using Four = typename Vector<A, 4>::type;
  if constexpr (width == 16) {
    const V ab = DCNV4_SHUFFLE(v[0], v[1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                 DCNV4_SHUFFLE(v[0], v[1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    const V cd = DCNV4_SHUFFLE(v[2], v[3], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                 DCNV4_SHUFFLE(v[2], v[3], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    const V all = DCNV4_SHUFFLE(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                  DCNV4_SHUFFLE(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    typename Vector<A, 8>::type half[2];
    memcpy(half, &all, sizeof all);
    half[0] += half[1];
    Four quarter[2];
    memcpy(quarter, half, sizeof quarter);
    return quarter[0] + quarter[1];
  } else if constexpr (width == 8) {
    const V ab =
        DCNV4_SHUFFLE(v[0], v[1], 0, 8, 1, 9, 4, 12, 5, 13) + DCNV4_SHUFFLE(v[0], v[1], 2, 10, 3, 11, 6, 14, 7, 15);
    const V cd =
        DCNV4_SHUFFLE(v[2], v[3], 0, 8, 1, 9, 4, 12, 5, 13) + DCNV4_SHUFFLE(v[2], v[3], 2, 10, 3, 11, 6, 14, 7, 15);
    const V all = DCNV4_SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + DCNV4_SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    Four half[2];
    memcpy(half, &all, sizeof half);
    return half[0] + half[1];
  } else if constexpr (width == 4) {
    const V ab = DCNV4_SHUFFLE(v[0], v[1], 0, 4, 1, 5) + DCNV4_SHUFFLE(v[0], v[1], 2, 6, 3, 7);
    const V cd = DCNV4_SHUFFLE(v[2], v[3], 0, 4, 1, 5) + DCNV4_SHUFFLE(v[2], v[3], 2, 6, 3, 7);
    return DCNV4_SHUFFLE(ab, cd, 0, 1, 4, 5) + DCNV4_SHUFFLE(ab, cd, 2, 3, 6, 7);
  } else {
    Four sums = {};
    for (int lane = 0; lane < width; ++lane) sums += Four{v[0][lane], v[1][lane], v[2][lane], v[3][lane]};
    return sums;
  }
}

// the pairs that begin at `from`: firsts and seconds apart
template <typename T, typename A>
DCNV4_INLINE void load_pairs(
    const T* from, typename Vector<A, kRegister<A>>::type& firsts, typename Vector<A, kRegister<A>>::type& seconds) {
  constexpr int width = kRegister<A>;
  const auto low = load_vector<width, T, A>(from), high = load_vector<width, T, A>(from + width);
  if constexpr (width == 16) {
    firsts = DCNV4_SHUFFLE(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    seconds = DCNV4_SHUFFLE(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  } else if constexpr (width == 8) {
    firsts = DCNV4_SHUFFLE(low, high, 0, 2, 4, 6, 8, 10, 12, 14);
    seconds = DCNV4_SHUFFLE(low, high, 1, 3, 5, 7, 9, 11, 13, 15);
  } else if constexpr (width == 4) {
    firsts = DCNV4_SHUFFLE(low, high, 0, 2, 4, 6);
    seconds = DCNV4_SHUFFLE(low, high, 1, 3, 5, 7);
  } else {
    static_assert(width == 2, "no shuffle for this width");
    firsts = DCNV4_SHUFFLE(low, high, 0, 2);
    seconds = DCNV4_SHUFFLE(low, high, 1, 3);
  }
}

// the reverse
template <typename A>
DCNV4_INLINE void put_pairs(
    const typename Vector<A, kRegister<A>>::type& firsts, const typename Vector<A, kRegister<A>>::type& seconds,
    A* to) {
  constexpr int width = kRegister<A>;
  typename Vector<A, width>::type low, high;
  if constexpr (width == 16) {
    low = DCNV4_SHUFFLE(firsts, seconds, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high = DCNV4_SHUFFLE(firsts, seconds, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (width == 8) {
    low = DCNV4_SHUFFLE(firsts, seconds, 0, 8, 1, 9, 2, 10, 3, 11);
    high = DCNV4_SHUFFLE(firsts, seconds, 4, 12, 5, 13, 6, 14, 7, 15);
  } else if constexpr (width == 4) {
    low = DCNV4_SHUFFLE(firsts, seconds, 0, 4, 1, 5);
    high = DCNV4_SHUFFLE(firsts, seconds, 2, 6, 3, 7);
  } else {
    static_assert(width == 2, "no shuffle for this width");
    low = DCNV4_SHUFFLE(firsts, seconds, 0, 2);
    high = DCNV4_SHUFFLE(firsts, seconds, 1, 3);
  }
  put(low, to);
  put(high, to + width);
}

template <int n>
struct Width {
  static constexpr int value = n;
};

// calls work(Width<n>, c) for n channels from c on until all are done: two registers, one, then ever fewer lanes
template <typename A, int width = 2 * kRegister<A>, typename Work>
DCNV4_INLINE void for_each_chunk(int channels, const Work& work, int c = 0) {
  for (; c + width <= channels; c += width) work(Width<width>{}, c);
  if constexpr (width > 1) for_each_chunk<A, (width > 4 ? width / 2 : 1)>(channels, work, c);
}

// numbers of one type into another
template <typename From, typename To>
DCNV4_INLINE void convert(const From* numbers, const int count, To* to) {
  using A = typename Opmath<From>::type;
  for_each_chunk<A>(count, [&](auto width, int i) __attribute__((always_inline)) {
    Lanes<A, decltype(width)::value> lanes;
    lanes.load_from(numbers + i);
    lanes.store_to(to + i);
  });
}

// `count` entries in the type of computations: themselves, or copies in `room`
template <typename T, typename A>
DCNV4_INLINE const A* in_opmath(const T* entries, const int count, A* room) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return entries;
  } else {
    convert(entries, count, room);
    return room;
  }
}

}  // namespace
}  // namespace DCNV4_ISA
}  // namespace yolo_dcnv4
