"""Rows of metrics for the tests of the page."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def row(index: int, **changes: Any) -> dict[str, Any]:
    """A metrics row of a denoised picture; the gain falls and the noise grows from one to the next."""
    return {
        "uri": f"/in/{index}.png",
        "key": f"{index}.png",
        "output_uri": f"/out/images/{index}.png",
        "status": "ok",
        "format": "png",
        "height": 40,
        "width": 60,
        "channels": 3,
        "bit_depth": 8,
        "bytes_in": 1000,
        "bytes_out": 500,
        "model": "tiny",
        "model_sha256": "0" * 64,
        "sigma": 20.0 + index,
        "sigma_in_estimate": 20.0 + index,
        "sigma_out_estimate": 1.0,
        "psnr_noisy": 22.0,
        "psnr_denoised": 30.0 - index / 10,
        "ssim_noisy": 0.5,
        "ssim_denoised": 0.9,
        "mse_noisy": 0.0063,
        "mse_denoised": 0.001,
        "tiles": 1,
        "decode_s": 0.01,
        "infer_s": 0.1,
        "encode_s": 0.02,
        "worker": "host/1",
        "finished_at": STARTED + timedelta(seconds=10 + index),
        "precision": "float32",
        **changes,
    }


def failure(index: int, type: str, message: str, **changes: Any) -> dict[str, Any]:
    """A metrics row of a picture that failed."""
    return {
        "uri": f"/in/{index}.png",
        "key": f"{index}.png",
        "status": "error",
        "error_type": type,
        "error_message": message,
        "decode_s": 0.001,
        "finished_at": STARTED + timedelta(seconds=10 + index),
        **changes,
    }


UNMEASURED = {f"{name}_{side}": None for name in ("psnr", "ssim", "mse") for side in ("noisy", "denoised")}

MakeOut = Callable[..., Path]
