"""Captions to token ids, with the characters that every token covers.

Two tokenizers with one interface and one layout, `[CLS] token ... [SEP] [PAD] ...`: words counted
in the training captions (for models trained from scratch), or any fast Hugging Face tokenizer (for
pretrained text encoders). What `save` writes, `load_tokenizer` restores, so that an exported model
carries its tokenizer with it. No TensorFlow here: a search server needs this file alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from data_pipeline.errors import DataError

# Letters and digits of any script, with inner apostrophes ("dog's", "o'clock"); no punctuation.
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_PAD, _UNK, _CLS, _SEP = range(len(_SPECIAL))
_VOCABULARY_FILE = "word_vocabulary.txt"


class Encoded(NamedTuple):
    """N captions as tokens, padded to W.

    ids: int32 [N, W].
    mask: bool [N, W], False on padding.
    offsets: int32 [N, W, 2], first character and one past the last one of the token in its
        caption; 0, 0 for special tokens and padding.
    truncated: how many of the captions were longer than W and lost their end.
    """

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    truncated: int


class Tokenizer(Protocol):
    """What the input pipeline and the search ask of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of rows that an embedding table needs: every id is below it."""

    @property
    def mask_id(self) -> int:
        """The token that stands for a hidden word: [MASK], or the unknown word."""

    def encode(self, captions: Sequence[str], max_tokens: int) -> Encoded:
        """Tokens of the captions, padded or cut to exactly max_tokens, special tokens included.

        Raises DataError for an empty caption and for max_tokens < 3.
        """

    def definition(self) -> str:
        """All that decides which tokens a caption becomes; the same after `load_tokenizer`."""

    def save(self, directory: str | Path) -> None:
        """Writes the files from which `load_tokenizer` restores this tokenizer."""


def find_words(caption: str) -> list[str]:
    """The lower-case words of a caption, without punctuation: the unit of every word count here."""
    return [match.group().lower() for match in _WORD.finditer(caption)]


class WordTokenizer:
    """One token a word: PAD 0, UNK 1, CLS 2, SEP 3, then the words, most frequent first."""

    def __init__(self, words: Sequence[str]) -> None:
        """words: the vocabulary without the special tokens, distinct, in the order of their ids."""
        self._words = list(words)
        self._ids = {word: number for number, word in enumerate(words, start=len(_SPECIAL))}

    @classmethod
    def from_counts(cls, counts: Mapping[str, int], min_count: int) -> "WordTokenizer":
        """Keeps the words seen at least min_count times; ties are broken alphabetically."""
        kept = [word for word, count in counts.items() if count >= min_count]
        if not kept:
            raise DataError(
                f"no word is left of the {len(counts)} counted ones with min_count={min_count}; "
                "lower min_count, or rebuild the dataset with a split called 'train'"
            )
        return cls(sorted(kept, key=lambda word: (-counts[word], word)))

    @property
    def vocab_size(self) -> int:
        return len(_SPECIAL) + len(self._words)

    @property
    def mask_id(self) -> int:
        return _UNK

    def encode(self, captions: Sequence[str], max_tokens: int) -> Encoded:
        _check(captions, max_tokens)
        ids = np.full((len(captions), max_tokens), _PAD, np.int32)
        offsets = np.zeros((len(captions), max_tokens, 2), np.int32)
        lengths = np.zeros(len(captions), np.int32)
        truncated = 0
        for row, caption in enumerate(captions):
            tokens, spans = self._tokens(caption)
            kept = min(len(tokens), max_tokens - 2)
            truncated += kept < len(tokens)
            ids[row, : kept + 2] = [_CLS, *tokens[:kept], _SEP]
            offsets[row, 1 : kept + 1] = spans[:kept]
            lengths[row] = kept + 2
        mask = np.arange(max_tokens) < lengths[:, None]
        return Encoded(ids, mask, offsets, truncated)

    def _tokens(self, caption: str) -> tuple[list[int], list[tuple[int, int]]]:
        matches = list(_WORD.finditer(caption))
        if not matches:
            # Nothing but signs: one unknown word, so that a model always has a token to look at.
            return [_UNK], [(0, len(caption))]
        # Lower-cased word by word: lower() can change the length and so shift later offsets.
        tokens = [self._ids.get(match.group().lower(), _UNK) for match in matches]
        return tokens, [match.span() for match in matches]

    def definition(self) -> str:
        return "\n".join([*_SPECIAL, *self._words]) + "\n"

    def save(self, directory: str | Path) -> None:
        path = Path(directory) / _VOCABULARY_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.definition(), encoding="utf-8")


class HuggingFaceTokenizer:
    """A fast tokenizer of the transformers library with its own vocabulary and special tokens."""

    def __init__(self, name_or_directory: str | Path) -> None:
        # Takes a second or more: not for those who only count words.
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(name_or_directory))
        except (OSError, ValueError) as error:
            raise DataError(
                f"no tokenizer {str(name_or_directory)!r}, neither a directory nor in the Hugging "
                "Face cache or hub; give a directory with a tokenizer.json, download it where "
                "there is a network (hf download NAME), or use 'words'"
            ) from error
        if not tokenizer.is_fast or tokenizer.pad_token_id is None:
            raise DataError(
                f"tokenizer {str(name_or_directory)!r} is not a fast one with a padding token, as "
                "offsets and batches need it; use a BERT-like one, for example bert-base-uncased"
            )
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        return len(self._tokenizer)

    @property
    def mask_id(self) -> int:
        hidden, unknown = self._tokenizer.mask_token_id, self._tokenizer.unk_token_id
        return unknown if hidden is None else hidden

    def encode(self, captions: Sequence[str], max_tokens: int) -> Encoded:
        _check(captions, max_tokens)
        # The Rust tokenizer itself: four times faster than through BatchEncoding.
        backend = self._tokenizer.backend_tokenizer
        backend.enable_truncation(max_tokens)
        backend.enable_padding(
            length=max_tokens,
            pad_id=self._tokenizer.pad_token_id,
            pad_token=self._tokenizer.pad_token,
        )
        encodings = backend.encode_batch(list(captions))
        shape = (len(captions), max_tokens)
        return Encoded(
            ids=np.array([e.ids for e in encodings], np.int32).reshape(shape),
            mask=np.array([e.attention_mask for e in encodings], bool).reshape(shape),
            offsets=np.array([e.offsets for e in encodings], np.int32).reshape(*shape, 2),
            truncated=sum(bool(e.overflowing) for e in encodings),
        )

    def definition(self) -> str:
        whole = json.loads(self._tokenizer.backend_tokenizer.to_str())
        # What the last call of `encode` asked for.
        return json.dumps(whole | {"truncation": None, "padding": None})

    def save(self, directory: str | Path) -> None:
        self._tokenizer.save_pretrained(str(directory))


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Restores what `save` wrote into a directory, whichever of the two kinds it is."""
    path = Path(directory) / _VOCABULARY_FILE
    if not path.is_file():
        return HuggingFaceTokenizer(directory)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    if tuple(lines[: len(_SPECIAL)]) != _SPECIAL:
        raise DataError(
            f"{path} does not begin with {' '.join(_SPECIAL)}; restore the file or save the "
            "tokenizer again"
        )
    return WordTokenizer(lines[len(_SPECIAL) :])


def make_tokenizer(
    kind_or_path: str, word_counts: Mapping[str, int], min_count: int = 1
) -> Tokenizer:
    """A tokenizer for training.

    Args:
        kind_or_path: "words", the name of a Hugging Face tokenizer, or a local directory.
        word_counts: the dataset's counts of `find_words` over its training captions; read, like
            min_count, for "words" only.
        min_count: rarer words become UNK.
    """
    if kind_or_path == "words":
        return WordTokenizer.from_counts(word_counts, min_count)
    return load_tokenizer(kind_or_path)


def _check(captions: Sequence[str], max_tokens: int) -> None:
    if max_tokens < 3:
        raise DataError(
            f"max_tokens={max_tokens} leaves no room for a word between [CLS] and [SEP]; "
            "use 3 or more"
        )
    for number, caption in enumerate(captions):
        if not caption or caption.isspace():
            raise DataError(f"caption {number} of {len(captions)} is empty; give it a word or more")
