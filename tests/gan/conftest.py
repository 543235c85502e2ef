"""What the tests of the GAN family share."""

import sys
from pathlib import Path

# For `critics` and `critic_steps`.
sys.path.insert(0, str(Path(__file__).parent))
