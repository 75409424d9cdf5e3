"""Makes the scripts of bench/ importable by their names, as they are when one of them runs."""

import sys
from pathlib import Path

# Last, for bench/train.py and bench/convert.py are not the packages of these names.
sys.path.append(str(Path(__file__).parents[2] / "bench"))
