"""What the tests of the GAN family share."""

import sys
from pathlib import Path

# For `critics`.
sys.path.insert(0, str(Path(__file__).parent))
