"""Names with a skin tone, written as people write them in each language."""

import re

__all__ = ["tone_ways"]

TONE = {
    "fr": re.compile(r"^([^:]+): (peau [^,]+)$"),
    "de": re.compile(r"^([^:]+): (\w+) Hautfarbe$"),
    "es": re.compile(r"^([^:]+): tono de piel ([^,]+)$"),
    "ko": re.compile(r"^([^:]+): (\S+(?: \S+)? 피부)$"),
    "ja": re.compile(r"^([^:]+): (\S+肌色)$"),
}


def tone_ways(language: str, name: str, english: str) -> list[tuple[str, str]]:
    """Ways to write a name with one skin tone, each with its English: `Frau mit heller Hautfarbe`, `woman with light
    skin tone`. Only the name itself if it has several tones or other details."""
    ways = [(name, english), (name.replace(":", ","), english)]
    found = TONE[language].match(name)
    thing, comma, tone = english.rpartition(", ")
    if found is None or not comma or "," in thing or not tone.endswith("skin tone"):
        return ways
    subject, said = found.groups()
    joined = f"{thing} with {tone}"
    match language:
        case "fr":
            ways += [(f"{subject} à la {said}", joined), (f"{subject} avec la {said}", joined)]
        case "de":
            ways += [(f"{subject} mit {said}r Hautfarbe", joined), (f"{subject} mit {said}r Haut", joined)]
        case "es":
            ways += [(f"{subject} con tono de piel {said}", joined), (f"{subject} de tono de piel {said}", joined)]
        case "ko":
            ways += [(f"{said}의 {subject}", joined), (f"{said} {subject}", joined)]
        case "ja":
            ways += [(f"{said}の{subject}", joined)]
    return ways
