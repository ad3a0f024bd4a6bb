"""Caption files that are damaged or laid out in another way: every mistake becomes one line."""

import functools
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ijson

from data_pipeline.errors import DataError
from data_pipeline.sources.items import Splits

TABLES = (".csv", ".tsv", ".txt", ".jsonl")  # Endings of files that are read by lines.
_LAYOUT_ERRORS = (KeyError, TypeError, AttributeError, ValueError, OverflowError)


class At:
    """Names the entry of a file in which a value is missing or is not what it has to be."""

    __slots__ = ("_number", "_path", "_place")

    def __init__(self, path: Path, place: str, number: int) -> None:
        """place: with {} for the number."""
        self._path, self._place, self._number = path, place, number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, _LAYOUT_ERRORS) and not isinstance(error, DataError):
            raise _layout_error(f"{self._path} {self._place.format(self._number)}", error) from None


def _layout_error(where: str, error: BaseException) -> DataError:
    reason = "nothing called " + str(error) if isinstance(error, KeyError) else str(error)
    return DataError(
        f"{where} is not laid out as expected ({type(error).__name__}: {reason}); "
        "python -m data_pipeline.build --help lists the layouts"
    )


def guarded(read: Callable[..., Splits]) -> Callable[..., Splits]:
    """Whatever is wrong with the syntax of a file becomes one line."""

    @functools.wraps(read)
    def guarded(path: Path, *args: Any) -> Splits:
        try:
            return read(path, *args)
        except DataError:
            raise
        except FileNotFoundError:
            raise DataError(f"{path} does not exist; give a caption file") from None
        except UnicodeDecodeError as error:
            line = _undecodable_line(path)
            where = f"{path} line {line}" if line else f"{path}"
            raise DataError(
                f"{where} is not UTF-8 ({error.reason}); convert the file, e.g. with iconv"
            ) from None
        except SystemError:
            # What ijson's parser in C leaves behind where Python refuses an integer.
            raise DataError(
                f"{path} has an integer of thousands of digits; correct it, or copy the file again"
            ) from None
        except (ijson.JSONError, gzip.BadGzipFile, EOFError, zlib.error) as e:
            # yajl's messages come as bytes.
            first_argument = e.args[0] if e.args else ""
            text = str(e)
            if isinstance(first_argument, bytes):
                text = first_argument.decode("utf-8", "backslashreplace")
            reason = text.strip().split("\n")[0]
            raise DataError(f"{path} is damaged ({reason}); copy it again") from None
        except _LAYOUT_ERRORS as error:
            raise _layout_error(str(path), error) from None

    return guarded


def _undecodable_line(path: Path) -> int:
    """The first line that is not UTF-8, from 1; 0 in a file that is not read by lines."""
    if path.suffix.lower() not in TABLES:
        return 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 0
