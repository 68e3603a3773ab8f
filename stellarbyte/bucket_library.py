"""Opens fsspec's file system for a bucket's scheme."""

import logging
from typing import Any

from stellarbyte.errors import UserError

_LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}


def file_system(scheme: str) -> Any:
    """fsspec's file system for gs or s3, the same one that Orbax uses. Raises UserError if it is not installed."""
    for name in (*_LIBRARIES.values(), "fsspec", "aiobotocore", "botocore", "google"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # their exceptions reach us
    try:
        import fsspec

        # A listing that is kept would miss what other processes and TensorStore write.
        for name in ("gs", "gcs", "s3"):
            fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
        return fsspec.filesystem({"gs": "gcs"}.get(scheme, scheme))
    except ImportError as error:
        library = _LIBRARIES[scheme]
        raise UserError(
            f"{scheme}:// needs {library}, which is not installed: pip install 'stellarbyte[cloud]'"
        ) from error


def bucket_exists(fs: Any, bucket: str) -> bool:
    """Whether there is such a bucket, which may be empty."""
    try:
        fs.ls(bucket, detail=False, refresh=True)
    except FileNotFoundError:
        return bool(fs.exists(bucket))
    return True
