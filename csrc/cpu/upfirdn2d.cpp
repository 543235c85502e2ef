// Zeros between the pixels, a filter that is one row of taps in each direction, and every so many-th pixel kept.
//
// A row of the result is first summed over rows of the input, which touches no zeros. Where pixels hold a vector, the
// row of the result is summed over pixels in the same way. Elsewhere the sum is laid out with zeros, a phase of `down`
// after another, so that each tap meets one run of memory; one that is only enlarged twice has no zeros laid, as its
// even and its odd places are sums over runs of their own.
//
// Memory is (outer, height, width, inner), channels-last with inner = C, else inner = 1.
//
// Floor: the input read and the result written once.
#include <memory>
#include <numeric>

#include "samples.h"

#include "../export.h"

namespace PF_NAMESPACE {
namespace {

constexpr int64_t kPieceElements = 16384;  // of the result, about

struct Filter {
    const double* taps;  // as a correlation takes them, of the last first
    int64_t count, up, down;
};

template <class V>
using Indices = std::make_index_sequence<sizeof(V) / sizeof(Scalar<V>)>;
template <class V, std::size_t... I>
PF_FN V every_other(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (2 * I)...);
}
template <class V, std::size_t... I>
PF_FN V merged(V a, V b, bool high, std::index_sequence<I...>) {
    constexpr int n = sizeof...(I);
    return high ? __builtin_shufflevector(a, b, (n / 2 + I / 2 + I % 2 * n)...)
                : __builtin_shufflevector(a, b, (I / 2 + I % 2 * n)...);
}

// The taps of one place of the result that meet a pixel and no zero: pixel and weight of each, `count` to a place.
template <class S>
struct Meetings {
    std::unique_ptr<int64_t[]> number, pixel;
    std::unique_ptr<S[]> weight;
    Meetings(const Filter& f, int64_t places, int64_t size, int64_t pad)
        : number(new int64_t[places]()), pixel(new int64_t[places * f.count]), weight(new S[places * f.count]) {
        for (int64_t k = 0; k < places; ++k)
            for (int64_t m = 0; m < f.count; ++m) {
                const int64_t at = k * f.down + m - pad;
                if (at < 0 || at % f.up != 0 || at / f.up >= size) continue;
                pixel[k * f.count + number[k]] = at / f.up;
                weight[k * f.count + number[k]++] = static_cast<S>(f.taps[m]);
            }
    }
};

// Which pixels of a row of the input lie in a phase: pixel + k * pixel_step at place + k * place_step, k < number.
struct Run {
    int64_t number, pixel, place;
};

// A row with its zeros, the places of each phase together; those that no pixel reaches stay zero.
template <class S>
struct Spread {
    int64_t width, inner, phase, pixel_step, place_step;
    std::unique_ptr<Run[]> runs;
    std::unique_ptr<int64_t[]> offset;  // of the first element that a tap meets
    Spread(const Filter& f, int64_t width, int64_t out_width, int64_t inner, int64_t pad, int64_t slack)
        : width(width), inner(inner), runs(new Run[f.down]()), offset(new int64_t[f.count]) {
        const int64_t places = out_width + (f.count - 1) / f.down, common = std::gcd(f.up, f.down);
        phase = places * inner + slack, pixel_step = f.down / common, place_step = f.up / common;
        for (int64_t p = 0; p < f.down; ++p)
            for (int64_t place = 0; place < places; ++place) {
                const int64_t at = place * f.down + p - pad;
                if (at < 0 || at % f.up != 0 || at / f.up >= width) continue;
                if (runs[p].number++ == 0) runs[p].pixel = at / f.up, runs[p].place = place;
            }
        for (int64_t m = 0; m < f.count; ++m) offset[m] = m % f.down * phase + m / f.down * inner;
    }
    // Whether the row itself, zeros before and behind, is the layout.
    bool whole() const { return pixel_step == 1 && place_step == 1 && runs[0].pixel == 0 && runs[0].number == width; }
    void lay(const S* row, S* to, int64_t down) const {
        if (inner == 1 && pixel_step == 2 && place_step == 1 && down == 2) return lay_halves(row, to);
        for (int64_t p = 0; p < down; ++p, to += phase) {
            const S* from = row + runs[p].pixel * inner;
            S* at = to + runs[p].place * inner;
            const int64_t number = runs[p].number;
            if (pixel_step == 1 && place_step == 1)
                memcpy(at, from, number * inner * sizeof(S));
            else if (inner == 1)
                for (int64_t k = 0; k < number; ++k) at[k * place_step] = from[k * pixel_step];
            else
                for (int64_t k = 0; k < number; ++k)
                    memcpy(at + k * place_step * inner, from + k * pixel_step * inner, inner * sizeof(S));
        }
    }
    // Every other pixel to either phase. A vector may read behind the row.
    void lay_halves(const S* row, S* to) const {
        using V = std::conditional_t<std::is_same_v<S, float>, vfloat, vdouble>;
        constexpr int64_t kL = sizeof(V) / sizeof(S);
        for (int64_t p = 0; p < 2; ++p, to += phase) {
            const S* const from = row + runs[p].pixel;
            S* const at = to + runs[p].place;
            int64_t k = 0;
            for (; k + kL <= runs[p].number; k += kL)
                store(at + k, every_other(load<V>(from + 2 * k), load<V>(from + 2 * k + kL), Indices<V>{}));
            for (; k < runs[p].number; ++k) at[k] = from[2 * k];
        }
    }
};

// write(e, the sum over m of weight[m] * from(m)[e], number of elements) for count elements, a vector of them at a
// time. kNumber of 0: `number` of them. kSlack: behind the last element there is more to read.
template <int kNumber, bool kSlack, class T, class S, class F, class W>
PF_FN void sum_of(int64_t number, F from, const S* weight, int64_t count, W write) {
    using V = Pack<T>;
    constexpr int64_t kL = lanes<T>();
    const T* at[kNumber ? kNumber : 1];
    S by[kNumber ? kNumber : 1];
    for (int m = 0; m < kNumber; ++m) at[m] = from(m), by[m] = weight[m];
    const auto total = [&](auto read) {
        V sum = splat<V>(0);
        if constexpr (kNumber > 0) {
#pragma GCC unroll 4
            for (int m = 0; m < kNumber; ++m) sum += by[m] * read(at[m]);
        } else {
            for (int64_t m = 0; m < number; ++m) sum += weight[m] * read(from(m));
        }
        return sum;
    };
    int64_t e = 0;
    for (; e + kL <= count; e += kL) write(e, total([&](const T* p) { return Storage<T>::read(p + e); }), kL);
    if (e < count)
        write(e, total([&](const T* p) { return kSlack ? Storage<T>::read(p + e) : read_part(p + e, count - e); }),
              count - e);
}
// For the numbers of taps that are usual, and for any other.
template <class T, bool kSlack, class S, class F, class W>
PF_FN void weighted(int64_t number, F from, const S* weight, int64_t count, W write) {
    if (number == 4) return sum_of<4, kSlack, T>(number, from, weight, count, write);
    if (number == 2) return sum_of<2, kSlack, T>(number, from, weight, count, write);
    sum_of<0, kSlack, T>(number, from, weight, count, write);
}

// The even and the odd places of a row that is enlarged twice: the pixel that each tap meets at the first of them.
template <class S>
struct Doubled {
    int64_t number[2] = {}, before = 0;
    std::unique_ptr<int64_t[]> pixel;
    std::unique_ptr<S[]> weight;
    Doubled(const Filter& f, int64_t pad) : pixel(new int64_t[2 * f.count]), weight(new S[2 * f.count]) {
        for (int64_t r = 0; r < 2; ++r)
            for (int64_t m = 0; m < f.count; ++m) {
                const int64_t at = r + m - pad;
                if (at % 2 != 0) continue;
                pixel[r * f.count + number[r]] = at / 2;
                weight[r * f.count + number[r]++] = static_cast<S>(f.taps[m]);
                if (-at / 2 > before) before = -at / 2;
            }
    }
};

// kHow: what is done along a row.
enum How { kPixels, kDoubled, kSpread };

// kTaps of 0: as many as there are.
template <int kHow, int kTaps, class T, class V = Pack<T>, class S = Scalar<V>>
void filter(const T* x, T* y, const Filter& f, int64_t outer, int64_t height, int64_t width, int64_t inner,
            int64_t out_height, int64_t out_width, int64_t pad_x, int64_t pad_y, int threads) {
    constexpr int64_t kL = lanes<T>();
    const int64_t count = kTaps ? kTaps : f.count;
    const Meetings<S> down(f, out_height, height, pad_y);
    const Meetings<S> along(f, kHow == kPixels ? out_width : 0, width, pad_x);
    const Doubled<S> doubled(f, pad_x);
    const Spread<S> spread(f, width, out_width, inner, pad_x, kL);
    const std::unique_ptr<S[]> taps(new S[count]);
    for (int64_t m = 0; m < count; ++m) taps[m] = static_cast<S>(f.taps[m]);
    const int64_t line = width * inner, out_line = out_width * inner;
    const int64_t together = out_line < kPieceElements ? kPieceElements / out_line : 1;
    const int64_t parts = (out_height + together - 1) / together;
    const bool whole = kHow == kSpread && spread.whole();
    // Zeros ahead of a doubled row, and behind it for what its last places meet.
    const int64_t behind = kHow == kDoubled ? out_width / 2 + f.count + 2 * kL : kL;
    parallel_for(outer * parts, threads, outer * out_height * out_line < 2 * kSmallWork, [&](int64_t piece) {
        const int64_t n = piece / parts, begin = piece % parts * together;
        const int64_t end = begin + together < out_height ? begin + together : out_height;
        const std::unique_ptr<S[]> sum(new S[doubled.before + line + behind]());
        const std::unique_ptr<S[]> laid(new S[kHow == kSpread ? f.down * spread.phase : 1]());
        // Past the end of a row a vector holds zeros.
        S* const to_sum = whole ? laid.get() + spread.runs[0].place * inner : sum.get() + doubled.before;
        const T* const from = x + n * height * line;
        for (int64_t k = begin; k < end; ++k) {
            const int64_t number = down.number[k];
            const int64_t* const row = down.pixel.get() + k * f.count;
            weighted<T, false>(
                number, [&](int64_t m) { return from + row[m] * line; }, down.weight.get() + k * f.count, line,
                [&](int64_t e, V sum, int64_t) { store(to_sum + e, sum); });
            T* to = y + (n * out_height + k) * out_line;
            if constexpr (kHow == kPixels) {
                for (int64_t place = 0; place < out_width; ++place, to += inner) {
                    const int64_t met = along.number[place];
                    const int64_t* const pixel = along.pixel.get() + place * f.count;
                    weighted<S, true>(
                        met, [&](int64_t m) { return to_sum + pixel[m] * inner; }, along.weight.get() + place * f.count,
                        inner, [&](int64_t e, V sum, int64_t some) { write_some(to + e, sum, some); });
                }
            } else if constexpr (kHow == kDoubled) {
                for (int64_t e = 0; e < out_width; e += 2 * kL) {
                    V half[2];
                    for (int64_t r = 0; r < 2; ++r) {
                        const int64_t* const pixel = doubled.pixel.get() + r * f.count;
                        weighted<S, true>(
                            doubled.number[r], [&](int64_t m) { return to_sum + pixel[m] + e / 2; },
                            doubled.weight.get() + r * f.count, kL, [&](int64_t, V sum, int64_t) { half[r] = sum; });
                    }
                    const int64_t rest = out_width - e;
                    write_some(to + e, merged(half[0], half[1], false, Indices<V>{}), rest < kL ? rest : kL);
                    if (rest > kL)
                        write_some(to + e + kL, merged(half[0], half[1], true, Indices<V>{}),
                                   rest < 2 * kL ? rest - kL : kL);
                }
            } else {
                if (!whole) spread.lay(to_sum, laid.get(), f.down);
                for (int64_t e = 0; e < out_line; e += kL) {
                    V total = splat<V>(0);
                    for (int64_t m = 0; m < count; ++m) total += taps[m] * load<V>(laid.get() + spread.offset[m] + e);
                    write_some(to + e, total, out_line - e < kL ? out_line - e : kL);
                }
            }
        }
    });
}

}  // namespace

