"""What a compiled program sends between devices, and its matrix products, read without running."""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}
_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (?P<shape>.+?) (?P<kind>{_KINDS})(?:-start)?\(")
_CALLED = re.compile(r"(?:body|to_apply|calls|branch_computations)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)")


class Sent(NamedTuple):
    """Collectives of one kind in a run of the program: how many, and bytes that a device sends.

    As ring algorithms do it: an all-reduce of n bytes among g devices sends 2 n (g - 1) / g.
    """

    count: int
    bytes: float


def collectives(text: str) -> dict[str, Sent]:
    """Kind -> what is sent, from the text of a compiled program; loops count as often as they run.

    Args:
      text: of `jax.stages.Compiled.as_text()`.
    """
    bodies = dict(_computations(text))
    found: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])

    def visit(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.search(line):
                entry = found[match["kind"]]
                entry[0] += times
                entry[1] += times * _sent(match["kind"], _size(match["shape"]), _group(line))
            trips = re.search(r'known_trip_count"?:\{"n":"(\d+)"', line)
            inner = times * (int(trips[1]) if trips and " while(" in line else 1)
            if called := _CALLED.search(line):
                # The reduction of an all-reduce is named in the same way, and sends nothing.
                for other in called[1].split(", "):
                    visit(other, inner)

    visit(next(name for name in bodies if name.startswith("ENTRY")), 1)
    return {kind: Sent(int(count), size) for kind, (count, size) in sorted(found.items())}


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?(%[\w.\-]+) .*\{$", line):
            name, lines = (start[1] or "") + start[2], []
        elif line.startswith("}"):
            yield name, lines
        else:
            lines.append(line)


def _size(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple: f32[8,4]{1,0} or (f32[8], f32[8])."""
    return sum(
        _BYTES[kind] * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def _group(line: str) -> int:
    """Devices among which a collective works, which XLA writes in three ways."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if short := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(short[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    if "source_target_pairs" in line:
        return 2
    raise ValueError(f"the devices of a collective are not known: {line.strip()}")


def _sent(kind: str, size: int, group: int) -> float:
    share = (group - 1) / group
    factors = {"all-reduce": 2 * share, "reduce-scatter": group - 1, "collective-permute": 1}
    return size * factors.get(kind, share)


def product_flops(jaxpr: Any) -> float:
    """Floating point operations of the matrix products of a jaxpr; scans count all their turns."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            out = math.prod(equation.outvars[0].aval.shape)
            total += 2 * out * math.prod(left[axis] for axis in contracted)
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += turns * sum(product_flops(inner) for inner in _inner(equation.params))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
                yield item.jaxpr
