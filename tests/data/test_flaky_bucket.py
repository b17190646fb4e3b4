"""Laws of storage in trouble: what a bucket refuses, drops or cuts is tried again, by both clients."""

import pytest

from raydenoise.data import storage
from raydenoise.data.lease import held
from raydenoise.data.place import FIRST, place
from tests.flaky import TROUBLES, Flaky

LARGE = bytes(range(256)) * (FIRST // 256 + 100)  # two requests


@pytest.mark.parametrize("trouble", TROUBLES)
def test_every_request_is_tried_again(trouble: str, flaky_bucket: tuple[str, Flaky]) -> None:
    root, flaky = place(flaky_bucket[0]), flaky_bucket[1]

    def trouble_ahead() -> None:
        assert not flaky.next, "the request before met its trouble"
        flaky.next = [trouble]

    trouble_ahead()
    storage.publish(root / "a" / "one", b"1")
    trouble_ahead()
    assert (root / "a" / "one").read_bytes() == b"1"
    storage.publish(root / "large", LARGE)
    flaky.next = [trouble, trouble]
    assert (root / "large").read_admitted(lambda *_: None) == LARGE
    trouble_ahead()
    with (root / "large").open() as stream:
        assert stream.read() == LARGE
    trouble_ahead()
    assert storage.names(root / "a") == ["one"]
    trouble_ahead()
    storage.create(root / "a" / "two", b"2")
    with pytest.raises(FileExistsError):
        storage.create(root / "a" / "two", b"another's")
    trouble_ahead()
    with held(root / "out") as lease:
        lease.check()
    trouble_ahead()
    storage.remove(root / "a")
    assert list(storage.walk(root / "a")) == []
    assert flaky.met.total() == 9
