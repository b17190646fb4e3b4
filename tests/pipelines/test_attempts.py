"""Laws of attempts: a picture that kills its process is found and given up, and no other one is."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray

from raydenoise.config import DenoiseConfig
from raydenoise.data.lease import LeaseLostError
from raydenoise.data.manifest import Output
from raydenoise.data.schema import METRICS, metrics_table
from raydenoise.pipelines import attempts, stages
from raydenoise.pipelines.attempts import Attempts
from raydenoise.pipelines.parcels import pack, unpack
from raydenoise.pipelines.stages import WHOLE, Stages, Work, decode_batch, one_by_one, without_pictures


def board_of(limit: int, agreed: Path = Path("/nowhere")) -> Attempts:
    return Attempts(limit, agreed, {})


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Which machines are up."""
    up = {"n": True}
    monkeypatch.setattr(attempts.ray, "nodes", lambda: [{"NodeID": name, "Alive": alive} for name, alive in up.items()])
    return up


def test_what_was_begun_by_a_dead_process_is_suspect_and_then_given_up() -> None:
    board = board_of(3)
    keys = ["a", "b", "c"]
    assert board.enter("p1", keys, WHOLE).suspect == frozenset()
    for key in keys:
        board.begin("p1", "n", key, WHOLE)
    board.end("p1", "a", WHOLE)
    # p1 dies with b and c open; of those done alone, c kills again
    assert board.enter("p2", keys, WHOLE).suspect == {"b", "c"}
    board.begin("p2", "n", "b", WHOLE)
    board.end("p2", "b", WHOLE)
    board.begin("p2", "n", "c", WHOLE)
    found = board.enter("p3", keys, WHOLE)
    assert found.suspect == {"b", "c"}
    assert found.given_up == {}
    board.begin("p3", "n", "c", WHOLE)
    found = board.enter("p4", keys, WHOLE)
    assert found.suspect == {"b", "c"}
    assert found.unsure == {"p1": "n", "p2": "n", "p3": "n"}, "their machine may have gone with them"
    board.hear(dict.fromkeys(found.unsure, True))
    found = board.enter("p4", keys, WHOLE)
    assert found.suspect == {"b"}
    assert found.given_up.keys() == {"c"}
    assert not found.unsure
    assert found.given_up["c"]["error_type"] == "process_died"
    assert "died 3 times" in found.given_up["c"]["error_message"]
    assert board.enter("p5", keys, WHOLE).given_up.keys() == {"c"}, "Ray may do a block again"


def test_a_machine_that_vanished_is_not_the_pictures_fault(nodes: dict[str, bool]) -> None:
    board = board_of(1)
    board.begin("p1", "n", "a", WHOLE)
    nodes["n"] = False
    found = board.enter("p2", ["a"], WHOLE)
    assert (found.suspect, found.given_up, found.unsure) == (frozenset(), {}, {})


def test_nor_one_of_which_ray_does_not_know_yet_that_it_vanished(nodes: dict[str, bool]) -> None:
    nodes["m"] = True
    board = board_of(2)
    for process, node in (("p1", "n"), ("p2", "m")):
        assert not board.enter(process, ["a"], WHOLE).given_up
        board.begin(process, node, "a", WHOLE)
    found = board.enter("p3", ["a"], WHOLE)
    assert (found.suspect, found.given_up, found.unsure) == ({"a"}, {}, {"p1": "n", "p2": "m"})
    board.hear({"p1": True, "p2": False})
    found = board.enter("p3", ["a"], WHOLE)
    assert (found.suspect, found.given_up, found.unsure) == ({"a"}, {}, {})
    board.begin("p3", "n", "a", WHOLE)
    found = board.enter("p4", ["a"], WHOLE)
    assert found.unsure == {"p3": "n"}, "and what was proved once is not asked again"
    board.hear({"p3": True})
    assert "died 2 times" in board.enter("p4", ["a"], WHOLE).given_up["a"]["error_message"]


