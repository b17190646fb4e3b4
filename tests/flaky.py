"""A real S3 endpoint on loopback with the troubles of a real one, for a seeded share of all requests."""

import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NoReturn

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

REFUSED = {"slow_down": ("503 Slow Down", "SlowDown"), "internal": ("500 Internal Server Error", "InternalError")}
# dropped: the connection, before anything is done; lost: the answer to what was done; cut: an answer, in its middle
TROUBLES = (*REFUSED, "dropped", "lost", "cut")


class Flaky:
    """Stands in front of an S3 server.

    Attributes:
        share: of requests that meet trouble; above 0 the first one of each method does in any case.
        next: troubles of the next requests, before chance has its share.
        met: how many did, by method and trouble; `PUT lease` is a method here, so is `LIST`.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], *, share: float, seed: int) -> None:
        self._app, self._rng, self._lock = app, random.Random(seed), threading.Lock()
        self.share = share
        self.next: list[str] = []
        self.met: Counter[tuple[str, str]] = Counter()
        self.requests = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests += 1
            unmet = self.share > 0 and all(method != _method(environ) for method, _ in self.met)
            trouble = self._rng.choice(TROUBLES) if unmet or self._rng.random() < self.share else None
            trouble = self.next.pop(0) if self.next else trouble
            if trouble:
                self.met[_method(environ), trouble] += 1
        if not trouble:
            return self._app(environ, start_response)
        chunked = environ.get("wsgi.input_terminated")  # as pyarrow's client writes: no length is told
        body = environ["wsgi.input"].read(-1 if chunked else int(environ.get("CONTENT_LENGTH") or 0))
        if trouble in REFUSED:
            status, code = REFUSED[trouble]
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>try again</Message></Error>".encode()]
        if trouble == "dropped":
            _hang_up(environ)
        data = b"".join(self._app({**environ, "wsgi.input": BytesIO(body)}, start_response))
        if trouble == "lost":
            _hang_up(environ)
        return _cut(data, environ)


def _method(environ: dict[str, Any]) -> str:
    method, path, query = (environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
    if method == "GET" and ("list-type" in query or path.count("/") == 1):
        return "LIST"
    return f"{method} lease" if "/lease/" in path else str(method)


def _hang_up(environ: dict[str, Any]) -> NoReturn:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError  # of which the server says nothing


def _cut(data: bytes, environ: dict[str, Any]) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    _hang_up(environ)


@contextmanager
def served(*, seed: int = 0) -> Iterator[tuple[str, Flaky]]:
    """Serve one; yields its address and itself, without trouble until its `share` is set."""
    flaky = Flaky(DomainDispatcherApplication(create_backend_app), share=0, seed=seed)
    server = make_server("127.0.0.1", 0, flaky, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", flaky
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
