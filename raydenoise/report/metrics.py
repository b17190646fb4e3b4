"""What the page of a denoise run needs to know of its metrics, each a query whose answer is small."""

from math import sqrt
from typing import Any

from raydenoise.report.query import Rows

STAGES = {"decode_s": "read, decode, estimate", "infer_s": "the network", "encode_s": "encode, measure, write"}
ERROR_TYPES = 20  # listed; there are a dozen, and the Python names of what nobody foresaw
EXAMPLES = 3  # of each failure, and of notes
WORKERS = 20  # listed

SECONDS = "coalesce(decode_s, 0) + coalesce(infer_s, 0) + coalesce(encode_s, 0)"
MEGAPIXELS = "height::DOUBLE * width / 1e6"
GAIN = "psnr_denoised - psnr_noisy"
REMOVED = "sigma_in_estimate - sigma_out_estimate"


def totals(rows: Rows) -> dict[str, Any]:
    """Counts, sums and means of a run."""
    return rows.one(
        f"""
        SELECT count(*) AS pictures,
            count(*) FILTER (status = 'ok') AS ok,
            count(*) FILTER (status IS DISTINCT FROM 'ok') AS failed,
            coalesce(sum({MEGAPIXELS}) FILTER (status = 'ok'), 0) AS megapixels,
            coalesce(sum(bytes_in), 0)::BIGINT AS bytes_in,
            coalesce(sum(bytes_out), 0)::BIGINT AS bytes_out,
            count(mse_denoised) AS measured,
            count(note) AS notes,
            avg(psnr_noisy) FILTER ({GAIN} IS NOT NULL) AS psnr_noisy,
            avg(psnr_denoised) FILTER ({GAIN} IS NOT NULL) AS psnr_denoised,
            count({GAIN}) AS gains,
            count(*) FILTER ({GAIN} > 0) AS gained,
            avg(ssim_noisy) FILTER (ssim_denoised IS NOT NULL) AS ssim_noisy,
            avg(ssim_denoised) FILTER (ssim_noisy IS NOT NULL) AS ssim_denoised,
            min(epoch(finished_at)) AS first,
            max(epoch(finished_at)) AS last
        FROM rows"""
    )


def typical(rows: Rows) -> dict[str, Any]:
    """Medians of the denoised pictures, and median absolute deviations of what outliers are told by."""
    return rows.one(
        f"""
        SELECT median(sigma_in_estimate)::DOUBLE AS sigma_in,
            mad(sigma_in_estimate)::DOUBLE AS sigma_in_mad,
            median(sigma_out_estimate)::DOUBLE AS sigma_out,
            median({GAIN}) AS gain,
            mad({GAIN}) AS gain_mad,
            median({SECONDS})::DOUBLE AS seconds,
            median(({SECONDS}) / ({MEGAPIXELS}))::DOUBLE AS seconds_per_megapixel
        FROM rows WHERE status = 'ok'"""
    )


def moments(rows: Rows, *, start: float, end: float, count: int) -> list[dict[str, Any]]:
    """Pictures, failures and megapixels in `count` equal spans of time, those without any left out.

    Args:
        start, end: seconds since 1970.
    """
    return rows.all(
        f"""
        SELECT greatest(0, least(? - 1, floor((epoch(finished_at) - ?) / ? * ?)))::INTEGER AS bin,
            count(*) AS pictures,
            count(*) FILTER (status IS DISTINCT FROM 'ok') AS failed,
            coalesce(sum({MEGAPIXELS}) FILTER (status = 'ok'), 0) AS megapixels
        FROM rows WHERE finished_at IS NOT NULL GROUP BY bin ORDER BY bin""",
        count,
        start,
        max(end - start, 1e-6),
        count,
    )


def limits(rows: Rows, value: str) -> tuple[float, float] | None:
    """The range that holds all but the outermost half percent at either end of a column's values."""
    found = rows.one(
        f"""SELECT quantile_cont({value}, 0.005)::DOUBLE AS low, quantile_cont({value}, 0.995)::DOUBLE AS high
        FROM rows WHERE isfinite({value})"""
    )
    return None if found["low"] is None else (found["low"], found["high"])


def bins(values: int, *, least: int, most: int) -> int:
    """Choose how many bins show so many values: the square root of their number, twice."""
    return max(least, min(most, int(2 * sqrt(values))))


def histogram(rows: Rows, value: str, *, low: float, high: float, count: int) -> list[int]:
    """Count a column's values in `count` equal bins; what is beyond falls into the outermost ones."""
    found = rows.all(
        f"""
        SELECT greatest(0, least({count} - 1, floor(({value} - ?) / ? * {count})))::INTEGER AS bin, count(*) AS pictures
        FROM rows WHERE isfinite({value}) GROUP BY bin""",
        low,
        high - low,
    )
    counts = [0] * count
    for row in found:
        counts[row["bin"]] = row["pictures"]
    return counts


def failures(rows: Rows) -> list[dict[str, Any]]:
    """Failures by type, the most frequent first, each with its first pictures by name."""
    return rows.all(
        f"""
        SELECT coalesce(error_type, 'unknown') AS type, count(*) AS pictures,
            arg_min({{'key': key, 'message': coalesce(error_message, '')}}, key, {EXAMPLES}) AS examples
        FROM rows WHERE status IS DISTINCT FROM 'ok' GROUP BY type ORDER BY pictures DESC, type LIMIT {ERROR_TYPES}"""
    )


def stages(rows: Rows) -> list[dict[str, Any]]:
    """Seconds of each stage, over all pictures that reached it."""
    return [
        rows.one(
            f"""
            SELECT '{told}' AS stage, coalesce(sum({name}), 0)::DOUBLE AS total, avg({name})::DOUBLE AS mean,
                median({name})::DOUBLE AS median, quantile_cont({name}, 0.95)::DOUBLE AS p95,
                max({name})::DOUBLE AS longest
            FROM rows"""
        )
        for name, told in STAGES.items()
    ]


def inputs(rows: Rows) -> list[dict[str, Any]]:
    """What kinds of pictures came in."""
    return rows.all(
        f"""
        SELECT format, channels, bit_depth, count(*) AS pictures, sum({MEGAPIXELS}) AS megapixels,
            median(sigma_in_estimate)::DOUBLE AS sigma_in
        FROM rows WHERE format IS NOT NULL GROUP BY ALL ORDER BY pictures DESC, format, channels, bit_depth LIMIT 20"""
    )


def notes(rows: Rows) -> list[dict[str, Any]]:
    """The first pictures by name that have a note."""
    return rows.all(f"SELECT key, note FROM rows WHERE note IS NOT NULL ORDER BY key LIMIT {EXAMPLES}")


def workers(rows: Rows) -> list[dict[str, Any]]:
    """What each process did."""
    return rows.all(
        f"""
        SELECT worker, count(*) AS pictures, sum({MEGAPIXELS}) AS megapixels, sum(infer_s)::DOUBLE AS infer_s
        FROM rows WHERE worker IS NOT NULL AND status = 'ok'
        GROUP BY worker ORDER BY pictures DESC, worker LIMIT {WORKERS}"""
    )


def ranked(rows: Rows, value: str, *, count: int, best: bool) -> list[dict[str, Any]]:
    """The denoised pictures with the highest or the lowest value."""
    order = "DESC" if best else "ASC"
    return rows.all(
        f"""SELECT *  EXCLUDE (finished_at), {value} AS value FROM rows
        WHERE status = 'ok' AND isfinite({value}) ORDER BY value {order}, key LIMIT ?""",
        count,
    )
