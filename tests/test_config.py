"""Laws of configs: flag over file over default, and every refusal says what is allowed."""

import re
from pathlib import Path
from typing import Any

import pytest

from raydenoise.config import (
    FORMATS,
    PRECISIONS,
    DenoiseConfig,
    EvaluateConfig,
    PrepareConfig,
    ReportConfig,
    TrainConfig,
    parse,
)


def parsed(*argv: str) -> DenoiseConfig:
    return parse(DenoiseConfig, argv, prog="raydenoise denoise", description="")


def parsed_with(tmp_path: Path, text: str, *argv: str) -> DenoiseConfig:
    """With a config file, behind the two arguments that must be there."""
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return parsed("in", "--output", "out", "--config", str(file), *argv)


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr, with its spaces, after checking that stdout is empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: raydenoise denoise")
    _, message = captured.err.split("raydenoise denoise: error: ")
    return message.strip()


def test_defaults() -> None:
    config = parsed("in", "--output", "out")
    assert config == DenoiseConfig(input="in", output="out")
    assert (config.sigma, config.strength, config.format, config.quality, config.tile) == (
        "auto",
        1.0,
        "keep",
        95,
        None,
    )
    assert config.written_format is None


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    config = parsed_with(tmp_path, "quality: 80\nstrength: 0.5\noutput: elsewhere\n", "--quality", "70")
    assert (config.quality, config.strength, config.batch_tiles, config.output) == (70, 0.5, 4, "out")


def test_the_home_folder_is_found_where_no_shell_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parsed("~/in", "--output=~/out").output == "/home/me/out"
    assert parsed("./~/in", "--output", "out~/~").input == "./~/in"
    assert parsed_with(tmp_path, "model: ~/bundle\n").model == "/home/me/bundle"
    assert prepared("~/a", "b", "--output", "out").input == ("/home/me/a", "b")
    argv = ["in", "--output", "out", "--sigma", "25", "--models", "default,~/b"]
    assert parse(EvaluateConfig, argv, prog="p", description="").models == ("default", "/home/me/b")


def test_a_flag_that_repeats_the_default_wins_too(tmp_path: Path) -> None:
    assert parsed_with(tmp_path, "quality: 80\n", "--quality", "95").quality == 95


