"""Text as the words that full-text search finds it by, the same for both databases."""

import re
import unicodedata

_WORD = re.compile(r"\w+")
LONGEST, MOST = 64, 32  # characters of a word; different words of a question that are looked for


def split(text: str) -> list[str]:
    """The words of a text in small letters, accents kept; a tag <face_3> is the word face_3."""
    return [word[:LONGEST] for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


def indexed(text: str) -> str:
    """What goes into the index: words with one space between, so that no syntax of a database's parser is left."""
    return " ".join(split(text))


def asked_for(*texts: str) -> list[str]:
    """Each word of a question and its options once, in order, so many at most."""
    return list(dict.fromkeys(word for text in texts for word in split(text)))[:MOST]
