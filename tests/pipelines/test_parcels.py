"""What a large job keeps in the driver: a few blocks a task, however many pictures it has; and rows come early."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import ray

from raydenoise.data.schema import SOURCES
from raydenoise.pipelines import stages
from raydenoise.pipelines.denoise import BLOCK_BYTES
from raydenoise.pipelines.parcels import grouped, pack, unpack
from raydenoise.pipelines.session import configure_data
from raydenoise.pipelines.sources import Found
from raydenoise.pipelines.stages import FusedActor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")


class Idle(FusedActor):
    """Returns a row as soon as it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def _rows(self, sources: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for source in sources:
            self.asked.append(source["key"])
            yield {"key": source["key"]}


def sources(count: int) -> list[dict[str, Any]]:
    return [{"uri": f"/in/{i}", "key": str(i), "output_key": str(i), "reference_uri": None} for i in range(count)]


@pytest.mark.parametrize(("pictures", "parcels"), [(1, 1), (5, 5), (8, 8), (9, 5), (64, 8), (65, 8)])
def test_a_task_returns_eight_parcels_at_most_with_its_rows_in_order(pictures: int, parcels: int) -> None:
    found = [list(unpack(parcel)) for parcel in Idle()(pack(sources(pictures)))]
    assert [len(tables) for tables in found] == [1] * parcels
    keys = [key for (table,) in found for key in table["key"].to_pylist()]
    assert keys == [str(i) for i in range(pictures)]


def test_a_parcel_comes_when_it_is_full_and_not_at_the_end_of_the_task() -> None:
    actor = Idle()
    next(actor(pack(sources(64))))
    assert actor.asked == [str(i) for i in range(8)]


def test_groups_are_full_but_the_last() -> None:
    assert list(grouped(range(7), size=3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(grouped([], size=3)) == []


def test_pictures_for_a_gpu_share_a_parcel_unless_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "PARCEL_BYTES", 100)
    monkeypatch.setattr(stages, "_pixel_bytes", lambda work: int(work.source["uri"]))
    monkeypatch.setattr(stages, "one_by_one", lambda *args, **_: args[1])
    monkeypatch.setattr(stages, "packed", lambda _, works, **__: pack(works))
    few = [{"uri": size, "key": str(i)} for i, size in enumerate(("1", "2", "3", "4", "100", "60", "60", "5"))]
    parcels = stages.decode_batch(pack(few), stages=Sourced())  # type: ignore[arg-type]
    assert [[work.source["key"] for work in works] for parcel in parcels for works in unpack(parcel)] == [
        ["0", "1", "2", "3"],
        ["4"],
        ["5", "6"],
        ["7"],
    ]


class Sourced:
    """Stands for `Stages` where nothing is decoded."""

    def watch(self) -> None:
        return None

    def waiting(self, source: dict[str, Any]) -> stages.Work:
        return stages.Work(source, {})

    def decode(self, work: stages.Work) -> stages.Work:
        return work


def test_ray_makes_one_block_of_each_parcel() -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        configure_data(block_bytes=BLOCK_BYTES, verbose=False)
        dataset = Found(pa.Table.from_pylist(sources(100), schema=SOURCES)).dataset(rows=40)
        blocks = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        assert [[len(task) for task in unpack(block)] for block in blocks] == [[40], [40], [20]]
        done = dataset.map_batches(
            Idle, batch_size=1, batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=1)
        )
        blocks = list(done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        assert [len(block) for block in blocks] == [1] * 23
        keys = [key for block in blocks for rows in unpack(block) for key in rows["key"].to_pylist()]
        assert sorted(keys, key=int) == [str(i) for i in range(100)]
    finally:
        ray.shutdown()
