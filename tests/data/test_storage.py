"""Laws of listing, naming, pairing and publishing."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import get_args

import PIL.Image
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raydenoise.core.image import DEFAULT_EXTENSION, EXTENSIONS, Format
from raydenoise.data import storage
from raydenoise.data.inputs import Source, list_all, list_sources, output_keys, pair_references
from raydenoise.data.storage import publish, read, read_picture, remove
from tests.conftest import noisy_pixels

ODD_NAMES = ("with space.png", "grüße-日本.png", "new\nline.png", "-leading.png", "[1]*.png", "no-extension", "a..png")


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def keys_of(pattern: Path | str) -> list[str]:
    """List the keys, after checking what holds for every list."""
    sources = list_sources(str(pattern))
    keys = [source.key for source in sources]
    assert keys == sorted(set(keys))
    assert all(Path(source.uri).is_absolute() and Path(source.uri).is_file() for source in sources)
    assert all(source.uri.endswith(source.key) and not source.key.startswith(("/", ".")) for source in sources)
    return keys


def test_a_folder_is_listed_with_all_below_it(tmp_path: Path) -> None:
    fill(tmp_path, "b.png", "a.txt", "sub/deep/c.jpg", "sub/B.TIF")
    assert keys_of(tmp_path) == ["a.txt", "b.png", "sub/B.TIF", "sub/deep/c.jpg"]
    assert [read(source.uri) for source in list_sources(str(tmp_path))] == [key.encode() for key in keys_of(tmp_path)]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", ".hidden.png", ".thumbnails/b.png", "sub/.DS_Store", "sub/c.png")
    assert keys_of(tmp_path) == ["a.png", "sub/c.png"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "in", name, f"{name}-folder/{name}")
    assert keys_of(tmp_path / "in") == sorted([name, f"{name}-folder/{name}"])
    assert keys_of(tmp_path / "in" / name) == [name]
    (source,) = list_sources(str(tmp_path / "in" / name))
    assert read(source.uri) == name.encode()


def test_a_relative_folder_has_absolute_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "in/sub/a.png", "in/b.png", "-in/c.png")
    monkeypatch.chdir(tmp_path)
    assert list_sources("in/") == [
        Source(str(tmp_path / "in/b.png"), "b.png"),
        Source(str(tmp_path / "in/sub/a.png"), "sub/a.png"),
    ]
    assert keys_of("in/**/*.png") == ["b.png", "sub/a.png"]
    assert keys_of("-in") == ["c.png"]
    assert keys_of(".") == ["-in/c.png", "in/b.png", "in/sub/a.png"]
    monkeypatch.chdir(tmp_path / "in" / "sub")
    assert keys_of("../*.png") == ["b.png"]


def test_a_glob_lists_what_it_matches(tmp_path: Path) -> None:
    fill(tmp_path, "in/a.png", "in/b.jpg", "in/x/c.png", "in/x/y/d.png", "in/.hidden.png", "in/x/z.png/e.txt")
    assert keys_of(tmp_path / "in" / "*.png") == ["a.png"]
    assert keys_of(tmp_path / "in" / "**" / "*.png") == ["a.png", "x/c.png", "x/y/d.png"]
    assert keys_of(tmp_path / "in" / "*" / "[cd].png") == ["x/c.png"]
    assert keys_of(tmp_path / "in" / "?.jpg") == ["b.jpg"]


def test_a_glob_with_two_double_stars_lists_each_file_once(tmp_path: Path) -> None:
    fill(tmp_path, "x/y/d.png")
    assert keys_of(tmp_path / "**" / "**" / "*.png") == ["x/y/d.png"]


def test_a_single_file_is_its_name(tmp_path: Path) -> None:
    fill(tmp_path, "sub/a.png", "sub/b.png")
    assert list_sources(str(tmp_path / "sub" / "a.png")) == [Source(str(tmp_path / "sub" / "a.png"), "a.png")]


def test_linked_folders_are_followed_but_not_into_themselves(tmp_path: Path) -> None:
    fill(tmp_path, "in/sub/a.png", "elsewhere/b.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "linked.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "in" / "sub" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert keys_of(tmp_path / "in") == ["linked.png", "linked/b.png", "sub/a.png"]


def test_a_broken_link_is_listed(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert [source.key for source in list_sources(str(tmp_path))] == ["gone.png"]  # an error row later, not silence


@pytest.mark.parametrize("name", ["", "missing", "missing.png", "*.png", "**/*.png"])
def test_no_files_are_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^input '.*' holds no files; allowed: a folder, a glob or a file$"):
        list_sources(str(tmp_path / "empty" / name))


NAMES = {
    "a.jpg b.bmp c.png": "a.png b.png c.png",
    "a.PNG b.jpg sub/b.jpg": "a.PNG b.png sub/b.png",
    "a.bmp a.jpg a.png": "a.bmp.png a.jpg.png a.png",
    "a.bmp a.jpg": "a.bmp.png a.jpg.png",
    "a.jpg a.jpg.png": "a.png a.jpg.png",
    "a.jpg a.jpg.png a.png": "a.jpg.png.png a.jpg.png a.png",
    "a a.tar.gz a.txt": "a.png a.tar.png a.txt.png",
    "a/x.jpg b/x.jpg x.jpg": "a/x.png b/x.png x.png",
}


@pytest.mark.parametrize(("keys", "names"), NAMES.items())
def test_outputs_are_named_for_their_format(keys: str, names: str) -> None:
    assert output_keys(keys.split(), "png") == names.split()


def test_keep_keeps_every_name() -> None:
    keys = ["a.jpg", "a.png", "sub/b.bmp", "x"]
    assert output_keys(keys, None) == keys


def test_every_extension_of_the_format_is_kept() -> None:
    keys = ["a.JPG", "b.jpe", "c.jpeg", "d.jpg"]
    assert output_keys(keys, "jpeg") == keys
    assert output_keys(["a.tif", "b.tiff", "c.png"], "tiff") == ["a.tif", "b.tiff", "c.tif"]


KEYS = st.builds(
    lambda folder, stem, extension: folder + stem + extension,
    st.sampled_from(["", "a/", "a.c/", "a/b/", "b/"]),
    st.sampled_from(["a", "b", "a.jpg", "a.png", "a.tif.tif", "-x", "ü 1", "a."]),
    st.sampled_from(["", *EXTENSIONS, ".JPG", ".Png", ".txt"]),
)


@given(keys=st.lists(KEYS, unique=True, max_size=20).map(sorted), written=st.sampled_from(get_args(Format)))
@example(keys=["a.bmp", "a.c/x.png", "a.jpg"], written="png")
@settings(deadline=None, max_examples=200)
def test_outputs_are_unique_and_stay_in_their_folder(keys: list[str], written: Format) -> None:
    names = output_keys(keys, written)
    assert len(names) == len(set(names)) == len(keys)
    for key, name in zip(keys, names, strict=True):
        assert PurePosixPath(name).parent == PurePosixPath(key).parent
        assert EXTENSIONS[PurePosixPath(name).suffix.lower()] == written
        if EXTENSIONS.get(PurePosixPath(key).suffix.lower()) == written:
            assert name == key
        else:
            assert name.endswith(DEFAULT_EXTENSION[written])


def test_references_pair_by_path_then_by_stem(tmp_path: Path) -> None:
    fill(tmp_path, "clean/a.png", "clean/a.jpg", "clean/sub/b.tif", "clean/c.txt", "clean/sub/.d.png")
    pairs = pair_references(["a.png", "a.bmp", "b.png", "c.png", "sub/b.jpg", "sub/d.png"], str(tmp_path / "clean"))
    clean = tmp_path / "clean"
    assert pairs == [str(clean / "a.png"), str(clean / "a.jpg"), None, None, str(clean / "sub" / "b.tif"), None]


def test_references_must_be_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, "file.png")
    for name in ("missing", "file.png"):
        with pytest.raises(ValueError, match=rf"^reference '.*{name}' is not a folder; allowed: a folder of pict"):
            pair_references(["a.png"], str(tmp_path / name))


def test_references_must_fit_at_least_one_input(tmp_path: Path) -> None:
    fill(tmp_path, "clean/other.png")
    with pytest.raises(
        ValueError, match=r"^reference '.*clean' holds no picture with the path of an input, such as 'a.p"
    ):
        pair_references(["a.png", "b.png"], str(tmp_path / "clean"))


def test_an_empty_folder_of_references_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "clean").mkdir()
    with pytest.raises(ValueError, match=r"^reference '.*clean' holds no"):
        pair_references(["a.png"], str(tmp_path / "clean"))


@pytest.mark.parametrize("name", ["a.png", "new/sub/a.png", *ODD_NAMES])
def test_publish_writes_and_replaces(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for data in (b"first", b"", b"the third, longer"):
        publish(path, data)
        assert read(str(path)) == data
        assert os.listdir(path.parent) == [path.name]  # noqa: PTH208  # hidden files count


def test_a_failed_write_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path) -> None:
    publish(tmp_path / "a.png", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes: the disk is full after these
    try:
        with pytest.raises(OSError, match="File too large"):
            publish(tmp_path / "a.png", b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["a.png"]  # noqa: PTH208
    assert read(str(tmp_path / "a.png")) == b"old"


def test_a_failed_rename_leaves_no_part(tmp_path: Path) -> None:
    fill(tmp_path, "a.png/inside")
    with pytest.raises(IsADirectoryError, match=r"a\.png"):
        publish(tmp_path / "a.png", b"new")
    assert os.listdir(tmp_path) == ["a.png"]  # noqa: PTH208
    assert (tmp_path / "a.png" / "inside").is_file()


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "sub")
    with pytest.raises(OSError, match="sub"):
        publish(tmp_path / "sub" / "a.png", b"new")
    assert os.listdir(tmp_path) == ["sub"]  # noqa: PTH208
    assert read(str(tmp_path / "sub")) == b"sub"


def test_a_reader_sees_all_or_nothing(tmp_path: Path) -> None:
    path, contents = tmp_path / "a.png", [bytes([value]) * 200_000 for value in (1, 2)]
    seen: list[bytes] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            if path.exists():
                seen.append(read(str(path)))

    reader = threading.Thread(target=look)
    reader.start()
    for turn in range(100):
        publish(path, contents[turn % 2])
    done.set()
    reader.join()
    assert seen
    assert all(data in contents for data in seen)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_one_input_keeps_its_keys(tmp_path: Path) -> None:
    touch(tmp_path, "in/b.png", "in/sub/a.png")
    assert list_all([str(tmp_path / "in")]) == list_sources(str(tmp_path / "in"))


def test_keys_of_several_inputs_begin_with_their_folder(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.png", "two/a.png", "two/sub/b.png", "c.png", "three/x/photos/a.png", "photos/a.png")
    inputs = ["two", "one", "c.png", "three/x/photos", "photos/*.png"]
    found = list_all([str(tmp_path / name) for name in inputs])
    keys = ["one/a.png", "photos-2/a.png", "photos/a.png", f"{tmp_path.name}/c.png", "two/a.png", "two/sub/b.png"]
    assert [source.key for source in found] == sorted(keys)
    uris = {source.key: source.uri for source in found}
    assert uris["photos/a.png"] == str(tmp_path / "three/x/photos/a.png")
    assert uris["photos-2/a.png"] == str(tmp_path / "photos/a.png")


def test_files_of_one_folder_share_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "in/b.png")
    found = list_all([str(tmp_path / "in" / name) for name in ("b.png", "a.png")])
    assert [source.key for source in found] == ["in/a.png", "in/b.png"]


def test_a_file_that_two_inputs_hold_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/sub/a.png", "in/b.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    inputs = ["in", "in/sub", "in/../in", "link", "in/b.png"]
    found = list_all([str(tmp_path / name) for name in inputs])
    assert [source.key for source in found] == ["in/b.png", "in/sub/a.png"]


def test_each_of_several_inputs_must_hold_something(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png")
    with pytest.raises(ValueError, match=r"^input '.*gone' holds no files; allowed: a folder, a glob or a file$"):
        list_all([str(tmp_path / "in"), str(tmp_path / "gone")])


def test_pairing_names_its_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^clean '.*gone' is not a folder; allowed: a folder of pictures$"):
        pair_references(["a.png"], str(tmp_path / "gone"), argument="clean")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made."""
    made: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", made.append)
    return made


