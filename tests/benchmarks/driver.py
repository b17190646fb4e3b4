"""How the driver's memory grows with what is done: rows of pictures that nobody denoises.

    python tests/benchmarks/driver.py [--pictures 100000] [--job-of 2000000]

`denoise` as it is, but its actors return the row of a picture at once: all that the driver does for a picture is the
same. INPUT is a listing. Tasks are as large as those of a job of `--job-of` pictures. One JSON line: MB of the driver's
own memory (anonymous RSS) after a tenth of the pictures and at the end, each as it is and once the allocator gave back
what nobody holds; and the bytes that each picture between them left in the latter.
"""

import argparse
import ctypes
import gc
import json
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydenoise.config import DenoiseConfig
from raydenoise.pipelines import denoise, stages


class Idle(stages.FusedActor):
    """Returns rows as of pictures that are done."""

    def __init__(self, *_: Any) -> None:
        pass

    def _rows(self, sources: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        times = dict.fromkeys(("sigma", "decode_s", "infer_s", "encode_s"), 1.0)
        for source in sources:
            done = {"uri": source["uri"], "key": source["key"], "status": "ok", "worker": "host/1"}
            yield {**times, **done, "height": 9, "width": 9}


class Looks:
    """The driver's memory by pictures done; stands in for the display."""

    def __init__(self, total: int, **_: Any) -> None:
        self.total, self.seen = total, []

    def __enter__(self) -> "Looks":
        LOOKS.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, *, done: int, failed: int) -> None:
        del failed
        if (not self.seen and done >= self.total / 10) or done == self.total:
            before = anonymous()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            self.seen.append((done, before, anonymous()))


LOOKS: list[Looks] = []


def anonymous() -> int:
    """Bytes of this process's own memory."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def main() -> None:
    """Run once and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--job-of", type=int, default=2_000_000)
    arguments = parser.parse_args()
    plan = denoise.make_plan
    denoise.make_plan = lambda config, images: plan(config, images=max(images, arguments.job_of))
    denoise.FusedActor, denoise.Display = Idle, Looks  # type: ignore[misc, assignment]
    with tempfile.TemporaryDirectory() as folder:
        uris = [f"/a-bucket-with-a-name/photographs/2026/{index:09d}.png" for index in range(arguments.pictures)]
        pq.write_table(pa.table({"uri": uris}), f"{folder}/list.parquet")
        del uris
        began = time.monotonic()
        denoise.run(DenoiseConfig(list=f"{folder}/list.parquet", output=f"{folder}/out", quiet=True))
        seconds = time.monotonic() - began
    (seen,) = [look.seen for look in LOOKS]
    first, last = seen
    line = {
        "name": "driver",
        "pictures": arguments.pictures,
        "job_of": arguments.job_of,
        "after_a_tenth_mb": round(first[1] / 1e6),
        "at_the_end_mb": round(last[1] / 1e6),
        "held_after_a_tenth_mb": round(first[2] / 1e6),
        "held_at_the_end_mb": round(last[2] / 1e6),
        "bytes_held_a_picture": round((last[2] - first[2]) / (last[0] - first[0])),
        "pictures_a_second": round(arguments.pictures / seconds),
        "hardware": platform.machine(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
