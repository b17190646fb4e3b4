"""What a large job keeps in the driver: a few blocks a task, however many pictures it has; and rows come early."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pytest
import ray

from raydenoise.data.schema import SOURCES
from raydenoise.pipelines import stages
from raydenoise.pipelines.parcels import grouped, pack, unpack
from raydenoise.pipelines.session import configure_data
from raydenoise.pipelines.sources import Found
from raydenoise.pipelines.stages import DenoiseActor, FusedActor, Stages, Work
from tests.conftest import noisy_pixels
from tests.pipelines.test_attempts import board_of, told

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


class Copying(DenoiseActor):
    """Stands for a GPU actor; gives the pixels back."""

    def __init__(self, stages: Stages) -> None:
        self._stages, self._watch = stages, stages.watch()
        self.undecoded = 0

    def _whole(self, work: Work) -> Work:
        self.undecoded += not work.over
        return super()._whole(work)

    def _denoise(self, work: Work) -> None:
        assert work.picture is not None


def in_files(folder: Path, count: int) -> list[dict[str, Any]]:
    """So many small pictures, each of its own size."""
    folder.mkdir()
    for index in range(count):
        PIL.Image.fromarray(noisy_pixels(8 + index, 8, seed=index)).save(folder / f"{index:02}.png")
    names = [f"{index:02}.png" for index in range(count)]
    return [{"uri": str(folder / name), "key": name, "output_key": name, "reference_uri": None} for name in names]


def stages_to(folder: Path) -> Stages:
    return told(board_of(4), "p", folder)


def decoded(sources: list[dict[str, Any]], out: Path) -> list[list[Work]]:
    return [works for parcel in stages.decode_batch(pack(sources), stages=stages_to(out)) for works in unpack(parcel)]


@pytest.mark.parametrize(
    ("pictures", "parcels"), [(1, [1]), (8, [1] * 8), (16, [2] * 8), (64, [4] * 16), (13, [2] * 6 + [1])]
)
def test_how_many_pictures_share_a_parcel_for_a_gpu(pictures: int, parcels: list[int], tmp_path: Path) -> None:
    found = decoded(sources(pictures), tmp_path)
    assert [len(works) for works in found] == parcels
    assert [work.source["key"] for works in found for work in works] == [str(i) for i in range(pictures)]


@pytest.mark.parametrize("room", [1, 1000, stages.PARCEL_BYTES])
@pytest.mark.parametrize("count", [6, 32])
def test_which_pictures_share_a_parcel_does_not_depend_on_what_fails(
    count: int, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Ray does a task again it goes on behind the parcels that it has, by number, and more may fail by then."""
    monkeypatch.setattr(stages, "PARCEL_BYTES", room)
    found = in_files(tmp_path / "in", count)
    first = [[work.source["key"] for work in works] for works in decoded(found, tmp_path)]
    for bad in (1, 2, 5):
        Path(found[bad]["uri"]).unlink()
        again = decoded(found, tmp_path)
        assert [[work.source["key"] for work in works] for works in again] == first


def test_a_parcel_holds_no_more_pixels_than_its_room_and_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "PARCEL_BYTES", 300)
    held = [[stages._pixel_bytes(work) for work in works] for works in decoded(in_files(tmp_path / "in", 32), tmp_path)]
    assert held[0] == [8 * 8 * 3, 9 * 8 * 3, 0, 0]
    assert all(sum(sizes) - max(sizes) < 300 for sizes in held)


def test_what_a_parcel_has_no_room_for_is_done_by_the_gpu_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = in_files(tmp_path / "in", 32)
    Path(found[3]["uri"]).write_bytes(b"broken")
    outputs = []
    for room, undecoded in ((1, 24), (stages.PARCEL_BYTES, 0)):  # of four, one fills a parcel of no room
        monkeypatch.setattr(stages, "PARCEL_BYTES", room)
        those = stages_to(tmp_path / str(room))
        actor = Copying(those)
        rows = []
        for parcel in stages.decode_batch(pack(found), stages=those):
            for denoised in actor(parcel):
                for done in stages.publish_batch(denoised, stages=those):
                    rows += [row for table in unpack(done) for row in table.to_pylist()]
        assert actor.undecoded == undecoded
        assert [(row["key"], row["status"]) for row in rows] == [
            (source["key"], "error" if source["key"] == "03.png" else "ok") for source in found
        ]
        assert all(row["finished_at"] and (row["status"] == "error" or row["encode_s"] is not None) for row in rows)
        outputs.append({path.name: path.read_bytes() for path in (tmp_path / str(room) / "images").iterdir()})
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 31


def test_ray_makes_one_block_of_each_parcel() -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        configure_data(verbose=False)
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
