"""The directory of an index: whole after every crash, and damage is found and named."""

import itertools
import random
import shutil
import time

import numpy as np
import pytest

from tests.programs import Fork
from tests.waiting import lines_in, wait_for_lines
from xmodal_jax.errors import UserError
from xmodal_jax.retrieval import manifest
from xmodal_jax.retrieval.items import Item, compress
from xmodal_jax.retrieval.store import Store


def piece(start, count, width=3):
    """Items with arrays that follow from their numbers."""
    numbers = np.arange(start, start + count)
    items = [Item(f"i{n}", f"{n}.png", (4, 3), fields={"parity": str(n % 2)}) for n in numbers]
    tokens = (numbers[:, None, None] + np.arange(width)[None, :, None] / 8).astype(np.float16)
    return items, {"tokens": tokens, "mask": np.ones(tokens.shape[:2], bool)}


def append(store, start, count, width=3):
    items, arrays = piece(start, count, width)
    with store.writing():
        store.append(items, arrays, {"codes": np.arange(start, start + count)[:, None]})


def filled(path):
    """A store with everything that one may hold."""
    store = Store.create(path, {"kind": "tokens"})
    append(store, 0, 4)
    with store.writing():
        store.put_first_stage({"name": "x"}, {"centre": np.ones(2)}, [{"codes": np.ones((4, 1))}])
        store.remove(["i2"])
    append(store, 4, 3, width=5)
    return store


def test_what_was_stored_comes_back(tmp_path):
    filled(tmp_path / "s")
    store = Store.open(tmp_path / "s", verify=True)
    table = store.table()
    assert len(table) == 7 and table.width == 5
    assert table.live.tolist() == [True, True, False, True, True, True, True]
    assert [item.id for item in table.items] == [f"i{n}" for n in range(7)]
    assert table.items[5].size == (4, 3) and "i2" not in table.row_of
    assert table.chosen({"parity": "0"}).tolist() == [1, 0, 0, 0, 1, 0, 1]
    assert not table.chosen({"parity": "0", "other": "x"}).any()
    rows = np.array([6, 0, 4, 0])
    found = table.take(rows, ("tokens", "mask", "codes"))
    for k, row in enumerate(rows):
        width = 3 if row < 4 else 5
        expected = [row + n / 8 for n in range(width)] + [0] * (5 - width)
        assert found["tokens"][k, :, 0].tolist() == expected
        assert found["mask"][k].tolist() == [True] * width + [False] * (5 - width)
    assert found["codes"][:, 0].tolist() == [6, 1, 4, 1]  # 1 is what put_first_stage was given.
    assert store.about["kind"] == "tokens" and store.first_stage == {"name": "x"}
    # Beside these files there are the manifest and the lock.
    files = [path for path in (tmp_path / "s").rglob("*") if path.is_file()]
    other = {manifest.NAME, "lock"}
    assert store.bytes == sum(path.stat().st_size for path in files if path.name not in other)


def test_every_flipped_byte_is_found(tmp_path):
    filled(tmp_path)
    rng = random.Random(0)
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"]
    assert len(files) > 8
    for path in files:
        whole = path.read_bytes()
        everywhere = range(len(whole)) if path.name == manifest.NAME else range(0)
        for place in {0, len(whole) - 1, rng.randrange(len(whole)), *list(everywhere)[::37]}:
            changed = bytes([whole[place] ^ (1 << rng.randrange(8))])
            path.write_bytes(whole[:place] + changed + whole[place + 1 :])
            with pytest.raises(UserError) as caught:
                Store.open(tmp_path, verify=True)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        path.write_bytes(whole)
    Store.open(tmp_path, verify=True)


def test_a_short_or_missing_file_is_found_without_reading(tmp_path):
    filled(tmp_path)
    path = tmp_path / "shards" / "0" / "tokens.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"has {len(whole) - 1} bytes and not {len(whole)}"):
        Store.open(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="tokens.npy is missing; copy the index again"):
        Store.open(tmp_path)
    with pytest.raises(UserError, match="is no index: it has no manifest.json"):
        Store.open(tmp_path / "shards")


def test_a_newer_format_is_refused(tmp_path):
    Store.create(tmp_path, {})
    content = manifest.read(tmp_path)
    manifest.write(tmp_path, content | {"format": 99})
    with pytest.raises(UserError, match="has format 99, this version reads 2"):
        Store.open(tmp_path)


