"""The scripts of bench/ import each other by their bare names, as they do where one of them is run."""

import sys
from pathlib import Path

# Last, for bench/train.py and bench/convert.py are not the packages of these names.
sys.path.append(str(Path(__file__).parents[2] / "bench"))
