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


NOUNS_OF_CAPTIONS = {"circle", "square", "dog"}


def changed(category, captions=CAPTIONS):
    return dict(Perturber(captions).every(category))


def words(text):
    return re.findall(r"\w+", text.lower())


def test_nouns_are_what_ends_a_phrase():
    assert learn_nouns(CAPTIONS) == NOUNS_OF_CAPTIONS
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


NOUNS = [f"a {noun}" for noun in ("man", "woman", "dog", "cat", "bird", "tree", "ball") * 2]
RIGHT_EITHER_WAY = {
    "nouns_swapped": [
        "a man and a woman",
        "a woman, a dog and the cat",
        "A man is standing next to a woman",
        "two dogs and a cat with the bird",
        "the dog is with a ball",
        "a cat dog",
    ],
    "attributes_swapped": [
        "a red and a blue ball",
        "a black and white dog",
        "a black dog and a white dog",
        "two red balls and a red dog",
    ],
    "relations": [
        "a bird left the tree",
        "a man left",
        "a dog is right behind",
        "birds are all over",
        "the right tree",
        "a man walks up the street",
        "a man smiles after a meal",
        "a dog turned inside out",
        "birds fly one behind the other",
    ],
}


@pytest.mark.parametrize("category", RIGHT_EITHER_WAY)
def test_captions_that_are_right_either_way_are_left_alone(category):
    assert changed(category, RIGHT_EITHER_WAY[category] + NOUNS) == {}


def test_what_has_a_direction_is_turned_round():
    nouns = {
        "a man on a tree": "a tree on a man",
        "a dog runs after the cat": "a cat runs after the dog",
        "A dog and a young cat": "A cat and a young dog",
    }
    assert list(changed("nouns_swapped", [*nouns, *NOUNS]).values()) == list(nouns.values())
    # The bird is on neither of the two, and only one of them can be exchanged with it.
    [text] = changed("nouns_swapped", ["a dog and a cat under a bird", *NOUNS]).values()
    assert text in ("a bird and a cat under a dog", "a dog and a bird under a cat")
    attributes = {
        "a red ball and a blue dog": "a blue ball and a red dog",
        "a red ball on a cat near a blue ball": "a blue ball on a cat near a red ball",
    }
    assert list(changed("attributes_swapped", [*attributes, *NOUNS]).values()) == list(
        attributes.values()
    )
    relations = {
        "a dog left of the cat": "a dog right of the cat",
        "a cat to the left": "a cat to the right",
        "The dog on the right is wet": "The dog on the left is wet",
        "the right side": "the left side",
        "a bird over two trees": "a bird under two trees",
        "a man with a ball behind him": "a man with a ball in front of him",
        "Behind 2 dogs": "In front of 2 dogs",
        "a bird higher than the tree": "a bird lower than the tree",
    }
    assert list(changed("relations", [*relations, *NOUNS]).values()) == list(relations.values())


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
    assert first
    # The others, and what was drawn for them, make no difference.
    others = ["a red dog", "a blue square left of a green circle and two dogs"]
    more = changed(category, [*CAPTIONS, *others])
    assert {number: text for number, text in more.items() if number < len(CAPTIONS)} == first
    for number in first:
        alone = ["" if k != number else text for k, text in enumerate(CAPTIONS)]
        perturber = Perturber(alone)
        perturber._nouns, perturber._noun_list = NOUNS_OF_CAPTIONS, sorted(NOUNS_OF_CAPTIONS)
        assert dict(perturber.every(category)) == {number: first[number]}
    assert changed(category, ["", "...", "?"]) == {}
