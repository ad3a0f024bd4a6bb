"""Tokenizers: layout, offsets, truncation, errors, and that what is saved comes back the same."""

import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data_pipeline.errors import DataError
from data_pipeline.tokenizer import (
    HuggingFaceTokenizer,
    WordTokenizer,
    find_words,
    load_tokenizer,
    make_tokenizer,
)

COUNTS = {"dog": 3, "a": 9, "runs": 3, "rare": 1}


@pytest.fixture
def words() -> WordTokenizer:
    return WordTokenizer.from_counts(COUNTS, min_count=2)  # a 4, dog 5, runs 6


@pytest.fixture
def wordpiece_directory(tmp_path):
    """A BERT-like tokenizer of nine pieces, saved as Hugging Face saves it."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "run", "##s", "##ning"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = BackendTokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    directory = tmp_path / "wordpiece"
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(directory)
    return directory


def test_words_are_lower_case_without_punctuation():
    assert find_words("A Dog's ball, (red) 2nd_one -- o\u2019clock!") == [
        *("a", "dog's", "ball", "red", "2nd", "one", "o\u2019clock")
    ]


def test_word_layout_mask_and_offsets(words):
    encoded = words.encode(["A dog runs .", "A cat"], max_tokens=6)
    np.testing.assert_array_equal(encoded.ids, [[2, 4, 5, 6, 3, 0], [2, 4, 1, 3, 0, 0]])
    np.testing.assert_array_equal(encoded.mask, [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(
        encoded.offsets,
        [
            [[0, 0], [0, 1], [2, 5], [6, 10], [0, 0], [0, 0]],
            [[0, 0], [0, 1], [2, 5], [0, 0], [0, 0], [0, 0]],
        ],
    )
    assert (encoded.ids.dtype, encoded.mask.dtype, encoded.offsets.dtype) == (
        *(np.int32, bool, np.int32),
    )
    assert encoded.truncated == 0 and words.vocab_size == 7


def test_offsets_survive_letters_that_change_length_in_lower_case(words):
    caption = "İİİ dog"  # "İ".lower() has two characters.
    start, end = words.encode([caption], max_tokens=5).offsets[0, 2]
    assert caption[start:end] == "dog"


def test_truncation_keeps_sep_and_is_counted(words):
    encoded = words.encode(["a dog runs", "a dog", "a a a a a a"], max_tokens=4)
    np.testing.assert_array_equal(encoded.ids, [[2, 4, 5, 3], [2, 4, 5, 3], [2, 4, 4, 3]])
    assert encoded.truncated == 2


def test_caption_of_signs_is_one_unknown_word(words):
    encoded = words.encode(["?!"], max_tokens=4)
    np.testing.assert_array_equal(encoded.ids, [[2, 1, 3, 0]])
    np.testing.assert_array_equal(encoded.offsets[0, 1], [0, 2])


def test_vocabulary_is_by_frequency_then_alphabet():
    shuffled = dict(reversed(COUNTS.items()))
    one, two = (WordTokenizer.from_counts(counts, 1) for counts in (COUNTS, shuffled))
    caption = ["a dog runs rare"]
    np.testing.assert_array_equal(one.encode(caption, 6).ids, [[2, 4, 5, 6, 7, 3]])
    np.testing.assert_array_equal(two.encode(caption, 6).ids, one.encode(caption, 6).ids)


def test_no_captions_give_empty_arrays(words, wordpiece_directory):
    for tokenizer in (words, HuggingFaceTokenizer(wordpiece_directory)):
        encoded = tokenizer.encode([], max_tokens=4)
        assert encoded.ids.shape == (0, 4) and encoded.offsets.shape == (0, 4, 2)


def test_hugging_face_layout_is_the_same(wordpiece_directory):
    tokenizer = make_tokenizer(str(wordpiece_directory), {}, 1)
    encoded = tokenizer.encode(["A dog runs", "a dog running a dog"], max_tokens=6)
    np.testing.assert_array_equal(encoded.ids, [[2, 4, 5, 6, 7, 3], [2, 4, 5, 6, 8, 3]])
    np.testing.assert_array_equal(
        encoded.offsets[0], [[0, 0], [0, 1], [2, 5], [6, 9], [9, 10], [0, 0]]
    )
    assert encoded.truncated == 1 and tokenizer.vocab_size == 9
    short = tokenizer.encode(["dog"], max_tokens=5)
    np.testing.assert_array_equal(short.ids, [[2, 5, 3, 0, 0]])
    np.testing.assert_array_equal(short.mask, [[1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(short.offsets[0, 3:], [[0, 0], [0, 0]])


def test_what_is_saved_comes_back(words, wordpiece_directory, tmp_path):
    captions = ["A dog runs .", "unheard-of words", "rare"]
    for name, tokenizer in (("w", words), ("h", HuggingFaceTokenizer(wordpiece_directory))):
        tokenizer.save(tmp_path / name)
        restored = load_tokenizer(tmp_path / name)
        assert type(restored) is type(tokenizer) and restored.vocab_size == tokenizer.vocab_size
        for one, two in zip(
            tokenizer.encode(captions, 8), restored.encode(captions, 8), strict=True
        ):
            np.testing.assert_array_equal(one, two)


def test_mistakes_are_one_line(words, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # No waiting.
    for attempt, what in (
        (lambda: words.encode(["a", " "], 8), "caption 1 of 2 is empty"),
        (lambda: words.encode(["a"], 2), "max_tokens=2"),
        (lambda: WordTokenizer.from_counts(COUNTS, 10), "min_count=10"),
        (lambda: make_tokenizer("words", {}, 1), "'train'"),
        (lambda: make_tokenizer("no-such/tokenizer", {}, 1), "'no-such/tokenizer'"),
        (lambda: load_tokenizer(tmp_path), "tokenizer.json"),
    ):
        with pytest.raises(DataError) as caught:
            attempt()
        assert what in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_vocabulary_is_refused(words, tmp_path):
    words.save(tmp_path)
    path = tmp_path / "word_vocabulary.txt"
    path.write_text(path.read_text().removeprefix("[PAD]\n"))
    with pytest.raises(DataError, match="does not begin with"):
        load_tokenizer(tmp_path)


def test_no_tensorflow_is_imported():
    program = (
        "import sys, data_pipeline.tokenizer, data_pipeline.sources, data_pipeline.synthetic; "
        "sys.exit(any(m in sys.modules for m in ('tensorflow', 'jax', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_definition_is_all_that_decides_on_tokens(words, wordpiece_directory, tmp_path):
    pieces = HuggingFaceTokenizer(wordpiece_directory)
    for number, tokenizer in enumerate((words, pieces)):
        before = tokenizer.definition()
        tokenizer.encode(["a dog", "a"], 3)
        tokenizer.save(tmp_path / str(number))
        again = load_tokenizer(tmp_path / str(number))
        assert before == tokenizer.definition() == again.definition()
        again.encode(["a dog runs"], 9)
        assert again.definition() == before
    for others in (["a", "runs", "dog"], ["a", "dog", "runs", "rare"], ["a", "dog", "ran"]):
        assert WordTokenizer(others).definition() != words.definition()
    path = wordpiece_directory / "tokenizer.json"
    text = path.read_text()
    for old, new in (("##ning", "##nings"), ('"lowercase": true', '"lowercase": false')):
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        changed = HuggingFaceTokenizer(wordpiece_directory)
        assert changed.definition() != pieces.definition()
