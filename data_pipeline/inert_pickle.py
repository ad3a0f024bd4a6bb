"""Reads pickle files as plain data, without unpickling them.

Scene graphs and image sizes are published as pickles, and unpickling runs whatever code a file asks
for. Here the standard library only takes a file apart into opcodes (`pickletools.genops` executes
nothing), and a small stack machine rebuilds the plain values: None, bool, int, float, str, bytes,
list, tuple, dict, set. The name of a class or function is never looked up. A few names are
understood as what they stand for: those by which old protocols spell bytes and sets, and those of
numpy's object arrays (become lists) and scalars (become Python numbers). All others are refused,
and what a file may cost in time and memory is bounded.

    from data_pipeline.inert_pickle import read_object_array, read_pickle
    graphs = read_pickle("images_data.joblib")  # Plain, or compressed with zlib or gzip.
    sizes = read_object_array("train_ims_size.npy")
"""

import io
import os
import shlex
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.file_checks import read_npy_header
from data_pipeline.pickle_machine import NotPlain, PickleMachine

LARGEST = 2 << 30  # Bytes of a file, unpacked.

_CHUNK = 1 << 20
_ZLIB_OR_GZIP = 47  # For zlib: the largest window, and the header says which of the two.

# How to read a file with the library that wrote it: (module, expression), part of a remedy that is
# shown and never run here.
_PICKLE = ("pickle", "pickle.Unpickler(open(sys.argv[1], 'rb')).load()")
_JOBLIB = ("joblib", "joblib.load(sys.argv[1])")
_NUMPY = ("numpy", "numpy.load(sys.argv[1], allow_pickle=1)")


def read_pickle(path: str | os.PathLike[str], largest: int = LARGEST) -> Any:
    """The plain value in a pickle file, or in a joblib file without arrays.

    largest counts bytes after unpacking. What is shared in the file is shared in the value; a list
    that contains itself is refused. Raises DataError for what is not a whole pickle, not plain or
    too large, and OSError where the file can't be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        library = _JOBLIB if _is_packed(file) else _PICKLE
        stream = _content(file, path, largest)
    return _interpret(stream, path, library)


def read_unpacked(path: Path, largest: int = LARGEST) -> io.BytesIO:
    """What is in a file, decompressed if zlib or gzip made it; DataError if it is too large."""
    with path.open("rb") as file:
        return _content(file, path, largest)


def _content(file: io.BufferedReader, path: Path, largest: int) -> io.BytesIO:
    return _load(_unpacked(file) if _is_packed(file) else _chunks(file), path, largest)


def _is_packed(file: io.BufferedReader) -> bool:
    """Whether it begins as no pickle and no JSON does: as zlib's files, joblib's too, or gzip's."""
    return file.peek(2).startswith((b"\x78", b"\x1f\x8b"))


def read_object_array(path: str | os.PathLike[str], largest: int = LARGEST) -> list[Any]:
    """The values of a .npy file of dtype object with one axis, or the one value without an axis.

    Raises DataError and OSError as `read_pickle` does, and DataError for other dtypes and shapes.
    """
    path = Path(path)
    with path.open("rb") as file:
        stream = _load(_chunks(file), path, largest)
    shape = _read_header(stream, path)
    values = _interpret(stream, path, _NUMPY)
    if not isinstance(values, list) or len(values) != (shape[0] if shape else 1):
        raise DataError(f"{path} does not hold the array that its header announces; copy it again")
    return values


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    """The content of a compressed file; no chunk is large, however well it was compressed."""
    inflater = zlib.decompressobj(wbits=_ZLIB_OR_GZIP)
    while not inflater.eof and (packed := inflater.unconsumed_tail or file.read(_CHUNK >> 4)):
        yield inflater.decompress(packed, _CHUNK)
    yield inflater.flush()
    if not inflater.eof:
        raise zlib.error("the compressed data end early")
    if inflater.unused_data or file.read(1):
        raise zlib.error("something follows the compressed data")


def _load(chunks: Iterable[bytes], path: Path, largest: int) -> io.BytesIO:
    """All chunks in memory: the values that they become will take several times as much."""
    stream = io.BytesIO()
    try:
        for chunk in chunks:
            stream.write(chunk)
            if stream.tell() > largest:
                raise DataError(
                    f"{path} holds more than {largest:,} bytes; split it into smaller files"
                )
    except zlib.error as error:
        raise DataError(f"{path} can't be decompressed ({error}); copy it again") from None
    stream.seek(0)
    return stream


def _read_header(stream: io.BytesIO, path: Path) -> tuple[int, ...]:
    """The shape of the object array whose pickle follows the header."""
    try:
        shape, _, dtype = read_npy_header(stream)
    except Exception:  # A header is Python source: numpy's parser fails in many ways.
        raise DataError(f"{path} is not a whole .npy file; copy it again") from None
    if dtype != np.dtype(object):
        raise DataError(f"{path} holds {dtype} and no objects; read it with numpy.load")
    if len(shape) > 1:
        raise DataError(f"{path} has shape {list(shape)}; save its values along one axis")
    return shape


def _interpret(stream: io.BytesIO, path: Path, library: tuple[str, str]) -> Any:
    """The value of the pickle that goes from the stream's position to its end."""
    size = stream.getbuffer().nbytes
    machine = PickleMachine(size)
    try:
        value = machine.run(stream)
        if trailing := size - stream.tell():
            raise ValueError(f"{trailing} more bytes follow its end")
        machine.check(value)
        return value
    except NotPlain as error:
        library = _JOBLIB if "'joblib." in str(error) else library
        raise DataError(
            f"{path} holds {error} near byte {machine.position}, and no code of a file is run; "
            f"where you trust it, convert it apart: {_conversion(path, library)}"
        ) from None
    except (ValueError, IndexError) as error:
        raise DataError(
            f"{path} is not a whole pickle of plain values: near byte {machine.position}: "
            f"{str(error)[:200]}; copy it again, or unpack it first (known are zlib and gzip)"
        ) from None


def _conversion(path: Path, library: tuple[str, str]) -> str:
    """The command that writes the file's content as JSON, with arrays as lists."""
    module, expression = library
    code = (
        f"import json, sys, {module}; json.dump({expression}, open(sys.argv[2], 'w'), "
        "default=lambda value: value.tolist())"
    )
    return f'python -c "{code}" {shlex.quote(str(path))} {shlex.quote(f"{path}.json")}'
