"""The description of a network from a stranger: what may stand in its JSON, by name and by size.

Keras' own safe mode came to the old `.h5` files late and was passed by several times (CVE-2024-3660, CVE-2025-1550,
CVE-2025-8747, CVE-2025-9905, CVE-2025-9906, CVE-2025-12058, CVE-2026-1669). So this is a list of what a network from
pictures to pictures is made of, and all else is refused: a layer that runs code or reads a file has no name here.

Nothing here loads Keras: a driver looks at a model in milliseconds.
"""

import json
import math
import re
import sys
from collections.abc import Collection, Iterator
from typing import Any

MOST_BYTES = 1 << 24  # of JSON; the largest shipped one has 50,000
_MOST_LAYERS = 5_000  # calls of layers, an inner network's as often as it is called; a shipped one has 60
_MOST_NUMBER = 65_536  # any setting that is a whole number, sides of pictures among them
_MOST_WINDOW = 1_024  # pixels that one output looks at, steps over or leaves out, per side
_WINDOWS = {"kernel_size", "pool_size", "strides", "dilation_rate", "padding", "output_padding", "cropping", "size"}
_SHAPES = {"batch_shape", "batch_input_shape", "input_shape", "shape", "target_shape", "height", "width", "n"}
# They set no size: seeds, values, marks, how an inner network was trained.
_FREE = {"seed", "value", "shared_object_id", "compile_config", "training_config"}

_NETWORKS = "Functional Model Sequential InputLayer"
_WEIGHTED = (
    "Conv1D Conv2D Conv2DTranspose DepthwiseConv2D SeparableConv2D Convolution2D Convolution2DTranspose "
    "SeparableConvolution2D Dense"
)
_LAYERS = (
    "EinsumDense MaxPooling2D MaxPool2D AveragePooling2D AvgPool2D "
    "GlobalAveragePooling2D GlobalAvgPool2D GlobalMaxPooling2D GlobalMaxPool2D AdaptiveAveragePooling2D "
    "AdaptiveMaxPooling2D UpSampling2D ZeroPadding2D Cropping2D Resizing CenterCrop Rescaling Normalization "
    "BatchNormalization LayerNormalization GroupNormalization RMSNormalization UnitNormalization "
    "SpectralNormalization Activation ReLU LeakyReLU PReLU ELU Softmax ThresholdedReLU Add Subtract Multiply "
    "Average Maximum Minimum Concatenate Dot Flatten Reshape Permute RepeatVector Identity Dropout "
    "SpatialDropout2D AlphaDropout GaussianDropout GaussianNoise ActivityRegularization Attention "
    "AdditiveAttention MultiHeadAttention GroupQueryAttention"
)
# Types, initializers, regularizers, constraints; of an inner network that was compiled, optimizer and loss.
_PARTS = (
    "DTypePolicy Policy Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer "
    "LecunNormal LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform TruncatedNormal "
    "VarianceScaling Zeros L1 L2 L1L2 OrthogonalRegularizer MaxNorm MinMaxNorm NonNeg UnitNorm Adam AdamW SGD "
    "RMSprop Adagrad Adadelta Adamax Nadam Lion Muon MeanSquaredError MeanAbsoluteError Huber LogCosh"
)
# `x * 2` between layers, and keras.ops; none takes a function.
_OPERATIONS = (
    "Absolute Abs Add Subtract Multiply Divide TrueDivide FloorDivide Mod Power Negative Square Sqrt Rsqrt "
    "Reciprocal Exp Log Log1p Expm1 Sign Clip Maximum Minimum Round Floor Ceil Sin Cos Tan Tanh Sinh Cosh Arctan "
    "Matmul Einsum Dot Mean Sum Max Min Amax Amin Var Std Prod Reshape Transpose Moveaxis Swapaxes Squeeze "
    "ExpandDims Concatenate Stack Split Pad Tile Repeat Roll Flip Rot90 Where GetItem Slice Cast Take BroadcastTo "
    "OnesLike ZerosLike FullLike Greater GreaterEqual Less LessEqual Equal NotEqual LogicalAnd LogicalOr "
    "LogicalNot Relu Relu6 Sigmoid Softplus Softsign Silu LogSigmoid LeakyRelu HardSigmoid HardSilu Elu Selu Gelu "
    "Celu Softmax LogSoftmax MaxPool AveragePool Conv DepthwiseConv SeparableConv ConvTranspose Moments Normalize "
    "DotProductAttention DepthToSpace SpaceToDepth Unfold Fold Resize RGBToGrayscale PadImages CropImages "
    "StopGradient Erf"
)
_CLASSES = frozenset(f"{_NETWORKS} {_WEIGHTED} {_LAYERS} {_PARTS} {_OPERATIONS}".split())
_SIZED = frozenset(_WEIGHTED.split())
_MODULES = re.compile(
    r"keras(\.src)?(\.(layers|models|ops|initializers|regularizers|constraints|dtype_policies|optimizers|losses)(\.\w+)*)?"
)
_FUNCTION_MODULES = ("builtins", "keras.activations", "keras.src.activations.activations")
_ACTIVATIONS = (  # all of keras.activations
    "celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear "
    "log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus "
    "sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold"
)
ACTIVATIONS = frozenset(_ACTIVATIONS.split())
_OURS = {"raydenoise>Planes", "raydenoise>_Keras2Conv2DTranspose"}
# Values that JSON has no form for.
_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__tuple__", "__slice__", "__ellipsis__", "TensorShape"}
_NUMERIC = re.compile(r"(float|bfloat|int|uint|bool)\d{0,2}")


