"""What an operator's Prometheus reads off a node while a job runs."""

import time
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from raydenoise.config import DenoiseConfig
from raydenoise.pipelines import denoise
from raydenoise.pipelines.gauges import STAGES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray"),
]

OK, ERROR = (("status", "ok"),), (("status", "error"),)
SECONDS = 30.0  # Ray reports every ten seconds


@pytest.fixture
def private_ray() -> Iterator[None]:
    """A Ray as a job starts it for itself, without a dashboard; it stays when the job ends."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoise, "session", lambda *_, **__: nullcontext())
        yield
    ray.shutdown()


def scraped(node: dict) -> dict[str, dict[tuple, float]]:
    """Read a node's metrics as Prometheus does: {name: {our labels: value}}, of ours alone."""
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found: dict[str, dict[tuple, float]] = {}
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith("ray_raydenoise_"):
            ours = tuple((name, sample.labels[name]) for name in ("status", "stage", "le") if name in sample.labels)
            values = found.setdefault(sample.name, {})
            values[ours] = values.get(ours, 0) + sample.value
    return found


def wait_for(node: dict, *, images: int) -> dict[str, dict[tuple, float]]:
    """Scrape until so many pictures are counted, or long enough."""
    end = time.monotonic() + SECONDS
    while True:
        found = scraped(node)
        if sum(found.get("ray_raydenoise_images_total", {}).values()) >= images or time.monotonic() > end:
            return found
        time.sleep(1)


@pytest.mark.usefixtures("private_ray")
def test_the_exported_counts_equal_the_rows(tmp_path: Path, photographs: Path, tiny_bundle: Path) -> None:
    (photographs / "empty.png").write_bytes(b"")
    (photographs / "text.jpg").write_bytes(b"no picture at all")
    output = tmp_path / "out"
    denoise.run(DenoiseConfig(input=str(photographs), output=str(output), model=str(tiny_bundle), quiet=True))

    found = wait_for(ray.nodes()[0], images=7)
    time.sleep(2)
    assert scraped(ray.nodes()[0]) == found, "nothing is counted later"

    rows = pq.read_table(output / "metrics")
    ok = rows.filter(pc.field("status") == "ok")
    assert (len(ok), len(rows)) == (5, 7)
    assert found["ray_raydenoise_images_total"] == {OK: 5, ERROR: 2}
    pixels = sum(row["height"] * row["width"] for row in ok.to_pylist())
    assert found["ray_raydenoise_megapixels_total"] == {(): pytest.approx(pixels / 1e6)}
    for stage, column in STAGES.items():
        seconds = rows[column].drop_null().to_pylist()
        labels = (("stage", stage),)
        assert found["ray_raydenoise_stage_seconds_count"][labels] == len(seconds)
        assert found["ray_raydenoise_busy_seconds_total"][labels] == pytest.approx(sum(seconds))
        for bound in ("0.03", "1.0", "+Inf"):
            below = sum(value <= float(bound) for value in seconds)
            assert found["ray_raydenoise_stage_seconds_bucket"][(*labels, ("le", bound))] == below
    counts = {dict(labels)["stage"]: count for labels, count in found["ray_raydenoise_stage_seconds_count"].items()}
    assert counts == {"decode": 7, "denoise": 5, "encode": 5}, "a failed picture counts in the stage where it failed"
