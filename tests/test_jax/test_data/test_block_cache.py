"""Token shards in a bucket: what is read is what was written, and what is kept on this machine has a bound."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from memory_bucket import use_memory
from stellarbyte.errors import UserError
from stellarbyte.places import BucketPath, place
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.array_file import BLOCK_BYTES, ArrayReader, ArrayWriter
from stellarbyte_jax.data.block_cache import BlockCache
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.token_shards import TokenShards, shard_cache

DTYPE = np.dtype(np.uint16)
BLOCKS = 5


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each range that was fetched; the bucket s3://runs is in memory."""
    use_memory(monkeypatch)
    fetched: list[int] = []
    read = BucketPath.read_range

    def counted(self: BucketPath, start: int, stop: int) -> bytes:
        fetched.append(stop - start)
        return read(self, start, stop)

    monkeypatch.setattr(BucketPath, "read_range", counted)
    return fetched


@pytest.fixture
def written(tmp_path: Path, requests: list[int]) -> tuple[BucketPath, np.ndarray, np.ndarray]:  # noqa: ARG001
    """(a file of five blocks in the bucket, its items, its checksums)."""
    items = np.random.default_rng(0).integers(0, 1 << 16, BLOCKS * BLOCK_BYTES // 2 - 7).astype(DTYPE)
    writer = ArrayWriter(tmp_path / "array.npy", DTYPE, len(items))
    writer.write(items)
    sums = writer.finish(len(items))
    path = place("s3://runs/array.npy")
    assert isinstance(path, BucketPath)
    path.upload(tmp_path / "array.npy")
    return path, items, sums


def reader(cache: BlockCache, written: tuple[BucketPath, np.ndarray, np.ndarray]) -> ArrayReader:
    path, items, sums = written
    source = cache.file(path, items.nbytes, sums.tobytes())
    return ArrayReader(path, DTYPE, len(items), sums, np.zeros(BLOCKS, bool), source)


def test_items_are_fetched_once_while_there_is_room(tmp_path: Path, requests: list[int], written: tuple) -> None:
    _, items, _ = written
    cache = BlockCache(tmp_path / "cache", 10 * items.nbytes, items.nbytes)
    for start, stop in ((5, 900), (200_000, 400_000), (len(items) - 3, len(items)), (0, len(items)), (0, 0)):
        assert (reader(cache, written).read(start, stop) == items[start:stop]).all()
    assert requests == [items.nbytes], "one piece holds all blocks"
    again = BlockCache(tmp_path / "cache", 10 * items.nbytes, items.nbytes)
    assert (reader(again, written).read(0, len(items)) == items).all() and len(requests) == 1


def test_the_cache_keeps_to_its_bound(tmp_path: Path, requests: list[int], written: tuple) -> None:
    _, items, _ = written
    cache = BlockCache(tmp_path / "cache", 2 * BLOCK_BYTES, items.nbytes)
    for _ in range(2):
        assert (reader(cache, written).read(0, len(items)) == items).all()
        assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) <= 2 * BLOCK_BYTES
    assert max(requests) == BLOCK_BYTES and len(requests) == 2 * BLOCKS
    none = BlockCache(tmp_path / "none", 0, items.nbytes)
    assert (reader(none, written).read(7, 9) == items[7:9]).all() and not (tmp_path / "none").exists()


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, written: tuple) -> None:
    _, items, _ = written
    (tmp_path / "cache").write_text("a file")
    cache = BlockCache(tmp_path / "cache", 10 * items.nbytes, items.nbytes)
    assert (reader(cache, written).read(0, len(items)) == items).all()


def test_damage_is_seen_wherever_it_is(tmp_path: Path, requests: list[int], written: tuple) -> None:
    path, items, _ = written
    cache = BlockCache(tmp_path / "cache", 10 * items.nbytes, items.nbytes)
    reader(cache, written).read(0, 10)
    kept = next((tmp_path / "cache").iterdir())
    kept.write_bytes(bytes(kept.stat().st_size))
    assert (reader(cache, written).read(0, 10) == items[:10]).all() and len(requests) == 2, "it was fetched anew"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(bytes(content))
    kept.unlink()
    with pytest.raises(UserError, match=r"s3://runs/array.npy is damaged: bytes 128 to"):
        reader(cache, written).read(0, 10)
    path.write_bytes(bytes(content[:BLOCK_BYTES]))
    with pytest.raises(UserError, match="cut short"):
        reader(BlockCache(tmp_path / "other", 0, items.nbytes), written).read(0, 10)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        reader(BlockCache(tmp_path / "other", 0, items.nbytes), written).read(0, 10)


def test_shards_in_a_bucket_are_those_on_disk(tmp_path: Path, requests: list[int], small_data: DataConfig) -> None:
    here = Path(small_data.shards)
    for file in here.iterdir():
        (place("s3://runs/shards") / file.name).upload(file)  # type: ignore[union-attr]
    data = dataclasses.replace(small_data, shards="s3://runs/shards", cache_dir=str(tmp_path / "cache"))
    manifest = Manifest.load(place(data.shards))
    assert manifest == Manifest.load(here)
    for split in ("train", "validation"):
        there = TokenShards(place(data.shards), split, manifest, shard_cache(data, manifest))
        local = TokenShards(here, split, manifest)
        assert (there.read(0, there.tokens) == local.read(0, local.tokens)).all()
        assert (there.starts == local.starts).all()
    assert len(requests) < 12
    (place(data.shards) / "train-00000.npy").unlink()  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"s3://runs/shards/train-00000.npy is missing"):
        TokenShards(place(data.shards), "train", manifest, shard_cache(data, manifest))
