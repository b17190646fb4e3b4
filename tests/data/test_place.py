"""Laws of places: a bucket and a disk behave alike, and no secret is kept."""

import http.client
import json
import pickle
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from raydenoise.core.image import ImageError
from raydenoise.data import clients, inputs, storage
from raydenoise.data.lease import check_free
from raydenoise.data.place import FIRST, Place, Remote, place
from tests.conftest import forget_clients


@pytest.fixture(params=["disk", "bucket", "gs_bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder that is not there yet."""
    return place(tmp_path / "new" if request.param == "disk" else f"{request.getfixturevalue(request.param)}/new")


NAMES = ["a.png", "with space.png", "ü.png", "100%.png", "tab\t.png", "sub/b+c.png", "sub/#d?.png"]


def test_what_is_published_is_read_listed_and_removed(root: Place) -> None:
    assert not root.exists()
    assert storage.names(root) == list(storage.walk(root)) == []
    for name in NAMES:
        storage.publish(root / name, name.encode())
    assert sorted(storage.walk(root)) == sorted(NAMES)
    assert storage.names(root) == ["100%.png", "a.png", "tab\t.png", "with space.png", "ü.png"]
    assert {name: storage.read(str(root / name)) for name in NAMES} == {name: name.encode() for name in NAMES}
    assert root.is_dir()
    assert (root / "a.png").is_file()
    assert not (root / "b.png").exists()
    storage.publish(root / "a.png", b"new")
    assert (root / "a.png").read_bytes() == b"new"
    storage.remove(root / "a.png")
    storage.remove(root / "sub")
    assert sorted(storage.walk(root)) == ["100%.png", "tab\t.png", "with space.png", "ü.png"]
    storage.remove(root / "never")
    storage.remove(root)
    assert list(storage.walk(root)) == []


def test_sources_have_the_same_keys(root: Place) -> None:
    for name in [*NAMES, ".hidden", "sub/.hidden/x.png", "deep/er/e.jpg"]:
        storage.publish(root / name, b"x")
    listed = inputs.list_sources(str(root))
    assert [source.key for source in listed] == sorted([*NAMES, "deep/er/e.jpg"])
    assert all(storage.read(source.uri) == b"x" for source in listed)
    assert [source.key for source in inputs.list_sources(f"{root}/sub/*.png")] == ["#d?.png", "b+c.png"]
    assert [source.key for source in inputs.list_sources(f"{root}/**/*.jpg")] == ["deep/er/e.jpg"]
    assert [source.key for source in inputs.list_sources(f"{root}/deep/**")] == ["er/e.jpg"]
    assert [source.key for source in inputs.list_sources(f"{root}/a.png")] == ["a.png"]
    with pytest.raises(ValueError, match=r"holds no files; allowed: a folder, a glob or a file$"):
        inputs.list_sources(f"{root}/nothing")


def test_of_many_that_create_a_file_one_succeeds(root: Place) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        try:
            storage.create(root / "lock", str(number).encode())
        except FileExistsError:
            return
        won.append(number)

    threads = [Thread(target=create, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (root / "lock").read_bytes() == str(won[0]).encode()
    assert list(storage.walk(root)) == ["lock"], "no temporary file stays"


def test_a_picture_is_not_read_beyond_its_beginning_when_that_tells(root: Place) -> None:
    storage.publish(root / "text.png", b"no picture" * 1000)
    with pytest.raises(ValueError, match="no image file"):
        storage.read_picture(str(root / "text.png"))


@pytest.fixture(params=["bucket", "gs_bucket"])
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Remote, list[int]]]:
    """A bucket, and what its endpoint sends to who reads whole objects there: bytes of each answer."""
    there = place(request.getfixturevalue(request.param))
    assert isinstance(there, Remote)
    assert there.filesystem, "pyarrow's client, which writes, goes to the endpoint itself"
    behind = str(clients.endpoint(there.scheme)).removeprefix("http://")
    sent: list[int] = []

    class PassOn(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = http.client.HTTPConnection(behind)
            asked.request("GET", self.path, headers=dict(self.headers))
            answer = asked.getresponse()
            data = answer.read()
            asked.close()
            sent.append(len(data))
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), PassOn) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        name = "AWS_ENDPOINT_URL" if there.scheme == "s3" else "STORAGE_EMULATOR_HOST"
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        clients.store.cache_clear()
        yield there, sent
        server.shutdown()
        thread.join()
        clients.store.cache_clear()


def test_a_picture_is_one_request_and_a_large_one_two(counted: tuple[Remote, list[int]]) -> None:
    there, sent = counted
    png = b"\x89PNG\r\n\x1a\n"
    for size, requests in ((8, [8]), (FIRST, [FIRST]), (FIRST + 9, [FIRST, 9])):
        storage.publish(there / "a.png", png + bytes(size - 8))
        sent.clear()
        assert storage.read_picture(str(there / "a.png")) == png + bytes(size - 8)
        assert sent == requests


def test_what_is_no_picture_is_refused_after_its_beginning(counted: tuple[Remote, list[int]]) -> None:
    there, sent = counted
    storage.publish(there / "film.png", b"no picture" * (FIRST // 4))
    sent.clear()
    with pytest.raises(ImageError, match="no image file"):
        storage.read_picture(str(there / "film.png"))
    assert sent == [FIRST]


def test_a_file_is_one_request(counted: tuple[Remote, list[int]]) -> None:
    there, sent = counted
    storage.publish(there / "a.json", b"{}")
    sent.clear()
    assert storage.read(str(there / "a.json")) == b"{}"
    assert sent == [2]


def test_a_picture_is_never_half_one_and_half_another(counted: tuple[Remote, list[int]]) -> None:
    there, _ = counted
    storage.publish(there / "a.png", b"1" * (FIRST + 9))
    with pytest.raises(OSError, match=rf"^{there}/a.png: Request precondition failure"):
        (there / "a.png").read_admitted(lambda *_: storage.publish(there / "a.png", b"2" * (FIRST + 9)))


def test_what_is_empty_or_not_there_is_said(root: Place) -> None:
    storage.publish(root / "empty.png", b"")
    assert storage.read_picture(str(root / "empty.png")) == storage.read(str(root / "empty.png")) == b""
    for read in (storage.read_picture, storage.read):
        with pytest.raises(FileNotFoundError, match=rf"^\[Errno 2\] .*: '{root}/none.png'$"):
            read(str(root / "none.png"))


def test_credentials_of_a_profile_are_enough_to_read(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a-key\naws_secret_access_key = a-secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    storage.publish(place(bucket) / "a.png", b"\x89PNG\r\n\x1a\n")
    assert storage.read_picture(f"{bucket}/a.png") == storage.read(f"{bucket}/a.png") == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("AWS_SHARED_CREDENTIALS_FILE", "[mine]\naws_access_key_id = a-key\naws_secret_access_key = a-%secret\n"),
        ("AWS_CONFIG_FILE", "[profile mine]\nsso_session = x\n"),
    ],
)
def test_a_profile_that_cannot_take_a_lease_is_said_at_once(
    file: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / file).write_text(content)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    said = "the credentials are those of Amazon's profile 'mine', which .*; allowed: AWS_ACCESS_KEY_ID and AWS_SECRET_"
    with pytest.raises(OSError, match=f"^{said}") as caught:
        storage.create(place("s3://bucket/lease"), b"")
    assert "a-%secret" not in str(caught.value)
    with pytest.raises(ValueError, match=f"^output 's3://bucket/out' cannot be written to: {said}"):
        check_free(place("s3://bucket/out"))
    monkeypatch.setenv("AWS_PROFILE", "another")  # which holds nothing: a machine's role is asked
    clients.check_keys()
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")
    clients.check_keys()
    (tmp_path / file).write_text("no such file\n")
    monkeypatch.delenv("AWS_WEB_IDENTITY_TOKEN_FILE")
    clients.check_keys()


def test_credentials_of_google_that_cannot_take_a_lease_are_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federated = {"type": "external_account", "audience": "a", "subject_token_type": "b", "token_url": "https://c"}
    (tmp_path / "key.json").write_text(json.dumps(federated))
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    forget_clients()
    with pytest.raises(ValueError, match=r"^output 'gs://bucket/out' cannot be written to: .*external_account"):
        check_free(place("gs://bucket/out"))
    forget_clients()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"STORAGE_EMULATOR_HOST": "localhost:9023"}, "http://localhost:9023"),
        ({"STORAGE_EMULATOR_HOST": "https://gcs.test/"}, "https://gcs.test"),
        ({"CLOUD_STORAGE_EMULATOR_ENDPOINT": "http://a:1", "STORAGE_EMULATOR_HOST": "http://b:2"}, "http://a:1"),
    ],
)
def test_googles_endpoint_is_what_the_environment_says(
    environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert clients.endpoint("gs") == expected


@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        (None, "no credentials for Google: GOOGLE_APPLICATION_CREDENTIALS is not set; allowed: a file of credentials"),
        ("/none.json", "GOOGLE_APPLICATION_CREDENTIALS is '/none.json', which is no file; allowed: a file of"),
    ],
)
def test_missing_credentials_of_google_are_said_at_once(
    credentials: str | None, said: str, tmp_path: Path, gs_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GCE_METADATA_ROOT", "127.0.0.1:1")
    if credentials is None:
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    else:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", credentials)
    with pytest.raises(ValueError, match=rf"^{gs_bucket}/x cannot be listed: {said}"):
        inputs.list_sources(f"{gs_bucket}/x")
    with pytest.raises(OSError, match=f"^{said}"):
        storage.read(f"{gs_bucket}/x")


def test_what_lies_below_a_closed_folder_is_refused(closed: Path) -> None:
    for read in (inputs.list_sources, partial(inputs.pair_references, ["a.png"])):
        with pytest.raises(ValueError, match=r"^photos '.*/below' cannot be read: Permission denied$"):
            read(str(closed / "below"), argument="photos")


def test_neither_pickles_nor_texts_hold_secrets(bucket: str) -> None:
    there = place(f"{bucket}/a")
    assert isinstance(there, Remote)
    there.write_bytes(b"x")
    assert there.read_bytes() == b"x"
    for text in (pickle.dumps(there), repr(there).encode(), str(there).encode()):
        assert b"a-secret-key" not in text
        assert b"an-access-key" not in text


@pytest.mark.parametrize("text", ["http://x/y", "azure://x/y", "s3://", "s3://bucket//a", "gs:///"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^output is '.*'; allowed: "):
        place(text, argument="output")


@pytest.mark.parametrize(
    "text",
    ["s3://a-key:a-secret@bucket/x", "s3://a-key:a-/secret@bucket//x", "gs://a-secret@b", "s3://b?a-key=a-secret"],
)
def test_an_address_with_secrets_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^output has @, : or \? between (s3|gs):// and its first slash; allowed: "
    ) as caught:
        place(text, argument="output")
    assert "a-secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["http://a-key:a-secret@host/x", "https://bucket.host/x?signature=a-secret"])
def test_another_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"^output is 'https?://\.\.\.'; allowed: a local path, s3://, gs://$"):
        place(text, argument="output")


@pytest.mark.parametrize(("scheme", "name"), [("s3", "AWS_ENDPOINT_URL"), ("gs", "STORAGE_EMULATOR_HOST")])
def test_the_password_of_an_endpoint_is_in_no_error(scheme: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "ATTEMPTS", 0)
    for variable in ("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "x")
    monkeypatch.setenv(name, "http://user:a-secret@127.0.0.1:1")
    with pytest.raises(OSError, match=r"http://\*\*\*@127.0.0.1:1/.*a") as caught:
        storage.read(f"{scheme}://a-bucket-behind-a-password/a.png")
    assert "a-secret" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_an_error_of_the_argument(bucket: str) -> None:
    with pytest.raises(ValueError, match=r"^input 's3://none-such-bucket/x' holds no files|cannot be listed"):
        inputs.list_sources("s3://none-such-bucket/x")
    assert bucket
