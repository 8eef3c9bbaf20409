"""`python -m bench`: the run of `make bench`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from run import main  # the line above makes it importable

main()
