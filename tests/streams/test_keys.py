"""Entities of several fields: numbered by columns as they are value by value."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pytest
from headrace.streams import aggregations as agg
from headrace.streams.batch import Column, Fields, Rows
from headrace.streams.event import Event
from headrace.streams.features import Features, declaration
from headrace.streams.index import Index, Names, decoded
from headrace.streams.plans import Plan, index, keys, numbered
from headrace.streams.spans import Spans
from hypothesis import given, settings
from hypothesis import strategies as st


class Sale(Event, topic="sales", key="who", time="at"):
    who: str
    item: str | None
    n: int
    size: int | None
    gift: bool
    at: datetime


class Pair(Features, of=Sale, by=("who", "item", "size")):
    count = agg.count()


class Made(Features, of=Sale, by=("n", "at")):
    count = agg.count()


class Gift(Features, of=Sale, by=("who", "gift")):
    count = agg.count()


ODD = ["a", "", 'q"', "\\", "\x00z", "é日", ",", '","']


@pytest.mark.parametrize("features", [Pair, Made, Gift])
def test_entities_by_columns_are_those_of_the_values(features: type[Features]) -> None:
    plan = Plan(declaration(features))
    by = plan.declared.by

    @settings(derandomize=True, max_examples=30, deadline=None)
    @given(st.data(), st.integers(1, 20), st.booleans())
    def check(data: st.DataObject, count: int, bare: bool) -> None:
        def drawn(values: list[Any]) -> list[Any]:
            return data.draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))

        texts = {
            "who": drawn(["a", "é日"] if bare else ODD),
            "item": drawn(["a", "b,", None] if bare else [*ODD, None]),
        }
        columns: dict[str, Column] = {
            "n": np.array(drawn([-1, 0, 1, 2, 2**53]), np.int64),
            "size": np.array(drawn([np.nan, 0.0, -7.0, 2.0**53]), np.float64),
            "gift": np.array(drawn([True, False]), np.bool_),
            "at": np.array(drawn([0, 10**15]), np.int64),
        }
        spans = {n: Spans.of([None if t is None else t.encode() for t in v]) for n, v in texts.items()} if bare else {}
        objects: dict[str, Column] = {} if bare else {name: np.array(v, np.object_) for name, v in texts.items()}
        rows = Rows(np.arange(count), Fields(columns | objects, spans))
        entities = index(plan)
        assert isinstance(entities, Index if features is Gift else Names)
        found, values = numbered(entities, by, rows).tolist(), keys(by, rows)
        known: dict[object, int] = {}
        for number, value in zip(found, values, strict=True):
            if value is None:
                assert number < 0
            else:
                assert known.setdefault(value, number) == number
                assert entities.value(number) == decoded(entities.encoded(number)) == value
        assert len(set(known.values())) == len(known) == entities.used
        assert entities.numbers(values).tolist() == found

    check()
