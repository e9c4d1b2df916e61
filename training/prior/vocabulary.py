"""A closed vocabulary in the shape of CLIP's tokenizer, and a look-out for words that are not in it.

The tokenizer is an ordinary byte-pair encoding whose merges were learnt until every known word is one token,
so that transformers and diffusers load it from the standard folder without code of ours. Unknown words fall
apart into pieces that no caption ever contained; :class:`Vocabulary` finds them beforehand.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from dnnlib.errors import UserError, nearest
from dnnlib.files import write_json

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
_WORD = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_+")  # as CLIP splits: letters, single digits, runs of other signs


def split_words(text: str) -> list[str]:
    """Lower-case words and signs of ``text``, each of which is one token if it is known."""
    return _WORD.findall(text.lower())


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word has become a single token.

    The tokenizer replays the merges in this order on each word, so a word of ``words`` always ends up whole.
    """
    pieces = {word: [*word[:-1], word[-1] + END_OF_WORD] for word in sorted(set(words))}
    merges = []
    while pairs := Counter(pair for parts in pieces.values() for pair in zip(parts, parts[1:], strict=False)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            pieces[word] = _merge(parts, best)
    return merges


def build_tokenizer(words: Iterable[str], length: int) -> CLIPTokenizer:
    """A CLIPTokenizer for which each of ``words`` is one token; prompts have ``length`` tokens."""
    merges = learn_merges(words)
    letters = sorted(ByteLevel.alphabet())
    tokens = [
        *letters,
        *(letter + END_OF_WORD for letter in letters),
        *(a + b for a, b in merges),
        START,
        END,
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def save_tokenizer(tokenizer: CLIPTokenizer, words: Iterable[str], folder: Path) -> None:
    """Write the standard files, vocab.json and merges.txt of older readers included."""
    tokenizer.save_pretrained(folder)
    write_json(folder / "vocab.json", tokenizer.get_vocab(), indent=None)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in learn_merges(words))]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Vocabulary:
    """The words a prior was trained on; an open one (``words=None``, Stable Diffusion) knows everything."""

    def __init__(self, words: Iterable[str] | None = None, name: str = "this prior") -> None:
        self.words = None if words is None else frozenset(words)
        self.name = name
        self._told: set[str] = set()

    def unknown(self, text: str) -> list[str]:
        """Words of ``text`` that the prior has never seen, in order."""
        if self.words is None:
            return []
        return [word for word in dict.fromkeys(split_words(text)) if word not in self.words]

    def refuse_unknown(self, text: str, option: str) -> None:
        """UserError where it knows no word of ``text``, which was given with ``option``."""
        unknown = self.unknown(text)
        if unknown and set(unknown) == set(split_words(text)):
            raise UserError(f"{option} has no word that is known: {self._message(unknown)}")

    def known_part(self, text: str) -> str:
        """``text`` without its unknown words and signs; each of the words is warned about once."""
        unknown = self.unknown(text)
        if not unknown:
            return text
        if fresh := [word for word in unknown if word not in self._told and word[0].isalnum()]:
            self._told.update(fresh)
            warnings.warn(self._message(fresh), stacklevel=3)
        return " ".join(word for word in split_words(text) if word not in unknown)

    def _message(self, fresh: list[str]) -> str:
        assert self.words is not None
        close = {word: nearest(word, self.words) for word in fresh}
        hints = [f"{word} -> {near}" for word, near in close.items() if near and near[0].isalpha()]
        known = ", ".join(sorted(word for word in self.words if word[0].isalnum()))
        return (
            f"{self.name} does not know {', '.join(repr(word) for word in fresh)} and leaves that out"
            + (f" (did you mean {', '.join(hints)}?)" if hints else "")
            + f". It knows: {known}. For other words use Stable Diffusion 1.5 with a ControlNet for masks: "
            "--prior stable-diffusion-v1-5/stable-diffusion-v1-5 --controlnet PATH"
        )


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    index = 0
    while index < len(parts):
        if tuple(parts[index : index + 2]) == pair:
            merged.append(parts[index] + parts[index + 1])
            index += 2
        else:
            merged.append(parts[index])
            index += 1
    return merged
