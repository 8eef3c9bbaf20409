"""What RunPod looks for in a repository and the image runs: `hilbert runpod`, under its usual name."""

import sys

from hilbert.cli import main

if __name__ == "__main__":
    sys.exit(main(["runpod", *sys.argv[1:]]))
