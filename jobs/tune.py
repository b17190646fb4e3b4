"""Entry point for `ray job submit --working-dir . -- python jobs/tune.py ...`: `raydenoise tune`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raydenoise.cli import tune

if __name__ == "__main__":
    sys.exit(tune())
