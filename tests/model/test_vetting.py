"""Model files that try to run code, to read other files or to fill the memory: each is refused, and nothing ran."""

import base64
import copy
import io
import json
import marshal
import pickle
import resource
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from raydenoise.model import bundle, networks, vetting, weights
from raydenoise.model.description import ACTIVATIONS
from raydenoise.model.vetting import vet

pytestmark = pytest.mark.usefixtures("in_this_process")
Change = Callable[[dict[str, Any]], object]
SUFFIXES = (".keras", ".h5")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the weights here: no file of these tests breaks a reader, and a process for each would take a minute."""
    monkeypatch.setattr(vetting, "examined", weights.examine)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small network without malice, in both formats."""
    folder = tmp_path_factory.mktemp("plain")
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(3, 3, padding="same", name="second")(x)
    for suffix in SUFFIXES:
        keras.Model(inputs, x).save(folder / f"plain{suffix}")
    return folder


def edited(plain: Path, folder: Path, suffix: str, change: Change) -> Path:
    """A copy of the plain network with another description."""
    source, path = plain / f"plain{suffix}", folder / f"hostile{suffix}"
    if suffix == ".h5":
        path.write_bytes(source.read_bytes())
        with h5py.File(path, "a") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        return path
    members = members_of(source)
    config = json.loads(members["config.json"])
    change(config)
    return zipped(path, members | {"config.json": json.dumps(config).encode()})


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def layer(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in config["config"]["layers"] if entry["config"]["name"] == name)


def bytecode(marker: Path) -> str:
    """What a Lambda layer keeps of `lambda x: x` with a side effect."""
    source = compile(f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]", "x", "eval")
    code = next(constant for constant in source.co_consts if isinstance(constant, types.CodeType))
    return base64.b64encode(marshal.dumps(code)).decode()


