"""The contract that every op keeps, as checks over what the registry says of it.

`check_op(op)` runs them all; the test suite runs them one by one for every registered op, sample,
dtype and backend. Each check raises AssertionError and says what was found.
"""

from pyfastgan.testing.calls import assert_same, backends, derivatives, run, tensors_of
from pyfastgan.testing.contract import PER_DTYPE, PER_SAMPLE, check_bad_call, check_op
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
