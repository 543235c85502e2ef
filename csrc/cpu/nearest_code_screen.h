// Which codes may be the nearest at all, by products of 16-bit numbers: AVX512-VNNI multiplies and adds twice as many
// of them in an instruction as of float32. A vector for which one code is left has its answer, the very one of the
// float32 search; the others go to that search.
//
// About the middle c of the codes, with X = f (x - c) and Y = g (e - c), f and g such that the longest of each is
// 32000, the score that decides is X.Y - |Y|^2 f / 2g, up to what is the same for all codes. With P and Q, X and Y
// rounded to integers, P.Q is an exact integer below 2^30, and |X.Y - P.Q| <= |X - P| |Y| + |P| |Y - Q|. These norms
// are measured, not guessed. Together with the rounding of the float32 search's own scores they say how far below the
// best score the chosen code's can lie.
#pragma once

#if defined(__AVX512F__) && defined(__x86_64__)
#define PF_SCREEN
#include <cmath>
#include <limits>
#include <memory>

#include "samples.h"

namespace PF_NAMESPACE {
namespace {

constexpr int kScreenRows = 12;
constexpr int64_t kPairs = 64;  // pairs of dimensions of a chunk
constexpr double kLongest = 32000;
constexpr double kRounded = 0.01;  // more than what float32 loses of a vector of length kLongest before it is rounded
constexpr float kUsualLeast = 1e-15f, kUsualMost = 1e15f;  // lengths for which no product leaves float32

struct Screen {
    int64_t blocks, chunks;
    int64_t pairs;
    std::unique_ptr<vint[]> packed;  // [block][pair][2]: a pair of dimensions a lane
    std::unique_ptr<vfloat[]> start;  // [block][2]: -|e - c|^2 g / 2, -infinity past the last code
    std::unique_ptr<float[]> middle;
    double longest;  // |e - c|
    double scale;
    double rest;  // the largest |Y - Q|
    double middle_length;
    int32_t number_bits;  // the low bits of a score, which hold the number of its vector of codes
};

PF_FN vint whole_pairs(vfloat first, vfloat second) {
    const __m256i low = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32((__m512)first));
    const __m256i high = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32((__m512)second));
    return (vint)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
PF_FN vfloat rounded(vfloat x) {
    return (vfloat)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
PF_FN vfloat square_of_rest(vfloat x) {
    const vfloat rest = x - rounded(x);
    return rest * rest;
}
// An upper bound of the root of a sum of `width` squares.
inline double length_of(vfloat squares) { return std::sqrt(sum_lanes(squares)) * 1.001; }

template <class T>
PF_FN vfloat read_from(const T* p, int64_t at, int64_t width) {
    const int64_t left = width - at;
    return left >= kLanes ? Storage<T>::read(p + at) : left > 0 ? read_part(p + at, left) : vfloat{};
}

// False where the codes do not allow it.
template <class T>
bool prepare(Screen& s, const T* codebook, int64_t codes, int64_t width, int threads) {
    constexpr int64_t kBlock = 2 * kLanes, kOfMiddle = 128;
    s.blocks = (codes + kBlock - 1) / kBlock;
    s.chunks = (width + 2 * kPairs - 1) / (2 * kPairs);
    s.pairs = (width + 1) / 2;
    s.number_bits = 1;
    while ((int64_t{1} << s.number_bits) < 2 * s.blocks) ++s.number_bits;
    const int64_t padded = (width + 2 * kLanes - 1) / (2 * kLanes) * 2 * kLanes;
    s.middle.reset(new float[padded]());
    const int64_t step = (codes + kOfMiddle - 1) / kOfMiddle;
    for (int64_t d = 0; d < width; d += kLanes) {
        vfloat sum{};
        for (int64_t k = 0; k < codes; k += step) sum += read_from(codebook + k * width, d, width);
        store(s.middle.get() + d, sum / static_cast<float>((codes + step - 1) / step));
    }
    const auto apart = [&](const T* p, int64_t d) { return read_from(p, d, width) - load<vfloat>(s.middle.get() + d); };
    const auto length = [&](const T* p) {
        vfloat square{};
        for (int64_t d = 0; d < width; d += kLanes) {
            const vfloat a = apart(p, d);
            square += a * a;
        }
        return length_of(square);
    };
    vfloat square{};
    for (int64_t d = 0; d < width; d += kLanes) {
        const vfloat c = load<vfloat>(s.middle.get() + d);
        square += c * c;
    }
    s.middle_length = length_of(square);
    const std::unique_ptr<double[]> lengths(new double[codes]), rests(new double[s.blocks]());
    const bool small = codes * width < kSmallWork;
    parallel_for(s.blocks, threads, small, [&](int64_t b) {
        for (int64_t k = b * kBlock; k < codes && k < (b + 1) * kBlock; ++k) lengths[k] = length(codebook + k * width);
    });
    s.longest = 0;
    for (int64_t k = 0; k < codes; ++k) {
        if (!(lengths[k] < kUsualMost)) return false;
        if (lengths[k] > s.longest) s.longest = lengths[k];
    }
    if (!(s.longest > kUsualLeast && s.middle_length < kUsualMost)) return false;
    const float scale = static_cast<float>(kLongest / s.longest);
    s.scale = scale;
    s.packed.reset(new vint[s.blocks * s.pairs * 2]);
    s.start.reset(new vfloat[s.blocks * 2]);
    parallel_for(s.blocks, threads, small, [&](int64_t b) {
        float* const start = reinterpret_cast<float*>(s.start.get() + b * 2);
        for (int w = 0; w < 2; ++w) {
            vfloat rest[kLanes] = {};
            double squares[kLanes] = {};
            for (int64_t d = 0; d < width; d += 2 * kLanes) {
                vfloat pairs[kLanes];
                for (int lane = 0; lane < kLanes; ++lane) {
                    const int64_t k = b * kBlock + w * kLanes + lane;
                    pairs[lane] = vfloat{};
                    if (k >= codes) continue;
                    const vfloat first = apart(codebook + k * width, d);
                    const vfloat second = d + kLanes < width ? apart(codebook + k * width, d + kLanes) : vfloat{};
                    squares[lane] += sum_lanes(first * first) + sum_lanes(second * second);
                    rest[lane] += square_of_rest(first * scale) + square_of_rest(second * scale);
                    pairs[lane] = (vfloat)whole_pairs(first * scale, second * scale);
                }
                transpose(pairs);
                const int64_t pair = d / 2, count = s.pairs - pair < kLanes ? s.pairs - pair : kLanes;
                for (int64_t k = 0; k < count; ++k) s.packed[(b * s.pairs + pair + k) * 2 + w] = (vint)pairs[k];
            }
            for (int lane = 0; lane < kLanes; ++lane) {
                const bool is = b * kBlock + w * kLanes + lane < codes;
                start[w * kLanes + lane] =
                    is ? static_cast<float>(-0.5 * squares[lane] * s.scale) : -std::numeric_limits<float>::infinity();
                const double of_code = length_of(rest[lane]) + kRounded;
                if (of_code > rests[b]) rests[b] = of_code;
            }
        }
    });
    s.rest = 0;
    for (int64_t b = 0; b < s.blocks; ++b) s.rest = rests[b] > s.rest ? rests[b] : s.rest;
    return true;
}

// Meets kScreenRows vectors with the codes of blocks [first, last). `x` is [chunk][kScreenRows][kPairs].
__attribute__((target("avx512vnni"))) inline void meet_screen(const Screen& s, const int32_t* x, float scale,
                                                              int64_t first, int64_t last, vint* best, vint* second) {
    const __m512i number_mask = _mm512_set1_epi32((1 << s.number_bits) - 1);
    for (int64_t b = first; b < last; ++b) {
        vint sum[kScreenRows][2];
#pragma GCC unroll 2
        for (int w = 0; w < 2; ++w) {
            // -infinity gives the least integer.
            const vint start = (vint)_mm512_cvtps_epi32((__m512)(s.start[b * 2 + w] * scale));
#pragma GCC unroll 12
            for (int r = 0; r < kScreenRows; ++r) sum[r][w] = start;
        }
        const vint* code = s.packed.get() + b * s.pairs * 2;
        for (int64_t chunk = 0; chunk < s.pairs; chunk += kPairs) {
            const int32_t* row = x + chunk * kScreenRows;
            const int64_t n = s.pairs - chunk < kPairs ? s.pairs - chunk : kPairs;
            for (int64_t d = 0; d < n; ++d, code += 2, ++row) {
                const __m512i e0 = (__m512i)code[0], e1 = (__m512i)code[1];
#pragma GCC unroll 12
                for (int r = 0; r < kScreenRows; ++r) {
                    const __m512i at = _mm512_set1_epi32(row[r * kPairs]);
                    sum[r][0] = (vint)_mm512_dpwssd_epi32((__m512i)sum[r][0], at, e0);
                    sum[r][1] = (vint)_mm512_dpwssd_epi32((__m512i)sum[r][1], at, e1);
                }
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < kScreenRows; ++r) {
            __m512i most = (__m512i)best[r], next = (__m512i)second[r];
#pragma GCC unroll 2
            for (int w = 0; w < 2; ++w) {
                // The bits of the mask from the number, the others from the score.
                const __m512i score = _mm512_ternarylogic_epi32(
                    number_mask, _mm512_set1_epi32(static_cast<int32_t>(b * 2 + w)), (__m512i)sum[r][w], 0xca);
                next = _mm512_max_epi32(next, _mm512_min_epi32(most, score));
                most = _mm512_max_epi32(most, score);
            }
            best[r] = (vint)most;
            second[r] = (vint)next;
        }
    }
}

// index[n] is the code that the float32 search finds, or -1 where that is not certain.
template <class T>
void screen(const Screen& s, const T* x, int64_t* index, int64_t rows, int64_t width, int threads) {
    constexpr int64_t kTiles = 8, kPieceRows = kScreenRows * kTiles;
    constexpr int64_t kCodeBytes = 256 * 1024;  // as in the float32 search
    const int64_t tile_size = s.chunks * kPairs * kScreenRows;
    const int64_t block_bytes = s.pairs * 2 * static_cast<int64_t>(sizeof(vint));
    const int64_t group = block_bytes < kCodeBytes ? kCodeBytes / block_bytes : 1;
    const int64_t pieces = (rows + kPieceRows - 1) / kPieceRows;
    parallel_for(pieces, threads, false, [&](int64_t piece) {
        const int64_t begin = piece * kPieceRows, end = begin + kPieceRows < rows ? begin + kPieceRows : rows;
        const int64_t tiles = (end - begin + kScreenRows - 1) / kScreenRows;
        const std::unique_ptr<int32_t[]> scratch(new int32_t[tiles * tile_size]());
        vint best[kPieceRows], second[kPieceRows];
        float scales[kTiles];
        double margins[kPieceRows];  // a score that lies lower than the best by more is not the float32 search's best
        const auto take = [&](int64_t tile) {
            const int64_t first = begin + tile * kScreenRows,
                          last = first + kScreenRows < end ? first + kScreenRows : end;
            double lengths[kScreenRows], longest = s.longest;
            const auto apart = [&](int64_t n, int64_t d) {
                return d < width ? read_from(x + n * width, d, width) - load<vfloat>(s.middle.get() + d) : vfloat{};
            };
            for (int64_t n = first; n < last; ++n) {
                vfloat square{};
                for (int64_t d = 0; d < width; d += kLanes) {
                    const vfloat a = apart(n, d);
                    square += a * a;
                }
                const double length = length_of(square);
                lengths[n - first] = length;
                if (length > longest && length < kUsualMost) longest = length;
            }
            const float scale = static_cast<float>(kLongest / longest);
            scales[tile] = scale;
            for (int64_t r = 0; r < kScreenRows; ++r) {
                const int64_t n = first + r;
                best[tile * kScreenRows + r] = second[tile * kScreenRows + r] =
                    vint{} + std::numeric_limits<int32_t>::min();
                if (n >= last) continue;
                double& margin = margins[tile * kScreenRows + r];
                margin = std::numeric_limits<double>::infinity();
                if (!(lengths[r] < kUsualMost)) continue;
                int32_t* to = scratch.get() + tile * tile_size + r * kPairs;
                vfloat squares{};
                for (int64_t d = 0; d < width; d += 2 * kLanes) {
                    const vfloat a = apart(n, d) * scale, b = apart(n, d + kLanes) * scale;
                    squares += square_of_rest(a) + square_of_rest(b);
                    store(to + d / 2 / kPairs * kPairs * kScreenRows + d / 2 % kPairs, whole_pairs(a, b));
                }
                const double rest = length_of(squares) + kRounded, of_row = lengths[r] * scale + rest;
                // What the float32 search rounds: a sum of `width` products and half a square, each at most half a
                // unit in the last place of the largest, and numbers that are flushed to zero.
                const double units = scale * s.scale, steps = static_cast<double>(width + 2);
                const double row_length = lengths[r] + s.middle_length, code_length = s.longest + s.middle_length;
                const double searched = steps * (0x1p-23 * code_length * (row_length + 0.5 * code_length) +
                                                 0x1p-125 * (1 + row_length + code_length));
                constexpr double kStart = 256;  // of |Y|^2 f / 2g, below 2^29, in float32 and rounded
                const double error = rest * (kLongest + s.rest) + of_row * s.rest + searched * units + kStart;
                margin = 2 * (error + (1 << s.number_bits)) + 1;  // the number moves a score by less than that
            }
        };
        const auto meet = [&](int64_t first, int64_t last) {
            for (int64_t t = first; t < last; ++t) take(t);
            for (int64_t b = 0; b < s.blocks; b += group)
                for (int64_t t = first; t < last; ++t)
                    meet_screen(s, scratch.get() + t * tile_size, scales[t], b,
                                b + group < s.blocks ? b + group : s.blocks, best + t * kScreenRows,
                                second + t * kScreenRows);
            int64_t open = 0;
            for (int64_t r = first * kScreenRows; r < last * kScreenRows && begin + r < end; ++r) {
                index[begin + r] = -1;
                ++open;
                if (!(margins[r] < 0x1p28)) continue;
                const int32_t most = _mm512_reduce_max_epi32((__m512i)best[r]);
                const __m512i least = _mm512_set1_epi32(most - static_cast<int32_t>(margins[r]));
                const unsigned left = _mm512_cmpge_epi32_mask((__m512i)best[r], least);
                if ((left & (left - 1)) || _mm512_cmpge_epi32_mask((__m512i)second[r], least)) continue;
                const int64_t vector = most & ((1 << s.number_bits) - 1);
                index[begin + r] = vector * kLanes + __builtin_ctz(left);
                --open;
            }
            return open;
        };
        // Where much of the first tile stays open, so will the others.
        if (2 * meet(0, 1) > kScreenRows)
            for (int64_t n = begin + kScreenRows; n < end; ++n) index[n] = -1;
        else
            meet(1, tiles);
    });
}

// Whether the processor can, and whether there is enough to do for each code that is packed.
inline bool may_screen(int64_t rows, int64_t codes, int64_t width) {
    static const bool has = __builtin_cpu_supports("avx512vnni");
    return has && rows >= 256 && codes >= 64 && codes < (int64_t{1} << 20) && width >= 16 && width < 65536;
}

}  // namespace
}  // namespace PF_NAMESPACE
#endif
