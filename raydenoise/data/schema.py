"""The contract between stages and with readers: column names, types and status values.

See docs/metrics.md and docs/training.md.
"""

from typing import Any, Literal

import pyarrow as pa

Status = Literal["ok", "error"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

SOURCES = pa.schema(
    [
        ("uri", pa.string()),  # where the picture is
        ("key", pa.string()),  # POSIX path below INPUT, unique
        ("output_key", pa.string()),  # POSIX path below OUT/images, unique
        ("reference_uri", pa.string()),  # its clean picture, or null
    ]
)

METRICS = pa.schema(
    [
        ("uri", pa.string()),
        ("key", pa.string()),
        ("output_uri", pa.string()),
        ("status", pa.string()),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("format", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int8()),
        ("bit_depth", pa.int8()),
        ("bytes_in", pa.int64()),
        ("bytes_out", pa.int64()),
        ("model", pa.string()),
        ("model_sha256", pa.string()),
        ("sigma", pa.float32()),
        ("sigma_in_estimate", pa.float32()),
        ("sigma_out_estimate", pa.float32()),
        ("psnr_noisy", pa.float64()),
        ("psnr_denoised", pa.float64()),
        ("ssim_noisy", pa.float64()),
        ("ssim_denoised", pa.float64()),
        ("mse_noisy", pa.float64()),
        ("mse_denoised", pa.float64()),
        ("tiles", pa.int32()),
        ("decode_s", pa.float32()),
        ("infer_s", pa.float32()),
        ("encode_s", pa.float32()),
        ("worker", pa.string()),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("precision", pa.string()),
        ("note", pa.string()),
    ]
)

PATCHES = pa.schema(
    [
        ("uri", pa.string()),  # where the clean picture was
        ("key", pa.string()),  # its POSIX path below INPUT, unique
        ("y", pa.int32()),  # top row in the picture, after downscaling
        ("x", pa.int32()),  # left column
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int8()),  # 1 or 3
        ("dtype", pa.string()),  # uint8 or uint16
        ("split", pa.string()),  # of the whole picture
        ("pixels", pa.binary()),  # clean: height x width x channels in C order, little endian
        ("noisy", pa.binary()),  # the same of the noisy picture; null where there is none
    ]
)

PICTURES = pa.schema(
    [
        ("uri", pa.string()),  # the clean picture; null where a noisy one has none
        ("key", pa.string()),  # POSIX path below INPUT, unique
        ("noisy_uri", pa.string()),  # or null
    ]
)

SURVEY = pa.schema(
    [
        *PICTURES,
        ("status", pa.string()),  # ok; skipped: no patch in it; error
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("digest", pa.binary()),  # of the files' bytes
        ("patches", pa.int64()),
        ("patch_bytes", pa.int64()),  # of one, clean and noisy
        ("channels", pa.int8()),
        ("dtype", pa.string()),
    ]
)

_FAILURE = [("uri", pa.string()), ("key", pa.string()), ("error_type", pa.string()), ("error_message", pa.string())]
FAILURES = pa.schema([*_FAILURE, ("status", pa.string())])

SHARDS = pa.schema(
    [
        ("name", pa.string()),
        ("split", pa.string()),
        (
            "pieces",
            pa.list_(
                pa.struct([*PICTURES, ("digest", pa.binary()), ("first", pa.int64()), ("last", pa.int64())]),
            ),
        ),
    ]
)

WRITTEN = pa.schema(
    [
        ("name", pa.string()),
        ("split", pa.string()),
        ("pieces", pa.int64()),
        ("rows", pa.int64()),  # none: there is no file
        ("bytes", pa.int64()),
        ("failures", pa.list_(pa.struct(_FAILURE))),
    ]
)

TRAINING = pa.schema(
    [
        ("step", pa.int64()),  # optimizer steps done
        ("loss", pa.float64()),  # mean since the row before
        ("learning_rate", pa.float64()),
        ("patches_per_s", pa.float64()),  # of all workers together
        ("seconds", pa.float64()),  # wall time so far, over all starts
        ("psnr", pa.float64()),  # dB on the validation split, mean over the levels; null where none was due
        ("psnr_15", pa.float64()),  # at sigma 15; null for pairs
        ("psnr_25", pa.float64()),
        ("psnr_50", pa.float64()),
    ]
)

TRIALS = pa.schema(
    [
        ("trial", pa.int64()),  # from 0, in the order of the drawing
        ("status", pa.string()),  # finished; stopped by the scheduler; error
        ("error", pa.string()),
        ("psnr", pa.float64()),  # dB of the last validation
        ("best_psnr", pa.float64()),  # dB of the best one
        ("best_step", pa.int64()),  # where it was
        ("steps", pa.int64()),  # done, up to the last validation
        ("seconds", pa.float64()),  # wall time of the steps
    ]
)  # and one column for each drawn option


EVALUATION_SOURCES = pa.schema(
    [
        *PICTURES,
        ("shard", pa.string()),  # the parquet file that holds the picture, or null
        ("group", pa.int32()),  # its row group
        ("row", pa.int32()),  # in the group
        ("shown", pa.bool_()),  # on the sheet
    ]
)

EVALUATION = pa.schema(
    [
        ("uri", pa.string()),
        ("key", pa.string()),
        ("noisy_uri", pa.string()),
        ("status", pa.string()),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int8()),
        ("bit_depth", pa.int8()),
        ("method", pa.string()),
        ("model_sha256", pa.string()),
        ("sigma", pa.float64()),
        ("sigma_source", pa.string()),
        ("sigma_given", pa.float64()),
        ("psnr", pa.float64()),
        ("psnr_noisy", pa.float64()),
        ("ssim", pa.float64()),
        ("mse", pa.float64()),
        ("seconds", pa.float64()),
        ("precision", pa.string()),
        ("worker", pa.string()),
        ("finished_at", pa.timestamp("us", tz="UTC")),
    ]
)
EVALUATED = pa.schema(  # what the actors return
    [*EVALUATION, ("crop", pa.binary()), ("clean_crop", pa.binary())]  # PNG files for the sheet, or null
)


def metrics_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Make a table of metrics rows; a column that a row lacks is null there.

    Raises:
        ValueError: a row has a column that the schema lacks.
    """
    foreign = {name for row in rows for name in row} - set(METRICS.names)
    if foreign:
        raise ValueError(f"metrics rows have the columns {sorted(foreign)}; allowed: {', '.join(METRICS.names)}")
    return pa.Table.from_pylist(rows, schema=METRICS)
