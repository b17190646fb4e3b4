"""Entry point for `ray job submit --working-dir . -- python jobs/prepare.py ...`: `raydenoise prepare`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raydenoise.cli import prepare

if __name__ == "__main__":
    sys.exit(prepare())
