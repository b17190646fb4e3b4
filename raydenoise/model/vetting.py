"""Model files from strangers: what is in one is checked before Keras sees it.

Keras' own safe mode came to the old `.h5` files late and was passed by several times (CVE-2024-3660, CVE-2025-1550,
CVE-2025-8747, CVE-2025-9905, CVE-2025-9906, CVE-2025-12058, CVE-2026-1669). So this is a list of what a network from
pictures to pictures is made of, and all else is refused: a layer that runs code or reads a file has no name here.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras

_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}  # assets are vocabularies, which no picture needs
_MOST_CONFIG = 1 << 24  # bytes of JSON; the default model's has 40,000
_FREE_BYTES = 1 << 26  # bytes that any file may unpack to
_MOST_EXPANSION = 20  # times the file's size beyond that; weights hardly shrink when they are packed
_FILTERS = {1, 2, 3, 32000}  # of HDF5: deflate, shuffle, checksum, LZF; the others may be plug-ins

_NETWORKS = "Functional Model Sequential InputLayer"
_LAYERS = (
    "Conv1D Conv2D Conv2DTranspose DepthwiseConv2D SeparableConv2D Convolution2D Convolution2DTranspose "
    "SeparableConvolution2D Dense EinsumDense MaxPooling2D MaxPool2D AveragePooling2D AvgPool2D "
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
_CLASSES = frozenset(f"{_NETWORKS} {_LAYERS} {_PARTS} {_OPERATIONS}".split())
_MODULES = re.compile(
    r"keras(\.src)?(\.(layers|models|ops|initializers|regularizers|constraints|dtype_policies|optimizers|losses)(\.\w+)*)?"
)
_FUNCTION_MODULES = ("builtins", "keras.activations", "keras.src.activations.activations")
# Values that JSON has no form for.
_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__tuple__", "__slice__", "__ellipsis__", "TensorShape"}
_NUMERIC = re.compile(r"(float|bfloat|int|uint|bool)\d{0,2}")


def vet(path: Path) -> None:
    """Check a `.keras` or `.h5` file.

    Raises:
        ValueError: it names what is no plain part of a network, holds links to other files, or unpacks to far more
            than it is.
        OSError, zipfile.BadZipFile: it is no such file.
    """
    size = path.stat().st_size
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            _vet_members(archive, size)
            _vet_config(archive.read("config.json"), compiled=False)
            with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as weights:
                _vet_datasets(weights, size)
        return
    with h5py.File(path, "r") as file:
        _vet_datasets(file, size)
        config = file.attrs.get("model_config")
        if config is None:
            raise ValueError("it holds weights without a network; allowed: a whole model, as model.save writes it")
        _vet_config(config, compiled=True)


def _vet_members(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    if sorted(names) != sorted(_MEMBERS):
        came = ", ".join(sorted(names)[:5])
        raise ValueError(f"the archive holds {came[:200]!r}; allowed: {', '.join(sorted(_MEMBERS))}, each once")
    _check_expansion(sum(member.file_size for member in members), size)
    config = archive.getinfo("config.json").file_size
    if config > _MOST_CONFIG:
        raise ValueError(f"config.json has {config:,} bytes; allowed: {_MOST_CONFIG:,}")


def _check_expansion(unpacked: int, size: int) -> None:
    most = _FREE_BYTES + _MOST_EXPANSION * size
    if unpacked > most:
        raise ValueError(f"the file of {size:,} bytes unpacks to {unpacked:,}; allowed: {most:,}")


def _vet_datasets(file: h5py.File, size: int) -> None:
    """Follow the hard links only, each object once; check what each dataset would read and how much."""
    unpacked = 0
    for name, dataset in _datasets(file):
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"dataset {name!r} lies in another file; allowed: weights inside this one")
        if dataset.dtype.kind not in "biufV" or dataset.dtype.hasobject or dataset.dtype.names:  # V: bfloat16
            raise ValueError(f"dataset {name!r} holds {dataset.dtype}; allowed: numbers")
        properties = dataset.id.get_create_plist()
        filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
        if filters - _FILTERS:
            raise ValueError(
                f"dataset {name!r} is packed by HDF5 filter {min(filters - _FILTERS)}; allowed: deflate, LZF"
            )
        unpacked += dataset.size * dataset.dtype.itemsize if dataset.size else 0
        _check_expansion(unpacked, size)


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    seen = set()
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        above, group = waiting.pop()
        for key in group:
            name = f"{above}/{key}"[-200:]
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{name!r} is a link to another place; allowed: weights inside this file")
            entry = group[key]
            place = h5py.h5o.get_info(entry.id).addr
            if place in seen:  # a second name, or a circle
                continue
            seen.add(place)
            if isinstance(entry, h5py.Group):
                waiting.append((name, entry))
            elif isinstance(entry, h5py.Dataset):
                yield name, entry
            else:
                raise ValueError(f"{name!r} is a {type(entry).__name__}; allowed: groups and datasets")


def _vet_config(text: str | bytes, *, compiled: bool) -> None:
    """Check every object that a network's JSON names.

    Args:
        text: the JSON.
        compiled: the part about losses and optimizers counts too; in a `.keras` file it is never looked at.
    """
    if len(text) > _MOST_CONFIG:
        raise ValueError(f"the network's description has {len(text):,} bytes; allowed: {_MOST_CONFIG:,}")
    try:
        config = json.loads(text)
    except RecursionError as error:
        raise ValueError("the network's description is nested too deep") from error
    if not isinstance(config, dict):
        raise ValueError(f"the network's description is a {type(config).__name__}; allowed: a model")
    if not compiled:
        config.pop("compile_config", None)
    waiting: list[Any] = [config]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "class_name" in node:
                _vet_object(node)
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _vet_object(node: dict[str, Any]) -> None:
    """Refuse an object of a class that is not on the list, whatever module or package it is said to come from."""
    name, module, registered = (node.get(key) for key in ("class_name", "module", "registered_name"))
    if name == "function":
        allowed = module in _FUNCTION_MODULES and node.get("config") in _activations()
        came = f"the function {node.get('config')!r} of {module!r}"
    elif name in ("__tensor__", "__numpy__"):
        inner = node.get("config")
        kind = inner.get("dtype") if isinstance(inner, dict) else None
        allowed = isinstance(kind, str) and _NUMERIC.fullmatch(kind) is not None
        came = f"values of type {kind!r}"
    elif isinstance(registered, str) and registered not in ("", name):
        allowed, came = _is_our_layer(registered), f"the registered {registered!r}"
    elif isinstance(name, str) and ">" in name:  # how .h5 files name a registered class
        allowed, came = _is_our_layer(name), f"the registered {name!r}"
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


def _activations() -> set[str]:
    return {name for name in vars(keras.activations) if not name.startswith("_")} - {"get", "serialize", "deserialize"}


def _is_our_layer(name: str) -> bool:
    """Whether this process, not the file, has registered a layer under that name."""
    found = keras.saving.get_registered_object(name)
    return isinstance(found, type) and issubclass(found, keras.layers.Layer)
