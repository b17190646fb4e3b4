"""Laws of leases: one job at a time; a dead one blocks nobody; a lost one commits nothing."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from raydenoise.data import lease, storage
from raydenoise.data.lease import FOLDER, Lease, LeaseLostError, check_free, held, is_alive, newest
from raydenoise.data.ledger import Commits
from raydenoise.data.manifest import Output
from raydenoise.data.place import Place, place


@pytest.fixture(params=["disk", "bucket", "gs_bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An OUT that is not there yet."""
    return place(tmp_path / "out" if request.param == "disk" else f"{request.getfixturevalue(request.param)}/out")


def elsewhere(root: Place) -> None:
    """Make the newest lease look like another machine's."""
    number, content = newest(root)
    storage.publish(root / FOLDER / f"{number:06d}.json", json.dumps({**content, "machine": "another"}).encode())


def test_a_second_job_is_refused_while_the_first_lives(root: Place) -> None:
    with held(root) as lease:
        lease.check()
        with pytest.raises(ValueError, match=rf"^output '{root}' is being written by process \d+ on .*; allowed: one"):
            held(root).__enter__()
        lease.check()
    with held(root) as again:
        assert again.number == lease.number + 1
    assert storage.names(root / FOLDER) == [f"{again.number:06d}.json"]


def test_what_was_checked_before_is_checked_again_under_the_lease(root: Place) -> None:
    def fails() -> None:
        with pytest.raises(ValueError, match="is being written by process"):
            check_free(root)
        raise ValueError("another job came and went")

    with pytest.raises(ValueError, match=r"^another job came and went$"), held(root, check=fails):
        pytest.fail("it must not begin")
    assert check_free(root) == 1, "it is free for the next one"


def test_of_many_that_come_at_once_one_gets_it(root: Place) -> None:
    leases, refused = [], []

    def one() -> None:
        entered = held(root)
        try:
            entered.__enter__()
        except ValueError as error:
            refused.append(error)
        else:
            leases.append(entered)

    threads = [Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(leases), len(refused)) == (1, 5)
    leases[0].__exit__(None, None, None)


