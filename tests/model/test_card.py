"""Laws of model cards: what is written is read, and what does not fit is refused."""

import contextlib
import hashlib
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydenoise.core.tiling import Grid
from raydenoise.model.card import (
    CARD_FILE,
    DEFAULT_TILE,
    MODEL_FILE,
    MOST_SIDE,
    Card,
    check_sigma,
    file_sha256,
    fit_name,
    locate,
    read_card,
    read_checked,
    shipped,
    write_card,
)

MODEL = b"weights"
CARD = Card(
    name="tiny",
    architecture="unet",
    arguments={"widths": [8, 16]},
    channels=3,
    noise_map=True,
    sigma_range=(5.0, 55.0),
    alignment=8,
    radius=50,
    halo=56,
    fixed_size=None,
    sha256=hashlib.sha256(MODEL).hexdigest(),
    training={"data": "grüße"},
    scores={"cbsd68": {"25": 31.2}},
    versions={"keras": "3.15"},
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / MODEL_FILE).write_bytes(MODEL)
    write_card(CARD, folder)
    return folder


@pytest.mark.parametrize("card", [CARD, replace(CARD, noise_map=False, sigma_range=None, fixed_size=256)])
def test_a_written_card_is_read(tmp_path: Path, card: Card) -> None:
    write_card(card, tmp_path)
    assert read_card(tmp_path) == card


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}"])
def test_what_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"card\.json is no model card of this version: "):
        read_card(tmp_path)


def test_a_lacking_or_foreign_field_is_named(bundle: Path) -> None:
    content = json.loads((bundle / CARD_FILE).read_text())
    (bundle / CARD_FILE).write_text(json.dumps({name: content[name] for name in content if name != "halo"}))
    with pytest.raises(ValueError, match=r"is no model card of this version: .*'halo'"):
        read_card(bundle)
    (bundle / CARD_FILE).write_text(json.dumps({**content, "colour": "blue"}))
    with pytest.raises(ValueError, match=r"is no model card of this version: .*'colour'"):
        read_card(bundle)


NESTED: dict[str, object] = {}
for _ in range(30):
    NESTED = {"a": [NESTED]}
