"""The number format a network computes in."""

import re
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args

import keras

Precision = Literal["float32", "bfloat16", "float16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16"]

_POLICY = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def resolve(choice: str, *, gpus: bool = True) -> Precision:
    """Turn "auto" into the fast format of this machine; without `gpus`, of its CPU.

    On a GPU: bfloat16 from compute capability 8.0 on (Ampere), float16 below. On a CPU: bfloat16 with AMX tiles, or on
    AMD with AVX512-BF16 (Zen 4 on: 1.8 of the float32 speed measured); Intel's AVX512-BF16 without AMX measured half
    the float32 speed, so float32 there and everywhere else.

    Raises:
        ValueError: the choice is unknown.
    """
    if choice not in get_args(PrecisionChoice):
        raise ValueError(f"precision is {choice!r}; allowed: {', '.join(get_args(PrecisionChoice))}")
    if choice != "auto":
        return cast(Precision, choice)
    if gpus and keras.distribution.list_devices("gpu"):
        return "bfloat16" if (_compute_capability() or 8.0) >= 8.0 else "float16"
    return "bfloat16" if _fast_bfloat16(Path("/proc/cpuinfo")) else "float32"


def _fast_bfloat16(cpuinfo: Path) -> bool:
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "AuthenticAMD" in text)


def _compute_capability() -> float | None:
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return min(float(line) for line in answer.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def with_precision(model: keras.Model, precision: Precision) -> keras.Model:
    """Rebuild a network to compute in another format; weights, inputs and outputs stay float32.

    The last layers, those that make the outputs, stay float32 so that a residual is added at full precision, with those
    before them that have no weights, such as a sum that is clipped or cropped; and `Rescaling`, so that a picture is
    centred before it is rounded.
    """
    return rebuilt(model, precision=precision)


def rebuilt(
    model: keras.Model,
    *,
    precision: Precision,
    free_size: bool = False,
    size: int | None = None,
    thawed: bool = False,
) -> keras.Model:
    """Rebuild a network from its configuration with another precision and, on demand, another input size.

    Args:
        model: a built functional or sequential network.
        precision: of the layers between input and output.
        free_size: drop a fixed input height and width.
        size: fix both at so many pixels.
        thawed: train all layers, those too that it, or a network in it, has frozen.

    Raises:
        ValueError, TypeError: the network cannot be built at a free size.
    """
    config = model.get_config()
    if free_size or size:
        for layer in config["layers"]:
            if layer["class_name"] == "InputLayer":
                shape = layer["config"].get("batch_shape") or layer["config"].get("batch_input_shape")
                layer["config"]["batch_shape"] = (None, size, size, shape[-1])
    _set_precision(model, config, _POLICY[precision], exact=_last(model))
    if (free_size or size) and "build_input_shape" in config:
        config["build_input_shape"] = (None, size, size, config["build_input_shape"][-1])
    copy = cast(Any, type(model)).from_config(config)
    if thawed:
        for layer in layers_of(copy):
            layer.trainable = True
    copy.set_weights(model.get_weights())
    return copy


def layers_of(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers of a network, and those of networks in it."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)


def _set_precision(model: keras.Model, config: dict[str, Any], policy: str, *, exact: Collection[str]) -> None:
    """Set the policy of all layers in a network's configuration, of networks in it too, but for exact ones."""
    for layer in config["layers"]:
        inner = layer["config"]
        is_exact = inner["name"] in exact
        if "layers" in inner:
            within = model.get_layer(inner["name"])
            _set_precision(within, inner, policy, exact=_last(within) if is_exact else ())
        elif isinstance(inner.get("dtype"), dict):  # a layer's; those of inputs and operations are theirs
            name = "float32" if is_exact or layer["class_name"] == "Rescaling" else policy
            inner["dtype"] = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": name}}


def _last(model: keras.Model) -> set[str]:
    """Names of the layers that make the outputs, and of those before them that have no weights.

    A network before them, or that is one of them, has last layers of its own.
    """
    waiting = [tensor._keras_history.operation for tensor in model.outputs]
    found = {operation.name for operation in waiting}
    while waiting:
        operation = waiting.pop()
        if getattr(operation, "weights", None):
            continue
        for node in operation._inbound_nodes:
            for before in (tensor._keras_history.operation for tensor in node.input_tensors):
                passed = isinstance(before, keras.Model) or not getattr(before, "weights", None)
                if before.name not in found and passed:
                    found.add(before.name)
                    waiting.append(before)
    return found