def without_links(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Make hard links fail as on a disk that has none."""

    def fails(self: Path, *_: Any) -> None:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "hardlink_to", fails)


@pytest.mark.parametrize("code", storage.NO_LINKS)
def test_a_disk_without_hard_links_has_leases_and_no_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    without_links(monkeypatch, code)
    test_a_second_job_is_refused_while_the_first_lives(tmp_path / "one")
    test_of_many_that_come_at_once_one_gets_it(tmp_path / "many")
    output = Output(tmp_path / "out")
    with held(output.root) as lease:
        with pytest.raises(ValueError, match=r"^rows cannot be committed in output '.*out': .*; allowed: a disk with"):
            Commits(output, lease).check_disk()
        without_links(monkeypatch, errno.ENOSPC)
        with pytest.raises(ValueError, match=r"^rows cannot be committed in output '.*out': [^;]*$"):
            Commits(output, lease).check_disk()
        monkeypatch.undo()
        Commits(output, lease).check_disk()
        assert [path.name for path in output.root.iterdir()] == [FOLDER]


def test_trouble_at_the_very_end_breaks_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with held(tmp_path):
        monkeypatch.setattr(storage, "publish", full)
    monkeypatch.undo()
    number, content = newest(tmp_path)
    assert content["held"], "the file says so still"
    storage.publish(tmp_path / FOLDER / f"{number:06d}.json", json.dumps({**content, "pid": 2**22 + 1}).encode())
    with held(tmp_path) as lease:
        assert lease.after_dead


def test_another_machines_lease_counts_while_it_moves(root: Place) -> None:
    with held(root, seconds=3):
        elsewhere(root)  # its holder goes on renewing, as it is
        began = time.monotonic()
        with pytest.raises(ValueError, match="is being written by process"):
            held(root, seconds=30).__enter__()
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("root", ["disk", "bucket"], indirect=True)  # one bucket tells enough of time
def test_a_lease_that_stands_still_is_taken_over_and_its_holder_commits_nothing(root: Place) -> None:
    old = Lease(root, 1, seconds=2)
    old._stop.set()  # as a process that was stopped, or a machine without a network
    old._thread.join()
    elsewhere(root)
    with held(root, seconds=2) as new:
        assert new.number == 2
        new.check()
        with pytest.raises(LeaseLostError, match="took over"):
            old.check()


@pytest.mark.parametrize("root", ["disk", "bucket"], indirect=True)  # one bucket tells enough of time
def test_a_holder_that_is_only_slow_keeps_its_lease(root: Place) -> None:
    with held(root, seconds=3) as lease:
        time.sleep(4)
        lease.check()


@pytest.fixture(params=["hangs", "fails"])
def outage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Event:
    """Set while storage hangs, or fails."""
    out, publish = Event(), storage.publish

    def troubled(path: Place, data: bytes) -> None:
        while out.is_set():
            if request.param == "fails":
                raise OSError("storage is away")
            time.sleep(0.01)
        publish(path, data)

    monkeypatch.setattr(storage, "publish", troubled)
    return out


@pytest.mark.parametrize("root", ["disk", "bucket"], indirect=True)
def test_an_outage_longer_than_a_lease_costs_it_only_where_another_job_came(root: Place, outage: Event) -> None:
    with held(root, seconds=1) as lease:
        outage.set()
        time.sleep(1.5)
        outage.clear()
        lease.check()
        beat = newest(root)[1]["beat"]
        while newest(root)[1]["beat"] == beat:  # others see it move again
            time.sleep(0.05)

        outage.set()
        time.sleep(1.5)
        storage.create(root / FOLDER / f"{lease.number + 1:06d}.json", b"{}")
        outage.clear()
        with pytest.raises(LeaseLostError, match=r"is another job's, which took over$"):
            lease.check()


@pytest.mark.parametrize("root", ["disk"], indirect=True)
def test_storage_that_hangs_for_all_makes_no_lease_dead(root: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(root, seconds=3):
        elsewhere(root)
        names, publish, until = storage.names, storage.publish, time.monotonic() + 4

        def hang() -> None:
            time.sleep(max(0, until - time.monotonic()))

        def slow_names(folder: Place) -> list[str]:
            found = names(folder)
            hang()
            return found

        def slow_publish(path: Place, data: bytes) -> None:
            hang()
            time.sleep(0.2)  # and comes a little later than the watcher's look
            publish(path, data)

        number, content = newest(root)
        monkeypatch.setattr(storage, "names", slow_names)
        monkeypatch.setattr(storage, "publish", slow_publish)
        assert is_alive(root, number, content, seconds=3)


@pytest.mark.parametrize("root", ["disk"], indirect=True)
def test_a_job_that_took_over_while_a_late_lease_was_renewed_is_seen(
    root: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(root, 1, seconds=0.1)
    lease._stop.set()  # as a process that was stopped
    lease._thread.join()
    time.sleep(0.2)
    renew = storage.publish

    def slow(path: Place, data: bytes) -> None:
        renew(path, data)
        storage.create(root / FOLDER / "000002.json", b"{}")

    monkeypatch.setattr(storage, "publish", slow)
    with pytest.raises(LeaseLostError, match="took over"):
        lease.check()


def test_a_killed_process_of_this_machine_blocks_not_for_a_moment(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from raydenoise.data.lease import held; from raydenoise.data.place import place\n"
        "with held(place(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert dead.returncode == -9
    began = time.monotonic()
    with held(tmp_path) as lease:
        assert lease.number == 2
    assert time.monotonic() - began < 5


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"a file")
    with pytest.raises(ValueError, match=r"^output '.*out' cannot be written to: "):
        held(tmp_path / "out").__enter__()


def test_a_process_that_the_system_hides_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    with held(tmp_path, free=check_free(tmp_path)):
        number, content = newest(tmp_path)
        with monkeypatch.context() as hidden:
            hidden.setattr(lease.os, "kill", refuse)
            hidden.setattr(lease.os, "access", lambda *_: False)
            hidden.setattr(lease, "_began", lambda _: None)
            hidden.setattr(lease, "WATCH_SECONDS", 0.01)
            hidden.setattr(lease, "newest", lambda _: (number, {**content, "beat": "another"}))
            assert is_alive(tmp_path, number, content)
            hidden.setattr(lease, "newest", lambda _: (number, content))
            assert not is_alive(tmp_path, number, content, seconds=0.05)
