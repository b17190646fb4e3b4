"""Laws of listings: every row once, in order, with an output that stays in OUT."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydenoise.data import inputs, storage
from raydenoise.data.listing import check, key_of

URIS = ["s3://b/x/a.jpg", "/data/y 1/b.png", "gs://c/ü.webp", "s3://b/x/a.bmp"]


def write(path: Path, columns: dict[str, Any]) -> str:
    (pq.write_table if path.suffix == ".parquet" else pyarrow.csv.write_csv)(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_rows_are_read_in_order_with_keys_that_mirror_them(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"list{suffix}", {"number": [1, 2, 3, 4], "where": URIS})
    listing = check(file, column="where")
    rows = [row for table in listing.read() for row in table.to_pylist()]
    assert len(listing) == 4
    assert [row["uri"] for row in rows] == URIS
    assert [row["key"] for row in rows] == ["b/x/a.jpg", "data/y 1/b.png", "c/ü.webp", "b/x/a.bmp"]
    assert [row["output_key"] for row in rows] == [row["key"] for row in rows]
    assert {row["reference_uri"] for row in rows} == {None}
    limited = check(file, column="where", limit=2)
    assert [row["uri"] for table in limited.read() for row in table.to_pylist()] == URIS[:2]


def test_other_columns_of_a_csv_may_hold_anything(tmp_path: Path) -> None:
    rows = ["1,/a.png", *(f"{number},/{number}.png" for number in range(200_000)), 'n/a,"/b\n1,c.png"', "1.5,/d.png"]
    (tmp_path / "l.csv").write_text("\n".join(["number,uri", *rows]))  # over 1 MiB, from which types were guessed
    found = [uri for table in check(str(tmp_path / "l.csv"), column="uri").read() for uri in table["uri"].to_pylist()]
    assert len(found) == len(rows)
    assert found[-2:] == ["/b\n1,c.png", "/d.png"]


def test_names_of_another_format_meet_as_those_of_a_folder_do(tmp_path: Path) -> None:
    listing = check(write(tmp_path / "l.csv", {"uri": URIS}), column="uri", written_format="png")
    names = [name for table in listing.read() for name in table["output_key"].to_pylist()]
    keys = [key_of(uri) for uri in URIS]
    assert names == ["b/x/a.jpg.png", "data/y 1/b.png", "c/ü.png", "b/x/a.bmp.png"]
    assert dict(zip(sorted(keys), inputs.output_keys(sorted(keys), "png"), strict=True)) == dict(
        zip(keys, names, strict=True)
    )


@pytest.mark.parametrize("written", [None, "png"])
def test_names_of_folders_are_as_those_of_a_listed_bucket(tmp_path: Path, written: Any) -> None:
    uris = ["s3://b/x", "s3://b/x/y.png", "s3://b/a.png", "s3://b/a.png/c/d.jpg", "s3://b/e.jpg", "s3://b/e.png/f.png"]
    keys = sorted(key_of(uri) for uri in uris)
    listing = check(write(tmp_path / "l.csv", {"uri": uris}), column="uri", written_format=written)
    rows = [row for table in listing.read() for row in table.to_pylist()]
    assert {row["key"]: row["output_key"] for row in rows} == dict(
        zip(keys, inputs.output_keys(keys, written), strict=True)
    )


def test_a_listing_is_read_from_a_bucket(bucket: str, tmp_path: Path) -> None:
    file = write(tmp_path / "l.parquet", {"uri": URIS})
    address = f"{bucket}/lists/l.parquet"
    from raydenoise.data.place import place

    storage.publish(place(address), Path(file).read_bytes())
    assert len(check(address, column="uri")) == 4


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"uri": ["/a.png", "/b.png", "/a.png"]}, r"holds /a.png more than once.*\(1 are not\)$"),
        (
            {"uri": ["s3://a/b.png", "gs://a/b.png"]},
            r"more than once, or another picture with its output name 'a/b.png'",
        ),
        (
            {"uri": ["/a.png", "relative/b.png"]},
            r"row 2 is 'relative/b.png'; allowed: absolute paths, s3:// and gs://$",
        ),
        ({"uri": ["/a.png", None], "n": [1, 2]}, r"row 2 is ''; allowed: "),
        ({"uri": ["/a.png", "file:///b.png"]}, r"row 2 is 'file:///b.png'; allowed: absolute paths, s3:// and gs://$"),
        ({"uri": ["https://u:pw@host/b?sig=1"]}, r"row 1 is 'https://...'; allowed: a local path, s3://, gs://$"),
        (
            {"uri": ["s3://a-key:a/secret@b/c"]},
            r"row 1 has @, : or \? between s3:// and its first slash; ",
        ),
        ({"uri": ["s3://only-a-bucket"]}, r"row 1 is 's3://only-a-bucket'; allowed: absolute paths, s3:// and gs://$"),
        ({"uri": pa.array([], pa.string())}, r"has no row; allowed: one a picture$"),
        ({"url": ["/a.png"]}, r"^column is 'uri'; allowed in this listing: url$"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_what_no_job_could_do_is_refused_before_it(
    tmp_path: Path, columns: dict[str, Any], said: str, suffix: str
) -> None:
    with pytest.raises(ValueError, match=said):
        check(write(tmp_path / f"l{suffix}", columns), column="uri")


def test_a_file_that_is_no_listing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"^list '.*l.parquet' cannot be read: "):
        check(str(tmp_path / "l.parquet"), column="uri")
    with pytest.raises(ValueError, match=r"^list '.*none.csv' cannot be read: "):
        check(str(tmp_path / "none.csv"), column="uri")
    with pytest.raises(ValueError, match=r"l.txt'; allowed: a file ending in .parquet or .csv$"):
        check(str(tmp_path / "l.txt"), column="uri")


@given(st.text(st.sampled_from("./a:\\ü \n")))
def test_no_output_leaves_its_folder(text: str) -> None:
    parts = key_of(f"s3://bucket/{text}").split("/")
    assert parts[0] == "bucket"
    assert not {"", ".", ".."} & set(parts)