def failing(monkeypatch: pytest.MonkeyPatch, name: str, *, code: int, times: int) -> None:
    """Let a call of the operating system fail so many times."""
    real, left = getattr(os, name), [code] * times

    def call(*args: object, **options: object) -> object:
        if left:
            raise OSError(left[0], os.strerror(left.pop()))
        return real(*args, **options)

    monkeypatch.setattr(storage.os, name, call)


TRANSIENT = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT]


@pytest.mark.parametrize("code", TRANSIENT)
def test_a_disk_in_trouble_is_asked_three_times(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    PIL.Image.fromarray(noisy_pixels(9, 8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for name in ("open", "fstat"):
        failing(monkeypatch, name, code=code, times=2)
        assert read_picture(str(tmp_path / "a.png")) == data
        failing(monkeypatch, name, code=code, times=3)
        with pytest.raises(OSError, match=os.strerror(code)):
            read_picture(str(tmp_path / "a.png"))
    assert pauses == [0.5, 2.0] * 4


@pytest.mark.parametrize("code", TRANSIENT)
def test_a_picture_is_written_in_three_tries_and_leaves_nothing_else(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    failing(monkeypatch, "replace", code=code, times=2)
    publish(tmp_path / "b" / "a.png", b"whole", scratch=tmp_path / "scratch")
    assert pauses == [0.5, 2.0]
    failing(monkeypatch, "replace", code=code, times=3)
    with pytest.raises(OSError, match=os.strerror(code)):
        publish(tmp_path / "b" / "c.png", b"whole", scratch=tmp_path / "scratch")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.png"]


def test_a_picture_is_written_behind_a_link_to_another_disk(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk")
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        (tmp_path / "linked").symlink_to(elsewhere)
        publish(tmp_path / "linked" / "a.png", b"whole", scratch=tmp_path / "scratch")
        assert [path.read_bytes() for path in Path(elsewhere).iterdir()] == [b"whole"]
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.ENOENT])
def test_what_will_not_pass_is_not_waited_for(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    failing(monkeypatch, "replace", code=code, times=1)
    with pytest.raises(OSError, match=os.strerror(code)):
        publish(tmp_path / "a.png", b"whole")
    (tmp_path / "a.png").touch()
    failing(monkeypatch, "open", code=code, times=1)
    with pytest.raises(OSError, match=os.strerror(code)):
        read_picture(str(tmp_path / "a.png"))
    assert not pauses


WRITING = """
import sys
from pathlib import Path
from raydenoise.data.storage import publish
images, scratch = map(Path, sys.argv[1:])
while True:
    try:
        publish(images / "a.png", b"a picture", scratch=scratch)
    except OSError:  # its folder went: the picture is nobody's
        pass
"""


def test_a_folder_goes_though_others_still_write_in_it(tmp_path: Path) -> None:
    scratch = tmp_path / ".partial"
    command = [sys.executable, "-c", WRITING, tmp_path / "images", scratch]
    with ExitStack() as stack:
        for _ in range(2):
            stack.callback(stack.enter_context(subprocess.Popen(command)).kill)
        for _ in range(200):
            while not scratch.exists():
                time.sleep(0.001)
            remove(scratch)
    remove(scratch)
    assert not scratch.exists()


@pytest.mark.parametrize("code", [errno.ENOTEMPTY, errno.EACCES])
def test_a_folder_that_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(path: Path) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("raydenoise.data.storage.PAUSE_SECONDS", 0)
    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(OSError, match=os.strerror(code)):
        remove(tmp_path)


def test_a_folder_that_a_slow_disk_fills_again_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, removes = [errno.ENOTEMPTY, errno.ENOENT, errno.EISDIR], shutil.rmtree

    def race(path: Path) -> None:
        if left:
            raise OSError(left.pop(), "a race", str(path))
        removes(path)

    monkeypatch.setattr("shutil.rmtree", race)
    publish(tmp_path / "out" / "a", b"a")
    remove(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_read_does_not_count_as_empty(closed: Path) -> None:
    with pytest.raises(PermissionError):
        list(storage.walk(closed))


def test_a_walk_finds_files_and_links_to_files(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (tmp_path / "in" / name).write_bytes(b"")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in" / "a")
    (tmp_path / "in" / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    assert sorted(storage.walk(tmp_path / "in")) == ["a", "gone", "link", "sub/b"]
    assert list(storage.walk(tmp_path / "nothing")) == []


def test_a_file_that_was_made_though_the_answer_was_lost_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Path.hardlink_to

    def asked_twice(self: Path, target: Path) -> None:
        link(self, target)
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", asked_twice)
    storage.create(tmp_path / "a", b"mine")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(FileExistsError):
        storage.create(tmp_path / "a", b"others")
