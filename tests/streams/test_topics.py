"""What the names of topics tell."""

from __future__ import annotations

import pytest
from headrace.streams.topics import Topic, kind_of

from headrace.program import load
from tests import shop
from tests.scene import ROOT


@pytest.mark.parametrize("program", ["tests/shop.py", "examples/returns/pipeline.py"])
def test_the_kind_of_every_topic_of_a_program_is_told_by_its_name(program: str) -> None:
    topics: tuple[Topic, ...] = load(ROOT / program).topics()
    assert {t.name: kind_of(t.name) for t in topics} == {t.name: t.kind for t in topics}
    assert shop.ORDERS.name in {t.name for t in topics}


@pytest.mark.parametrize("name", ["order", "late", "predictions", "registry2", "my.workers", "changelogs"])
def test_what_only_looks_like_it_is_an_event_topic(name: str) -> None:
    assert kind_of(name) == "event"