def test_a_process_is_not_suspected_of_its_own_work() -> None:
    board = board_of(1)
    board.begin("p1", "n", "a", WHOLE)
    assert board.enter("p1", ["a"], WHOLE).suspect == frozenset()


def test_a_picture_that_takes_too_long_is_given_up_at_once() -> None:
    board = board_of(4)
    board.begin("p1", "n", "a", WHOLE)
    error = {"error_type": "timeout", "error_message": "decode took longer than ..."}
    board.give_up("p1", "a", error)
    assert board.enter("p2", ["a", "b"], WHOLE).given_up == {"a": error}


def test_the_first_proposal_holds(tmp_path: Path) -> None:
    board = board_of(4, tmp_path / "agreed")
    assert [board.agree("precision", value) for value in ("float32", "bfloat16")] == ["float32", "float32"]


def test_what_is_known_from_before_holds_against_any_proposal(tmp_path: Path) -> None:
    board = Attempts(4, tmp_path / "agreed", {"precision": "float32"})
    assert board.agree("precision", "bfloat16") == "float32"


@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
def test_proposals_hold_though_the_process_that_keeps_them_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the nodes are real
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        actor = attempts.start(4, agreed=tmp_path / ".partial" / "job", known={"sigma": "from before"})

        def asked(method: str, *arguments: Any) -> Any:
            return ray.get(getattr(actor, method).remote(*arguments))

        assert asked("agree", "precision", "float32") == "float32"
        asked("begin", "p", "n", "a", WHOLE)
        assert asked("enter", "another", ["a"], WHOLE).suspect == {"a"}
        ray.kill(actor, no_restart=False)
        while asked("enter", "another", ["a"], WHOLE).suspect:  # it lives until the kill arrives
            pass
        assert asked("agree", "precision", "bfloat16") == "float32"
        assert asked("agree", "sigma", "other") == "from before"
    finally:
        ray.shutdown()


def test_nothing_is_kept_of_what_ended() -> None:
    board = board_of(4)
    for index in range(100):
        board.enter("p", [str(index)], WHOLE)
        board.begin("p", "n", str(index), WHOLE)
        board.end("p", str(index), WHOLE)
    assert not board._begun
    assert not board._accused


def test_a_stage_that_is_done_again_does_not_accuse_the_process_that_has_the_next_one() -> None:
    board = board_of(1)
    board.begin("actor", "n", "a", "denoise")
    again = board.enter("decoder", ["a"], "decode")
    assert (again.suspect, again.given_up, again.unsure) == (frozenset(), {}, {})
    assert board.enter("actor-2", ["a"], "denoise").unsure == {"actor": "n"}, "but who comes in its place does"


def test_deaths_count_in_whatever_stage_they_were() -> None:
    board = board_of(2)
    for process, stage in (("p1", "decode"), ("p2", "denoise")):
        board.begin(process, "n", "a", stage)
        board.enter(f"{process}-again", ["a"], stage)
    board.hear({"p1": True, "p2": True})
    assert board.enter("p3", ["a"], "publish").given_up.keys() == {"a"}


class Board:
    """A process's side of a board in this process; its calls come and go at once."""

    def __init__(self, board: Attempts, process: str) -> None:
        self._board, self._process = board, process

    def enter(self, keys: list[str], *, stage: str) -> Any:
        return self._board.enter(self._process, keys, stage)

    def begin(self, key: str, *, stage: str) -> None:
        self._board.begin(self._process, "n", key, stage)

    def end(self, key: str, *, stage: str) -> None:
        self._board.end(self._process, key, stage)

    def stage(self, *_: str) -> AbstractContextManager[None]:
        return nullcontext()


class Told(Stages):
    """Stages of a process that tells a board of this test's."""

    def watch(self) -> Any:
        return self.attempts


def told(board: Attempts, process: str, out: Path = Path("/out")) -> Told:
    return Told(DenoiseConfig(input="/nowhere", output=str(out)), Output(out), Board(board, process))  # type: ignore[arg-type]


