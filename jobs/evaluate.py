"""Entry point for `ray job submit --working-dir . -- python jobs/evaluate.py ...`: `raydenoise evaluate`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raydenoise.cli import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
