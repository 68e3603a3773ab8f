"""Checks that disks have room, and that caches can be written."""

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.filesize import decimal

from stellarbyte.environment.caches import Cache
from stellarbyte.environment.environment import folders_of_interest
from stellarbyte.environment.finding import Finding, well
from stellarbyte.environment.machine import nearest

# A checkpoint of the quickstart's model has 40 MB; below this not even small runs are sure to save.
LEAST_BYTES = 10**9
# Workers that read data hand batches over in shared memory; containers often have 64 MiB.
LEAST_SHARED = 256 * 2**20
SHARED = Path("/dev/shm")


def check_space(caches: Sequence[Cache]) -> list[Finding]:
    """Whether a disk is full, of bytes or of files, or is read-only; each disk once."""
    findings, seen = [], set()
    for name, folder in folders_of_interest(list(caches)):
        there = nearest(folder)
        if there == SHARED:
            continue
        try:
            disk, usage = there.stat().st_dev, shutil.disk_usage(there)
        except OSError as error:
            findings.append(Finding("disk", "wrong", f"{there} ({name}) cannot be read: {error.strerror}"))
            continue
        if disk in seen:
            continue
        seen.add(disk)
        if usage.free < LEAST_BYTES:
            words = f"the disk of {there} ({name}) has {decimal(usage.free)} left of {decimal(usage.total)}"
            findings.append(Finding("disk", "wrong", words, f"du -xh {shlex.quote(str(there))} | sort -h | tail"))
        elif hasattr(os, "statvfs"):
            status = os.statvfs(there)
            if status.f_files and not status.f_favail:
                words = f"the disk of {there} ({name}) has room, but can hold no more files"
                findings.append(Finding("disk", "wrong", words, f"df -i {shlex.quote(str(there))}"))
            elif status.f_flag & getattr(os, "ST_RDONLY", 0):
                findings.append(Finding("disk", "note", f"the disk of {there} ({name}) is read-only"))
    return findings or well("disk", f"at least {decimal(LEAST_BYTES)} are free wherever StellarByte writes")


def check_shared_memory(folder: Path = SHARED) -> list[Finding]:
    """Whether processes have shared memory to hand batches over in."""
    if not folder.is_dir():
        return []
    usage = shutil.disk_usage(folder)
    if usage.free < LEAST_SHARED:
        words = f"{folder} has {decimal(usage.free)} left of {decimal(usage.total)}: workers that read data may crash"
        return [Finding("shared memory", "wrong", words, "docker run --shm-size=8g …, or free what others left there")]
    return well("shared memory", f"{decimal(usage.free)} free")


def check_caches(caches: Sequence[Cache]) -> list[Finding]:
    """Whether the caches can be written, or made where they are not there yet."""
    findings = []
    for cache in caches:
        there = nearest(cache.path)
        if cache.path.exists() and not cache.path.is_dir():
            words = f"{cache.path}, the cache of {cache.name}, is no folder"
        elif not os.access(there, os.W_OK | os.X_OK):
            words = f"{there}, for the cache of {cache.name}, cannot be written by this user"
        else:
            continue
        mend = f"export {cache.variable}=/a/folder/of/yours"
        findings.append(
            Finding("caches", "wrong" if cache.writes in ("pretrain", "transformers") else "note", words, mend)
        )
    return findings or well("caches", "all can be written")
