"""Pickles as plain data: what the standard library would load, and never what it would run."""

import builtins
import codecs
import collections
import gzip
import io
import json
import os
import pickle
import random
import shlex
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import inert_pickle, pickle_machine
from data_pipeline.errors import DataError
from data_pipeline.inert_pickle import read_object_array, read_pickle

PROTOCOLS = range(6)
quick = settings(max_examples=50, deadline=None)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**2100), 2**2100)  # More than LONG1 takes.
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=20)  # Surrogates too.
    | st.binary(max_size=20)
)
keys = scalars | st.tuples(scalars, st.integers())
values = st.recursive(
    scalars,
    lambda parts: (
        st.lists(parts, max_size=6)
        | st.lists(parts, max_size=4).map(tuple)
        | st.dictionaries(keys, parts, max_size=4)
        | st.sets(keys, max_size=4)
        | parts.map(lambda part: [part, {"again": part}, part])  # Shared: through the memo.
    ),
    max_leaves=30,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file that every example of a property writes again."""
    return tmp_path_factory.mktemp("pickles") / "values.pkl"


def exact(value):
    """A value in which 1, 1.0 and True differ, and sets have an order."""
    if isinstance(value, dict):
        return "dict", [(exact(key), exact(part)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [exact(part) for part in value]
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(repr(exact(part)) for part in value)
    return type(value).__name__, repr(value)


def read_bytes(path, data, **options):
    path.write_bytes(data)
    return read_pickle(path, **options)


def refusal(path, data, **options):
    """The one line that says why the bytes are not read."""
    with pytest.raises(DataError) as caught:
        read_bytes(path, data, **options)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("protocol", PROTOCOLS)
# The second one is the pickler that joblib extends; without arrays it adds nothing to it.
@pytest.mark.parametrize("dumps", [pickle.dumps, pickle._dumps])
@quick
@given(value=values)
def test_plain_values_are_what_the_standard_library_loads(path, dumps, protocol, value):
    data = dumps(value, protocol)
    assert exact(read_bytes(path, data)) == exact(pickle.loads(data)) == exact(value)


def test_nan_long_texts_and_empty_values(path):
    for protocol in PROTOCOLS:
        value = [float("nan"), -0.0, float("inf"), "x" * 70_000, b"y" * 70_000, b"", (), {}, set()]
        value += [frozenset({(1, "a")}), list(range(3000)), dict.fromkeys(range(3000))]
        assert exact(read_bytes(path, pickle.dumps(value, protocol))) == exact(value)


def test_what_is_shared_stays_shared(path):
    box = [1, 2]
    first, second = read_bytes(path, pickle.dumps([box, box]))
    assert first is second


def test_pickles_of_python_2(path):
    # Written by hand from the opcodes' documentation: STRING, SHORT_BINSTRING, BINSTRING.
    assert read_bytes(path, b"(S'a\\tb'\nU\x02cdT\x01\x00\x00\x00el.") == ["a\tb", "cd", "e"]
    assert "not ASCII" in refusal(path, b"U\x01\xe9.")


@pytest.mark.parametrize(
    "pack", [zlib.compress, gzip.compress, lambda data: zlib.compress(data, 1)]
)
def test_compressed_files(path, pack):
    value = {str(i): [i, i / 7] for i in range(20_000)}
    assert read_bytes(path, pack(pickle.dumps(value))) == value
    packed = pack(pickle.dumps(value))
    assert "something follows" in refusal(path, packed + b"x")
    assert "end early" in refusal(path, packed[:-1])


def test_numpy_scalars_become_numbers(path):
    codes = ["?", "i1", "<i2", ">i4", "i8", "u1", "u2", "u4", "<u8", "<f2", ">f4", "f8"]
    arrays = [np.array([1, 0, 3]).astype(code) for code in codes]
    written = [array[i] for array in arrays for i in range(3)] + [np.float32(0.1)]
    expected = [scalar.item() for scalar in written]
    for protocol in PROTOCOLS:
        assert exact(read_bytes(path, pickle.dumps(written, protocol))) == exact(expected)
    big_endian = pickle.dumps(np.int32(258), 2).replace(b"\x01\x00\x00\x00<", b"\x01\x00\x00\x00>")
    assert read_bytes(path, big_endian) == 2 * 2**24 + 1 * 2**16
    # numpy 1 had its modules elsewhere.
    old = pickle.dumps(written, 2).replace(b"numpy._core.", b"numpy.core.")
    assert exact(read_bytes(path, old)) == exact(expected)


def save_objects(path, values, shape=None):
    array = np.empty(len(values), object)
    array[:] = values
    np.save(path, array if shape is None else array.reshape(shape), allow_pickle=True)


@quick
@given(values=st.lists(values, max_size=5))
def test_object_arrays_become_lists(path, values):
    path = path.with_suffix(".npy")
    save_objects(path, values)
    assert exact(read_object_array(path)) == exact(values)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("module", [b"numpy._core.", b"numpy.core."])
def test_object_arrays_of_all_times(tmp_path, protocol, module):
    sizes = [{"image_w": np.int64(500 + i), "image_h": 375} for i in range(7)]
    array = np.array(sizes)
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    data = pickle.dumps(array, protocol)
    today, then = b"numpy._core.multiarray", module + b"multiarray"
    data = data.replace(b"c" + today, b"c" + then)  # GLOBAL's name ends with its line,
    counted = b"\x8c" + bytes([len(then)]) + then  # that of STACK_GLOBAL is a counted string.
    data = data.replace(b"\x8c\x16" + today, counted)
    assert then in data
    path = tmp_path / "train_ims_size.npy"
    path.write_bytes(file.getvalue() + data)
    assert exact(read_object_array(path)) == exact(
        [{**s, "image_w": int(s["image_w"])} for s in sizes]
    )
    assert read_bytes(tmp_path / "array.pkl", data) == sizes


def test_object_array_without_an_axis(tmp_path):
    np.save(tmp_path / "graphs.npy", {"a.jpg": [1]}, allow_pickle=True)
    assert read_object_array(tmp_path / "graphs.npy") == [{"a.jpg": [1]}]


def test_mistakes_in_arrays(tmp_path):
    path = tmp_path / "array.npy"

    def message():
        with pytest.raises(DataError) as caught:
            read_object_array(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        return str(caught.value)

    np.save(path, np.zeros(3))
    assert "holds float64 and no objects" in message()
    save_objects(path, range(6), (2, 3))
    assert "has shape [2, 3]" in message()
    save_objects(path, [np.zeros(2), "a"])
    assert "numpy.ndarray that is no list of objects" in message()
    save_objects(path, [collections.OrderedDict(a=1)])
    assert "'collections.OrderedDict'" in message() and "allow_pickle" in message()
    save_objects(path, range(6))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(6,)", b"(7,)"))
    assert "header announces" in message()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        message()
    rng = random.Random(0)
    for _ in range(100):  # Headers are text that numpy parses: whatever it is, it is one line.
        place = rng.randrange(128)
        path.write_bytes(data[:place] + rng.choice([b"(" * 90, b"\0", b"'", b"{"]) + data[place:])
        with pytest.raises(DataError):
            read_object_array(path)


class Malicious:
    """Unpickled, it makes a directory."""

    def __init__(self, directory):
        self.directory = directory

    def __reduce__(self):
        return os.system, (f"mkdir {shlex.quote(str(self.directory))}",)


class Stateful:
    def __init__(self):
        self.a = 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_of_a_malicious_file_runs(path, tmp_path, protocol):
    trace = tmp_path / "trace"
    data = pickle.dumps({"a.jpg": [1, Malicious(trace)]}, protocol)
    message = refusal(path, data)
    assert "the class or function 'posix.system'" in message
    assert not trace.exists()
    save_objects(tmp_path / "sizes.npy", [Malicious(trace)])
    with pytest.raises(DataError, match="posix.system"):
        read_object_array(tmp_path / "sizes.npy")
    assert not trace.exists()
    pickle.loads(data)  # The file would have done it.
    assert trace.is_dir()


ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
OBJECTS = b"cnumpy\ndtype\n(VO8\n\x89\x88tR"

# Reached through names that are understood, or without any.
TRICKS = {
    "a class alone": (pickle.dumps([set]), "class, function or dtype"),
    "eval": (b"cbuiltins\neval\n(S'1'\ntR.", "'builtins.eval'"),
    "getattr": (b"c__builtin__\ngetattr\n.", "'__builtin__.getattr'"),
    "numpy's exec": (b"cnumpy.testing._private.utils\nrunstring\n.", "runstring"),
    "other codec": (b"c_codecs\nencode\n(Va\nVrot13\ntR.", "_codecs.encode"),
    "set of no list": (b"cbuiltins\nset\n(Vab\ntR.", "builtins.set"),
    "instance": (b"(ios\nsystem\n.", "'os.system'"),
    "object": (b"(cos\nsystem\no.", "'os.system'"),
    "object of a set": (b"(cbuiltins\nset\no.", "opcode OBJ"),
    "new object": (b"cbuiltins\nset\n)\x81.", "opcode NEWOBJ"),
    "persistent": (b"Pid\n.", "opcode PERSID"),
    "persistent, binary": (b"K\x01Q.", "opcode BINPERSID"),
    "extension": (b"\x82\x01.", "opcode EXT1"),
    "buffer": (b"\x97.", "opcode NEXT_BUFFER"),
    "bytearray": (pickle.dumps(bytearray(b"a"), 5), "opcode BYTEARRAY8"),
    "state of a list": (b"]}b.", "state of its own"),
    "state of an array for a list": (b"](K\x01)" + OBJECTS + b"\x89]tb.", "state of its own"),
    "joblib's array": (
        b"\x80\x03cjoblib.numpy_pickle\nNumpyArrayWrapper\nq\x00)\x81q\x01.",
        "import json, sys, joblib",
    ),
    "object of a class": (pickle.dumps(Stateful()), "Stateful'"),
    "numbers": (pickle.dumps(np.zeros(2)), "numpy"),
    "complex": (pickle.dumps(np.complex64(1)), "dtype 'c8'"),
    "strings": (pickle.dumps(np.str_("a")), "dtype 'U1'"),
    "dtype": (pickle.dumps(np.dtype("f4")), "class, function or dtype"),
    "name with an escape": (b"\x8c\x02a\n\x8c\x03\x1b[1\x93.", r"'a\n.\x1b[1'"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_what_is_not_plain_is_named(path, trick):
    data, expected = TRICKS[trick]
    message = refusal(path, data)
    assert expected in message and "convert it apart: python -c" in message


@pytest.mark.parametrize("kind", ["pickle", "array"])
def test_the_remedy_works(tmp_path, kind):
    value = collections.OrderedDict(a=np.arange(3), b="text")
    path = tmp_path / "it's here.pkl"
    if kind == "pickle":
        message = refusal(path, pickle.dumps(value))
        expected = {"a": [0, 1, 2], "b": "text"}
    else:
        path = tmp_path / "array.npy"
        save_objects(path, [value])
        with pytest.raises(DataError) as caught:
            read_object_array(path)
        message, expected = str(caught.value), [{"a": [0, 1, 2], "b": "text"}]
    _, *command = shlex.split(message[message.index("python -c") :])
    subprocess.run([sys.executable, *command], check=True)
    assert json.loads((tmp_path / f"{path.name}.json").read_text()) == expected


DAMAGED = {
    "empty": (b"", "exhausted"),
    "text": (b"{}", "opcode b'{' unknown"),
    "twice": (pickle.dumps(1) * 2, "more bytes follow"),
    "nothing": (b".", "pop from empty"),
    "left over": (b"K\x01K\x02.", "not used"),
    "open mark": (b"(K\x01.", "not used"),
    "no mark": (b"K\x01t.", "empty"),
    "too few": (b"K\x01\x86.", "stack is empty"),
    "memo": (b"h\x07.", "entry 7 of the memo is missing"),
    "memo far away": (b"Nr\xff\xff\xff\xff.", "entry 4294967295 for the memo"),
    "memo below": (b"Np-1\n.", "entry -1 for the memo"),
    "append to a number": (b"K\x01K\x02a.", "a int gets the values of a list"),
    "item of a list": (b"]K\x01K\x02s.", "a list gets the values of a dict"),
    "odd items": (b"}(K\x01u.", "zip"),
    "a list is a key": (b"}]K\x01s.", "a list is in a key"),
    "a list is in a key": (b"}(]K\x01tNs.", "a list is in a key"),
    "array without values": (
        ARRAY + b".",
        "not used",
    ),
    "long number": (b"I" + b"9" * 5000 + b"\n.", "4300"),
    "text beyond the end": (b"X\xff\xff\xff\x7fabc", "remain"),
    "bytes beyond the end": (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc", "remain"),
    "itself": (b"]q\x00h\x00a.", "contains itself"),
    "itself, in a tuple in a dict": (b"}q\x00K\x01h\x00\x85s.", "contains itself"),
    "itself, duplicated": (b"]2a.", "contains itself"),
}


@pytest.mark.parametrize("mistake", DAMAGED)
def test_mistakes_are_named_in_one_line(path, mistake):
    data, expected = DAMAGED[mistake]
    message = refusal(path, data)
    assert expected in message and "near byte" in message


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_files_cut_anywhere_are_refused(path, protocol):
    data = pickle.dumps({"a.jpg": ["man", [1.5, np.float32(4)]], b"b": {(1,)}}, protocol)
    for size in range(len(data)):
        refusal(path, data[:size])


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_compressed_files_cut_anywhere_are_refused(path, pack):
    packed = pack(pickle.dumps({"a.jpg": ["man", [1.5, 2, 3, 4]]}))
    for size in range(len(packed)):
        refusal(path, packed[:size])


class Allowing(pickle._Unpickler):
    """The standard library's, for names without danger."""

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):
            return codecs.encode
        if module in ("builtins", "__builtin__") and name in ("set", "frozenset", "bytes"):
            return getattr(builtins, name)
        raise pickle.UnpicklingError(name)


