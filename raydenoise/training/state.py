"""Checkpoints: everything that a run needs to go on, bit for bit, in one file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from raydenoise.training.step import Engine

FILE = "state.npz"
FACTS = "facts"  # the name of their array


@dataclass(frozen=True)
class Facts:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        seconds: wall time spent on them, over all starts.
        psnr: of the last validation, dB; empty before the first.
    """

    step: int = 0
    seconds: float = 0.0
    psnr: dict[str, float] = field(default_factory=dict)


def save(folder: Path, engine: Engine, facts: Facts) -> None:
    """Write averaged weights, weights, the optimizer's variables and the facts, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        f"{index:05d}": keras.ops.convert_to_numpy(variable) for index, variable in enumerate(_variables(engine))
    }
    arrays[FACTS] = np.array(json.dumps(asdict(facts)))
    partial = folder / f"partial-{FILE}"
    np.savez(partial, **arrays)
    partial.replace(folder / FILE)


def load(folder: Path, engine: Engine) -> Facts:
    """Put a checkpoint's state back.

    Raises:
        ValueError: it is of another network or optimizer.
    """
    arrays, facts = _read(folder)
    variables = _variables(engine)
    if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
        raise ValueError(f"{folder} is a checkpoint of another network or optimizer")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    return facts


def averaged(folder: Path, *, count: int) -> tuple[list[NDArray[Any]], Facts]:
    """Read the averaged weights of a checkpoint alone: the first `count` arrays."""
    arrays, facts = _read(folder)
    return arrays[:count], facts


def _read(folder: Path) -> tuple[list[NDArray[Any]], Facts]:
    with np.load(folder / FILE) as file:
        arrays = [file[name] for name in sorted(file.files) if name != FACTS]
        return arrays, Facts(**json.loads(str(file[FACTS])))


def _variables(engine: Engine) -> list[Any]:
    weights = {id(weight) for weight in engine.model.weights}
    drawn = [variable for variable in engine.model.variables if id(variable) not in weights]  # seeds of dropout
    return [*engine.averaged.weights, *engine.model.weights, *engine.optimizer.variables, *drawn]
