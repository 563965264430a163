"""What several tests of the device manager need."""

from __future__ import annotations

import sys
from pathlib import Path

# Test modules in importlib mode have no package to import ``switching`` from
sys.path.append(str(Path(__file__).parent))
