"""Numbers of Korean and Japanese have a counter that depends on the thing: `고양이 두 마리`, `2匹の猫`."""

import random
from collections.abc import Iterator, Mapping, Sequence

from training.translation.modifiers import LARGE_NUMBERS
from training.translation.words import words_of

__all__ = ["COUNTERS", "counter_of", "number_forms"]

COUNTERS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "ko": {"animal": ("마리",), "person": ("명",), "vehicle": ("대",), "thing": ("개",)},
    "ja": {"animal": ("匹", "匹", "頭"), "person": ("人",), "vehicle": ("台",), "thing": ("つ", "個")},
}
ANIMALS = frozenset(
    """panda cat kitten dog puppy rabbit bear fox wolf lion tiger monkey frog cow pig horse mouse chicken duck bird fish
    elephant turtle snake dragon unicorn dinosaur butterfly bee owl penguin whale dolphin shark octopus crab spider ant
    snail bat hamster koala sheep goat camel giraffe zebra leopard gorilla hedgehog squirrel otter jellyfish goose
    kangaroo sloth badger eagle swan parrot flamingo peacock rooster turkey dodo crocodile lizard seal beetle ladybug
    cricket fly worm""".split()
)
PEOPLE = frozenset(
    """man woman person child girl boy king queen princess prince witch angel baby wizard knight pirate ninja astronaut
    cook farmer teacher student singer artist pilot firefighter scientist judge vampire zombie fairy elf mage genie
    superhero supervillain detective guard merman mermaid""".split()
)
VEHICLES = frozenset(
    "car truck bus airplane bicycle taxi ambulance tractor motorcycle scooter helicopter computer phone train".split()
)
TSU_NUMBERS = frozenset("23456789二三四五六七八九")
PARTICLES = ("", "를", "을", "와", "과", "랑", "하고", "의", "가", "이", "는", "은", "도", "만")


def counter_of(language: str, number: str, english: str, chance: random.Random) -> str:
    """A number with a counter that fits the thing of an English name: `두 마리`, `2匹`.

    number: of `words.tsv`, in words or digits.
    """
    counter = chance.choice(COUNTERS[language][_class_of(english)])
    if language == "ja":
        return f"{number}{'個' if counter == 'つ' and number not in TSU_NUMBERS else counter}"
    return f"{number}{'' if number.isdigit() else chance.choice((' ', ' ', ''))}{counter}"


def _class_of(english: str) -> str:
    words = set(english.lower().replace(",", "").split())
    for kind, known in (("animal", ANIMALS), ("person", PEOPLE), ("vehicle", VEHICLES)):
        if words & known:
            return kind
    return "thing"


def number_forms(language: str) -> Iterator[tuple[str, str]]:
    """All numbers with all counters, as they stand within a sentence, and their English."""
    numbers = [(one.other, one.english) for one in words_of(language, "number")]
    for number, english in [*numbers, *((str(one), str(one)) for one in LARGE_NUMBERS)]:
        for counter in sorted({one for some in COUNTERS[language].values() for one in some}):
            if language == "ja":
                yield f"{number}{counter}", english
                yield f"{number}{counter}の", english
            else:
                for particle in PARTICLES:
                    yield f"{number} {counter}{particle}", english
                yield f"{number}{counter}", english
