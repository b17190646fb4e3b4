"""The space of a tuning: options of `train`, each fixed or drawn."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from raydenoise.config.options import assignments, nearest, read_mapping, shown, typed
from raydenoise.config.train import TrainConfig, model_argument

DomainName = Literal["choice", "uniform", "loguniform", "randint"]
ARGUMENTS = "model_args"
DIGITS = 4  # significant ones of a drawn number: what a person would write down
REPEATS = 10_000  # in a row, then no more are looked for: so many miss one of 1,000 with a chance of e^-10
# Said for all trials alike by the command itself, and what says nothing of a training.
OF_THE_COMMAND = (
    *("shards", "output", "epochs", "steps", "validate_every", "checkpoint_every"),
    *("workers", "gpus_per_worker", "cpus_per_worker"),
    *("resume", "address", "quiet", "json", "verbose"),
)


@dataclass(frozen=True)
class Domain:
    """What one option is drawn from.

    Attributes:
        kind: `choice` of values; `uniform` or `loguniform` between two numbers; `randint`, a whole number from the
            first to the second, both included.
        values: to choose from, or the two ends.
    """

    kind: DomainName
    values: tuple[Any, ...]

    @property
    def count(self) -> float:
        """How many different values it has at most; infinite between real numbers."""
        match self.kind:
            case "choice":
                return len(self.values)
            case "randint":
                return int(self.values[1] - self.values[0] + 1)
            case "uniform" | "loguniform":
                return math.inf

    def draw(self, rng: np.random.Generator) -> Any:
        """Take one value."""
        match self.kind:
            case "choice":
                return self.values[rng.integers(len(self.values))]
            case "randint":
                return int(rng.integers(self.values[0], self.values[1], endpoint=True))
            case "uniform":
                return _rounded(rng.uniform(*self.values), *self.values)
            case "loguniform":
                low, high = map(math.log, self.values)
                return _rounded(math.exp(rng.uniform(low, high)), *self.values)


@dataclass(frozen=True)
class Space:
    """Options of `train` by name; those of the network's builder are named `model_args.NAME`.

    Attributes:
        fixed: the same in every trial.
        drawn: from their domains.
    """

    fixed: Mapping[str, Any]
    drawn: Mapping[str, Domain]

    @classmethod
    def read(cls, path: Path) -> "Space":
        """Read a space from a YAML file; see docs/tuning.md.

        Raises:
            ValueError: a name is no option of `train`, a value or a domain is not allowed, or nothing is to be drawn.
        """
        where = f"--space {path}"
        known = {entry.name: entry for entry in fields(TrainConfig)}
        found: dict[str, Any] = {}
        for key, value in read_mapping(path, where=where).items():
            name = nearest(key, known, where=where)
            if name in OF_THE_COMMAND:
                raise ValueError(f"{where}: {key} is the same for all trials; allowed: as a flag, or not at all")
            if name == ARGUMENTS and isinstance(value, dict) and not _is_domain(value):
                for argument, inner in value.items():
                    found[f"{ARGUMENTS}.{argument}"] = _argument(str(argument), inner, where=where)
            else:
                found[name] = _option(known[name], value, where=where)
        drawn = {name: value for name, value in found.items() if isinstance(value, Domain)}
        if not drawn:
            raise ValueError(
                f"{where} leaves nothing to draw; allowed: at least one option such as "
                "learning_rate: {loguniform: [1e-4, 1e-2]}"
            )
        return cls({name: value for name, value in found.items() if name not in drawn}, drawn)

    def draw(self, trials: int, *, seed: int) -> list[dict[str, Any]]:
        """Draw combinations, each once; a longer drawing begins like a shorter one.

        Raises:
            ValueError: there are not so many, or no more were found.
        """
        count = math.prod(domain.count for domain in self.drawn.values())
        if trials > count:
            raise ValueError(f"trials is {trials}; allowed: at most {count}, all combinations of the space")
        rng = np.random.default_rng(seed)
        patience = max(REPEATS, 20 * count) if count < math.inf else REPEATS  # 20: e^-20, where all are asked for
        combinations: dict[str, dict[str, Any]] = {}
        repeats = 0
        while len(combinations) < trials:
            combination = {name: domain.draw(rng) for name, domain in self.drawn.items()}
            repeats = repeats + 1 if repr(combination) in combinations else 0
            if repeats > patience:
                raise ValueError(
                    f"trials is {trials}, and {len(combinations)} different combinations of the space were found; "
                    f"allowed: at most {len(combinations)}, or a wider space: numbers have {DIGITS} significant digits"
                )
            combinations.setdefault(repr(combination), combination)
        return list(combinations.values())

    def ends(self) -> list[dict[str, Any]]:
        """Combinations that meet every value of every choice and both ends of every range, one at a time."""
        first = {name: domain.values[0] for name, domain in self.drawn.items()}
        return [first | {name: value} for name, domain in self.drawn.items() for value in domain.values]

    def options(self, combination: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a combination, with what is fixed, into options of `TrainConfig`."""
        options: dict[str, Any] = {}
        arguments: dict[str, Any] = {}
        for name, value in {**self.fixed, **combination}.items():
            if name.startswith(f"{ARGUMENTS}."):
                arguments[name.removeprefix(f"{ARGUMENTS}.")] = value
            else:
                options[name] = value
        return options | ({ARGUMENTS: arguments} if arguments else {})


