"""A stack machine for the opcodes of a pickle, which rebuilds plain values and calls nothing.

`inert_pickle` says what for. The standard library takes a file apart into opcodes.
"""

import dataclasses
import io
import itertools
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

_MOST_VALUES = 250_000_000  # The scene graphs of all COCO images need about 150 million.
_CONTAINER = 8  # As so many values counts a list, by the memory that even an empty one takes.
_DEEPEST = 200  # Lists in lists: whoever walks a value may do so recursively.
_LARGEST_KEY = 100  # Parts of a tuple that is a key: hashing repeats what the parts share.

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
_NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_KNOWN_NAMES = frozenset(
    {
        "_codecs.encode",
        "builtins.bytes",
        "builtins.frozenset",
        "builtins.set",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "numpy.ndarray",
    }
)


class NotPlain(Exception):
    """Says what a file holds that is no plain value."""


@dataclasses.dataclass(eq=False)
class _Global:
    """A class or function: its name, and never more."""

    name: str


@dataclasses.dataclass(eq=False)
class _Dtype:
    """A numpy dtype, such as code "f4" with order "<"."""

    code: str
    order: str = "|"


class PickleMachine:
    """Stack, marks and memo of the pickle protocols, without the parts that look up and call code.

    Raises NotPlain, or ValueError and IndexError for what no pickler writes.
    """

    def __init__(self, size: int) -> None:
        self.position = 0  # Of the opcode at work, in bytes.
        self._size = size
        self._spent = 0  # Values made or copied, and other steps.
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # The stacks below the marks.
        self._memo: dict[int, Any] = {}
        self._shared: set[int] = set()  # Ids of what may have been put into two places.
        self._unfilled: dict[int, list[Any]] = {}  # Object arrays that wait for their values.

    def run(self, stream: io.BytesIO) -> Any:
        """Executes the opcodes from the stream's position on; the value that they leave."""
        for opcode, argument, position in pickletools.genops(stream):
            self.position = position or 0
            self._spend(1)
            if opcode.name not in _ACTIONS:
                raise NotPlain(f"an object of the opcode {opcode.name}")
            _ACTIONS[opcode.name](self, argument)
        value = self._stack.pop()
        if self._stack or self._below or self._unfilled:
            raise ValueError("some of its values are not used")
        return value

    def check(self, value: Any) -> None:
        """Walks the value: all of it has to be plain, and as a tree it has to be of finite size."""
        known: dict[int, tuple[int, int]] = {}  # Values in what is shared, and its depth.
        walk = [_Visit([value])]
        while walk:
            visit = walk[-1]
            child = visit.next_container()
            if child is None:
                walk.pop()
                if id(visit.container) in self._shared:
                    known[id(visit.container)] = visit.values, visit.depth
                if walk:
                    walk[-1].add(visit.values, visit.depth)
            elif id(child) in known:
                visit.add(*known[id(child)])
            elif id(child) in self._shared and any(child is other.container for other in walk):
                raise ValueError("a value contains itself")
            else:
                walk.append(_Visit(child))
            if visit.values > _MOST_VALUES:
                raise ValueError(f"it unfolds to more than {_MOST_VALUES:,} values")
            if len(walk) + visit.depth > _DEEPEST:
                raise ValueError(f"its values are nested more than {_DEEPEST} deep")

    def _spend(self, values: int) -> None:
        self._spent += values
        if self._spent > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES:,} values")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_new(self, container: Any) -> None:
        self._spend(_CONTAINER)
        self._stack.append(container)

    def push_old_text(self, value: str) -> None:
        """A string of Python 2, where nothing says how it is encoded."""
        if not value.isascii():
            raise NotPlain("a string of Python 2 that is not ASCII")
        self._stack.append(value)

    def last(self, count: int) -> list[Any]:
        """Takes so many values from the stack."""
        if count > len(self._stack):
            raise IndexError("the stack is empty")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def mark(self) -> None:
        if len(self._below) > 2 * _DEEPEST:  # What is nested has a mark or two a level.
            raise ValueError(f"its values are nested more than {_DEEPEST} deep")
        self._below.append(self._stack)
        self._stack = []

    def since_mark(self) -> list[Any]:
        """Takes all values since the last mark from the stack."""
        values = self._stack
        self._stack = self._below.pop()
        return values

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.since_mark()

    def duplicate(self) -> None:
        self._push_shared(self._stack[-1])

    def _push_shared(self, value: Any) -> None:
        if type(value) not in _SCALARS:
            self._shared.add(id(value))
        self._stack.append(value)

    def put(self, index: int | None) -> None:
        """Remembers the top of the stack; None stands for the next index."""
        index = len(self._memo) if index is None else index
        if not 0 <= index <= self._size:  # Each one before took a byte or more.
            raise ValueError(f"entry {index} for the memo of a file of {self._size:,} bytes")
        self._memo[index] = self._stack[-1]

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError(f"entry {index} of the memo is missing")
        self._push_shared(self._memo[index])

    def extend(self, kind: type, values: list[Any]) -> None:
        """Puts values into the list, dict or set on the stack."""
        target = self._stack[-1]
        match target:
            case list() if kind is list:
                target.extend(values)
            case dict() if kind is dict:
                target.update(_as_dict(values))
            case set() if kind is set:
                target.update(_as_set(values))
            case _:
                raise ValueError(f"a {type(target).__name__} gets the values of a {kind.__name__}")

    def find(self, name: str) -> None:
        """Puts a class or function on the stack: only its name, and only a known one."""
        today = name.replace("__builtin__.", "builtins.").replace("numpy.core.", "numpy._core.")
        if today not in _KNOWN_NAMES:
            raise NotPlain(f"the class or function {_printable(name)}")
        self._stack.append(_Global(today))

    def find_last(self) -> None:
        module, name = self.last(2)
        if type(module) is not str or type(name) is not str:
            raise ValueError("the name of a class is not a string")
        self.find(f"{module}.{name}")

    def reduce(self) -> None:
        """What a known function would give, were it called."""
        function, arguments = self.last(2)
        if type(function) is not _Global or type(arguments) is not tuple:
            raise ValueError("a call has no function or no arguments")
        value: Any
        match function.name.rpartition(".")[-1], arguments:
            case "bytes", ():
                value = b""
            case "encode", (str() as text, "latin1"):
                self._spend(len(text))  # Of a text in the memo, any number of copies can be asked.
                value = text.encode("latin1")
            case "set" | "frozenset" as kind, (list() as values,):
                self._spend(len(values))
                value = _as_set(values) if kind == "set" else frozenset(_as_set(values))
            case "dtype", (str() as code, _, _):
                value = _Dtype(code)
            case "scalar", (_Dtype() as dtype, bytes() as data):
                value = _as_number(dtype, data)
            case "_reconstruct", (_Global(name="numpy.ndarray"), (0,), b"b" | "b"):
                value = []
                self._unfilled[id(value)] = value
            case _:
                raise NotPlain(f"a call of {function.name}, in an unknown way,")
        self._stack.append(value)

    def build(self) -> None:
        """Gives a dtype its byte order, or an object array its values."""
        state, target = self._stack.pop(), self._stack[-1]
        match target, state:
            case _Dtype(), (int(), "<" | ">" | "|" as order, None, None, None, *_):
                target.order = order
            case list(), (1, tuple() as shape, _Dtype() as dtype, _, values) if (
                id(target) in self._unfilled
            ):
                if dtype.code[:1] != "O" or type(values) is not list or len(shape) > 1:
                    raise NotPlain("a numpy.ndarray that is no list of objects")
                if len(values) != (shape[0] if shape else 1):
                    raise ValueError(f"an array of {len(values)} values has another shape")
                self._spend(len(values))
                self._shared.update(map(id, values))  # The list may still be in the memo.
                self._unfilled.pop(id(target)).extend(values)
            case _:
                raise NotPlain("an object with a state of its own")


