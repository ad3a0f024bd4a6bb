"""Halves of characters in JSON, found as a parser that keeps them shows them."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import json_escapes
from data_pipeline.json_escapes import find_half_character


def has_half(text):
    try:
        json.loads(text).encode()
    except UnicodeEncodeError:
        return True
    return False


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 13, 2**20])
@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["a", "é", r"\\", r"\n", r"\ud83d", r"\uDE00", r"\ud83d\ude00", "ud800", r"\u00e9"]
        )
    )
)
def test_halves_are_those_that_a_parser_keeps(chunk, parts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_escapes, "_CHUNK", chunk)
        text = f'"{"".join(parts)}"'
        assert bool(find_half_character(io.BytesIO(text.encode()))) == has_half(text)


def test_the_place_is_told():
    stream = io.BytesIO(b'{"raw": "A dog \\ude00 runs"}')
    assert find_half_character(stream) == r"""\ude00 behind '{"raw": "A dog '"""
