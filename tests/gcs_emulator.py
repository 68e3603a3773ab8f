"""Serves gcp-storage-emulator, with what TensorStore and locks need of Google Cloud Storage and it lacks.

That is the generation of what is downloaded, and conditions on it. Call: gcs_emulator.py PORT
"""

import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.storage import Storage

_wanted: list[str] = []


class _UnmetError(Exception):
    pass


def _generation(storage: Any, bucket: str, name: str) -> str:
    try:
        return str(storage.get_file_obj(bucket, name)["generation"])
    except NotFound:
        return "0"


def _with_generations(handler: Callable[..., None]) -> Callable[..., None]:
    def handle(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
        bucket, name = (request.params.get(key) for key in ("bucket_name", "object_id"))
        _wanted[:] = request.query.get("ifGenerationMatch", [])
        if request.method == "GET" and name:
            found = _generation(storage, bucket, name)
            if request.query.get("ifGenerationNotMatch") == [found]:
                response.status = HTTPStatus.NOT_MODIFIED
                return
            response["x-goog-generation"] = found
        try:
            handler(request, response, storage, *args, **kwargs)
        except _UnmetError:
            response.status = HTTPStatus.PRECONDITION_FAILED

    return handle


create_file = Storage.create_file


def _create_file(self: Storage, bucket: str, name: str, *args: Any, **kwargs: Any) -> Any:
    if _wanted and _wanted != [_generation(self, bucket, name)]:
        raise _UnmetError
    return create_file(self, bucket, name, *args, **kwargs)


if __name__ == "__main__":
    Storage.create_file = _create_file
    for _, handlers in server.HANDLERS:
        handlers.update({method: _with_generations(handler) for method, handler in handlers.items()})
    objects.insert = _with_generations(objects.insert)
    server.create_server("127.0.0.1", int(sys.argv[1]), True, "runs").run()
