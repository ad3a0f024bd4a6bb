"""Wrong captions: what is changed and what is not, and how a model is judged by them."""

import re

import pytest

from xmodal_jax.metrics.probes import CATEGORIES, Perturber, learn_nouns

CAPTIONS = [
    "A red circle is left of a blue square",
    "the small dog runs with two big cats.",
    "Three men stand in front of a dog",
    "a blue square is above a green circle, and a red triangle",
    "cats",
    "a dog is under the red circle",
    "2 cats and a square",
    "a dog",
]


def changed(category, captions=CAPTIONS):
    return dict(Perturber(captions).every(category))


def words(text):
    return re.findall(r"\w+", text.lower())


def test_nouns_are_what_ends_a_phrase():
    assert learn_nouns(CAPTIONS) == {"circle", "square", "dog"}
    assert {"triangle", "circle"} <= learn_nouns(CAPTIONS, least=1)
    assert not {"red", "small", "is", "of", "a"} & learn_nouns(CAPTIONS, least=1)


def test_attributes_are_exchanged_within_their_kind():
    found = changed("attributes_swapped")
    assert found[0] == "A blue circle is left of a red square"
    assert found[1] == "the big dog runs with two small cats."
    assert sorted(words(found[3])) == sorted(words(CAPTIONS[3])) and found[3] != CAPTIONS[3]
    assert found.keys() == {0, 1, 3}
    replaced = changed("attributes_replaced")
    assert replaced.keys() == {0, 3, 5}  # caption 1 has both small and big
    for number, text in replaced.items():
        pairs = zip(words(text), words(CAPTIONS[number]), strict=True)
        [(new, old)] = [(a, b) for a, b in pairs if a != b]
        assert new not in CAPTIONS[number] and old not in text


def test_nouns_numbers_and_relations():
    assert changed("nouns_swapped")[0] == "A red square is left of a blue circle"
    assert changed("nouns_swapped")[5] == "a circle is under the red dog"
    assert changed("nouns_replaced")[7] in ("a circle", "a square")
    numbers = changed("numbers")
    assert numbers.keys() == {1, 2, 6}
    assert re.fullmatch(r"the small dog runs with (?!two)\w+ big cats\.", numbers[1])
    assert re.fullmatch(r"(?!Three)[A-Z]\w+ men stand in front of a dog", numbers[2])
    assert re.fullmatch(r"(?!2)\d+ cats and a square", numbers[6])
    relations = changed("relations")
    assert relations == {
        0: "A red circle is right of a blue square",
        2: "Three men stand behind a dog",
        3: CAPTIONS[3].replace("above", "below"),
        5: "a dog is over the red circle",
    }


def test_shuffled_words_are_the_same_words():
    found = changed("words")
    assert found.keys() == set(range(len(CAPTIONS))) - {4}
    for number, text in found.items():
        assert sorted(words(text)) == sorted(words(CAPTIONS[number]))
        assert words(text) != words(CAPTIONS[number])
    assert found[1].endswith(".")


@pytest.mark.parametrize("category", CATEGORIES)
def test_what_is_drawn_depends_on_the_caption_alone(category):
    first = changed(category)
    assert first == changed(category)
    assert Perturber(["", "..."]).every(category) is not None
    assert changed(category, ["", "...", "?"]) == {}
