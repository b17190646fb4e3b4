"""The columns that readers rely on."""

import pyarrow as pa
import pytest

from raydenoise.data.schema import METRICS, PATCHES, SOURCES, metrics_table

# The order that users were promised; new columns come behind it.
PROMISED = [
    "uri",
    "key",
    "output_uri",
    "status",
    "error_type",
    "error_message",
    "format",
    "height",
    "width",
    "channels",
    "bit_depth",
    "bytes_in",
    "bytes_out",
    "model",
    "model_sha256",
    "sigma",
    "sigma_in_estimate",
    "sigma_out_estimate",
    "psnr_noisy",
    "psnr_denoised",
    "ssim_noisy",
    "ssim_denoised",
    "mse_noisy",
    "mse_denoised",
    "tiles",
    "decode_s",
    "infer_s",
    "encode_s",
    "worker",
    "finished_at",
]


def test_the_columns_stand_in_the_promised_order() -> None:
    assert METRICS.names[: len(PROMISED)] == PROMISED
    assert len(set(METRICS.names)) == len(METRICS.names)
    assert SOURCES.names == ["uri", "key", "output_key", "reference_uri"]
    place = ["uri", "key", "y", "x", "height", "width"]
    assert PATCHES.names == [*place, "channels", "dtype", "split", "pixels", "noisy"]


def test_lacking_columns_are_null() -> None:
    table = metrics_table([{"key": "a.png", "height": 3}, {"width": 4, "status": "error"}])
    assert table.schema == METRICS
    expected: list[dict[str, object]] = [dict.fromkeys(METRICS.names), dict.fromkeys(METRICS.names)]
    expected[0].update(key="a.png", height=3)
    expected[1].update(width=4, status="error")
    assert table.to_pylist() == expected


def test_no_rows_make_an_empty_table() -> None:
    assert metrics_table([]).equals(METRICS.empty_table())


def test_foreign_columns_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^metrics rows have the columns \['psnr', 'ssim'\]; allowed: uri, key, output_"
    ):
        metrics_table([{"key": "a.png"}, {"ssim": 1.0, "psnr": 30.0}])


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError), match="three"):
        metrics_table([{"height": "three"}])
