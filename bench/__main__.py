"""`python -m bench`: the runs of `make bench`, one after another; its flags are those of run.py."""

import subprocess
import sys
from pathlib import Path

folder = Path(__file__).resolve().parent
for script in ("run.py", "outputs.py", "sdk.py"):
    flags = sys.argv[1:] if script == "run.py" else [a for a in sys.argv[1:] if a == "--quick"]
    subprocess.run([sys.executable, str(folder / script), *flags], check=True)