SIDE = "allowed: a whole number of pixels, {} to 4096$"
LEVELS = "allowed: two levels from 0 to 10000, the lower one first$"
NAME = "allowed: a name of 1 to 255 characters without slashes or control characters$"
WRONG: list[tuple[dict[str, object], str]] = [
    ({"alignment": 0}, "alignment is 0; " + SIDE.format(1)),
    ({"alignment": -8}, "alignment is -8; " + SIDE.format(1)),
    ({"alignment": 8.0}, r"alignment is 8\.0; " + SIDE.format(1)),
    ({"alignment": True}, "alignment is True; " + SIDE.format(1)),
    ({"alignment": "8"}, "alignment is '8'; " + SIDE.format(1)),
    ({"alignment": 10**400}, r"alignment is 10+; " + SIDE.format(1)),
    ({"alignment": float("nan")}, "alignment is nan; " + SIDE.format(1)),
    ({"radius": -1}, "radius is -1; " + SIDE.format(0)),
    ({"radius": None}, "radius is None; " + SIDE.format(0)),
    ({"halo": 10**9}, "halo is 1000000000; " + SIDE.format(0)),
    ({"halo": [56]}, r"halo is \[56\]; " + SIDE.format(0)),
    ({"halo": 57}, "halo is 57; allowed: a multiple of the alignment of 8 pixels"),
    ({"fixed_size": 0}, "fixed_size is 0; " + SIDE.format(1)),
    ({"fixed_size": 10**6}, "fixed_size is 1000000; " + SIDE.format(1)),
    ({"fixed_size": 64}, "tile is 64; allowed for this model: a multiple of 8, at least 120 pixels"),
    ({"channels": 2}, "channels is 2; allowed: 1 or 3$"),
    ({"channels": True}, "channels is True; allowed: 1 or 3$"),
    ({"noise_map": 1}, "noise_map is 1; allowed: true or false$"),
    ({"noise_map": False}, r"sigma_range is \(5\.0, 55\.0\); allowed: null without a noise map$"),
    ({"sigma_range": None}, "sigma_range is None; " + LEVELS),
    ({"sigma_range": [5]}, r"sigma_range is \(5,\); " + LEVELS),
    ({"sigma_range": [55, 5]}, r"sigma_range is \(55, 5\); " + LEVELS),
    ({"sigma_range": [-1, 5]}, r"sigma_range is \(-1, 5\); " + LEVELS),
    ({"sigma_range": [0, 1e9]}, r"sigma_range is \(0, 1000000000\.0\); " + LEVELS),
    ({"sigma_range": [0, float("inf")]}, r"sigma_range is \(0, inf\); " + LEVELS),
    ({"sigma_range": [float("nan"), 5]}, r"sigma_range is \(nan, 5\); " + LEVELS),
    ({"sigma_range": ["0", "5"]}, r"sigma_range is \('0', '5'\); " + LEVELS),
    ({"sigma_range": {"0": 5}}, r"sigma_range is \{'0': 5\}; " + LEVELS),
    ({"sha256": ""}, "sha256 is ''; allowed: 64 hexadecimal digits$"),
    ({"sha256": "../" * 22}, r"sha256 is '\.\./.*; allowed: 64 hexadecimal digits$"),
    ({"sha256": "g" * 64}, "sha256 is 'ggg.*; allowed: 64 hexadecimal digits$"),
    ({"sha256": 5}, "sha256 is 5; allowed: 64 hexadecimal digits$"),
    ({"name": ""}, "name is ''; " + NAME),
    ({"name": 7}, "name is 7; " + NAME),
    ({"name": "../../evil"}, r"name is '\.\./\.\./evil'; " + NAME),
    ({"name": ".."}, r"name is '\.\.'; " + NAME),
    ({"name": "a\\b"}, r"name is 'a\\\\b'; " + NAME),
    ({"name": "a\nb"}, r"name is 'a\\nb'; " + NAME),
    ({"name": "\x1b[2J"}, r"name is '\\x1b\[2J'; " + NAME),
    ({"name": "a" * 256}, "name is 'aaa.*; " + NAME),
    ({"architecture": "\ud800"}, r"architecture is '\\ud800'; " + NAME),
    ({"arguments": [1]}, r"arguments is \[1\]; allowed: an object$"),
    ({"training": NESTED}, "training is nested too deep; allowed: 20 levels$"),
    ({"training": {"command": "\x1b]0;evil\x07"}}, r"training is '\\x1b.*; allowed: text without control characters$"),
    ({"scores": {"\x00": 1}}, r"scores is '\\x00'; allowed: text without control characters$"),
    ({"versions": {"keras": 3}}, "versions is 3; allowed: texts$"),
]


@pytest.mark.parametrize(("facts", "match"), WRONG, ids=[f"{facts}"[:30] for facts, _ in WRONG])
def test_what_a_card_cannot_say_is_refused(bundle: Path, facts: dict[str, object], match: str) -> None:
    content = json.loads((bundle / CARD_FILE).read_text())
    (bundle / CARD_FILE).write_text(json.dumps({**content, **facts}))
    with pytest.raises(ValueError, match=rf"card\.json is no model card of this version: ({match})"):
        read_card(bundle)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(vars(CARD))), JSON, min_size=1, max_size=3))
