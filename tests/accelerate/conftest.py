"""What the tests of `accelerate` share."""

import sys
from pathlib import Path

# For `same` and `flow_points`.
sys.path.insert(0, str(Path(__file__).parent))
