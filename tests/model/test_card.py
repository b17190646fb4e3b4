"""Laws of model cards: what is written is read, and what does not fit is refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from raydenoise.core.tiling import Grid
from raydenoise.model.card import (
    CARD_FILE,
    DEFAULT_TILE,
    MODEL_FILE,
    Card,
    check_sigma,
    file_sha256,
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
    assert replace(CARD, sigma_range=None).limited(200) == 200


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
    check_sigma(200, card=replace(CARD, sigma_range=None))
