"""Teaches Orbax to keep arrays in S3: it hands TensorStore specs of its drivers for files and for gs:// alone.

TensorStore has a driver for S3, and Orbax's other work in a bucket goes through fsspec, which knows both. So s3:// is
treated as Orbax treats gs:// (a checkpoint is whole once its last file, commit_success.txt, is there), with the
other driver. Only what is saved under s3:// is changed by this.
"""

import functools
from pathlib import PurePath
from typing import Any

from stellarbyte.bucket_library import file_system
from stellarbyte.errors import UserError

_S3 = "s3://"

# How often TensorStore tries a request anew; together they are some two minutes.
_RETRIES = {"max_retries": 12, "initial_delay": "1s", "max_delay": "16s"}


@functools.cache
def teach_orbax_s3() -> None:
    """Does so, once a process.

    Raises:
        UserError: this version of Orbax has not what is to be taught.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    try:
        is_gcs, kvstore_for_gcs = gcs_utils.is_gcs_path, gcs_utils.get_kvstore_for_gcs
        uses_gcs, normalized = tensorstore_utils._use_gcs_driver, tensorstore_utils._normalize_path
    except AttributeError as error:
        raise UserError(
            f"s3:// does not work with this version of orbax-checkpoint ({error}): install one that constraints.txt "
            "names"
        ) from error

    def is_bucket(path: PurePath) -> bool:
        return is_gcs(path) or str(path).startswith(_S3)

    def kvstore(path: str) -> dict[str, Any]:
        return s3_kvstore(path) if str(path).startswith(_S3) else kvstore_for_gcs(path)

    gcs_utils.is_gcs_path, gcs_utils.get_kvstore_for_gcs = is_bucket, kvstore
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(_S3) or uses_gcs(path)
    tensorstore_utils._normalize_path = lambda path: normalized(path).replace("s3:/", _S3)


def s3_kvstore(path: str) -> dict[str, Any]:
    """TensorStore's words for what is below s3://BUCKET/PATH."""
    bucket, _, below = path.removeprefix(_S3).partition("/")
    return {"driver": "s3", "bucket": bucket, "path": below, "s3_request_retries": _RETRIES, **_connection()}


@functools.cache
def _connection() -> dict[str, Any]:
    """What fsspec's client has found in the environment and AWS's files, in TensorStore's words."""
    from fsspec.asyn import sync

    fs = file_system("s3")
    fs.connect()
    found: dict[str, Any] = {}
    if ".amazonaws.com" not in fs.s3.meta.endpoint_url:  # TensorStore finds AWS and a bucket's region by itself
        found |= {"endpoint": fs.s3.meta.endpoint_url, "aws_region": fs.s3.meta.region_name or "us-east-1"}
    credentials = sync(fs.loop, fs.session.get_credentials)
    if credentials is not None and credentials.method == "env":  # else it complains of files that are not there
        found["aws_credentials"] = {"type": "environment"}
    return found