def test_everything_may_stand_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "input: 'grüße/*.png'\noutput: out\nsigma: 25\nbatch-tiles: 2\nmax_pixels: 1000\nformat: webp\n"
        "actors: auto\ngpus-per-actor: 0.5\nquiet: true\nreference: null\nlimit: 3\n",
        encoding="utf-8",
    )
    assert parsed("--config", str(file)) == DenoiseConfig(
        input="grüße/*.png",
        output="out",
        sigma=25.0,
        batch_tiles=2,
        max_pixels=1000,
        format="webp",
        gpus_per_actor=0.5,
        quiet=True,
        limit=3,
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    assert parsed_with(tmp_path, text) == DenoiseConfig(input="in", output="out")


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--sigma", "auto"], "sigma", "auto"),
        (["--sigma", "12.5"], "sigma", 12.5),
        (["--sigma", "0"], "sigma", 0.0),
        (["--strength", "0"], "strength", 0.0),
        (["--actors", "auto"], "actors", "auto"),
        (["--actors", "3"], "actors", 3),
        (["--gpus-per-actor", "0"], "gpus_per_actor", 0.0),
        (["--gpus-per-actor", "0.25"], "gpus_per_actor", 0.25),
        (["--gpus-per-actor", "2"], "gpus_per_actor", 2.0),
        (["--tile", "256"], "tile", 256),
        (["--quiet"], "quiet", True),
        (["--json"], "json", True),
        *((["--precision", name], "precision", name) for name in PRECISIONS),
        *((["--format", name], "format", name) for name in FORMATS),
    ],
)
def test_allowed_values(argv: list[str], name: str, value: Any) -> None:
    found = getattr(parsed("in", "--output", "out", *argv), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("name", FORMATS)
def test_the_written_format(name: Any) -> None:
    assert DenoiseConfig(input="in", output="out", format=name).written_format == (None if name == "keep" else name)


OUT_OF_RANGE = {
    ("strength", 1.5): "strength is 1.5; allowed: 0 to 1",
    ("strength", -0.1): "strength is -0.1; allowed: 0 to 1",
    ("strength", float("nan")): "strength is nan; allowed: 0 to 1",
    ("tta", 3): "tta is 3; allowed: 1, 2, 4, 8",
    ("quality", 0): "quality is 0; allowed: 1 to 100",
    ("quality", 101): "quality is 101; allowed: 1 to 100",
    ("sigma", -1.0): "sigma is -1.0; allowed: auto, or 0 and more 8-bit grey levels",
    ("sigma", float("nan")): "sigma is nan; allowed: auto, or 0 and more 8-bit grey levels",
    ("gpus_per_actor", 1.5): "gpus_per_actor is 1.5; allowed: a whole number, or a part of one GPU",
    ("gpus_per_actor", -1.0): "gpus_per_actor is -1.0; allowed: a whole number, or a part of one GPU",
    ("gpus_per_actor", float("nan")): "gpus_per_actor is nan; allowed: a whole number, or a part of one GPU",
    ("gpus_per_actor", float("inf")): "gpus_per_actor is inf; allowed: a whole number, or a part of one GPU",
    ("image_timeout", 0.0): "image_timeout is 0.0; allowed: more than 0 seconds",
    ("image_timeout", float("inf")): "image_timeout is inf; allowed: more than 0 seconds",
    ("allow_failed", -1): "allow_failed is -1; allowed: all, or 0 and more",
    **{
        (name, value): f"{name} is {value}; allowed: 1 or more"
        for name in ("tile", "batch_tiles", "actors", "cpus_per_actor", "limit", "max_pixels")
        for value in (0, -2)
    },
    **{("attempts", value): f"attempts is {value}; allowed: 2 or more" for value in (1, 0, -2)},
}


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_config_refuses_what_is_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(OUT_OF_RANGE[name, value])}$"):
        DenoiseConfig(input="in", output="out", **{name: value})


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_flag_out_of_range_exits_with_2(name: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        parsed("in", "--output", "out", f"--{name.replace('_', '-')}", str(value))
    assert refused(capsys) == OUT_OF_RANGE[name, value]


@pytest.mark.parametrize(("name", "allowed"), [("format", FORMATS), ("precision", PRECISIONS)])
def test_choices_are_named(
    name: str, allowed: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    message = f"{name} is 'gif'; allowed: {', '.join(allowed)}"
    with pytest.raises(ValueError, match=f"^{message}$"):
        DenoiseConfig(input="in", output="out", **{name: "gif"})
    with pytest.raises(SystemExit, match=r"^2$"):
        parsed_with(tmp_path, f"{name}: gif\n")
    assert refused(capsys) == message
    with pytest.raises(SystemExit, match=r"^2$"):
        parsed("in", "--output", "out", f"--{name}", "gif")
    from_flag = refused(capsys)
    assert from_flag.startswith(f"argument --{name}: invalid choice: 'gif'")
    assert all(choice in from_flag for choice in allowed)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "output missing: give them as arguments or in --config"),
        (["in"], "output missing: give them as arguments or in --config"),
        (["--output", "out"], "input missing: give INPUT or --list FILE"),
        (
            ["in", "--output", "out", "--list", "l.csv"],
            "input and list are both given; allowed: one of INPUT and --list FILE",
        ),
        (
            ["--list", "l.csv", "--output", "out", "--reference", "r"],
            "reference is given with list; allowed: with INPUT, below which the paths are the same",
        ),
        (
            ["in", "--output", "out", "--allow-failed", "some"],
            "argument --allow-failed: 'some' is no number of failures; allowed: all, or 0 and more",
        ),
        (["in", "--output", "out", "--qualty", "90"], "unrecognized arguments: --qualty 90"),
        (["in", "--output", "out", "--qual", "90"], "unrecognized arguments: --qual 90"),
        (["in", "more", "--output", "out"], "unrecognized arguments: more"),
        (
            ["in", "--output", "out", "--sigma", "loud"],
            "argument --sigma: 'loud' is no noise level; allowed: auto, or 8-bit grey levels",
        ),
        (
            ["in", "--output", "out", "--actors", "1.5"],
            "argument --actors: '1.5' is no number of actors; allowed: auto, or 1 and more",
        ),
        (["in", "--output", "out", "--quality", "high"], "argument --quality: invalid int value: 'high'"),
    ],
)
def test_bad_command_lines_exit_with_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        parsed(*argv)
    assert refused(capsys) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qualty: 90\n", "qualty is unknown; did you mean quality?"),
        ("batch-tile: 3\n", "batch-tile is unknown; did you mean batch_tiles?"),
        (
            "zzzzzz: 3\n",
            "zzzzzz is unknown; allowed: input, list, column, output, model, sigma, strength, tta, reference, format, ",
        ),
        ("1: 3\n", "1 is unknown; allowed: input, "),
        ("quality: [1]\n", "quality is [1]; allowed: of JPEG and WebP, 1 to 100"),
        ("quality: high\n", "quality is 'high'; allowed: of JPEG and WebP, 1 to 100"),
        ("quality: true\n", "quality is True; allowed: of JPEG and WebP, 1 to 100"),
        ("quiet: 1\n", "quiet is 1; allowed: print errors only"),
        ("quiet: 'yes'\n", "quiet is 'yes'; allowed: print errors only"),
        ("sigma: loud\n", "sigma is 'loud'; allowed: noise level in 8-bit grey levels, or auto"),
        ("sigma: true\n", "sigma is True; allowed: noise level in 8-bit grey levels, or auto"),
        ("limit: 2.5\n", "limit is 2.5; allowed: stop after the first N pictures: by name, or rows of --list"),
        ("model: [a, b]\n", "model is ['a', 'b']; allowed: shipped name, bundle folder, or .keras / .h5 file"),
        ("quality:\n", "quality is None; allowed: of JPEG and WebP, 1 to 100"),
        ("strength: null\n", "strength is None; allowed: 0 keeps the noisy picture"),
        ("model: null\n", "model is None; allowed: shipped name, bundle folder, or .keras / .h5 file"),
        ("- quality\n", "holds a list; allowed: `name: value` lines"),
        ("quality\n", "holds a str; allowed: `name: value` lines"),
        ("quality: [\n", "is not YAML: "),
        ("a: b: c\n", "is not YAML: "),
        ("sigma: 25\nquality: 90\nsigma: auto\n", "sigma stands there twice"),
        ("batch-tiles: 2\nbatch_tiles: 4\n", "batch_tiles stands there twice"),
    ],
)
def test_bad_files_exit_with_2(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        parsed_with(tmp_path, text)
    said = refused(capsys)
    assert said.startswith(f"--config {tmp_path / 'job.yaml'}")
    assert message in said


def test_a_range_holds_in_the_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        parsed_with(tmp_path, "strength: 7\n")
    assert refused(capsys) == "strength is 7.0; allowed: 0 to 1"


def test_a_missing_file_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, reason in ((tmp_path / "gone.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(SystemExit, match=r"^2$"):
            parsed("in", "--output", "out", "--config", str(path))
        assert refused(capsys) == f"--config {path}: {reason}"


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        parsed("--help")
    said = capsys.readouterr().out
    for name in DenoiseConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in said or name == "input"
    assert "(default: 95)" in said


def prepared(*argv: str) -> PrepareConfig:
    return parse(PrepareConfig, argv, prog="raydenoise prepare", description="")


def test_prepare_takes_several_inputs_wherever_they_stand() -> None:
    found = prepared("a", "b", "--output", "out", "c", "--patch", "64")
    assert found == PrepareConfig(input=("a", "b", "c"), output="out", patch=64)
    assert prepared("--output", "out", "a") == PrepareConfig(input=("a",), output="out")


def test_prepare_takes_pairs() -> None:
    found = prepared("--noisy", "n", "--clean", "c", "--output", "out")
    assert found == PrepareConfig(noisy="n", clean="c", output="out")
    assert found.input == ()


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--scale", "0.5"], "scale", (0.5, 0.5)),
        (["--scale", "0.5:1"], "scale", (0.5, 1.0)),
        (["--split", "0.8,0.2,0"], "split", (0.8, 0.2, 0.0)),
        (["--split", "1,0,0"], "split", (1.0, 0.0, 0.0)),
        (["--flat", "0"], "flat", 0.0),
        (["--count", "5"], "count", 5),
    ],
)
def test_values_of_prepare(argv: list[str], name: str, value: Any) -> None:
    assert getattr(prepared("in", "--output", "out", *argv), name) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("input: a", {"input": ("a",)}),
        ("input: [a, b]", {"input": ("a", "b")}),
        ("input: a\nsplit: [0.8, 0.1, 0.1]", {"input": ("a",), "split": (0.8, 0.1, 0.1)}),
        ("input: a\nsplit: 0.8,0.1,0.1", {"input": ("a",), "split": (0.8, 0.1, 0.1)}),
        ("input: a\nscale: 0.5", {"input": ("a",), "scale": (0.5, 0.5)}),
        ("input: a\nscale: 0.5:0.75", {"input": ("a",), "scale": (0.5, 0.75)}),
    ],
)
def test_prepare_reads_a_file(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    (tmp_path / "job.yaml").write_text(text)
    found = prepared("--output", "out", "--config", str(tmp_path / "job.yaml"))
    assert found == PrepareConfig(output="out", **expected)
    (tmp_path / "job.yaml").write_text("input: null\nnoisy: a\nclean: b\n")
    assert prepared("--output", "out", "--config", str(tmp_path / "job.yaml")).input == ()
    (tmp_path / "job.yaml").write_text("input: z\n")
    assert prepared("a", "--output", "out", "--config", str(tmp_path / "job.yaml")).input == ("a",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input: 3", "input is 3; allowed: folders (with all below them), globs, files: clean pictures"),
        ("input: [a, 3]", "input is 3; allowed: folders"),
        ("split: [a, 1]", "split is ['a', 1]; allowed: shares of pictures for train,validation,test"),
        ("scale: small", "scale is 'small'; allowed: shrink first by a factor"),
    ],
)
def test_a_bad_file_of_prepare_exits_with_2(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(SystemExit, match=r"^2$"):
        prepared("in", "--output", "out", "--config", str(tmp_path / "job.yaml"))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing given; allowed: INPUT for clean pictures, or --noisy and --clean"),
        ({"noisy": "n"}, "noisy given; allowed: INPUT for clean pictures, or --noisy and --clean"),
        ({"clean": "c"}, "clean given; allowed: INPUT for clean pictures, or --noisy and --clean"),
        ({"input": ("a",), "clean": "c"}, "input and clean given; allowed: INPUT for clean pictures, or --noisy and"),
        ({"input": ("a",), "stride": 3, "count": 2}, "stride and count given; allowed: one of them"),
        ({"input": ("a",), "scale": (0.0, 1.0)}, "scale is 0.0:1.0; allowed: LOW:HIGH with 0 < LOW <= HIGH <= 1"),
        ({"input": ("a",), "scale": (0.8, 0.5)}, "scale is 0.8:0.5; allowed: LOW:HIGH with 0 < LOW <= HIGH <= 1"),
        ({"input": ("a",), "scale": (0.5, 2.0)}, "scale is 0.5:2.0; allowed: LOW:HIGH with 0 < LOW <= HIGH <= 1"),
        ({"input": ("a",), "flat": -1.0}, "flat is -1.0; allowed: 0 and more 8-bit grey levels"),
        ({"input": ("a",), "flat": float("nan")}, "flat is nan; allowed: 0 and more 8-bit grey levels"),
        ({"input": ("a",), "split": (0.5, 0.5)}, "split is 0.5,0.5; allowed: three shares of 0 to 1 whose sum is 1"),
        ({"input": ("a",), "split": (0.5, 0.5, 0.5)}, "split is 0.5,0.5,0.5; allowed: three shares of 0 to 1"),
        ({"input": ("a",), "split": (1.5, -0.5, 0.0)}, "split is 1.5,-0.5,0.0; allowed: three shares of 0 to 1"),
        ({"input": ("a",), "seed": -1}, "seed is -1; allowed: 0 or more"),
        *(
            ({"input": ("a",), name: 0}, f"{name} is 0; allowed: 1 or more")
            for name in ("patch", "stride", "count", "limit", "max_pixels")
        ),
    ],
)
def test_prepare_refuses_what_is_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        PrepareConfig(output="out", **options)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--scale", "half"], "argument --scale: 'half' is no scale; allowed: such as 0.5, or 0.5:1"),
        (["--split", "a,b,c"], "argument --split: 'a,b,c' are no shares; allowed: such as 0.9,0.05,0.05"),
    ],
)
def test_flags_of_prepare_that_cannot_be_read(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        prepared("in", "--output", "out", *argv)
    assert message in capsys.readouterr().err


def test_the_help_of_prepare_names_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        prepared("--help")
    said = " ".join(capsys.readouterr().out.split())
    for name in PrepareConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in said or name == "input"
    for default in ("128", "0.9,0.05,0.05", "0", "1.0"):
        assert f"(default: {default})" in said
    assert "(default: ())" not in said


def trained(*argv: str) -> TrainConfig:
    return parse(TrainConfig, argv, prog="raydenoise train", description="")


def test_train_needs_shards_and_an_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert trained("s", "--output", "run") == TrainConfig(shards="s", output="run")
    with pytest.raises(SystemExit, match=r"^2$"):
        trained()
    assert "shards and output missing: give them as arguments or in --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--model-args", "filters=64,96", "depth=2"], "model_args", {"filters": (64, 96), "depth": 2}),
        (["--model-args", "filters=48,"], "model_args", {"filters": (48,)}),
        ([], "model_args", {}),
        (["--sigma", "0:75"], "sigma", (0.0, 75.0)),
        (["--sigma", "5:50"], "sigma", (5.0, 50.0)),
        (["--sigma", "25"], "sigma", (25.0, 25.0)),
        (["--peak", "10:1e4"], "peak", (10.0, 10_000.0)),
        (["--augment", "flip,turn"], "augment", ("flip", "turn")),
        (["--augment", "brightness"], "augment", ("brightness",)),
        (["--augment", "none"], "augment", ()),
        (["--gpus-per-worker", "0"], "gpus_per_worker", 0.0),
        (["--gpus-per-worker", "1"], "gpus_per_worker", 1.0),
        (["--cpus-per-worker", "0.5"], "cpus_per_worker", 0.5),
        (["--steps", "7"], "steps", 7),
        (["--epochs", "3"], "epochs", 3),
        (["--init", "default", "--freeze-encoder"], "freeze_encoder", True),
        (["--workers", "2", "--batch-size", "6"], "workers", 2),
        (["--resume"], "resume", True),
    ],
)
def test_values_of_train(argv: list[str], name: str, value: Any) -> None:
    assert getattr(trained("s", "--output", "run", *argv), name) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model_args: {filters: [64, 96], depth: 2}", {"model_args": {"filters": (64, 96), "depth": 2}}),
        ("model_args: {filters: [48]}", {"model_args": {"filters": (48,)}}),
        ("model_args: ['filters=64,96', depth=2]", {"model_args": {"filters": (64, 96), "depth": 2}}),
        ("model-args: depth=3", {"model_args": {"depth": 3}}),
        ("model_args: {}", {}),
        ("sigma: 25", {"sigma": (25.0, 25.0)}),
        ("sigma: 5:50", {"sigma": (5.0, 50.0)}),  # YAML 1.1 reads 350
        ("sigma: 5:50.5", {"sigma": (5.0, 50.5)}),
        ("sigma: [5, 50]", {"sigma": (5.0, 50.0)}),
        ("peak: 30:3000", {"peak": (30.0, 3000.0)}),
        ("augment: flip,turn", {}),
        ("augment: [flip, turn]", {}),
        ("augment: flip", {"augment": ("flip",)}),
        ("augment: none", {"augment": ()}),
        ("augment: []", {"augment": ()}),
        ("learning_rate: 4e-3", {}),  # YAML 1.1 reads text
        ("learning_rate: 1.5e-3\nweight-decay: 0", {"learning_rate": 1.5e-3, "weight_decay": 0.0}),
        ("epochs: 4\nsteps: null\ninit: null", {"epochs": 4}),
    ],
)
def test_train_reads_a_file(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    (tmp_path / "job.yaml").write_text(text)
    found = trained("s", "--output", "run", "--config", str(tmp_path / "job.yaml"))
    assert found == TrainConfig(shards="s", output="run", **expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_args: [[64, 96]]", "model_args is [64, 96]; allowed: of the network's builder, such as filters=64,"),
        ("model_args: {depth: 2.5}", "model_args is 'depth=2.5'; allowed: of the network's builder"),
        ("model_args: {filters: []}", "model_args is 'filters='; allowed: of the network's builder"),
        ("sigma: [1, 2, 3]", "sigma is [1, 2, 3]; allowed: levels of the Gaussian noise"),
        ("sigma: loud", "sigma is 'loud'; allowed: levels of the Gaussian noise"),
        ("sigma: [0, null]", "sigma is [0, None]; allowed: levels of the Gaussian noise"),
        ("augment: 3", "augment is 3; allowed: of flip, turn, channels, brightness, with commas between; or none"),
        ("learning_rate: fast", "learning_rate is 'fast'; allowed: at its peak"),
        ("model: resnet", "model is 'resnet'; allowed: resunet, unet, dncnn, autoencoder, autoencoder-wide"),
        ("precision: float16", "precision is 'float16'; allowed: auto, float32, bfloat16"),
        ("batchsize: 3", "batchsize is unknown; did you mean batch_size?"),
    ],
)
def test_a_bad_file_of_train_exits_with_2(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(SystemExit, match=r"^2$"):
        trained("s", "--output", "run", "--config", str(tmp_path / "job.yaml"))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet"}, "model is 'resnet'; allowed: resunet, unet, dncnn, autoencoder, autoencoder-wide"),
        ({"precision": "float16"}, "precision is 'float16'; allowed: auto, float32, bfloat16"),
        ({"epochs": 1, "steps": 2}, "epochs and steps given; allowed: one of them"),
        *(
            ({name: 0}, f"{name} is 0; allowed: 1 or more")
            for name in ("workers", "epochs", "steps", "checkpoint_every", "validate_every", "batch_size", "patch")
        ),
        ({"cpus_per_worker": 0.0}, "cpus_per_worker is 0.0; allowed: above 0"),
        ({"cpus_per_worker": float("nan")}, "cpus_per_worker is nan; allowed: above 0"),
        ({"cpus_per_worker": float("inf")}, "cpus_per_worker is inf; allowed: above 0"),
        ({"gpus_per_worker": 0.5}, "gpus_per_worker is 0.5; allowed: 0 or 1: a worker per GPU"),
        ({"gpus_per_worker": 2.0}, "gpus_per_worker is 2; allowed: 0 or 1: a worker per GPU"),
        (
            {"init": "default", "model_args": {"depth": 1}},
            "init and model_args given; allowed: one of them, a bundle knows its network",
        ),
        (
            {"freeze_encoder": True},
            "freeze_encoder without init; allowed: with the bundle whose encoder is to stay",
        ),
        ({"workers": 3}, "batch_size is 32 for 3 workers; allowed: a multiple of the workers"),
        ({"sigma": (9.0, 3.0)}, "sigma_range is (9.0, 3.0); allowed: 0 <= low <= high"),
        ({"sigma": (0.0, float("inf"))}, "sigma_range is (0.0, inf); allowed: 0 <= low <= high"),
        ({"peak": (0.5, 3.0)}, "peak_range is (0.5, 3.0); allowed: 1 <= low <= high"),
        ({"grey_share": 2.0}, "grey_share is 2.0; allowed: 0 to 1"),
        ({"soft_share": -1.0}, "soft_share is -1.0; allowed: 0 to 1"),
        ({"colour_share": 2.0}, "colour_share is 2.0; allowed: 0 to 1"),
        ({"quantized_share": float("nan")}, "quantized_share is nan; allowed: 0 to 1"),
        ({"ema": 1.0}, "ema is 1.0; allowed: 0 to below 1"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; allowed: above 0"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; allowed: 0 or more"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; allowed: 0 or more"),
        ({"warmup_steps": -1}, "warmup_steps is -1; allowed: 0 or more"),
        ({"seed": -1}, "seed is -1; allowed: 0 or more"),
        ({"augment": ("flip", "blur")}, "augment is 'blur'; allowed: flip, turn, channels, brightness"),
        ({"loss": "l2"}, "loss is 'l2'; allowed: l1, mse, charbonnier"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; allowed: adam, adamw, muon"),
        ({"schedule": "linear"}, "schedule is 'linear'; allowed: cosine, constant"),
        ({"noise": "salt"}, "noise is 'salt'; allowed: awgn, poisson-gaussian, paired"),
    ],
)
def test_train_refuses_what_is_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        TrainConfig(shards="s", output="run", **options)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        *(
            (
                ["--model-args", text],
                f"argument --model-args: {text!r} is no argument; allowed: name=number or name=number,number",
            )
            for text in ("depth", "depth=", "depth=2.5", "=2", "a b=2", "filters=48,,2", "shards")
        ),
        *(
            (["--sigma", text], f"argument --sigma: {text!r} is no range; allowed: LOW:HIGH, or a number")
            for text in ("loud", "1:", ":1", "1:2:3")
        ),
        (["--model", "resnet"], "argument --model: invalid choice: 'resnet'"),
    ],
)
def test_flags_of_train_that_cannot_be_read(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        trained("s", "--output", "run", *argv)
    assert message in capsys.readouterr().err


def test_the_help_of_train_names_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        trained("--help")
    said = " ".join(capsys.readouterr().out.split())
    for name in TrainConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in said or name == "shards"
    for default in ("resunet", "1", "32", "64", "0.004", "muon", "flip,turn", "0.999", "0.0:75.0"):
        assert f"(default: {default})" in said
    assert "(default: ())" not in said


def test_values_of_report(tmp_path: Path) -> None:
    file = tmp_path / "report.yaml"
    file.write_text("folder: out\npictures: 5\n")
    config = parse(ReportConfig, ["--config", str(file), "--output", "there"], prog="raydenoise report", description="")
    assert config == ReportConfig(folder="out", output="there", pictures=5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "folder missing: give them as arguments or in --config"),
        (["out", "--pictures", "-1"], "pictures is -1; allowed: 0 or more"),
        (["out", "--pictures", "few"], "argument --pictures: invalid int value: 'few'"),
    ],
)
def test_bad_command_lines_of_report_exit_with_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        parse(ReportConfig, argv, prog="raydenoise report", description="")
    assert capsys.readouterr().err.strip().endswith(f"raydenoise report: error: {message}")