def test_one_writer_at_a_time_and_readers_beside_it(tmp_path):
    store = filled(tmp_path)
    reader = Store.open(tmp_path)
    other = Store.open(tmp_path)
    with store.writing():
        with pytest.raises(UserError, match="another process is writing"), other.writing():
            pass
        items, arrays = piece(7, 2)
        store.append(items, arrays, {"codes": np.ones((2, 1))})
        assert len(Store.open(tmp_path).table()) == 9
    # What was read before is as it was: no file of it has changed.
    assert len(reader.table()) == 7 and reader.table().items[6].id == "i6"
    append(other, 9, 1)  # It has read what the first one wrote.
    assert [item.id for item in Store.open(tmp_path).table().items][-2:] == ["i8", "i9"]
    with pytest.raises(UserError, match="holds an index already"):
        Store.create(tmp_path, {})


def test_nothing_is_added_to_an_index_that_took_the_place_of_another(tmp_path):
    """What was encoded by the model of the one is not for that of the other."""
    store = Store.create(tmp_path / "s", {"fingerprint": "one"})
    append(store, 0, 2)
    shutil.rmtree(tmp_path / "s")
    append(Store.create(tmp_path / "s", {"fingerprint": "other"}), 0, 1)
    with pytest.raises(UserError, match="s was replaced by another index; open that one"):
        append(store, 2, 1)
    assert len(Store.open(tmp_path / "s").table()) == 1


def test_every_name_is_on_the_disk_before_a_manifest_says_so(tmp_path, monkeypatch):
    """Replays fsync: a power cut keeps of a directory those names that were there at its last."""
    durable = {}
    real_sync, real_write = manifest.sync, manifest.write

    def sync(path):
        real_sync(path)
        if path.is_dir():
            durable[path.stat().st_ino] = {child.name for child in path.iterdir()}

    def write(directory, content):
        parts = [*content["shards"], content["removed"], content["first_stage"]]
        parts += content["first_stage"].get("codes", [])
        names = [name for part in parts if part for name in part["files"]]
        seen.append(len(names))
        for name in names:
            path = directory / name
            while path != tmp_path:
                # By its number: it is renamed after its files are written.
                assert path.name in durable[path.parent.stat().st_ino], path
                path = path.parent
        real_write(directory, content)

    seen = []
    monkeypatch.setattr(manifest, "sync", sync)
    monkeypatch.setattr(manifest, "write", write)
    filled(tmp_path / "below" / "s")
    assert seen == [0, 3, 5, 6, 10]


def append_for_ever(path, log):
    store = Store.open(path)
    with store.writing(), log.open("a") as said:
        for number in itertools.count(len(store.table())):
            items, arrays = piece(number, 1)
            store.append(items, arrays, {})
            said.write(f"{number}\n")
            said.flush()


def test_killed_at_any_moment_it_holds_what_was_acknowledged(tmp_path):
    """Twenty times kill -9, at moments that are spread over an append."""
    store = Store.create(tmp_path / "s", {})
    append(store, 0, 1)
    log = tmp_path / "log"
    log.write_text("0\n")
    rng = random.Random(0)
    for _ in range(20):
        process = Fork(append_for_ever, tmp_path / "s", log)
        wait_for_lines([process], log, lines_in(log) + 1)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        said = [int(line) for line in log.read_text().split()]
        table = Store.open(tmp_path / "s", verify=True).table()
        held = [int(item.id[1:]) for item in table.items]
        # At most the one that was under way is there without having been acknowledged.
        assert held[: len(said)] == said == list(range(len(said)))
        assert len(held) - len(said) in (0, 1)
        found = table.take(np.arange(len(held)), ("tokens",))["tokens"]
        assert found[:, 0, 0].tolist() == held
        log.write_text("".join(f"{number}\n" for number in held))


def test_compressed_vectors_are_near_the_given_ones():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5, 7, 16)).astype(np.float32)
    vectors[2, 3] = 0
    for store, steps in (("int8", 127), ("float16", 1024)):
        values, scale = compress(vectors, store)
        assert values.dtype == store and scale.shape == (5, 7, 1)
        largest = np.abs(vectors).max(axis=-1, keepdims=True)
        assert (np.abs(values * scale - vectors) <= largest / steps / 2 * 1.001 + 1e-7).all()
    with pytest.raises(UserError, match="store='int4' is not known; use int8 or float16"):
        compress(vectors, "int4")


@pytest.mark.parametrize("id", ["", "a\nb", "x" * 501])
def test_ids_are_printable(id):
    with pytest.raises(UserError, match="is not 1 to 500 printable characters"):
        Item(id)
