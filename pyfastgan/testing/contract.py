"""Which checks there are, and all of them for one op."""

from __future__ import annotations

import re

from pyfastgan.ops._backends import use_backend
from pyfastgan.ops._registry import FLOATS, BadCall, Op
from pyfastgan.testing.calls import backends
from pyfastgan.testing.transforms import (
    check_backward_twice,
    check_compiles,
    check_functional,
    check_highest_order,
    check_operators,
)
from pyfastgan.testing.values import (
    check_finite_differences,
    check_layouts,
    check_not_finite,
    check_same_bits,
    check_values,
)


def check_bad_call(op: Op, call: BadCall) -> None:
    """A call that must be refused is refused, with an error that says what was wrong."""
    try:
        op.function(*call.args, **call.kwargs)
    except call.error as error:
        assert re.search(call.says, str(error)), f"{op.name}, {call.label}: the error says {error}"
    else:
        raise AssertionError(f"{op.name}, {call.label}: no {call.error.__name__} was raised")


PER_SAMPLE = (
    check_finite_differences,
    check_operators,
    check_compiles,
    check_layouts,
    check_backward_twice,
    check_not_finite,
    check_functional,
    check_highest_order,
)


PER_DTYPE = (check_values, check_same_bits)


def check_op(op: Op, device: str = "cpu") -> None:
    """Everything, for each backend that can serve the op here."""
    for backend in backends(op, device):
        with use_backend(backend):
            for sample in op.samples:
                for check in PER_SAMPLE:
                    check(op, sample, device)
                for dtype in FLOATS:
                    for typed in PER_DTYPE:
                        typed(op, sample, dtype, device)
    for call in op.bad_calls:
        check_bad_call(op, call)
