"""Metrics for who operates the cluster, through Ray's own exporter: docs/cluster.md, "Metrics".

The driver counts the rows as they arrive, which is once for each picture. An actor would count a picture again when
its task is tried again, and what it had counted since its last report would go with its process.
"""

import pyarrow as pa
from ray.util.metrics import Counter, Histogram

STAGES = {"decode": "decode_s", "denoise": "infer_s", "encode": "encode_s"}  # a stage and its column
SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]  # thumbnails to pictures of 200 megapixels


class Gauges:
    """What a job reports while it runs. Make it where Ray is connected."""

    def __init__(self) -> None:
        self._images = Counter(
            "raydenoise_images_total", "Pictures that are done, by their status: ok or error.", ("status",)
        )
        self._megapixels = Counter("raydenoise_megapixels_total", "Megapixels of the pictures with the status ok.")
        self._seconds = Histogram(
            "raydenoise_stage_seconds", "Seconds of one picture in a stage, failed ones too.", SECONDS, ("stage",)
        )
        # Of a histogram Ray exports counts alone and makes up its sum from the buckets' middles.
        self._busy = Counter("raydenoise_busy_seconds_total", "Seconds of all pictures in a stage.", ("stage",))

    def add(self, rows: pa.Table) -> None:
        """Count rows of `schema.METRICS`."""
        for row in rows.select(["status", "height", "width", *STAGES.values()]).to_pylist():
            self._images.inc(1, {"status": row["status"]})
            if row["status"] == "ok":
                self._megapixels.inc(row["height"] * row["width"] / 1e6)
            for stage, column in STAGES.items():
                if row[column]:
                    self._seconds.observe(row[column], {"stage": stage})
                    self._busy.inc(row[column], {"stage": stage})
