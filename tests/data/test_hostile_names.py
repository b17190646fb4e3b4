"""Laws of odd and hostile names: every output lies below OUT, every input has a name of its own, nothing hangs."""

import os
import subprocess
import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raydenoise.core.image import ImageError
from raydenoise.data.inputs import below, check_key, list_sources, output_keys
from raydenoise.data.place import Remote
from raydenoise.data.storage import publish, read, read_picture

LONGEST = "a" * 251 + ".png"  # 255 bytes, the most that Linux allows
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
ODD = [
    " .png",
    "a b.png",
    COMPOSED,
    DECOMPOSED,
    "日本.png",
    "😀.png",
    "a\nb.png",
    "a\tb.png",
    "a\rb.png",
    "\x1b[31mred.png",
    "-rf.png",
    "--output.png",
    "%41.png",
    "%s%n.png",
    "*.png",
    "[a-z].png",
    "?.png",
    "$HOME.png",
    "`touch x`.png",
    ";rm.png",
    '"quoted".png',
    "it's.png",
    "a\\b.png",
    "~.png",
    "#.png",
    "a..png",
    "...png"[1:],
    "A.png",
    "a.png",
    LONGEST,
]
HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "//server/share",
    "..",
    "../a.png",
    "a/../../b.png",
    "a/..",
    "./a.png",
    "a/./b.png",
    "a//b.png",
    "a/",
    "a\0b.png",
    "C:\\a.png",
    "c:/a.png",
    "\\\\server\\share",
    "..\\a.png",
    "a\\..\\..\\b.png",
]


@pytest.mark.parametrize("key", HOSTILE, ids=repr)
def test_a_hostile_key_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(
        ValueError, match=r"^the key '.*' (is empty|begins with|holds a).*; allowed: a path below the fold"
    ):
        below(tmp_path, key)


@pytest.mark.parametrize("key", [name for name in ODD if not name.startswith(".")], ids=repr)
def test_an_odd_name_is_a_key_and_comes_through(tmp_path: Path, key: str) -> None:
    (tmp_path / "in" / key[:100]).mkdir(parents=True)
    (tmp_path / "in" / key[:100] / key).write_bytes(key.encode())
    (source,) = list_sources(str(tmp_path / "in"))
    assert source.key == f"{key[:100]}/{key}"
    path = below(tmp_path / "out", source.key)
    publish(path, read(source.uri))
    assert read(str(path)) == key.encode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


PARTS = st.sampled_from(
    ["", ".", "..", "a", "b.png", "C:", "C:\\", "\\", "..\\", "\0", " ", "ü", "-x", "~", "%2e%2e", "…"]
)
KEYS = st.one_of(st.text(max_size=20), st.lists(st.one_of(PARTS, st.text(max_size=4)), max_size=6).map("/".join))


@settings(deadline=None)
@given(KEYS)
@example("a/../../../etc/passwd")
def test_every_key_that_passes_stays_below_and_keeps_its_name(key: str) -> None:
    root = Path("/out/images")
    try:
        path = below(root, key)
    except ValueError:
        return
    assert os.path.normpath(path) == str(path)
    assert path.is_relative_to(root)
    assert path != root
    assert path.relative_to(root).as_posix() == key  # so two keys are two files
    assert ".." not in key.replace("\\", "/").split("/")


@settings(deadline=None)
@given(st.lists(KEYS, max_size=8, unique=True).map(sorted), st.sampled_from(["png", "jpeg", "tiff"]))
def test_names_of_outputs_pass_where_their_keys_do(keys: list[str], written: str) -> None:
    safe = []
    for key in keys:
        try:
            check_key(key)
            safe.append(key)
        except ValueError:
            pass
    names = output_keys(safe, written)  # type: ignore[arg-type]
    assert len(set(names)) == len(safe)
    for name in names:
        check_key(name)


def test_no_output_has_the_name_of_a_folder() -> None:
    assert output_keys(["a.jpg", "a.png/b.jpg"], "png") == ["a.jpg.png", "a.png/b.png"]
    assert output_keys(["a.jpg", "a.jpg.png/x.bmp", "a.png/b/c.jpg"], "png") == [
        "a.jpg.png.png",
        "a.jpg.png/x.png",
        "a.png/b/c.png",
    ]


def test_no_kept_name_is_that_of_a_folder() -> None:
    """As objects in a bucket may have it."""
    keys = sorted(["a.jpg", "a.jpg/b", "a.jpg.jpg", "x", "x/y/z", "x/y", "x/z.png"])
    names = dict(zip(keys, output_keys(keys, None), strict=True))
    assert {key: name for key, name in names.items() if name != key} == {
        "a.jpg": "a.jpg.jpg.jpg",
        "x": "x.picture",
        "x/y": "x/y.picture",
    }
    assert output_keys(["a.png", "a.png/b.jpg"], "png") == ["a.png.png", "a.png/b.png"]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b.png", "a.picture"]), min_size=1, max_size=3), max_size=8),
    st.sampled_from([None, "png", "jpeg"]),
)
def test_every_output_has_a_place_on_a_disk(parts: list[list[str]], written: str | None) -> None:
    keys = sorted({"/".join(some) for some in parts})
    names = output_keys(keys, written)  # type: ignore[arg-type]
    above = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    assert len(set(names)) == len(keys)
    assert above.isdisjoint(names)


def test_case_and_unicode_form_make_two_outputs() -> None:
    keys = sorted(["A.jpg", "a.jpg", f"{COMPOSED}.jpg", f"{DECOMPOSED}.jpg"])
    assert output_keys(keys, "png") == [str(PurePosixPath(key).with_suffix(".png")) for key in keys]