// The result has out_height x out_width pixels; pad_x and pad_y are zeros before the first one, negative to crop.
static const char* upfirdn2d(const void* x, void* y, const double* taps, int64_t count, int64_t up, int64_t down,
                             int64_t outer, int64_t height, int64_t width, int64_t inner, int64_t out_height,
                             int64_t out_width, int64_t pad_x, int64_t pad_y, int type, int threads) {
    if (up < 1 || down < 1 || count < 1) return "up, down and the number of taps must be at least 1";
    return with_type(type, [&](auto t) -> const char* {
        using T = decltype(t);
        if (outer < 1 || inner < 1 || out_height < 1 || out_width < 1) return nullptr;
        const bool pixels = inner >= lanes<T>(), doubled = inner == 1 && up == 2 && down == 1;
        const auto run = pixels       ? &filter<kPixels, 0, T>
                         : doubled    ? &filter<kDoubled, 0, T>
                         : count == 4 ? &filter<kSpread, 4, T>
                                      : &filter<kSpread, 0, T>;
        run(static_cast<const T*>(x), static_cast<T*>(y), {taps, count, up, down}, outer, height, width, inner,
            out_height, out_width, pad_x, pad_y, threads);
        return nullptr;
    });
}
PF_EXPORT(upfirdn2d);

}  // namespace PF_NAMESPACE
