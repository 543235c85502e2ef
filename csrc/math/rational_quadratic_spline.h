// Monotone rational-quadratic splines (Gregory and Delbourgo 1982; Durkan et al. 2019, "Neural spline flows"): what is
// computed within one bin, in both directions, and its gradients. Finding the bin is a loop, which the callers own.
//
// The bins of an axis are m + (1 - K m) softmax of K logits, times the range. Where x stands within a narrow bin is a
// difference of almost equal numbers, divided by the bin's width: rounded knots would cost the gradients three digits.
// So the sums that the knots are made of carry their rounding errors along, and the offset is taken from the unrounded
// sums, while a bin's own width comes from its own mass.
#pragma once

#include "elementary.h"

namespace PF_NAMESPACE {

// One axis, horizontal or vertical: its knots are low + range * (k * minimum + free * share).
template <class S>
struct SplineAxis {
    S low, range, minimum, free;  // of the bins, as shares of the range; free = 1 - K * minimum
};

// A number in two parts.
template <class V>
struct Exact {
    V sum, rest;
};

template <class V>
PF_FN Exact<V> exact_sum(V a, V b) {
    const V sum = a + b, part = sum - a;
    return {sum, (a - (sum - part)) + (b - part)};
}

// Of masses from 0 to 1: the multiples of 2^-17 in them (float64: 2^-46) have a sum without rounding up to 64, and what
// is left of them is so small that its rounding does not count.
template <class V>
PF_FN void accumulate(Exact<V>& total, V mass) {
    const V coarse = (mass + Scalar<V>(96)) - Scalar<V>(96);
    total.sum = total.sum + coarse;
    total.rest = total.rest + (mass - coarse);
}

// What finding a bin on an axis needs: `at` from the lower end on, and range * free over the total of the masses.
template <class V>
struct Search {
    Exact<V> from_low, unit;
    V inverse_total;
};

template <class V>
PF_FN Search<V> search_axis(V at, const Exact<V>& masses, const SplineAxis<Scalar<V>>& axis) {
    const Exact<V> total = exact_sum(masses.sum, masses.rest);
    Search<V> s;
    s.from_low = exact_sum(at, splat<V>(-axis.low));
    s.inverse_total = Scalar<V>(1) / total.sum;
    const Scalar<V> width = axis.range * axis.free;
    s.unit.sum = width * s.inverse_total;
    s.unit.rest = ((width - s.unit.sum * total.sum) - s.unit.sum * total.rest) * s.inverse_total;
    return s;
}

// `at` less the knot that has k bins with the masses `below` before it.
template <class V>
PF_FN V offset_from(const Search<V>& s, const Exact<V>& below, V k, const SplineAxis<Scalar<V>>& axis) {
    const V main = s.from_low.sum - s.unit.sum * below.sum;
    const V rest = (s.from_low.rest - s.unit.rest * below.sum) - s.unit.sum * below.rest;
    return (main - axis.range * axis.minimum * k) + rest;
}

// One bin.
template <class V>
struct Bin {
    V x, width, y, height, left, right;  // lower corner, extent, derivatives at the two knots
    V over_width, slope;                 // 1 / width, height / width
};

// The spline at the share `theta` of a bin: value within the bin as a share of its height, and what derivatives need.
template <class V>
struct AtShare {
    V theta, rest, both;           // theta, 1 - theta, their product
    V slope, excess, below, above; // height / width, left + right - 2 slope, denominator, numerator of the value
    V over_below, bend, jacobian;  // 1 / denominator, numerator of the derivative, the derivative
};

template <class V>
PF_FN AtShare<V> spline_at(V theta, const Bin<V>& bin) {
    using S = Scalar<V>;
    AtShare<V> a;
    a.theta = theta;
    a.rest = S(1) - theta;
    a.both = theta * a.rest;
    a.slope = bin.slope;
    a.excess = bin.left + bin.right - S(2) * a.slope;
    a.above = a.slope * theta * theta + bin.left * a.both;
    a.below = a.slope + a.excess * a.both;
    a.bend = bin.right * theta * theta + S(2) * a.slope * a.both + bin.left * a.rest * a.rest;
    a.over_below = S(1) / a.below;
    const V ratio = a.slope * a.over_below;
    a.jacobian = ratio * ratio * a.bend;
    return a;
}

template <class V>
PF_FN V within_unit(V x) {
    x = select(x < Scalar<V>(0), splat<V>(0), x);
    return select(x > Scalar<V>(1), splat<V>(1), x);
}

// The share theta at which the spline reaches the share r of a bin's height: the root of a theta^2 + b theta = s r with
// a = s - b, each sign of b in the form that does not cancel. The discriminant b^2 + 4 a s r is written as a sum of
// what cannot be negative.
template <class V>
PF_FN V spline_root(V r, const Bin<V>& bin) {
    using S = Scalar<V>;
    const V slope = bin.slope, rest = S(1) - r, reach = S(2) * slope * r;
    const V b = rest * bin.left + r * (S(2) * slope - bin.right), middle = b - reach;
    const V root = square_root(middle * middle + S(2) * slope * rest * reach);
    const auto negative = b < S(0);
    return within_unit(select(negative, root - b, reach) / select(negative, S(2) * (slope - b), b + root));
}

// Gradients to everything that a bin is made of.
template <class V>
struct BinGradients {
    V at, x, width, y, height, left, right;
};

// d loss / d everything from those of y and of log dy/dx (forward), or of x and of log dx/dy (inverse).
//
// The inverse's are the forward's with other cotangents, since dx/dy = 1 / (dy/dx) and dx/dp = -(dy/dp) / (dy/dx).
template <class V>
PF_FN BinGradients<V> spline_gradients(V out, V log, const AtShare<V>& a, const Bin<V>& bin, bool inverse) {
    using S = Scalar<V>;
    const S one = 1, two = 2;
    const V over_below = a.over_below, over_bend = one / a.bend, over_width = bin.over_width;
    const V turn = one - two * a.theta;
    const V value = a.above * over_below;
    // d log(dy/dx) by theta, by the slope and by the two derivatives.
    const V log_theta = (two * (bin.right * a.theta - bin.left * a.rest + a.slope * turn)) * over_bend -
                        two * a.excess * turn * over_below;
    const V log_slope = two / a.slope + two * a.both * over_bend - two * (one - two * a.both) * over_below;
    const V log_left = a.rest * a.rest * over_bend - two * a.both * over_below;
    const V log_right = a.theta * a.theta * over_bend - two * a.both * over_below;
    BinGradients<V> g;
    V dy = out, dlog = log, theta;
    if (inverse) {
        dlog = -log;
        g.at = (out + dlog * log_theta * over_width) / a.jacobian;
        dy = -g.at;
        theta = -out * bin.width;
    } else {
        theta = dy * a.jacobian * bin.width + dlog * log_theta;
        g.at = theta * over_width;
    }
    const V scaled = dy * bin.height * over_below;
    const V slope = scaled * (a.theta * a.theta - value * (one - two * a.both)) + dlog * log_slope;
    g.left = scaled * a.both * (one - value) + dlog * log_left;
    g.right = -scaled * a.both * value + dlog * log_right;
    g.x = -theta * over_width;
    g.width = -(theta * a.theta + slope * a.slope) * over_width;
    g.y = dy;
    g.height = dy * value + slope * over_width;
    return g;
}

// e^x for x <= 0, at least 1e-38. The error, relative to 1, is half a unit in the last place: shares of a softmax need
// no more of small ones, and it takes fewer operations than `exponential`.
template <class V>
PF_FN V decay(V x) {
    x = select(x < -87.0f, splat<V>(-87.0f), x);
    const V shifted = x * 1.44269504f + 12582912.0f;
    const V r = x * 1.44269504f - (shifted - 12582912.0f);
    const V p = polynomial(r, 1.0f, 0.6931472f, 0.24022648f, 0.055503324f, 0.009618437f, 0.0013398874f, 0.00015353362f);
    return from_bits(as_bits(p) +
                     (as_bits(shifted) << 23));  // the integer in the low bits of `shifted` is the exponent
}
PF_FN double decay(double x) { return exponential(x); }

// ln(1 + e^x), and its derivative.
template <class V>
PF_FN V softplus(V x, V& derivative) {
    const V e = exponential(-absolute(x));
    const V one = splat<V>(1);
    const auto negative = x < Scalar<V>(0);
    derivative = select(negative, e, one) / (one + e);
    return select(negative, splat<V>(0), x) + log1p_unit(e);
}

// x / (1 + |x| / bound), whose derivative is (1 - |result| / bound)^2. A `pull` of 1 / bound = 0 leaves x.
template <class V>
PF_FN V soft_clip(V x, Scalar<V> pull) {
    return x / (Scalar<V>(1) + absolute(x) * pull);
}
template <class V>
PF_FN V soft_clip_slope(V clipped, Scalar<V> pull) {
    const V rest = Scalar<V>(1) - absolute(clipped) * pull;
    return rest * rest;
}

// A knot's derivative from its logit: minimum + softplus, or for `exponent` exp of the soft-clipped logit.
template <class S>
struct KnotSlope {
    S minimum, pull;
    bool exponent;
};

template <class V>
PF_FN V knot_slope(V logit, const KnotSlope<Scalar<V>>& k, V& derivative) {
    if (k.exponent) {
        const V clipped = soft_clip(logit, k.pull);
        const V value = exponential(clipped);
        derivative = value * soft_clip_slope(clipped, k.pull);
        return value;
    }
    return k.minimum + softplus(logit, derivative);
}

}  // namespace PF_NAMESPACE
