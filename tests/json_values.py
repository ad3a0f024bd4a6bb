"""Changing JSON as people and programs do: a value at any place becomes another one."""

import copy
import math

from hypothesis import strategies as st

_SCALARS = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 0.5, -0.0, 2**31, 10**30, math.inf, math.nan]),
    st.sampled_from(["", " ", "../a", "/etc/passwd", "1", "1.0", "nan", "\ud800", "\0", "é\n"]),
    st.integers(),
    st.text(max_size=5),
)
VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(value):
    """(container, key) of everything inside of a value."""
    keys = range(len(value)) if isinstance(value, list) else list(value)
    for key in keys:
        yield value, key
        if isinstance(value[key], list | dict):
            yield from places(value[key])


def changed(data, value):
    """A copy in which one value became another, is gone, or is there twice."""
    value = copy.deepcopy(value)
    container, key = data.draw(st.sampled_from(list(places(value))))
    what = data.draw(st.sampled_from(["replace", "replace", "remove", "repeat"]))
    if what == "replace" or (what == "repeat" and isinstance(container, dict)):
        container[key] = data.draw(VALUES)
    elif what == "remove":
        del container[key]
    else:
        container.insert(key, copy.deepcopy(container[key]))
    return value
