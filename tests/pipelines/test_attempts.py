"""Laws of attempts: a picture that kills its process is found and given up, and no other one is."""

from typing import Any

import pytest

from raydenoise.pipelines import attempts
from raydenoise.pipelines.attempts import Attempts


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Which machines are up."""
    up = {"n": True}
    monkeypatch.setattr(attempts.ray, "nodes", lambda: [{"NodeID": name, "Alive": alive} for name, alive in up.items()])
    return up


def test_what_was_begun_by_a_dead_process_is_suspect_and_then_given_up() -> None:
    board = Attempts(3)
    keys = ["a", "b", "c"]
    assert board.enter("p1", keys).suspect == frozenset()
    for key in keys:
        board.begin("p1", "n", key)
    board.end("p1", "a")
    # p1 dies with b and c open; of those done alone, c kills again
    assert board.enter("p2", keys).suspect == {"b", "c"}
    board.begin("p2", "n", "b")
    board.end("p2", "b")
    board.begin("p2", "n", "c")
    found = board.enter("p3", keys)
    assert found.suspect == {"b", "c"}
    assert found.given_up == {}
    board.begin("p3", "n", "c")
    found = board.enter("p4", keys)
    assert found.suspect == {"b", "c"}
    assert found.unsure == {"p1": "n", "p2": "n", "p3": "n"}, "their machine may have gone with them"
    board.hear(dict.fromkeys(found.unsure, True))
    found = board.enter("p4", keys)
    assert found.suspect == {"b"}
    assert found.given_up.keys() == {"c"}
    assert not found.unsure
    assert found.given_up["c"]["error_type"] == "process_died"
    assert "died 3 times" in found.given_up["c"]["error_message"]
    assert board.enter("p5", keys).given_up.keys() == {"c"}, "Ray may do a block again"


def test_a_machine_that_vanished_is_not_the_pictures_fault(nodes: dict[str, bool]) -> None:
    board = Attempts(1)
    board.begin("p1", "n", "a")
    nodes["n"] = False
    found = board.enter("p2", ["a"])
    assert (found.suspect, found.given_up, found.unsure) == (frozenset(), {}, {})


def test_nor_one_of_which_ray_does_not_know_yet_that_it_vanished(nodes: dict[str, bool]) -> None:
    nodes["m"] = True
    board = Attempts(2)
    for process, node in (("p1", "n"), ("p2", "m")):
        assert not board.enter(process, ["a"]).given_up
        board.begin(process, node, "a")
    found = board.enter("p3", ["a"])
    assert (found.suspect, found.given_up, found.unsure) == ({"a"}, {}, {"p1": "n", "p2": "m"})
    board.hear({"p1": True, "p2": False})
    found = board.enter("p3", ["a"])
    assert (found.suspect, found.given_up, found.unsure) == ({"a"}, {}, {})
    board.begin("p3", "n", "a")
    found = board.enter("p4", ["a"])
    assert found.unsure == {"p3": "n"}, "and what was proved once is not asked again"
    board.hear({"p3": True})
    assert "died 2 times" in board.enter("p4", ["a"]).given_up["a"]["error_message"]


def test_a_process_is_not_suspected_of_its_own_work() -> None:
    board = Attempts(1)
    board.begin("p1", "n", "a")
    assert board.enter("p1", ["a"]).suspect == frozenset()


def test_a_picture_that_takes_too_long_is_given_up_at_once() -> None:
    board = Attempts(4)
    board.begin("p1", "n", "a")
    error = {"error_type": "timeout", "error_message": "decode took longer than ..."}
    board.give_up("p1", "a", error)
    assert board.enter("p2", ["a", "b"]).given_up == {"a": error}


def test_the_first_proposal_holds() -> None:
    board: Any = Attempts(4)
    assert [board.agree("precision", value) for value in ("float32", "bfloat16")] == ["float32", "float32"]


def test_nothing_is_kept_of_what_ended() -> None:
    board = Attempts(4)
    for index in range(100):
        board.enter("p", [str(index)])
        board.begin("p", "n", str(index))
        board.end("p", str(index))
    assert not board._begun
    assert not board._accused
