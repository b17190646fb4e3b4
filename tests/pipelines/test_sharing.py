"""Laws of local folders on a cluster; on real nodes in test_sharing_nodes.py."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from raydenoise.config import DenoiseConfig
from raydenoise.data.place import place
from raydenoise.pipelines import denoise, sharing


class Machines:
    """As much of Ray as `check_shared` asks: the driver's machine and others, on which files are looked at."""

    def __init__(self, **looks: Any) -> None:
        self._looks = looks  # what each machine sees, by its name; an exception is raised
        self.exceptions = sharing.ray.exceptions

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "driver")

    def nodes(self) -> list[dict[str, Any]]:
        names = ["driver", *self._looks, "dead"]
        return [{"NodeID": name, "NodeManagerAddress": f"ip-{name}", "Alive": name != "dead"} for name in names]

    def remote(self, _: Any) -> Any:
        def options(*, num_cpus: int, scheduling_strategy: str) -> Any:
            return SimpleNamespace(remote=lambda _: (scheduling_strategy, num_cpus))

        return SimpleNamespace(options=options)

    def get(self, asked: tuple[str, int]) -> Any:
        found = self._looks[asked[0]]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ([(1, 2), (3, 4), (0, 5)], None),
        ([(1, 2), None, (0, 5)], "/b is not on ip-other; "),
        ([(1, 9), (3, 4), (0, 5)], "/a is another file on ip-other; "),
        ([(1, 2), (3, 4), None], "output '{out}' is another folder on ip-other; "),
        (sharing.ray.exceptions.RayError(), None),  # it has gone meanwhile
    ],
)
def test_a_folder_that_machines_do_not_share_is_refused(
    there: Any, said: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = [(1, 2), (3, 4), (0, 5)]
    monkeypatch.setattr(sharing, "ray", Machines(same=seen, other=there))
    monkeypatch.setattr(sharing, "NodeAffinitySchedulingStrategy", lambda node, **_: node)
    monkeypatch.setattr(sharing, "_looked_at", lambda _: seen)
    out = tmp_path / "new" / "out"
    if said is None:
        sharing.check_shared(["/a", "/b"], output=out)
    else:
        allowed = "allowed: a folder that all machines share, s3:// or gs://"
        with pytest.raises(ValueError, match=f"^{re.escape(said.format(out=out) + allowed)}$"):
            sharing.check_shared(["/a", "/b"], output=out)
    assert not list(tmp_path.iterdir()), "nothing is left of the question"


def test_nothing_is_asked_about_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "ray", Machines(other=[]))
    monkeypatch.setattr(sharing, "NodeAffinitySchedulingStrategy", lambda node, **_: node)
    sharing.check_shared([], output=place("s3://bucket/out"))


def test_a_machine_that_comes_late_and_does_not_see_a_file_breaks_the_job(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    sharing.check_present([str(tmp_path / "a")])
    with pytest.raises(RuntimeError, match=r" does not see .*/b; allowed: folders that all machines share, s3://, gs:"):
        sharing.check_present([str(tmp_path / "a"), str(tmp_path / "b")])


def test_the_first_files_that_are_there_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    table = pa.table({"uri": ["s3://b/a", f"{tmp_path}/a", f"{tmp_path}/b"], "noisy_uri": pa.nulls(3, pa.string())})
    assert sharing.local_files(table, "uri", "noisy_uri") == [f"{tmp_path}/b"]


def test_denoise_looks_at_a_file_of_each_folder_that_it_reads(tmp_path: Path) -> None:
    for name in ("in/b.png", "clean/sub/c.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "gone")
    config = DenoiseConfig(input=str(tmp_path / "in"), output="out", reference=str(tmp_path / "clean"))
    first: Any = SimpleNamespace(first=lambda: str(tmp_path / "in" / "a.png"))
    assert denoise._read_files(config, first) == [f"{tmp_path}/in/b.png", f"{tmp_path}/clean/sub/c.png"]
    first = SimpleNamespace(first=lambda: "s3://bucket/a.png")
    assert denoise._read_files(DenoiseConfig(list="l.csv", output="out"), first) == []