def reads_or_refuses(path, data):
    """What is read is a finite tree, and what the standard library reads if it can."""
    try:
        value = exact(read_bytes(path, data))
    except DataError as error:
        assert "\n" not in str(error)
        return
    try:
        expected = Allowing(io.BytesIO(data)).load()
    except Exception:  # It checks frames, and the names of numpy are not allowed.
        return
    assert value == exact(expected)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes(path, data):
    reads_or_refuses(path, data)


opcodes = st.sampled_from([op.code.encode("latin-1") for op in pickle_machine.pickletools.opcodes])
arguments = st.sampled_from([b"", b"\x00", b"\x01", b"\x00\x00\x00\x00", b"0\n", b"'a'\n", b"\n"])


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(opcodes | arguments, max_size=60))
def test_random_opcodes(path, parts):
    reads_or_refuses(path, b"".join(parts) + b".")


@settings(max_examples=100, deadline=None)
@given(
    value=values,
    protocol=st.sampled_from(PROTOCOLS),
    objects=st.sampled_from([[], [np.float32(1), np.array([{"a": 1}])]]),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
)
def test_damaged_pickles(path, value, protocol, objects, edits):
    data = bytearray(pickle.dumps([value, *objects], protocol))
    for place, byte in edits:
        data[place % len(data)] = byte
    reads_or_refuses(path, bytes(data))