def test_the_help_of_report_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        parse(ReportConfig, ["--help"], prog="raydenoise report", description="")
    shown = capsys.readouterr().out
    for word in ("OUT|RUN|EVAL|SHARDS", "--output DIR", "--pictures N", "--quiet", "--json", "--verbose"):
        assert word in shown


EVALUATE_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"models": ()}, "models is ''; allowed: one name or more, none empty, none twice"),
    ({"models": ("a", "")}, "models is 'a,'; allowed: one name or more, none empty, none twice"),
    ({"models": ("a", "b", "a")}, "models is 'a,b,a'; allowed: one name or more, none empty, none twice"),
    ({"noisy": "n", "sigma": (25.0,)}, "sigma and noisy given; allowed: one of them"),
    (
        {"noisy": "n", "sigma_source": "both"},
        "sigma_source is 'both' with noisy; allowed: auto",
    ),
    ({"sigma": (25.0, 0.0)}, "sigma is 25.0,0.0; allowed: levels above 0, 8-bit grey levels"),
    ({"sigma": (float("nan"),)}, "sigma is nan; allowed: levels above 0, 8-bit grey levels"),
    ({"sigma": (25.0, 25.0)}, "sigma is 25.0,25.0; allowed: no level twice"),
    ({"sigma_source": "guess"}, "sigma_source is 'guess'; allowed: known, auto, both"),
    ({"split": "rest"}, "split is 'rest'; allowed: train, validation, test"),
    ({"precision": "int8"}, "precision is 'int8'; allowed: auto, float32, bfloat16, float16"),
    ({"strength": 1.5}, "strength is 1.5; allowed: 0 to 1"),
    ({"tta": 3}, "tta is 3; allowed: 1, 2, 4, 8"),
    ({"gpus_per_actor": 1.5}, "gpus_per_actor is 1.5; allowed: a whole number, or a part of one GPU"),
    ({"sheet": -1}, "sheet is -1; allowed: 0 or more"),
    ({"seed": -1}, "seed is -1; allowed: 0 or more"),
    ({"limit": 0}, "limit is 0; allowed: 1 or more"),
]


@pytest.mark.parametrize(("options", "message"), EVALUATE_REFUSED)
def test_evaluate_refuses_what_is_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        EvaluateConfig(input="in", output="out", **options)


@pytest.mark.parametrize("text", ["models: [a, b]\nsigma: [15, 25]\n", "models: a,b\nsigma: 15,25\n"])
def test_evaluate_reads_lists(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"input: in\noutput: out\n{text}")
    expected = EvaluateConfig(input="in", output="out", models=("a", "b"), sigma=(15.0, 25.0))
    for argv in (["--config", str(file)], ["in", "--output", "out", "--models", "a,b", "--sigma", "15,25"]):
        assert parse(EvaluateConfig, argv, prog="", description="") == expected


def test_evaluate_refuses_what_is_no_level(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        parse(EvaluateConfig, ["in", "--output", "out", "--sigma", "auto"], prog="raydenoise evaluate", description="")
    assert "'auto' are no noise levels; allowed: such as 15,25,50" in capsys.readouterr().err
