"""Pictures worth a look: which rule says so, and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raydenoise.report.metrics import GAIN, MEGAPIXELS, SECONDS
from raydenoise.report.query import Rows

LISTED = 5  # pictures of each rule
ROBUST_Z = 3.5  # Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993
NORMAL_MAD = 0.6745  # median absolute deviation of a normal distribution with sigma 1
LEAST_SPREAD = 0.5  # grey levels or dB: a collection of equals has no outliers below it
NOISY_LEVEL = 2.0  # grey levels: remaining noise that an eye can see
FAINT = 1.0  # grey levels: below it hardly anything is removed
SLOW = 5  # times the median, for the picture and for each of its pixels


@dataclass(frozen=True)
class Rule:
    """A reason to look at a picture.

    Attributes:
        name: of the rule.
        why: what it means and what to do.
        where: SQL, true for pictures that it names.
        value: SQL, how strongly; the first ones shown have the most.
        shown: how the value reads, a format with `value`.
    """

    name: str
    why: str
    where: str
    value: str
    shown: str


@dataclass(frozen=True)
class Finding:
    """What a rule found: how many pictures, and the first of them."""

    rule: Rule
    count: int
    rows: list[dict[str, Any]]


def rules(typical: dict[str, Any], config: dict[str, Any]) -> Iterator[Rule]:
    """The rules, set for a run.

    Args:
        typical: from `metrics.typical`.
        config: of the manifest.
    """
    yield from _of_quality(typical)
    yield from _of_noise(typical, config)
    if typical["seconds"]:
        yield Rule(
            "Slow",
            f"more than {SLOW} times the median time, and as much per pixel",
            f"({SECONDS}) > {SLOW * typical['seconds']} AND "
            f"({SECONDS}) / ({MEGAPIXELS}) > {SLOW * typical['seconds_per_megapixel']}",
            SECONDS,
            "{value:.1f} s",
        )


def _of_quality(typical: dict[str, Any]) -> Iterator[Rule]:
    yield Rule(
        "Denoised is worse than noisy",
        "PSNR against the reference fell: too high a noise level, a reference that does not fit, or a picture unlike "
        "those of the training",
        f"{GAIN} < 0",
        "psnr_noisy - psnr_denoised",
        "{value:.2f} dB lost",
    )
    if typical["gain"] is not None:
        yield Rule(
            "Gained far less than the others",
            f"robust z of the PSNR gain below -{ROBUST_Z}",
            f"{_z(GAIN, typical['gain'], typical['gain_mad'])} < -{ROBUST_Z}",
            f"-({GAIN})",
            "gain {negative:+.2f} dB",
        )


def _of_noise(typical: dict[str, Any], config: dict[str, Any]) -> Iterator[Rule]:
    strength = float(config.get("strength", 1.0))
    left = 1 - strength / 2  # half of what was to be removed
    yield Rule(
        "Still noisy",
        f"more than {left:.0%} of the estimated noise is left, and at least {NOISY_LEVEL:g} grey levels",
        f"sigma_out_estimate >= {NOISY_LEVEL} AND sigma_out_estimate > {left} * sigma_in_estimate",
        "sigma_out_estimate",
        "{value:.1f} grey levels left",
    )
    if config.get("sigma") == "auto":
        yield Rule(
            "Noisier than the model was trained for",
            "the estimate was cut to the model's range",
            "sigma < sigma_in_estimate - 0.5",
            "sigma_in_estimate",
            "{value:.1f} grey levels estimated",
        )
        yield Rule(
            "Hardly any noise found",
            "noise that went through JPEG or a resizing is not seen by the estimate: where the eye sees noise, give "
            "--sigma",
            f"sigma_in_estimate < {FAINT}",
            "-sigma_in_estimate",
            "{negative:.2f} grey levels estimated",
        )
    if typical["sigma_in"] is not None:
        z = _z("sigma_in_estimate", typical["sigma_in"], typical["sigma_in_mad"])
        yield Rule(
            "Noise unlike the rest of the collection",
            f"robust z of the estimated noise beyond {ROBUST_Z}",
            f"abs({z}) > {ROBUST_Z}",
            f"abs({z})",
            "robust z {value:.1f}",
        )


def find(rows: Rows, rule: Rule) -> Finding:
    """Apply a rule to the denoised pictures."""
    where = f"status = 'ok' AND ({rule.where})"
    count = rows.one(f"SELECT count(*) AS found FROM rows WHERE {where}")["found"]
    shown = []
    if count:
        shown = rows.all(
            f"""SELECT * EXCLUDE (finished_at), ({rule.value})::DOUBLE AS value FROM rows
            WHERE {where} ORDER BY value DESC, key LIMIT {LISTED}"""
        )
    return Finding(rule, count, shown)


def told(rule: Rule, row: dict[str, Any]) -> str:
    """Say how strongly a rule names a picture."""
    return rule.shown.format(value=row["value"], negative=-row["value"])


def _z(value: str, median: float, mad: float) -> str:
    """The robust z-score of a column: distances from the median, in what would be standard deviations."""
    return f"({NORMAL_MAD} * ({value} - {median}) / {max(mad, LEAST_SPREAD * NORMAL_MAD)})"