class _Visit:
    """A container on the walk of `PickleMachine.check`, and what was found in it up to now."""

    def __init__(self, container: Any) -> None:
        self.container = container
        self.values = 1
        self.depth = 1
        is_dict = type(container) is dict
        self._parts = itertools.chain(container, container.values() if is_dict else ())

    def next_container(self) -> Any:
        """The next part that has parts itself; None at the end."""
        for part in self._parts:
            if type(part) in _CONTAINERS:
                return part
            if type(part) not in _SCALARS:
                raise NotPlain(f"the class, function or dtype {_printable(part)}")
            self.values += 1
        return None

    def add(self, values: int, depth: int) -> None:
        self.values += values
        self.depth = max(self.depth, depth + 1)


def _printable(name: Any) -> str:
    """What a file says, short and without control characters."""
    return ascii(name)[:100]


def _as_key(value: Any) -> Any:
    """The value, if it can be a key and is hashed in few steps."""
    parts, count = [value], 0
    while parts:
        part = parts.pop()
        count += 1
        if type(part) in (tuple, frozenset):
            parts.extend(part)
        elif type(part) not in _SCALARS:
            raise ValueError(f"a {type(part).__name__} is in a key")
        if count + len(parts) > _LARGEST_KEY:
            raise ValueError(f"a key has more than {_LARGEST_KEY} parts")
    return value


