"""Captions of synthetic scenes, from a small grammar.

A caption names two to four things by some of their words and says how they stand to each other.
Every mention fits one thing of its scene, the whole fits none of the scene's near-twins, and it
says enough to fit hardly any other scene among several hundred.
"""

import dataclasses
import itertools
import math

import numpy as np

from data_pipeline.scenes import (
    COLOURS,
    DOUBTFUL,
    PREDICATES,
    SHAPES,
    SIZES,
    TEXTURES,
    Relation,
    Scene,
    Thing,
    scene_relations,
)

CAPTIONS = 5  # a scene
_MOST_WORDS = 22
_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
    "inside": ("inside", "within"),
    "around": ("around",),
    "overlapping": ("overlapping",),
}
_SYNONYMS = {"large": ("large", "big"), "dotted": ("dotted", "spotted")}
# Letters stand for mentions, digits for the phrases of the facts, in order.
_PAIR_FORMS = ("A is 0 B", "there is A 0 B", "0 B there is A", "A 0 B")
_TRIPLE_FORMS = ("A is 0 B and 1 C", "there is A 0 B and 1 C", "A is both 0 B and 1 C")
_QUAD_FORMS = ("A is 0 B and C is 1 D", "A 0 B and C 1 D")
# How much a caption must say, in bits, by its number of mentions: more things offer more ways to
# fit by chance.
_LEAST_BITS = {2: 11.5, 3: 13.5, 4: 15.0}
_RELATION_BITS = math.log2(4)
# Chances that the colour, the texture and the size of a thing are said.
_USUAL, _ALL = (0.85, 0.5, 0.5), (1.0, 1.0, 1.0)
_PATIENCE = 60  # attempts at a caption before everything is said
_TOUCHING = tuple(PREDICATES.index(name) for name in ("inside", "around", "overlapping"))
_LETTERS = "ABCD"


@dataclasses.dataclass(frozen=True)
class Mention:
    """What is said of one thing; None where a kind of word is left out."""

    thing: int
    shape: int
    colour: int | None
    texture: int | None
    size: int | None

    def fits(self, thing: Thing) -> bool:
        """Whether every word said is true of `thing`."""
        return (
            self.shape == thing.shape
            and self.colour in (None, thing.colour)
            and self.texture in (None, thing.texture)
            and self.size in (None, thing.size)
        )

    @property
    def bits(self) -> float:
        """How much the words say, were they all equally likely."""
        said = (
            (self.colour, len(COLOURS)),
            (self.texture, len(TEXTURES)),
            (self.size, len(SIZES)),
        )
        return math.log2(len(SHAPES)) + sum(math.log2(n) for word, n in said if word is not None)


@dataclasses.dataclass(frozen=True)
class Caption:
    """A sentence, its meaning, and which characters belong to which thing.

    `facts` are relations whose subject and object are positions in `mentions`; `links` holds
    (start, end, thing) for each attribute word and noun.
    """

    text: str
    mentions: tuple[Mention, ...]
    facts: tuple[Relation, ...]
    links: tuple[tuple[int, int, int], ...]


def caption_scene(rng: np.random.Generator, group: list[Scene], number: int) -> list[Caption]:
    """Five different captions of `group[number]` which do not fit the rest of the group."""
    scene, twins = group[number], group[:number] + group[number + 1 :]
    relations = scene_relations(scene)
    # A caption that is only nearly true of a twin would be an unfair question.
    rivals = [(twin, frozenset(scene_relations(twin, DOUBTFUL))) for twin in twins]
    captions: dict[str, Caption] = {}
    attempts = 0
    while len(captions) < CAPTIONS:
        attempts += 1
        words_said = _USUAL if attempts < _PATIENCE else _ALL
        caption = _compose(rng, scene, relations, words_said)
        if caption is not None and not any(holds(caption, *rival) for rival in rivals):
            captions.setdefault(caption.text, caption)
    return list(captions.values())


def holds(caption: Caption, scene: Scene, known: frozenset[Relation]) -> bool:
    """Whether different things of `scene` fit the mentions so that every fact is in `known`."""
    fitting = [
        [i for i, thing in enumerate(scene) if mention.fits(thing)] for mention in caption.mentions
    ]
    if not all(fitting):
        return False
    return any(
        len(set(chosen)) == len(chosen)
        and all((chosen[a], predicate, chosen[b]) in known for a, predicate, b in caption.facts)
        for chosen in itertools.product(*fitting)
    )


