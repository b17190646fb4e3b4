"""Laws of `raydenoise status`: what is committed counts, and a killed job is not taken for a running one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raydenoise import cli
from raydenoise.data import storage
from raydenoise.data.lease import held
from raydenoise.data.place import place
from raydenoise.data.schema import metrics_table
from tests.report.rows import MakeOut, failure, row


@pytest.fixture
def out(make_out: MakeOut) -> Path:
    """A running job with four rows of ten, one a failure."""
    rows = [row(0), row(1), row(2), failure(3, "truncated", "the file ends early")]
    return make_out(rows, pictures=10, status="running")


def status(capsys: pytest.CaptureFixture[str], root: object) -> dict:
    assert cli.main(["status", str(root), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_running_job(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(out):
        found = status(capsys, out)
    assert (found["state"], found["pictures"], found["done"], found["failed"], found["left"]) == (
        "running",
        10,
        4,
        1,
        6,
    )
    assert found["images_per_s"] == 1.0
    assert found["seconds_left"] == 6
    assert found["failures"] == [{"type": "truncated", "images": 1, "example": "the file ends early"}]


def test_a_killed_job(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import os, signal, sys; from raydenoise.data.lease import held; from raydenoise.data.place import place\n"
        "with held(place(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(out)], check=False)
    assert status(capsys, out)["state"] == "killed"
    assert cli.main(["status", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "killed, started 2026-01-02T03:04:05+00:00; the same command goes on with it" in said
    assert "4 of 10 pictures (40.0%), 1 failed" in said
    assert "1 truncated, such as: the file ends early" in said


def test_a_starting_job_on_a_new_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(tmp_path / "out"):
        found = status(capsys, tmp_path / "out")
        assert cli.main(["status", str(tmp_path / "out")]) == 0
    assert (found["state"], found["pictures"], found["done"], found["left"]) == ("starting", None, 0, None)
    assert " ".join(capsys.readouterr().out.split()).startswith("state starting done 0 pictures, 0 failed output /")
    assert cli.main(["status", str(tmp_path / "out")]) == 2  # it ended before it said anything
    assert "holds no manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize("before", ["finished", "broken", "running"])
def test_a_starting_job_is_not_taken_for_the_one_before(
    make_out: MakeOut, capsys: pytest.CaptureFixture[str], before: str
) -> None:
    out = make_out([row(index) for index in range(4)], pictures=10, status=before, lease="another's")
    with held(out) as lease:
        found = status(capsys, out)
        assert (found["state"], found["pictures"], found["done"]) == ("starting", None, 4)
        path = out / "manifest.json"
        manifest = json.loads(path.read_text()) | {"lease": lease.holder, "status": "running"}
        storage.publish_json(path, manifest)
        assert status(capsys, out)["state"] == "running"
        storage.publish_json(path, manifest | {"status": "finished"})
        assert status(capsys, out)["state"] == "finished"  # its lease goes after its manifest


def test_a_job_that_was_killed_while_it_started_leaves_the_state_before(
    make_out: MakeOut, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_out([row(0)], pictures=1, status="finished", lease="another's")
    with held(out):
        file = out / "lease" / "000001.json"
        content = json.loads(file.read_bytes())
    storage.publish_json(file, content | {"held": True, "pid": 2**22 + 1})  # no process has such a number
    assert status(capsys, out)["state"] == "finished"


def test_a_job_that_ends_while_it_is_looked_at_is_not_taken_for_a_killed_one(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(root: Path) -> tuple[int, None]:
        manifest = json.loads((root / "manifest.json").read_text()) | {"status": "finished", "pictures": 5}
        storage.publish_json(root / "manifest.json", manifest)
        storage.publish_table(root / "metrics" / "last.parquet", metrics_table([row(4)]))
        return 0, None

    monkeypatch.setattr("raydenoise.report.status.newest", ends)
    found = status(capsys, out)
    assert (found["state"], found["done"], found["left"]) == ("finished", 5, 0)


def test_a_folder_with_more_than_the_last_command_asked_for(
    make_out: MakeOut, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_out([row(index) for index in range(4)], pictures=2, status="running")
    with held(out):
        found = status(capsys, out)
        assert (found["state"], found["done"], found["left"], found["seconds_left"]) == ("running", 4, 0, None)
        assert cli.main(["status", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "done 4 pictures, 0 failed; the last command asked for 2" in said
    assert "%" not in said
    assert "s left" not in said


def test_a_finished_job_in_a_bucket(make_out: MakeOut, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    local = make_out([row(0)], pictures=1, status="finished")
    there = place(f"{bucket}/out")
    for name in storage.walk(local):
        storage.publish(there / name, (local / name).read_bytes())
    found = status(capsys, there)
    assert (found["state"], found["done"], found["left"], found["seconds_left"]) == ("finished", 1, 0, None)


def test_what_is_no_job_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "holds no manifest.json; allowed: the OUT of raydenoise denoise" in capsys.readouterr().err
    storage.publish_json(tmp_path / "manifest.json", {"kind": "raydenoise training"})
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "is of 'raydenoise training'; allowed: 'raydenoise denoising'" in capsys.readouterr().err