def test_a_name_that_is_not_utf_8_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.png", "wb"):  # noqa: PTH123  # pathlib has no bytes
        pass
    sources = list_sources(str(tmp_path))
    assert [source.key for source in sources] == [r"\xff\xfe.png", "a.png"]
    with pytest.raises(FileNotFoundError, match="xff"):
        read_picture(sources[0].uri)
    check_key(sources[0].key)


def test_an_escaped_name_is_never_that_of_another_file(tmp_path: Path) -> None:
    for name in (
        b"a\xff.png",
        rb"a\xff.png",
        b"\xff\\xfe.png",
        b"\xff\xfe.png",
        b"\xff-folder/x.png",
        rb"\xff-folder/x.png",
    ):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name)
    sources = {source.key: source.uri for source in list_sources(str(tmp_path / "in"))}
    odd = [r"a\xff.png-2", r"\xff\xfe.png", r"\xff\xfe.png-2", r"\xff-folder/x.png-2"]
    assert sorted(sources) == sorted([*odd, r"a\xff.png", r"\xff-folder/x.png"])
    assert read(sources[r"a\xff.png"]) == rb"a\xff.png", "each picture has its own name still"
    for key in odd:
        assert sources[key].endswith(f"/{key}")
        with pytest.raises(FileNotFoundError, match="xff"):
            read_picture(sources[key])


def test_a_key_of_a_bucket_that_would_leave_the_folder_is_listed_and_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = ["in/a.png", "in/../../b.png", "in/./c.png", "in/.hidden/d.png", "in/..e/f.png"]
    monkeypatch.setattr(Remote, "is_file", lambda _: False)
    monkeypatch.setattr(Remote, "files", lambda _: (Remote("s3", f"bucket/{key}") for key in keys))
    listed = [source.key for source in list_sources("s3://bucket/in")]
    assert listed == ["../../b.png", "./c.png", "a.png"]
    for key in listed[:2]:
        with pytest.raises(ValueError, match=r"has an empty part, \. or \.\.; allowed: "):
            check_key(key)


def test_loops_of_links_are_listed_once_and_are_errors(tmp_path: Path) -> None:
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "one.png").symlink_to(tmp_path / "two.png")
    (tmp_path / "two.png").symlink_to(tmp_path / "one.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "up").symlink_to(tmp_path)
    (tmp_path / "folder" / "a.png").write_bytes(b"x")
    sources = list_sources(str(tmp_path))
    assert [source.key for source in sources] == ["folder/a.png", "itself.png", "one.png", "two.png"]
    for source in sources[1:]:
        with pytest.raises(OSError, match="symbolic links"):
            read_picture(source.uri)


@pytest.mark.timeout(20)
def test_folders_that_link_one_another_are_each_followed_once(tmp_path: Path) -> None:
    folders = [tmp_path / "in" / f"{number:02}" for number in range(12)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"x")
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    keys = [source.key for source in list_sources(str(tmp_path / "in"))]
    assert [key for key in keys if "to-" not in key] == [f"{folder.name}/a.png" for folder in folders]
    assert sorted(key.split("/")[-2] for key in keys if "to-" in key) == [f"to-{folder.name}" for folder in folders]


def test_a_linked_folder_is_not_followed_into_a_plain_one_above_it(tmp_path: Path) -> None:
    (tmp_path / "in" / "a" / "b").mkdir(parents=True)
    (tmp_path / "in" / "a" / "x.png").write_bytes(b"x")
    (tmp_path / "in" / "a" / "b" / "up").symlink_to(tmp_path / "in" / "a")
    (tmp_path / "in" / "c").symlink_to(tmp_path / "in" / "a")
    assert [source.key for source in list_sources(str(tmp_path / "in"))] == ["a/x.png", "c/x.png"]


@pytest.mark.timeout(20)
def test_folders_as_deep_as_a_path_may_be_are_walked(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    depth = 1_500  # 3,000 of the 4,096 bytes of a path
    here = os.getcwd()  # noqa: PTH109
    try:
        os.chdir(tmp_path / "in")
        for _ in range(depth):  # pathlib and os.makedirs recurse
            os.mkdir("d")  # noqa: PTH102
            os.chdir("d")
        Path("a.png").write_bytes(b"x")
    finally:
        os.chdir(here)
    try:
        assert [source.key for source in list_sources(str(tmp_path / "in"))] == ["d/" * depth + "a.png"]
        with pytest.raises(
            ValueError, match=r"in/\*\*/\*.png' meets hundreds of nested folders; allowed: a folder, with"
        ):
            list_sources(f"{tmp_path}/in/**/*.png")
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "in")], check=True)  # shutil.rmtree recurses, and pytest uses it


@pytest.mark.timeout(20)
def test_a_pipe_or_a_device_behind_a_link_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".pipe")
    (tmp_path / "pipe.png").symlink_to(tmp_path / ".pipe")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for source in list_sources(str(tmp_path)):
        with pytest.raises(ImageError, match="it is a pipe, a socket or a device; allowed: files") as caught:
            read_picture(source.uri)
        assert caught.value.kind == "not_an_image"
    with pytest.raises(IsADirectoryError):
        read_picture(str(tmp_path))


def test_a_name_that_is_too_long_for_its_new_extension_is_an_error(tmp_path: Path) -> None:
    (key,) = output_keys(["a" * 252 + ".bmp"[:3]], "webp")
    with pytest.raises(OSError, match="File name too long"):
        publish(below(tmp_path, key), b"x")
    assert list(tmp_path.iterdir()) == []
