"""Merged shards hold what the many held, whenever the merging is stopped and whoever reads."""

import gc
import itertools
import json
import os
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.retrieval import compaction, manifest, shards
from xmodal_jax.retrieval.items import Item
from xmodal_jax.retrieval.store import Store

GONE = [0, 5, 6, 7, 11, 16]


def arrays_of(numbers, width, boxes=True):
    """Arrays that follow from the items' numbers."""
    out = {"tokens": (numbers[:, None, None] + np.arange(width)[None, :, None] / 8)}
    out["tokens"] = out["tokens"].astype(np.float16)
    out["mask"] = np.ones((len(numbers), width), bool)
    if boxes:
        out["boxes"] = np.repeat(out["tokens"] / 32, 4, axis=2)
    return out


def append(store, start, count, width=3, boxes=True):
    numbers = np.arange(start, start + count)
    items = [Item(f"i{n}", f"{n}.png", (4, 3), fields={"parity": str(n % 2)}) for n in numbers]
    codes = {"codes": -numbers[:, None]} if store.first_stage else {}
    store.append(items, arrays_of(numbers, width, boxes), codes)


def put_first_stage(store, name):
    codes = [{"codes": -rows[:, None]} for rows in store.shard_rows()]
    store.put_first_stage({"name": name}, {"centre": np.arange(3.0)}, codes)


@pytest.fixture
def filled(tmp_path):
    """A store of 18 items in seven shards of three layouts, twice fitted, with six removed."""
    store = Store.create(tmp_path / "s", {"kind": "tokens"})
    with store.writing():
        append(store, 0, 4)
        append(store, 4, 1)
        put_first_stage(store, "x")
        append(store, 5, 3)
        store.remove([f"i{n}" for n in GONE[:4]])
        append(store, 8, 3, width=5)
        append(store, 11, 1, boxes=False)
        put_first_stage(store, "y")
        append(store, 12, 3)
        append(store, 15, 3)
        store.remove([f"i{n}" for n in GONE[4:]])
    return store


def files_of(directory):
    files = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    return files - {"lock", manifest.NAME}


def holds(table, gone=GONE):
    """Checks every row that was not removed, by its number alone."""
    live = np.flatnonzero(table.live)
    numbers = [n for n in range(18) if n not in gone]
    assert [table.items[row].id for row in live] == [f"i{n}" for n in numbers]
    assert [table.items[row].fields["parity"] for row in live] == [str(n % 2) for n in numbers]
    found = table.take(live, ("tokens", "mask", "codes"))
    for place, number in enumerate(numbers):
        width = 5 if 8 <= number < 11 else 3
        tokens = [number + n / 8 for n in range(width)]
        assert found["tokens"][place, :, 0].tolist() == tokens + [0] * (table.width - width)
        assert found["mask"][place].sum() == width
        row = np.array([table.row(f"i{number}")])
        assert table.has("boxes", row) == (number != 11)
        if number != 11:
            boxes = table.take(row, ("boxes",))["boxes"][0, :width]
            assert (boxes == np.array(tokens, np.float16)[:, None] / 32).all()
    assert found["codes"][:, 0].tolist() == [-n for n in numbers]
    assert np.asarray(table.first_stage["centre"]).tolist() == [0, 1, 2]


def test_it_holds_the_same_in_fewer_files(filled):
    before = filled.bytes
    on_disk = {
        name: (filled.directory / name).stat().st_size for name in files_of(filled.directory)
    }
    with filled.writing():
        freed = filled.compact()
    again = Store.open(filled.directory, verify=True)
    for store in (filled, again):
        holds(store.table())
        assert store.table().live.all() and store.first_stage == {"name": "y"}
    # 0 to 7, then those that are wider, and 12 to 17, as 11 is gone.
    assert [len(rows) for rows in again.shard_rows()] == [4, 3, 5]
    left = sum((filled.directory / name).stat().st_size for name in files_of(filled.directory))
    assert again.bytes == left < before and freed == sum(on_disk.values()) - left
    # Nothing is there that is not named: three shards with codes, and the first stage.
    assert len(files_of(filled.directory)) == 3 * (3 + 1) + 3 + 1
    # Once more there is nothing to do.
    said = (filled.directory / manifest.NAME).read_bytes()
    with again.writing():
        assert again.compact() == 0
    assert (filled.directory / manifest.NAME).read_bytes() == said
    # And it grows.
    with again.writing():
        append(again, 18, 2)
    assert Store.open(filled.directory, verify=True).table().items[-1].id == "i19"


def test_everything_may_be_removed(filled):
    with filled.writing():
        filled.remove([f"i{n}" for n in range(18) if n not in GONE])
        filled.compact()
    table = Store.open(filled.directory, verify=True).table()
    assert len(table) == 0 and table.items == []
    with filled.writing():
        append(filled, 0, 2)
    assert len(Store.open(filled.directory).table()) == 2


