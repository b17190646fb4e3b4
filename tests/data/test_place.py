"""Laws of places: a bucket and a disk behave alike, and no secret is kept."""

import pickle
from pathlib import Path
from threading import Thread

import pytest

from raydenoise.data import inputs, storage
from raydenoise.data.place import Place, Remote, place


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder that is not there yet."""
    return place(tmp_path / "new" if request.param == "disk" else f"{request.getfixturevalue('bucket')}/new")


NAMES = ["a.png", "with space.png", "ü.png", "100%.png", "sub/b+c.png", "sub/#d?.png"]


def test_what_is_published_is_read_listed_and_removed(root: Place) -> None:
    assert not root.exists()
    assert storage.names(root) == list(storage.walk(root)) == []
    for name in NAMES:
        storage.publish(root / name, name.encode())
    assert sorted(storage.walk(root)) == sorted(NAMES)
    assert storage.names(root) == ["100%.png", "a.png", "with space.png", "ü.png"]
    assert {name: storage.read(str(root / name)) for name in NAMES} == {name: name.encode() for name in NAMES}
    assert root.is_dir()
    assert (root / "a.png").is_file()
    assert not (root / "b.png").exists()
    storage.publish(root / "a.png", b"new")
    assert (root / "a.png").read_bytes() == b"new"
    storage.remove(root / "a.png")
    storage.remove(root / "sub")
    assert sorted(storage.walk(root)) == ["100%.png", "with space.png", "ü.png"]
    storage.remove(root / "never")
    storage.remove(root)
    assert list(storage.walk(root)) == []


def test_sources_have_the_same_keys(root: Place) -> None:
    for name in [*NAMES, ".hidden", "sub/.hidden/x.png", "deep/er/e.jpg"]:
        storage.publish(root / name, b"x")
    listed = inputs.list_sources(str(root))
    assert [source.key for source in listed] == sorted([*NAMES, "deep/er/e.jpg"])
    assert all(storage.read(source.uri) == b"x" for source in listed)
    assert [source.key for source in inputs.list_sources(f"{root}/sub/*.png")] == ["#d?.png", "b+c.png"]
    assert [source.key for source in inputs.list_sources(f"{root}/**/*.jpg")] == ["deep/er/e.jpg"]
    assert [source.key for source in inputs.list_sources(f"{root}/deep/**")] == ["er/e.jpg"]
    assert [source.key for source in inputs.list_sources(f"{root}/a.png")] == ["a.png"]
    with pytest.raises(ValueError, match=r"holds no files; allowed: a folder, a glob or a file$"):
        inputs.list_sources(f"{root}/nothing")


def test_of_many_that_create_a_file_one_succeeds(root: Place) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        try:
            storage.create(root / "lock", str(number).encode())
        except FileExistsError:
            return
        won.append(number)

    threads = [Thread(target=create, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (root / "lock").read_bytes() == str(won[0]).encode()
    assert list(storage.walk(root)) == ["lock"], "no temporary file stays"


def test_a_picture_is_not_read_beyond_its_beginning_when_that_tells(root: Place) -> None:
    storage.publish(root / "text.png", b"no picture" * 1000)
    with pytest.raises(ValueError, match="no image file"):
        storage.read_picture(str(root / "text.png"))


def test_neither_pickles_nor_texts_hold_secrets(bucket: str) -> None:
    there = place(f"{bucket}/a")
    assert isinstance(there, Remote)
    there.write_bytes(b"x")
    assert there.read_bytes() == b"x"
    for text in (pickle.dumps(there), repr(there).encode(), str(there).encode()):
        assert b"a-secret-key" not in text
        assert b"an-access-key" not in text


@pytest.mark.parametrize("text", ["http://x/y", "azure://x/y", "s3://", "s3://bucket//a", "gs:///"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^output is '.*'; allowed: "):
        place(text, argument="output")


def test_a_bucket_that_is_not_there_is_an_error_of_the_argument(bucket: str) -> None:
    with pytest.raises(ValueError, match=r"^input 's3://none-such-bucket/x' holds no files|cannot be listed"):
        inputs.list_sources("s3://none-such-bucket/x")
    assert bucket
