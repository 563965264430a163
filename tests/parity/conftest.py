"""Makes ``diffusers_models`` importable: test modules in importlib mode have no package to import it from."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