def described(combination: Mapping[str, Any]) -> str:
    """Write a combination in a line."""
    return ", ".join(f"{name} {shown_value(value)}" for name, value in combination.items())


def shown_value(value: object) -> str:
    """Write a drawn value as a table holds it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple) and value and all(isinstance(item, float) for item in value):  # a range
        return ":".join(f"{item:g}" for item in value)
    if isinstance(value, tuple) and value and all(isinstance(item, tuple) for item in value):  # model_args as a whole
        return " ".join(assignments(dict(value)))
    return shown(value) or "none"


def _is_domain(value: Mapping[Any, Any]) -> bool:
    return len(value) == 1 and next(iter(value)) in get_args(DomainName)


def _option(entry: Any, value: object, *, where: str) -> Any:
    """Read what an option is fixed at or drawn from."""
    if not isinstance(value, dict) or (dict in entry.metadata["yaml"] and not _is_domain(value)):
        return typed(entry, value, where=where)
    domain = _domain(entry.name, value, where=where)
    numbers = {int: ("choice", "randint"), float: ("choice", "uniform", "loguniform", "randint")}
    allowed = numbers.get(entry.metadata["read"], ("choice",))
    if domain.kind not in allowed:
        raise ValueError(f"{where}: {entry.name} is drawn by {domain.kind}; allowed for it: {', '.join(allowed)}")
    return Domain(domain.kind, tuple(typed(entry, item, where=where) for item in domain.values))


def _argument(name: str, value: object, *, where: str) -> Any:
    """Read what an argument of the network's builder is fixed at or drawn from: whole numbers, or lists of them."""
    if not isinstance(value, dict):
        return _whole(name, value, where=where)
    domain = _domain(f"{ARGUMENTS}.{name}", value, where=where)
    if domain.kind not in ("choice", "randint"):
        raise ValueError(f"{where}: {ARGUMENTS}.{name} is drawn by {domain.kind}; allowed for it: choice, randint")
    return Domain(domain.kind, tuple(_whole(name, item, where=where) for item in domain.values))


def _whole(name: str, value: Any, *, where: str) -> Any:
    try:
        (text,) = assignments({name: value})
        return model_argument(text)[1]
    except Exception as error:
        raise ValueError(
            f"{where}: {ARGUMENTS}.{name} is {value!r}; allowed: a whole number, a list of them, or a choice of these"
        ) from error


def _domain(name: str, value: Mapping[Any, Any], *, where: str) -> Domain:
    if not _is_domain(value):
        raise ValueError(
            f"{where}: {name} is {dict(value)!r}; allowed: a value, or one of "
            + ", ".join(f"{{{kind}: [...]}}" for kind in get_args(DomainName))
        )
    ((kind, values),) = value.items()
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where}: {name} is drawn by {kind} of {values!r}; allowed: a list of values")
    if kind == "choice":
        if len({repr(item) for item in values}) < len(values):
            raise ValueError(f"{where}: {name} has a choice twice in {values!r}; allowed: each once")
        return Domain(kind, tuple(values))
    numbers = int if kind == "randint" else (int, float)
    if len(values) != 2 or not all(isinstance(end, numbers) and not isinstance(end, bool) for end in values):
        what = "whole numbers" if kind == "randint" else "numbers"
        raise ValueError(f"{where}: {name} is drawn by {kind} of {values!r}; allowed: two {what}, [low, high]")
    low, high = values
    if not low < high < math.inf or (kind == "loguniform" and low <= 0):
        above = "0 < low < high" if kind == "loguniform" else "low < high"
        raise ValueError(f"{where}: {name} is drawn by {kind} of {values!r}; allowed: {above}")
    return Domain(kind, (low, high))


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)