def test_whatever_a_card_says_it_is_read_or_refused(facts: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / CARD_FILE).write_text(json.dumps({**asdict(CARD), **facts}))
        with contextlib.suppress(ValueError):
            card = read_card(path)
            assert 1 <= card.alignment <= card.grid().tile <= 4 * MOST_SIDE
            assert card.limited(20) >= 0
            write_card(card, path)
            assert repr(read_card(path)) == repr(card)  # NaN, which scores may hold, equals nothing


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"a":' * 200_000, "it is nested too deep"),
        (" " * (1 << 20) + "{}", "it has 1,048,578 bytes; allowed: 1,048,576"),
        ("\udcff", "'utf-8' codec can't decode"),
        ('{"name": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ],
)
def test_what_is_too_much_for_a_card_is_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / CARD_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"card\.json is no model card of this version: {match}"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [("a b", "a b"), ("grüße-2", "grüße-2"), ("a/b\n", "a_b_"), ("", "model"), ("..", "model"), ("x" * 300, "x" * 255)],
)
def test_any_text_becomes_a_name(text: str, name: str) -> None:
    assert fit_name(text) == fit_name(name) == name
    assert replace(CARD, name=name)


def test_a_changed_model_is_noticed(bundle: Path) -> None:
    assert read_checked(bundle) == CARD
    (bundle / MODEL_FILE).write_bytes(MODEL + b"!")
    with pytest.raises(
        ValueError, match=r"model\.keras is not the file that its card describes: sha256 differs; copy "
    ):
        read_checked(bundle)


def test_a_file_is_hashed_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_locate_finds_bundles_and_bare_files(bundle: Path, tmp_path: Path) -> None:
    assert locate(bundle) == locate(str(bundle)) == bundle
    for name in ("a.keras", "a.h5", "a.hdf5"):
        (tmp_path / name).write_bytes(MODEL)
        assert locate(tmp_path / name) == tmp_path / name


def test_locate_finds_what_ships() -> None:
    for name in shipped():
        assert read_checked(locate(name)).name


@pytest.mark.parametrize("name", ["nosuch", "gone.keras", "notes.txt", "half", "empty"])
def test_locate_refuses_the_rest(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "half").mkdir()
    write_card(CARD, tmp_path / "half")
    (tmp_path / "empty").mkdir()
    message = (
        rf"^model '.*{name}' is not found; allowed: .*, the path of a bundle \(a folder with model\.keras and card"
    )
    with pytest.raises(ValueError, match=message):
        locate(tmp_path / name)


def test_estimates_are_limited_to_the_trained_range() -> None:
    assert [CARD.limited(estimate) for estimate in (0, 5, 25.5, 55, 200)] == [5, 5, 25.5, 55, 55]
    assert replace(CARD, noise_map=False, sigma_range=None).limited(200) == 200


def test_the_default_tile_is_kept_or_grows_with_the_halo() -> None:
    assert CARD.grid() == Grid(tile=DEFAULT_TILE, halo=56, alignment=8)
    assert replace(CARD, halo=200).grid() == Grid(tile=800, halo=200, alignment=8)
    assert replace(CARD, halo=0, alignment=24).grid() == Grid(tile=528, halo=0, alignment=24)


def test_a_fitting_tile_is_taken() -> None:
    assert CARD.grid(120) == Grid(tile=120, halo=56, alignment=8)


@pytest.mark.parametrize("tile", [112, 8, 0, 250])
def test_a_tile_that_does_not_fit_is_refused(tile: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^tile is {tile}; allowed for this model: a multiple of 8, at least 120 pix"
    ):
        CARD.grid(tile)


def test_a_fixed_size_is_the_only_tile() -> None:
    card = replace(CARD, fixed_size=256)
    assert card.grid() == card.grid(256) == Grid(tile=256, halo=56, alignment=8, fixed=True)
    with pytest.raises(ValueError, match=r"^tile is 512; allowed for tiny: 256, its input size$"):
        card.grid(512)


@pytest.mark.parametrize("sigma", [4.9, 55.1, 0])
def test_a_sigma_beyond_the_training_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match=rf"^sigma is {sigma}; allowed for tiny: auto, or 5 to 55 8-bit grey levels$"):
        check_sigma(sigma, card=CARD)


def test_a_sigma_of_the_training_passes() -> None:
    for sigma in (5, 25.5, 55):
        check_sigma(sigma, card=CARD)
    check_sigma(200, card=replace(CARD, noise_map=False, sigma_range=None))
