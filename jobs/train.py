"""Entry point for `ray job submit --working-dir . -- python jobs/train.py ...`: `raydenoise train`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raydenoise.cli import train

if __name__ == "__main__":
    sys.exit(train())
