"""A Google Cloud Storage endpoint on loopback: `python tests/gcs_server.py` prints its port and serves.

gcp-storage-emulator keeps the objects. What it leaves out of the API and our clients need is added here with Google's
meaning: conditions (of several that create an object, `x-goog-if-generation-match: 0` lets one), generations (one that
was replaced is gone), the headers that tell an object's version, and 416 for a range beyond its end. A condition that
is not understood is refused, never passed over. It is a process of its own, since pyarrow holds Python's lock while it
waits for the first bytes of an object.
"""

import logging
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from http.server import HTTPServer
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.storage import Storage

Handler = Callable[[Any, Any, Storage], None]
BUCKET, KEY = r"(?P<bucket_name>[^/]+)", r"(?P<object_id>.*[^/]+)"
CONDITIONS = ("if-match", "if-none-match", "x-goog-if-generation-match", "x-goog-if-metageneration-match")


def guarded(handler: Handler, *understood: str) -> Handler:
    """Answer what the request's conditions, generation and range ask for before the emulator does the rest.

    The server takes one request after another, so that nothing comes between the two.
    """

    def handle(request: Any, response: Any, storage: Storage) -> None:
        item = found(request, storage)
        generation, tag = (item["generation"], quoted(item["etag"])) if item else ("0", None)
        asked = {name: value for name in CONDITIONS if (value := request.get_header(name)) is not None}
        if not asked.keys() <= set(understood) or any(name.startswith("if") for name in request.query):
            response.status = HTTPStatus.NOT_IMPLEMENTED
        elif item is None and request.method != "PUT":
            response.status = HTTPStatus.NOT_FOUND
        elif asked.get("x-goog-if-generation-match", generation) != generation or asked.get("if-match", tag) != tag:
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif request.method == "GET" and item and first_byte(request) >= int(item["size"]):
            response.status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        else:
            handler(request, response, storage)
            if now := found(request, storage):
                response["ETag"], response["x-goog-generation"] = quoted(now["etag"]), now["generation"]
                response["Last-Modified"] = formatdate(int(now["generation"]) / 1e9, usegmt=True)

    return handle


def found(request: Any, storage: Storage) -> dict[str, Any] | None:
    """The object that a request names, in the generation that it names."""
    try:
        item: dict[str, Any] = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
    except NotFound:
        return None
    wanted = request.query.get("generation")
    return item if wanted is None or wanted[0] == item["generation"] else None


def quoted(tag: str) -> str:
    return f'"{tag}"'


def first_byte(request: Any) -> int:
    """Where the range begins that a request asks for; -1 for none."""
    asked = request.get_header("range")
    return -1 if asked is None else int(asked.removeprefix("bytes=").split("-")[0])


def main() -> None:
    """Serve until the process is ended."""
    logging.disable(logging.CRITICAL)
    one = f"^{server.settings.API_ENDPOINT}/b/{BUCKET}/o/{KEY}$"
    xml = {"GET": guarded(objects.download, "if-match"), "PUT": guarded(objects.xml_upload, CONDITIONS[2])}
    server.HANDLERS = (
        (one, {"GET": guarded(objects.get), "DELETE": guarded(objects.delete)}),
        *server.HANDLERS[:-1],
        (f"^/{BUCKET}/{KEY}$", xml),
    )
    HTTPServer.request_queue_size = 128
    listening = HTTPServer(("127.0.0.1", 0), partial(server.RequestHandler, Storage(use_memory_fs=True)))
    print(listening.server_port, flush=True)
    listening.serve_forever()


if __name__ == "__main__":
    main()
