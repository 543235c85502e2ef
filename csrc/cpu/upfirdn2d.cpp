// Zeros between the pixels, a filter that is one row of taps in each direction, and every so many-th pixel kept.
//
// A row of the result is first summed over rows of the input, which touches no zeros. The sum is laid out with zeros,
// a phase of `down` after another, so that each tap meets one run of memory. Memory is (outer, height, width, inner),
// channels-last with inner = C, else inner = 1; what is along a row goes by vectors, whatever a pixel holds.
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
        for (int64_t p = 0; p < down; ++p, to += phase) {
            const S* from = row + runs[p].pixel * inner;
            S* at = to + runs[p].place * inner;
            const int64_t number = runs[p].number;
            if (pixel_step == 1 && place_step == 1)
                memcpy(at, from, number * inner * sizeof(S));
            else if (inner == 1 && pixel_step == 1 && place_step == 2)
                for (int64_t k = 0; k < number; ++k) at[2 * k] = from[k];
            else if (inner == 1 && pixel_step == 2 && place_step == 1)
                for (int64_t k = 0; k < number; ++k) at[k] = from[2 * k];
            else
                for (int64_t k = 0; k < number; ++k)
                    memcpy(at + k * place_step * inner, from + k * pixel_step * inner, inner * sizeof(S));
        }
    }
};

// kTaps of 0: as many as there are.
template <int kTaps, class T, class V = Pack<T>, class S = Scalar<V>>
void filter(const T* x, T* y, const Filter& f, int64_t outer, int64_t height, int64_t width, int64_t inner,
            int64_t out_height, int64_t out_width, int64_t pad_x, int64_t pad_y, int threads) {
    constexpr int64_t kL = lanes<T>();
    const int64_t count = kTaps ? kTaps : f.count;
    const Meetings<S> down(f, out_height, height, pad_y);
    const Spread<S> spread(f, width, out_width, inner, pad_x, kL);
    const std::unique_ptr<S[]> taps(new S[count]);
    for (int64_t m = 0; m < count; ++m) taps[m] = static_cast<S>(f.taps[m]);
    const int64_t line = width * inner, out_line = out_width * inner;
    const int64_t together = out_line < kPieceElements ? kPieceElements / out_line : 1;
    const int64_t parts = (out_height + together - 1) / together;
    parallel_for(outer * parts, threads, outer * out_height * out_line < 2 * kSmallWork, [&](int64_t piece) {
        const int64_t n = piece / parts, begin = piece % parts * together;
        const int64_t end = begin + together < out_height ? begin + together : out_height;
        const std::unique_ptr<S[]> sum(new S[line + kL]), laid(new S[f.down * spread.phase]());
        for (int64_t k = begin; k < end; ++k) {
            const int64_t* row = down.pixel.get() + k * f.count;
            const S* by = down.weight.get() + k * f.count;
            // Past the end of a row a vector holds zeros.
            S* to_sum = spread.whole() ? laid.get() + spread.runs[0].place * inner : sum.get();
            for (int64_t e = 0; e < line; e += kL) {
                const int64_t some = line - e < kL ? line - e : kL;
                V total = splat<V>(0);
                for (int64_t m = 0; m < down.number[k]; ++m)
                    total += by[m] * read_some(x + (n * height + row[m]) * line + e, some);
                store(to_sum + e, total);
            }
            if (!spread.whole()) spread.lay(sum.get(), laid.get(), f.down);
            T* to = y + (n * out_height + k) * out_line;
            for (int64_t e = 0; e < out_line; e += kL) {
                V total = splat<V>(0);
                for (int64_t m = 0; m < count; ++m) total += taps[m] * load<V>(laid.get() + spread.offset[m] + e);
                write_some(to + e, total, out_line - e < kL ? out_line - e : kL);
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
        const auto run = count == 4 ? &filter<4, T> : &filter<0, T>;
        run(static_cast<const T*>(x), static_cast<T*>(y), {taps, count, up, down}, outer, height, width, inner,
            out_height, out_width, pad_x, pad_y, threads);
        return nullptr;
    });
}
PF_EXPORT(upfirdn2d);

}  // namespace PF_NAMESPACE
