"""What every test shares: hypothesis takes the same examples on every machine, whatever its environment says.

To look for new ones: pytest --hypothesis-profile=default --hypothesis-seed=1 tests
"""

from hypothesis import settings

settings.register_profile("pyfastgan", derandomize=True, database=None, deadline=None)
settings.load_profile("pyfastgan")