def _compose(
    rng: np.random.Generator,
    scene: Scene,
    relations: list[Relation],
    words_said: tuple[float, float, float],
) -> Caption | None:
    """One caption true of `scene`; None where the dice gave an ambiguous or too vague one."""
    facts, forms = _choose_facts(rng, relations)
    things = list(dict.fromkeys(thing for a, _, b in facts for thing in (a, b)))
    mentions = tuple(_mention(rng, scene, thing, words_said) for thing in things)
    bits = sum(mention.bits for mention in mentions) + _RELATION_BITS * len(facts)
    if bits < _LEAST_BITS[len(things)]:
        return None
    if any(sum(mention.fits(thing) for thing in scene) > 1 for mention in mentions):
        return None
    words = _write(rng, forms[int(rng.integers(0, len(forms)))], mentions, facts)
    if len(words) > _MOST_WORDS:
        return None
    text, links = _join(words)
    told = tuple((things.index(a), predicate, things.index(b)) for a, predicate, b in facts)
    return Caption(text, mentions, told, links)


def _choose_facts(
    rng: np.random.Generator, relations: list[Relation]
) -> tuple[list[Relation], tuple[str, ...]]:
    """One or two relations to speak of, and the forms of sentence that can say them."""
    touching = [fact for fact in relations if fact[1] in _TOUCHING]
    first = _pick(rng, touching if touching and rng.random() < 0.35 else relations)
    a, predicate, b = first
    # Another relation than the first: "left of a circle and left of a star" reads badly.
    shared = [f for f in relations if f[0] == a and f[2] != b and f[1] != predicate]
    apart = [f for f in relations if not {f[0], f[2]} & {a, b}]
    dice = float(rng.random())
    if apart and dice < 0.25:
        return [first, _pick(rng, apart)], _QUAD_FORMS
    if shared and dice < 0.6:
        return [first, _pick(rng, shared)], _TRIPLE_FORMS
    return [first], _PAIR_FORMS


def _pick(rng: np.random.Generator, facts: list[Relation]) -> Relation:
    return facts[int(rng.integers(0, len(facts)))]


def _mention(
    rng: np.random.Generator, scene: Scene, thing: int, words_said: tuple[float, float, float]
) -> Mention:
    colour, texture, size = (rng.random(3) < words_said).tolist()
    seen = scene[thing]
    return Mention(
        thing,
        seen.shape,
        seen.colour if colour else None,
        seen.texture if texture else None,
        seen.size if size else None,
    )


def _write(
    rng: np.random.Generator, form: str, mentions: tuple[Mention, ...], facts: list[Relation]
) -> list[tuple[str, int | None]]:
    """The words of a sentence, each with the thing it describes or None."""
    words: list[tuple[str, int | None]] = []
    for part in form.split():
        if part in _LETTERS:
            mention = mentions[_LETTERS.index(part)]
            words.append(("a", None))
            words.extend((word, mention.thing) for word in _name(rng, mention))
        elif part.isdigit():
            phrases = _PHRASES[PREDICATES[facts[int(part)][1]]]
            phrase = phrases[int(rng.integers(0, len(phrases)))]
            words.extend((word, None) for word in phrase.split())
        else:
            words.append((part, None))
    return words


def _name(rng: np.random.Generator, mention: Mention) -> list[str]:
    """Size, texture, colour, shape: the English order."""
    said = (
        (SIZES, mention.size),
        (TEXTURES, mention.texture),
        (COLOURS, mention.colour),
        (SHAPES, mention.shape),
    )
    words = [names[index] for names, index in said if index is not None]
    choices = [_SYNONYMS.get(word, (word,)) for word in words]
    return [choice[int(rng.integers(0, len(choice)))] for choice in choices]


def _join(words: list[tuple[str, int | None]]) -> tuple[str, tuple[tuple[int, int, int], ...]]:
    """The sentence, and (start, end, thing) of the words which describe a thing."""
    links, start = [], 0
    for word, thing in words:
        if thing is not None:
            links.append((start, start + len(word), thing))
        start += len(word) + 1
    return " ".join(word for word, _ in words), tuple(links)