def test_row_by_row_and_in_shards_of_bounded_size(filled, monkeypatch):
    monkeypatch.setattr(compaction, "_PIECE_BYTES", 1)
    entry = filled._content["shards"][0]
    merger = compaction.Merger([entry], [], [np.array([1, 3])])
    pieces = merger.arrays(filled.directory)["tokens"]
    assert pieces.shape == (2, 3, 1)
    assert [piece[:, 0, 0].tolist() for piece in pieces.pieces] == [[1], [3]]
    largest = compaction.entry_bytes(entry)
    monkeypatch.setattr(compaction, "SHARD_BYTES", 2 * largest)
    with filled.writing():
        filled.compact()
    holds(Store.open(filled.directory, verify=True).table())
    assert [len(rows) for rows in filled.shard_rows()] == [4, 3, 5]
    for start in range(18, 22):
        with filled.writing():
            append(filled, start, 1)
    untouched = filled._content["shards"][0]
    monkeypatch.setattr(compaction, "SHARD_BYTES", 1)
    with filled.writing():
        assert filled.compact() == 0
    assert len(list(filled.shard_rows())) == 7 and filled._content["shards"][0] == untouched


def test_who_has_it_open_goes_on(filled):
    opened, late = Store.open(filled.directory), Store.open(filled.directory)
    table = opened.table()
    with filled.writing():
        filled.compact()
    # Nothing of it was read before the files were deleted.
    holds(table)
    assert len(table) == 18
    # Who has read the manifest only reads it again.
    holds(late.table())
    assert len(late.table()) == 12
    # A file that is missing is still an error.
    again = Store.open(filled.directory)
    next((filled.directory / "shards").rglob("mask.npy")).unlink()
    with pytest.raises(UserError, match="mask.npy can't be read"):
        again.table()


class Stopped(Exception):
    pass


def test_stopped_before_any_step_it_is_whole(filled, tmp_path, monkeypatch):
    """Every write, rename, fsync and deletion in turn is the one that is not reached."""
    steps = [0, None]

    def stopping(function):
        def step(*args, **kwargs):
            steps[0] += 1
            if steps[0] == steps[1]:
                raise Stopped
            return function(*args, **kwargs)

        return step

    monkeypatch.setattr(manifest, "sync", stopping(lambda path: None))
    monkeypatch.setattr(shards, "_write_array", stopping(shards._write_array))
    monkeypatch.setattr(Path, "rename", stopping(Path.rename))
    monkeypatch.setattr(Path, "replace", stopping(Path.replace))
    monkeypatch.setattr(Path, "mkdir", stopping(Path.mkdir))
    monkeypatch.setattr(shutil, "rmtree", stopping(shutil.rmtree))

    def compacted(last):
        path = tmp_path / f"copy{last}"
        steps[:] = 0, None
        shutil.copytree(filled.directory, path, copy_function=os.link)
        store = Store.open(path)
        steps[:] = 0, last
        with store.writing():
            store.compact()
        return store

    whole = compacted(None)
    total, final = steps[0], files_of(whole.directory)
    assert total > 50
    published = 0
    for last in range(1, total + 1):
        with pytest.raises(Stopped):
            compacted(last)
        steps[:] = 0, None
        store = Store.open(tmp_path / f"copy{last}", verify=True)
        table = store.table()
        holds(table)
        published += len(table) == 12
        with store.writing():
            store.compact()
        assert len(store.table()) == 12 and len(files_of(store.directory)) == len(final)
        shutil.rmtree(store.directory)
    # Both outcomes were seen.
    assert 5 < published < total - 30


def test_what_is_damaged_is_not_made_whole(filled):
    before = files_of(filled.directory)
    content = json.loads((filled.directory / manifest.NAME).read_text())["content"]
    names = "shards/3/tokens.npy", "codes/7/1/codes.npy", "shards/0/items.jsonl"
    # Those that were removed go for good.
    [removed] = content["removed"]["files"]
    for name in (*names, removed):
        path = filled.directory / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with filled.writing(), pytest.raises(UserError, match=f"{name} is damaged: its checksum"):
            filled.compact()
        path.write_bytes(whole)
    assert files_of(filled.directory) == before


def test_without_room_nothing_is_written(filled, monkeypatch):
    before = files_of(filled.directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(100))
    with filled.writing(), pytest.raises(UserError, match="make room, as the old ones are deleted"):
        filled.compact()
    assert files_of(filled.directory) == before


@pytest.fixture
def few_files():
    """This process may open 40 files more than it has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    most = next(itertools.islice((n for n in itertools.count() if n not in used), 40, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    yield limits
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def many_shards(tmp_path):
    store = Store.create(tmp_path / "s", {})
    with store.writing():
        for number in range(20):
            append(store, number, 1)
    return tmp_path / "s"


def test_the_limit_of_open_files_is_raised(many_shards, few_files):
    assert len(Store.open(many_shards).table()) == 20
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few_files[1], few_files[1])


def test_more_shards_than_files_may_be_open_are_merged(many_shards, few_files, monkeypatch):
    monkeypatch.setattr(resource, "setrlimit", lambda *args: None)
    store = Store.open(many_shards)
    with pytest.raises(UserError, match="can't be opened: Too many open files.* compact") as caught:
        store.table()
    assert "\n" not in str(caught.value) and str(many_shards) in str(caught.value)
    del caught  # Its traceback holds what was opened.
    gc.collect()
    with store.writing():
        store.compact()
    monkeypatch.undo()
    table = Store.open(many_shards).table()
    assert [item.id for item in table.items] == [f"i{n}" for n in range(20)]
    assert table.take(np.arange(20), ("tokens",))["tokens"][:, 0, 0].tolist() == list(range(20))