def vet_description(text: str | bytes, *, numbers: int, extents: Collection[int], compiled: bool) -> None:
    """Check every object that a network's JSON names, and how large it would be.

    Args:
        text: the JSON.
        numbers: how many the file of weights holds.
        extents: every height, width, depth or length of a dataset in it.
        compiled: the part about losses and optimizers counts too; in a `.keras` file it is never looked at.

    Raises:
        ValueError: it is no JSON of a network, or names what is not allowed.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"the network's description has {len(text):,} bytes; allowed: {MOST_BYTES:,}")
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError(f"the network's description is a {type(config).__name__}; allowed: a model")
        if not compiled:
            config.pop("compile_config", None)
        layers = _layers(config)
    except RecursionError as error:
        raise ValueError("the network's description is nested too deep") from error
    if layers > _MOST_LAYERS:
        came = f"{layers:,}" if layers < 10**12 else "over 10**12"
        raise ValueError(f"it calls {came} layers, inner networks counted at each call; allowed: {_MOST_LAYERS:,}")
    least = 0
    for node in _objects(config):
        _vet_object(node)
        least += _least_numbers(node, extents)
    if least > numbers:
        raise ValueError(f"its layers need {least:,} weights or more; allowed: the {numbers:,} that the file holds")
    _vet_sizes(config)


def _layers(node: Any) -> int:
    """Count the calls of layers below a node."""
    if isinstance(node, list):
        return sum(map(_layers, node))
    if not isinstance(node, dict):
        return 0
    entries = node.get("layers")
    if not isinstance(entries, list):
        return sum(map(_layers, node.values()))
    return sum(_calls(entry) * (1 + _layers(entry)) for entry in entries)


def _calls(entry: Any) -> int:
    nodes = entry.get("inbound_nodes") if isinstance(entry, dict) else None
    return max(1, len(nodes)) if isinstance(nodes, list) else 1


def _objects(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    waiting: list[Any] = [config]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "class_name" in node:
                yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _least_numbers(node: dict[str, Any], extents: Collection[int]) -> int:
    """How many weights a layer has at least, whatever it is called with.

    Raises:
        ValueError: none of the file's weights has the size that it asks for.
    """
    name, settings = node["class_name"], node.get("config")
    if name not in _SIZED or not isinstance(settings, dict):
        return 0
    width = next((settings[key] for key in ("filters", "units") if key in settings), None)
    if width is not None and (not isinstance(width, int) or width not in extents):
        raise ValueError(
            f"{name} {str(settings.get('name'))[:80]!r} has {str(width)[:30]} filters or units; allowed: a size that "
            "weights in the file have"
        )
    window = settings.get("kernel_size") if not name.startswith("Separable") else None
    sides = window if isinstance(window, list) else [window]
    return math.prod(max(1, side) for side in [width, *sides] if isinstance(side, int))


def _vet_sizes(config: dict[str, Any]) -> None:
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        key, node = waiting.pop()
        if isinstance(node, dict):
            waiting.extend((inner, value) for inner, value in node.items() if inner not in _FREE)
        elif isinstance(node, list):
            waiting.extend((key, value) for value in node)
        elif isinstance(node, int) or (isinstance(node, float) and key in _WINDOWS | _SHAPES):
            most = _MOST_WINDOW if key in _WINDOWS else _MOST_NUMBER
            if not abs(node) <= most:  # NaN as well
                raise ValueError(f"it sets {key[:80]!r} to {str(node)[:30]}; allowed: whole numbers up to {most:,}")


def _vet_object(node: dict[str, Any]) -> None:
    """Refuse an object of a class that is not on the list, whatever module or package it is said to come from."""
    name, module, registered = (node.get(key) for key in ("class_name", "module", "registered_name"))
    if name == "function":
        allowed = module in _FUNCTION_MODULES and node.get("config") in ACTIVATIONS
        came = f"the function {node.get('config')!r} of {module!r}"
    elif name in ("__tensor__", "__numpy__"):
        inner = node.get("config")
        kind = inner.get("dtype") if isinstance(inner, dict) else None
        allowed = isinstance(kind, str) and _NUMERIC.fullmatch(kind) is not None
        came = f"values of type {kind!r}"
    elif isinstance(registered, str) and registered not in ("", name):
        allowed, came = _is_registered(registered), f"the registered {registered!r}"
    elif isinstance(name, str) and ">" in name:  # how .h5 files name a registered class
        allowed, came = _is_registered(name), f"the registered {name!r}"
    else:
        plain = isinstance(name, str) and name in _CLASSES | _VALUES
        known = module is None or (isinstance(module, str) and _MODULES.fullmatch(module) is not None)
        allowed = plain and known and (registered is None or isinstance(registered, str))
        came = f"{name!r}" + (f" of {module!r}" if module is not None else "")
    if not allowed:
        raise ValueError(
            f"it asks for {came[:150]}; allowed: plain layers and operations of Keras, since others can run code or "
            "read files; rebuild the network of those"
        )


def _is_registered(name: str) -> bool:
    """Whether this process, not the file, has registered a layer under that name, or we will."""
    if name in _OURS:
        return True
    keras = sys.modules.get("keras")  # where nobody has loaded it, nobody has registered a layer
    if keras is None:
        return False
    found = keras.saving.get_registered_object(name)
    return isinstance(found, type) and issubclass(found, keras.layers.Layer)
