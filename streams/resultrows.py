"""Rows about entities as columns of JSON, and in an order of their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import orjson
from headrace.streams import bytekernels
from headrace.streams.expressions import Type
from headrace.streams.index import Index, Ints, Names
from headrace.streams.jsonrows import Piece, printed
from headrace.streams.spans import Spans

_ZERO, _SPACE, _QUOTE, _BACKSLASH = 0, 32, 34, 92
WIDE = 64
"""Bytes of an entity up to which entities are compared as numbers."""


def named(entities: Index | Names, types: Mapping[str, Type], slots: Ints) -> dict[str, Spans | Piece]:
    """The columns that tell whose row it is, as JSON, by the names that tell entities apart."""
    kinds = [type.kind for type in types.values()]
    if kinds == ["int"]:
        return dict.fromkeys(types, _bare(entities.spans(slots)))
    if kinds == ["str"]:
        texts = entities.spans(slots)
        if plain(texts):
            return dict.fromkeys(types, Piece(b'"', texts, b'"'))
    values = [entities.value(slot) for slot in slots.tolist()]
    found: dict[str, Spans | Piece] = {}
    for i, (name, type) in enumerate(types.items()):
        single = [value[i] if isinstance(value, tuple) else value for value in values]
        if type.kind == "time":
            found[name] = printed(np.array(single, np.int64), Type("time", False))
        else:
            found[name] = Spans.of([orjson.dumps(value) for value in single])
    return found


def keys(entities: Index | Names, types: Mapping[str, Type], key: str, slots: Ints) -> Spans:
    """The keys of records about entities: the entity as text, of several values the one called `key`, where there is
    none of that name all of them as JSON; none where nothing tells entities apart."""
    if not types:
        return missing(len(slots))
    kinds = [type.kind for type in types.values()]
    if kinds in (["int"], ["time"]):
        return _bare(entities.spans(slots))
    if kinds == ["str"]:
        texts = entities.spans(slots)
        if plain(texts):
            return texts
    at = list(types).index(key) if key in types else -1
    made = []
    for value in (entities.value(slot) for slot in slots.tolist()):
        if not isinstance(value, tuple):
            made.append(str(value).encode())
        else:
            made.append(orjson.dumps(value) if at < 0 else str(value[at]).encode())
    return Spans.of(made)


def missing(count: int) -> Spans:
    """So many that are missing."""
    return Spans(np.zeros(0, np.uint8), np.zeros(count, np.int64), np.full(count, -1))


def plain(texts: Spans) -> bool:
    """Whether all are in JSON as they are, and none of them missing."""
    data = texts.packed().data
    odd = (data < _SPACE) | (data == _QUOTE) | (data == _BACKSLASH)
    return not odd.any() and bool((texts.length >= 0).all())


def _bare(encoded: Spans) -> Spans:
    """Numbers without the zero byte before their JSON."""
    return Spans(encoded.data, encoded.start + 1, encoded.length - 1)


def ascending(keys: list[Ints], texts: Spans) -> Ints:
    """The order by the first key, then the next, ..., then by the texts' bytes."""
    columns = [key for key in keys if len(key) and (key != key[0]).any()]
    return np.lexsort([*reversed(_words(texts)), *reversed(columns)]) if len(texts) else np.zeros(0, np.int64)


def _words(texts: Spans) -> list[Ints]:
    """Numbers that compare, one after the other, as the texts do."""
    widest = int(texts.length.max())
    if widest > WIDE:
        rank = {text: i for i, text in enumerate(sorted({text or b"" for text in texts}))}
        return [np.array([rank[text or b""] for text in texts], np.int64)]
    width = max(8, -(-widest // 8) * 8)
    padded = np.zeros(width * len(texts), np.uint8)
    bytekernels.gather(texts.data, texts.start, texts.length, padded, np.arange(0, width * len(texts), width))
    words = padded.reshape(len(texts), width).view(">u8").astype(np.uint64)
    return [*words.T, texts.length]