def function(module: str, name: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def hostile_objects(marker: Path) -> dict[str, dict[str, Any]]:
    """What known attacks put into a description, by name."""
    touch = f"touch {marker}"
    code = {"class_name": "__lambda__", "config": {"code": bytecode(marker), "defaults": None, "closure": None}}
    keras_2 = {"name": "evil", "function": [bytecode(marker), None, None], "function_type": "lambda", "module": "os"}
    unpickled = base64.b64encode(pickle.dumps(Path(marker))).decode()
    return {
        "CVE-2024-3660 lambda": {"class_name": "Lambda", "config": {"name": "evil", "function": code}},
        "Keras 2 lambda": {"class_name": "Lambda", "config": keras_2},
        "lambda with a module": {"module": "keras.layers", "class_name": "Lambda", "config": {"function": code}},
        "a lambda alone": code,
        "CVE-2025-1550 os.system": {"module": "os", "class_name": "function", "config": "system", "args": [touch]},
        "CVE-2025-1550 Popen": {
            "module": "subprocess",
            "class_name": "Popen",
            "config": {"args": touch, "shell": True},
        },
        "builtins.eval": function("builtins", "eval"),
        "builtins.exec as a class": {"module": "builtins", "class_name": "exec", "config": {"source": touch}},
        "CVE-2025-8747 get_file": function("keras.utils", "get_file"),
        "CVE-2025-9906 unsafe": function("keras.config", "enable_unsafe_deserialization"),
        "load_model": function("keras.models", "load_model"),
        "numpy.load": function("numpy", "load"),
        "func_load": function("keras.src.utils.python_utils", "func_load"),
        "CVE-2025-12058 StringLookup": {
            "module": "keras.layers",
            "class_name": "StringLookup",
            "config": {"vocabulary": str(marker)},
        },
        "TextVectorization": {"class_name": "TextVectorization", "config": {"vocabulary": "/etc/passwd"}},
        "CVE-2025-49655 torch": {
            "class_name": "TorchModuleWrapper",
            "config": {"module": {"class_name": "__bytes__", "config": {"value": unpickled}}},
        },
        "TFSMLayer": {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": str(marker.parent)}},
        "JaxLayer": {"class_name": "JaxLayer", "config": {"call_fn": code}},
        "registered": {"module": None, "class_name": "Conv2D", "config": {}, "registered_name": "builtins>eval"},
        "registered in h5": {"class_name": "foreign>Layer", "config": {}},
        "typespec": {
            "class_name": "__typespec__",
            "spec_name": "system",
            "module": "os",
            "registered_name": None,
            "config": [],
        },
        "known name, other module": {"module": "evil.layers", "class_name": "Conv2D", "config": {}},
        "known name, other keras module": {"module": "keras.utils", "class_name": "Conv2D", "config": {}},
        "no string": {"class_name": ["Conv2D"], "config": {}},
        "no string module": {"module": ["keras"], "class_name": "Conv2D", "config": {}},
        "numpy objects": {"class_name": "__numpy__", "config": {"value": [], "dtype": "object"}},
    }


OBJECTS = sorted(hostile_objects(Path("marker")))
PLACES: dict[str, Callable[[dict[str, Any], Any], object]] = {
    "a layer": lambda config, evil: config["config"]["layers"].append(evil),
    "an activation": lambda config, evil: layer(config, "first")["config"].update(activation=evil),
    "an initializer": lambda config, evil: layer(config, "first")["config"].update(kernel_initializer=evil),
    "a type": lambda config, evil: layer(config, "first")["config"].update(dtype=evil),
    "an argument of a call": lambda config, evil: layer(config, "second")["inbound_nodes"].append(
        {"args": [[evil]], "kwargs": {}}
    ),
    "a plain dictionary": lambda config, evil: layer(config, "first")["config"].update(extra={"a": [{"b": evil}]}),
    "what it was built for": lambda config, evil: layer(config, "first").update(build_config={"input_shape": evil}),
    "an inner network's loss": lambda config, evil: layer(config, "first").update(compile_config={"loss": evil}),
    "the network itself": lambda config, evil: (config.clear(), config.update(evil)),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", OBJECTS)
def test_a_hostile_object_is_refused_and_runs_nothing(plain: Path, tmp_path: Path, name: str, suffix: str) -> None:
    marker = tmp_path / "marker"
    evil = hostile_objects(marker)[name]
    for place in ("a layer", "an activation"):
        path = edited(plain, tmp_path, suffix, lambda config, place=place: PLACES[place](config, copy.deepcopy(evil)))
        with pytest.raises(
            ValueError, match=r"cannot be loaded as a Keras model: it asks for .*; allowed: plain layers"
        ):
            bundle.load(path)
        path.unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_object_is_found_anywhere(plain: Path, tmp_path: Path, place: str, suffix: str) -> None:
    evil = function("os", "system")
    path = edited(plain, tmp_path, suffix, lambda config: PLACES[place](config, evil))
    with pytest.raises(ValueError, match="asks for the function 'system' of 'os'"):
        vet(path)


def test_the_payload_of_these_tests_works_where_nobody_looks(plain: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    evil = hostile_objects(marker)["lambda with a module"]

    def change(config: dict[str, Any]) -> None:
        entry = layer(config, "second")
        entry.update(copy.deepcopy(evil), registered_name=None, build_config=None)
        entry["config"] |= {"name": "second", "arguments": {}}

    path = edited(plain, tmp_path, ".keras", change)
    with pytest.raises(ValueError, match=r"asks for 'Lambda' of 'keras.layers'"):
        bundle.load(path)
    assert not marker.exists()
    keras.models.load_model(path, compile=False, safe_mode=False)
    assert marker.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_plain_networks_pass(tmp_path: Path, plain: Path, suffix: str) -> None:
    assert bundle.load(plain / f"plain{suffix}").card.radius == 2
    path = tmp_path / f"network{suffix}"
    for name in networks.BUILDERS:
        arguments = {"filters": 4, "depth": 2} if name == "dncnn" else {"filters": (4, 4)}
        networks.build(name, **arguments).model.save(path)
        vet(path)
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(3, 3, padding="same", activation=keras.layers.LeakyReLU(), kernel_regularizer="l2")(inputs)
    inner = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(3, 1, activation="gelu")])
    inner.compile("adam", keras.losses.MeanAbsoluteError())
    model = keras.Model(inputs, keras.ops.clip(inner(x) * 0.5 + inputs, 0, 1))
    model.compile("adam", "mse", metrics=["mse"])
    model.save(path)
    vet(path)


@keras.saving.register_keras_serializable(package="mine")
class Doubled(keras.layers.Layer):  # type: ignore[misc]
    """A layer of the caller's own."""

    def call(self, inputs: Any) -> Any:
        return inputs * 2


def test_a_layer_that_the_caller_registered_passes(tmp_path: Path) -> None:
    inputs = keras.Input((None, None, 3))
    path = tmp_path / "mine.keras"
    keras.Model(inputs, Doubled()(inputs)).save(path)
    assert bundle.load(path).card.channels == 3


ARCHIVES: dict[str, tuple[dict[str, bytes], str]] = {
    "out of the folder": ({"../../marker": b"x"}, "the archive holds"),
    "absolute": ({"/tmp/marker": b"x"}, "the archive holds"),
    "assets": ({"assets/vocabulary.txt": b"x"}, "the archive holds"),
    "pickled weights": ({"model.weights.npz": b"x"}, "the archive holds"),
    "a bomb in the weights": ({"model.weights.h5": bytes(100 << 20)}, "unpacks to 104,86"),
    "a bomb in the description": (
        {"config.json": b" " * (20 << 20)},
        "config.json has 20,971,520 bytes; allowed: 16,777,216",
    ),
    "no JSON": ({"config.json": b"{"}, "Expecting property name"),
    "a list": ({"config.json": b"[]"}, "description is a list; allowed: a model"),
    "deep": ({"config.json": b"[" * 200_000}, "nested too deep"),
    "no weights": ({"model.weights.h5": b"HDF"}, "file signature not found|Unable to"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_refused(plain: Path, tmp_path: Path, name: str) -> None:
    members, match = ARCHIVES[name]
    path = zipped(tmp_path / "hostile.keras", members_of(plain / "plain.keras") | members)
    with pytest.raises(ValueError, match=f"hostile.keras cannot be loaded as a Keras model: .*({match})"):
        bundle.load(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_comes_twice_is_refused(plain: Path, tmp_path: Path) -> None:
    path = zipped(tmp_path / "hostile.keras", members_of(plain / "plain.keras"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"the archive holds 'config.json, config.json, .* each once"):
        bundle.load(path)


def add_external_link(file: h5py.File, secret: Path) -> None:
    file["stolen"] = h5py.ExternalLink(str(secret), "/")


def add_soft_link(file: h5py.File, _: Path) -> None:
    file["stolen"] = h5py.SoftLink("/elsewhere")


def add_virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", shape=(4,))
    file.create_virtual_dataset("stolen", layout)


def add_external(file: h5py.File, secret: Path) -> None:
    file.create_dataset("stolen", shape=(4,), dtype="u1", external=[(str(secret), 0, 4)])


def add_shape_bomb(file: h5py.File, _: Path) -> None:
    file.create_dataset("bomb", shape=(1 << 20, 1 << 20), dtype="f4", chunks=(16, 16), compression="gzip")


def add_many_shape_bombs(file: h5py.File, _: Path) -> None:
    for number in range(20):
        file.create_dataset(f"bomb{number}", shape=(1 << 20,), dtype="f4", chunks=(16,))


def add_objects(file: h5py.File, _: Path) -> None:
    file.create_dataset("texts", data=["a"], dtype=h5py.string_dtype())


def add_named_type(file: h5py.File, _: Path) -> None:
    file["type"] = np.dtype("f8")


def add_plugin_filter(file: h5py.File, _: Path) -> None:
    file.create_dataset("packed", shape=(16,), dtype="i4", chunks=(16,), scaleoffset=4)


STORES: dict[str, tuple[Callable[[h5py.File, Path], None], str]] = {
    "external link": (add_external_link, "'.*/stolen' is a link to another place"),
    "soft link": (add_soft_link, "'.*/stolen' is a link to another place"),
    "virtual": (add_virtual, "dataset '.*/stolen' lies in another file"),
    "external": (add_external, "dataset '.*/stolen' lies in another file"),
    "shape bomb": (add_shape_bomb, "unpacks to 4,398,046,5"),
    "many shape bombs": (add_many_shape_bombs, "unpacks to "),
    "objects": (add_objects, "dataset '.*/texts' holds object; allowed: numbers"),
    "named type": (add_named_type, "'.*/type' is a Datatype"),
    "another filter": (add_plugin_filter, "packed by HDF5 filter 6"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", STORES)
def test_weights_that_reach_elsewhere_are_refused(plain: Path, tmp_path: Path, name: str, suffix: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 10)
    path, (add, match) = tmp_path / f"hostile{suffix}", STORES[name]
    members = members_of(plain / "plain.keras")
    stream = io.BytesIO((plain / "plain.h5").read_bytes() if suffix == ".h5" else members["model.weights.h5"])
    with h5py.File(stream, "a") as file:
        add(file.create_group("layers/first/deep") if suffix == ".h5" else file["layers"], secret)
    if suffix == ".h5":
        path.write_bytes(stream.getvalue())
    else:
        zipped(path, members | {"model.weights.h5": stream.getvalue()})
    with pytest.raises(ValueError, match=f"cannot be loaded as a Keras model: .*{match}"):
        bundle.load(path)


def test_a_circle_of_groups_ends(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "circle.h5"
    path.write_bytes((plain / "plain.h5").read_bytes())
    with h5py.File(path, "a") as file:
        file["model_weights/again"] = file["/"]
    vet(path)
    assert bundle.load(path).card.radius == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.h5", None),
        ("zip.h5", "plain.keras"),
        ("hdf5.keras", "plain.h5"),
        ("pickle.h5", b"\x80\x04cos\nsystem\n"),
        ("empty.keras", b""),
        ("empty.h5", b""),
    ],
)
def test_a_file_of_another_kind_is_refused(plain: Path, tmp_path: Path, name: str, content: str | bytes | None) -> None:
    path = tmp_path / name
    if content is None:
        path.write_bytes(members_of(plain / "plain.keras")["model.weights.h5"])
    else:
        path.write_bytes((plain / content).read_bytes() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=f"{name} cannot be loaded as a Keras model: "):
        bundle.load(path)


def test_a_hostile_model_in_a_bundle_is_refused(plain: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    """The hash in a card is the stranger's as well."""
    card = json.loads((tiny_bundle / "card.json").read_text())
    marker = tmp_path / "marker"
    evil = hostile_objects(marker)["CVE-2024-3660 lambda"]
    path = edited(plain, tmp_path, ".keras", lambda config: PLACES["a layer"](config, evil))
    path.rename(tmp_path / "model.keras")
    card["sha256"] = bundle.file_sha256(tmp_path / "model.keras")
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"model.keras cannot be loaded as a Keras model: it asks for 'Lambda'"):
        bundle.load(tmp_path)
    assert not marker.exists()


def test_the_list_of_activations_is_that_of_keras() -> None:
    known = {name for name in vars(keras.activations) if not name.startswith("_")}
    assert known - {"get", "serialize", "deserialize"} == ACTIVATIONS


# What asks for memory that the weights in the file do not need. Inner networks make much of little text.
def laughs(config: dict[str, Any]) -> None:
    inner: dict[str, Any] = {"layers": [{"config": {}, "inbound_nodes": [{}] * 10}]}
    for _ in range(20):
        inner = {"layers": [{"class_name": "Functional", "config": inner, "inbound_nodes": [{}] * 10}]}
    config["config"]["layers"].append({"class_name": "Functional", "config": inner, "inbound_nodes": [{}]})


def more(**settings: Any) -> Change:
    return lambda config: layer(config, "first")["config"].update(settings)


def added(name: str, **settings: Any) -> Change:
    return lambda config: config["config"]["layers"].append({"class_name": name, "config": settings})


SIZES: dict[str, tuple[Change, str]] = {
    "filters": (more(filters=10**9), r"Conv2D 'first' has 1000000000 filters or units; allowed: a size that weights"),
    "filters that are none": (more(filters=[4]), r"Conv2D 'first' has \[4\] filters or units"),
    "filters by half": (more(filters=4.5), r"Conv2D 'first' has 4.5 filters or units"),
    "filters below 0": (more(filters=-4), r"Conv2D 'first' has -4 filters or units"),
    "a kernel": (
        more(kernel_size=[900, 900]),
        r"its layers need 3,240,\d\d\d weights or more; allowed: the 223 that the",
    ),
    "a wide kernel": (more(kernel_size=[3, 10**6]), r"its layers need .* weights or more"),
    "an input": (
        lambda config: config["config"]["layers"][0]["config"].update(batch_shape=[None, 10**6, 10**6, 3]),
        r"it sets 'batch_shape' to 1000000; allowed: whole numbers up to 65,536",
    ),
    "a Keras 2 input": (more(batch_input_shape=[None, 1, 1, 1 << 40]), "it sets 'batch_input_shape' to 1099511627776"),
    "strides": (more(strides=[1, 1025]), "it sets 'strides' to 1025; allowed: whole numbers up to 1,024"),
    "strides that are no whole number": (more(strides=1e300), r"it sets 'strides' to 1e\+300; allowed"),
    "strides that are no number": (more(strides=float("nan")), "it sets 'strides' to nan; allowed"),
    "a dilation": (more(dilation_rate=-5000), "it sets 'dilation_rate' to -5000; allowed"),
    "an enlargement": (added("UpSampling2D", size=[2, 10**5]), "it sets 'size' to 100000; allowed"),
    "an edge": (added("ZeroPadding2D", padding=[[0, 0], [0, 2000]]), "it sets 'padding' to 2000; allowed"),
    "a new size": (added("Resizing", height=10**5, width=3), "it sets 'height' to 100000; allowed"),
    "a new shape": (added("Reshape", target_shape=[10**5, 1]), "it sets 'target_shape' to 100000; allowed"),
    "copies": (added("RepeatVector", n=10**7), "it sets 'n' to 10000000; allowed"),
    "groups": (more(groups=10**7), "it sets 'groups' to 10000000; allowed"),
    "many layers": (
        lambda config: config["config"]["layers"].extend([{"class_name": "ReLU", "config": {}}] * 100_000),
        r"it calls 100,003 layers, inner networks counted at each call; allowed: 5,000",
    ),
    "many calls": (
        lambda config: layer(config, "second").update(inbound_nodes=[{}] * 6_000),
        r"it calls 6,002 layers, inner networks counted at each call; allowed: 5,000",
    ),
    "many calls of calls": (laughs, r"it calls over 10\*\*12 layers"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", SIZES)
def test_a_description_of_another_size_than_the_weights_is_refused(
    plain: Path, tmp_path: Path, name: str, suffix: str
) -> None:
    change, match = SIZES[name]
    path = edited(plain, tmp_path, suffix, change)
    with pytest.raises(ValueError, match=f"hostile{suffix} cannot be loaded as a Keras model: {match}"):
        vet(path)


def test_large_numbers_that_set_no_size_pass(plain: Path, tmp_path: Path) -> None:
    seeded = {"class_name": "GlorotUniform", "config": {"seed": 1 << 40}}
    trained = {"loss": "mse", "optimizer": {"class_name": "Adam", "config": {"decay_steps": 10**6}}}

    def change(config: dict[str, Any]) -> None:
        layer(config, "first")["config"].update(kernel_initializer=seeded, max_value=1e30)
        layer(config, "second").update(shared_object_id=1 << 45, compile_config=trained)

    for suffix in SUFFIXES:
        vet(edited(plain, tmp_path, suffix, change))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_are_made_no_larger_than_those_in_the_file(tmp_path: Path, suffix: str) -> None:
    """Each size occurs in the file, but not together: such a kernel would have 2.5e9 numbers, 10 GB."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(50_000, 1, name="first")(inputs)
    x = keras.layers.Conv2D(3, 1, name="second")(x)
    keras.Model(inputs, x).save(tmp_path / f"plain{suffix}")

    def change(config: dict[str, Any]) -> None:
        wide = layer(config, "second")
        wide["config"]["filters"] = 50_000
        wide.pop("build_config", None)

    path = edited(tmp_path, tmp_path, suffix, change)
    vet(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"hostile.* cannot be loaded as a Keras model: "):
        bundle.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB: 1 GB


def test_a_weight_without_a_value_is_refused(plain: Path, tmp_path: Path) -> None:
    members = members_of(plain / "plain.keras")
    stream = io.BytesIO(members["model.weights.h5"])
    with h5py.File(stream, "a") as file:
        del file["layers/conv2d_1/vars/1"]
    path = zipped(tmp_path / "hostile.keras", members | {"model.weights.h5": stream.getvalue()})
    with pytest.raises(ValueError, match=r"hostile.keras cannot be loaded as a Keras model: "):
        bundle.load(path)


def test_a_wide_network_passes(tmp_path: Path) -> None:
    arguments = {"filters": (8, 1024)}
    facts = {"name": "wide", "sigma_range": None, "training": {}, "scores": {}}
    network = networks.build("unet", **arguments)
    bundle.save(network, tmp_path, architecture="unet", arguments=arguments, **facts)
    assert bundle.load(tmp_path).model.count_params() == network.model.count_params() > 9_000_000