def _as_set(values: list[Any]) -> set[Any]:
    return {_as_key(value) for value in values}


def _as_dict(values: list[Any]) -> dict[Any, Any]:
    """From key, value, key, value, ..."""
    return {_as_key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


def _as_number(dtype: _Dtype, data: bytes) -> bool | int | float:
    """The number in a numpy scalar."""
    if dtype.code not in _NUMBERS:
        raise NotPlain(f"a numpy scalar of dtype {_printable(dtype.code)}")
    exact = np.dtype(dtype.order + dtype.code)
    if len(data) != exact.itemsize:
        raise ValueError(f"a number of dtype {dtype.code} has {len(data)} bytes")
    return np.frombuffer(data, exact)[0].item()


_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT BINBYTES SHORT_BINBYTES BINBYTES8 "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8"
)

# What an opcode does to the machine, given its argument. Those not here make objects of classes.
_ACTIONS: dict[str, Callable[[PickleMachine, Any], object]] = {
    **dict.fromkeys(_VALUES.split(), PickleMachine.push),
    **dict.fromkeys(["STRING", "BINSTRING", "SHORT_BINSTRING"], PickleMachine.push_old_text),
    **dict.fromkeys(["GET", "BINGET", "LONG_BINGET"], PickleMachine.get),
    **dict.fromkeys(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"], PickleMachine.put),
    **dict.fromkeys(["PROTO", "FRAME", "STOP"], lambda machine, _: None),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push_new([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push_new({}),
    "EMPTY_SET": lambda machine, _: machine.push_new(set()),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.duplicate(),
    "LIST": lambda machine, _: machine.push_new(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push_new(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push_new(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push_new(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push_new(tuple(machine.last(3))),
    "DICT": lambda machine, _: machine.push_new(_as_dict(machine.since_mark())),
    "FROZENSET": lambda machine, _: machine.push_new(frozenset(_as_set(machine.since_mark()))),
    "APPEND": lambda machine, _: machine.extend(list, machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(list, machine.since_mark()),
    "SETITEM": lambda machine, _: machine.extend(dict, machine.last(2)),
    "SETITEMS": lambda machine, _: machine.extend(dict, machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(set, machine.since_mark()),
    "GLOBAL": lambda machine, names: machine.find(names.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.find_last(),
    "INST": lambda machine, names: machine.find(names.replace(" ", ".", 1)),  # To name the class.
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
