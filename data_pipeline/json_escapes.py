"""Finds what JSON can spell and no text can be: half of a character, as UTF-16 writes some."""

import re
from typing import BinaryIO

_CHUNK = 2**20
_LONGEST = 12  # bytes of \ud83d\ude00
_SHOWN = 40
# Escapes one after the other, so that in \\ud83d the second backslash begins none.
_ESCAPE = re.compile(
    rb"\\(?:(?P<pair>u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def find_half_character(stream: BinaryIO) -> str:
    r"""Where the first of \ud800 .. \udfff without its other half is; "" if there is none."""
    rest, before = b"", b""
    while True:
        chunk = stream.read(_CHUNK)
        data = rest + chunk
        # An escape that begins here is whole, unless the file ends in it.
        limit = len(data) - _LONGEST if chunk else len(data)
        done = max(limit, 0)
        for match in _ESCAPE.finditer(data):
            if match.start() >= limit:
                break
            if match["half"]:
                text = (before + data[: match.start()])[-_SHOWN:].decode("utf-8", "replace")
                return f"{match[0].decode()} behind {text!r}"
            done = max(done, match.end())
        if not chunk:
            return ""
        before, rest = data[:done][-_SHOWN:], data[done:]