def test_large_files_are_refused(path):
    data = pickle.dumps("x" * 5000)
    assert "holds more than 4,000 bytes" in refusal(path, data, largest=4000)
    assert read_bytes(path, data, largest=len(data)) == "x" * 5000


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_compressed_bombs_are_refused(path, pack, monkeypatch):
    packed = pack(b"]" * 50_000_000)
    assert len(packed) < 60_000
    monkeypatch.setattr(inert_pickle, "_CHUNK", 1 << 16)
    tracked = []
    whole = inert_pickle._unpacked

    def unpacked(file):
        for chunk in whole(file):
            tracked.append(len(chunk))
            yield chunk

    monkeypatch.setattr(inert_pickle, "_unpacked", unpacked)
    assert "holds more than 1,000,000 bytes" in refusal(path, packed, largest=1_000_000)
    assert max(tracked) <= 1 << 16 and sum(tracked) < 1_100_000


def laughs(first, level, depth):
    """Values that hold the one before them twice: 2 ** depth in all, in a few bytes each."""
    return first + b"".join(b"q\x00" + level for _ in range(depth)) + b"."


BOMBS = {
    "deep lists": (b"]" * 100_000 + b"a" * 99_999 + b".", "nested more than"),
    "deep tuples": (b")" + b"\x85" * 100_000 + b".", "nested more than"),
    "deep dicts": (b"}" + b"N}" * 50_000 + b"s" * 50_000 + b".", "nested more than"),
    "deep by the memo": (b"]" + b"q\x000](h\x00e" * 100_000 + b".", "nested more than"),
    "marks": (b"(" * 100_000 + b".", "nested more than"),
    "twice the one before": (laughs(b"]", b"0](h\x00h\x00e", 100), "unfolds to more"),
    "tuples of twice the one before": (laughs(b")", b"h\x00\x86", 100), "unfolds to more"),
    "the same, as a key": (b"}" + laughs(b")", b"h\x00\x86", 100)[:-1] + b"Ns.", "100 parts"),
    "twice by duplication": (b")" + b"2\x86" * 100 + b".", "unfolds to more"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.timeout(20)
def test_bombs_are_refused_at_once(path, bomb):
    data, expected = BOMBS[bomb]
    assert expected in refusal(path, data)


@pytest.mark.timeout(20)
def test_copies_are_counted(path, monkeypatch):
    """Few bytes can ask for copies of a long value in the memo."""
    monkeypatch.setattr(pickle_machine, "_MOST_VALUES", 20_000)
    numbers = b"](" + b"N" * 5000 + b"eq\x00"
    text = b"X" + (5000).to_bytes(4, "little") + b"a" * 5000 + b"q\x00"
    copies = {
        "sets": numbers + b"0cbuiltins\nset\nq\x01" + b"h\x00\x85R0h\x01" * 10,
        "bytes": text + b"0c_codecs\nencode\nq\x01" + b"h\x00Vlatin1\n\x86R0h\x01" * 10,
        "arrays": numbers
        + b"0("
        + (ARRAY + b"(K\x01M\x88\x13\x85" + OBJECTS + b"\x89h\x00tb") * 10
        + b"l",
    }
    for data in copies.values():
        assert "it has more than 20,000 values" in refusal(path, data + b".")


def test_empty_lists_count_as_the_memory_they_take(path, monkeypatch):
    monkeypatch.setattr(pickle_machine, "_MOST_VALUES", 20_000)
    assert read_bytes(path, b"(" + b"N" * 15_000 + b"l.") == [None] * 15_000
    for opcode in (b"]", b"}", b"\x8f", b"N\x85", b"(l", b"(d"):
        assert "more than 20,000 values" in refusal(path, b"(" + opcode * 3000 + b"l.")


@pytest.mark.timeout(20)
def test_arrays_of_shared_lists_unfold_no_more_than_lists(path):
    # Of the tuple t a list [t], of that two arrays [t]; these are the next t.
    array = ARRAY + b"(K\x01K\x01\x85" + OBJECTS + b"\x89h%ctb"
    levels = [(b"lq%c0" + array + array + b"\x86") % (k, k, k) for k in range(60)]
    assert "unfolds to more" in refusal(path, b"(" * 60 + b")" + b"".join(levels) + b".")


def test_missing_files_are_the_systems_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "none.pkl")
    with pytest.raises(IsADirectoryError):
        read_object_array(tmp_path)
