"""The clients of object stores, and what they take from the environment: docs/storage.md.

Two clients serve a bucket. pyarrow's lists, writes, removes and reads parquet; obstore's reads whole objects in one
request, where pyarrow's take two or three, and creates one only if it is not there, which pyarrow's cannot.
"""

import http.client
import os
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import obstore.store
from pyarrow import fs

ATTEMPTS = 10  # of a request to an object store, with growing pauses: minutes of trouble cost time only
PATIENCE = timedelta(minutes=3)  # the same for Google's client, which counts time
STALLED = timedelta(seconds=30)  # without a byte: the request is tried again
LONGEST = timedelta(hours=1)  # of one request; obstore's own 30 s would end those for large pictures
PROFILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
PROFILE_CREDENTIALS = ("aws_access_key_id", "role_arn", "sso_session", "sso_account_id", "credential_process")


def endpoint(scheme: str = "s3") -> str | None:
    """The endpoint that the environment names, as Amazon's and Google's own tools read it; None for theirs.

    Google's names are those of an emulator, which gets no credentials: the first wins, since pyarrow's client, once it
    is set, asks nothing else.
    """
    if scheme == "s3":
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    url = os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT") or os.environ.get("STORAGE_EMULATOR_HOST")
    if not url:
        return None
    return (url if "://" in url else f"http://{url}").rstrip("/")


@cache
def region(bucket: str) -> str | None:
    """Where an S3 bucket is: as the environment says, else Amazon is asked; None for another endpoint."""
    said = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return said or (None if endpoint() else fs.resolve_s3_region(bucket))


def has_profile() -> bool:
    """Whether Amazon's credentials are those of a profile in a file, of which obstore knows nothing."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return False
    return any(Path(os.environ.get(name, usual)).expanduser().is_file() for name, usual in PROFILES.items())


def check_keys() -> None:
    """Notice at once that Amazon's credentials are in a profile only: obstore would ask a machine's role for them.

    Raises:
        OSError: they are.
    """
    others = (
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    )
    if not has_profile() or any(os.environ.get(name) for name in others):
        return
    name = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    found = ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    with suppress(ConfigError):
        found.read([Path(os.environ.get(file, usual)).expanduser() for file, usual in PROFILES.items()])
    held = {key for section in (name, f"profile {name}") if section in found for key in found[section]}
    if not held.isdisjoint(PROFILE_CREDENTIALS):
        raise OSError(
            f"the credentials are those of Amazon's profile {name!r}, which cannot take a lease; allowed: "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY exported (docs/storage.md), or a role"
        )


@cache
def _check_google() -> None:
    """Notice at once that there are no credentials: pyarrow's client would look for them for minutes.

    Raises:
        OSError: Google's tools would find none.
    """
    allowed = "allowed: a file of credentials there, gcloud auth application-default login, or a machine of Google's"
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named and not Path(named).is_file():
        raise OSError(f"GOOGLE_APPLICATION_CREDENTIALS is {named!r}, which is no file; {allowed}")
    if named or Path("~/.config/gcloud/application_default_credentials.json").expanduser().is_file():
        return
    host = os.environ.get("GCE_METADATA_ROOT", "metadata.google.internal")
    for attempt in range(3):  # three times 3 s, as google-auth does
        asked = http.client.HTTPConnection(host, timeout=3)
        try:
            asked.request("GET", "/", headers={"Metadata-Flavor": "Google"})
            asked.getresponse()
            return
        except (OSError, http.client.HTTPException) as error:
            if attempt == 2:
                raise OSError(
                    f"no credentials for Google: GOOGLE_APPLICATION_CREDENTIALS is not set; {allowed}"
                ) from error
        finally:
            asked.close()


@cache
def filesystem(scheme: str, bucket: str) -> fs.FileSystem:
    """pyarrow's client."""
    url = endpoint(scheme)
    if scheme == "gs":
        if url is None:
            _check_google()
            return fs.GcsFileSystem(retry_time_limit=PATIENCE)
        kind, host = url.split("://", 1)
        return fs.GcsFileSystem(anonymous=True, scheme=kind, endpoint_override=host, retry_time_limit=PATIENCE)
    return fs.S3FileSystem(
        endpoint_override=url,
        region=region(bucket),
        allow_delayed_open=True,  # a small object is one request, not three
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


@cache
def store(scheme: str, bucket: str) -> Any:
    """obstore's client; it tries again as `ATTEMPTS` and `PATIENCE` say."""
    url = endpoint(scheme)
    client: Any = {"timeout": LONGEST, "read_timeout": STALLED, "allow_http": (url or "").startswith("http://")}
    retry: Any = {"max_retries": ATTEMPTS, "retry_timeout": PATIENCE}
    if scheme == "s3":
        config: Any = {key: value for key, value in {"endpoint": url, "region": region(bucket)}.items() if value}
        return obstore.store.S3Store(bucket, client_options=client, retry_config=retry, **config)
    if url is None:
        _check_google()
    # a token for an emulator, since without one it would ask Google for one before it writes
    config = {"base_url": url, "bearer_token": "none"} if url else {}
    return obstore.store.GCSStore(bucket, client_options=client, retry_config=retry, **config)