def works(*keys: str) -> list[Work]:
    return [Work({"uri": key, "key": key, "output_key": key, "reference_uri": None}, {"key": key}) for key in keys]


def test_a_picture_has_ended_when_who_takes_it_gets_it() -> None:
    board = board_of(4)
    for work in one_by_one(told(board, "p"), works("a", "b"), lambda work: work, stage="decode"):
        assert not board._begun, f"{work.source['key']} is with the next stage"


def test_no_parcel_that_was_handed_on_is_held_against_a_live_process() -> None:
    board: Any = board_of(1)
    decoded = decode_batch(
        pack([work.source for work in works("a", "b", "c", "d", "e")]), stages=told(board, "decoder")
    )
    (parcel,) = unpack(next(decoded))
    assert parcel, "of pictures that are not there"
    found = board.enter("actor", [work.source["key"] for work in parcel], "decode")
    assert (found.suspect, found.unsure) == (frozenset(), {})


def test_the_largest_picture_answers_for_what_packing_a_parcel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    board: Any = board_of(4)
    monkeypatch.setattr(stages, "_pixel_bytes", lambda work: {"a": 1, "b": 3, "c": 2}[work.source["key"]])
    monkeypatch.setattr(stages, "pack", lambda _: {key: dict(begun) for key, begun in board._begun.items()})
    assert stages.packed(Board(board, "p"), works("a", "b", "c"), stage="decode") == {"b": {("p", "decode"): "n"}}  # type: ignore[arg-type]
    assert not board._begun


FAILED = {"status": "error", "error_type": "ValueError"}


@pytest.mark.parametrize("there", [True, False])
def test_of_a_picture_that_is_given_up_after_it_was_published_no_file_stays(there: bool, tmp_path: Path) -> None:
    """Its process is stopped, or dies the last time, between the rename and the row."""
    board = board_of(4)
    error = {"error_type": "timeout", "error_message": "encode took longer than ..."}
    board.give_up("p", "a/b.png", error)
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("a/b.png",) * there + ("c.png",):
        (tmp_path / "images" / name).write_bytes(b"picture")

    def publish(work: Work) -> Work:
        uri = str(tmp_path / "images" / "c.png")
        work.row.update({"status": "ok", "output_uri": uri} if work.source["key"] == "c.png" else FAILED)
        return work

    done = one_by_one(told(board, "p2", tmp_path), works("a/b.png", "../c.png", "c.png"), publish, stage="publish")
    rows = metrics_table([work.row for work in done])
    assert (tmp_path / "images" / "a" / "b.png").exists() == there, "the row may never reach the driver"
    rows = without_pictures(rows)
    assert rows.schema == METRICS
    assert rows["output_uri"].to_pylist() == [None, None, str(tmp_path / "images" / "c.png")]
    assert rows["error_type"].to_pylist() == ["timeout", "ValueError", None]
    assert [path for path in (tmp_path / "images").rglob("*") if path.is_file()] == [tmp_path / "images" / "c.png"]


def test_only_a_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "a.png" / "b.png").touch()
    row = {"key": "a.png", "status": "error", "error_type": "timeout", "output_uri": str(tmp_path / "a.png")}
    assert without_pictures(metrics_table([row]))["output_uri"].to_pylist() == [None]
    assert (tmp_path / "a.png" / "b.png").exists(), "another picture's folder has the name"


def test_a_job_that_lost_its_lease_removes_no_picture(tmp_path: Path) -> None:
    def refuse() -> None:
        raise LeaseLostError

    (tmp_path / "a.png").touch()
    row = {"key": "a.png", "status": "error", "error_type": "timeout", "output_uri": str(tmp_path / "a.png")}
    with pytest.raises(LeaseLostError):
        without_pictures(metrics_table([row]), allowed=refuse)
    assert (tmp_path / "a.png").exists()
