"""Features as of each event: equal to the oracle to the bit, wherever batches are cut and tasks restarted."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import orjson
import pytest
from headrace.streams import aggregations as agg
from headrace.streams.batch import Outputs, Record, one_by_one, record_by_record
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event
from headrace.streams.expressions import Expression, col, is_missing, log
from headrace.streams.features import Features, FeatureSet, columns, operator, references
from headrace.streams.windows import last_n, session, sliding, tumbling
from hypothesis import given, settings
from hypothesis import strategies as st

from .columns import Told, batch
from .oracle import SECOND, Fold, as_of_each

START = 1_700_000_000 * SECOND


class Sale(Event, topic="sales", key="who", time="at", lateness="20s"):
    who: str
    n: int
    x: float | None
    s: str | None
    at: datetime


class Refund(Event, topic="refunds", key="who", time="at"):
    who: str
    n: int
    x: float | None
    s: str | None
    at: datetime


STREAMS = [agg.stream(Sale), agg.stream(Refund)]
LATE = {"sales": 20, "refunds": 0}


def feature_set(name: str, features: Mapping[str, Expression], **options: Any) -> type[Features]:
    options = {"of": Sale, "by": "who"} | options
    return types.new_class(name, (Features,), options, lambda body: body.update(features))


def ring(of: str, width: int, panes: int) -> int:
    late = -(-LATE[of] * SECOND // width)
    return panes + late


WINDOWS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sliding": (sliding("10s"), {"width": SECOND, "panes": 10}),
    "coarse": (sliding("10s", pane="5s"), {"width": 5 * SECOND, "panes": 2}),
    "tumbling": (tumbling("7s"), {"width": 7 * SECOND, "panes": 1}),
    "last": (last_n(3), {"width": 0, "panes": 3, "ring": 3}),
    "all": (None, {"width": None}),
    "session": (session("4s"), {"width": None, "gap": 4 * SECOND}),
}
KINDS = {
    "count": ("",), "sum": ("n", "x"), "mean": ("n", "x"), "variance": ("n", "x"), "min": ("n", "x"),
    "max": ("n", "x"), "first": ("n", "x", "s"), "last": ("n", "x", "at", "s"), "distinct": ("s", "n"),
}  # fmt: skip


def everything() -> tuple[dict[str, Expression], dict[str, Fold]]:
    """Every aggregation in every window over both streams, for the engine and for the oracle."""
    features: dict[str, Expression] = {}
    folds: dict[str, Fold] = {}
    for of in (Sale, Refund):
        topic = of.contract.topic
        for name, (window, panes) in WINDOWS.items():
            shape = dict(panes)
            if shape["width"]:
                shape["ring"] = ring(topic, shape["width"], shape["panes"])
            if "gap" in shape:
                shape["late"] = LATE[topic] * SECOND
            for kind, values in KINDS.items():
                for value in values:
                    args = (col[value],) if value else ()
                    full = f"{kind}_{value}_{name}_{topic}"
                    features[full] = getattr(agg, kind)(*args, window, of=of)
                    folds[full] = Fold(kind, topic, value, **shape)
        features[f"gap_{topic}"] = agg.since_last(of=of)
        folds[f"gap_{topic}"] = Fold("since_last", topic)
        for value in ("", "x"):
            features[f"decayed_{value}_{topic}"] = agg.decayed(
                col[value] if value else None, half_life="5s", of=of
            )
            folds[f"decayed_{value}_{topic}"] = Fold("decayed", topic, value, half_life=5 * SECOND)
    features["dear"] = agg.count("10s", where=col.n > 3)
    folds["dear"] = Fold("count", "sales", "", SECOND, 10, 30, where=lambda row: row["n"] > 3)
    return features, folds


FEATURES, _ = everything()
EVERYTHING = feature_set("Everything", FEATURES)


@st.composite
def told(draw: st.DrawFn, most: int = 40) -> list[Told]:
    """Events of both streams, mostly in order; some behind, within lateness and beyond it."""
    now, events = START, []
    for _ in range(draw(st.integers(1, most))):
        now += draw(st.sampled_from([0, 0, 1, SECOND // 2, SECOND, SECOND, 3 * SECOND, 12 * SECOND]))
        time = now - draw(st.sampled_from([0] * 8 + [1, SECOND, 6 * SECOND, 25 * SECOND]))
        x = draw(st.none() | st.floats(-1e6, 1e6, allow_nan=False))
        row = {
            "who": draw(st.sampled_from("abc")),
            "n": draw(st.integers(-5, 9)),
            "x": x,
            "s": draw(st.sampled_from(["p", "q", "r", None])),
            "at": time,
        }
        events.append((draw(st.sampled_from(["sales", "sales", "refunds"])), time, row))
    return events


def run(
    features: type[Features], events: list[Told], cuts: list[int], restart: bool = False
) -> tuple[Any, list[Record]]:
    """The columns and records of the events, cut into batches at these positions."""
    step, out = operator(features), Outputs()
    found: dict[str, list[Any]] = {}
    state: dict[bytes, bytes] = {}
    offsets: dict[str, int] = {}
    for begin, end in zip([0, *cuts], [*cuts, len(events)], strict=True):
        made = batch(STREAMS, events[begin:end], first=offsets)
        step.process(made, out)
        if "sales" in made.streams:
            for name, values in made.streams["sales"].fields.items():
                if "." in name:
                    found.setdefault(name, []).extend(values.tolist())
        for key, value in one_by_one(step.changes()):
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        if restart:
            step = operator(features)
            step.load(iter(sorted(state.items())))
    return found, list(record_by_record(out))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and math.isnan(a):
        return b is None or (isinstance(b, float) and math.isnan(b))
    return bool(a == b)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(told())
def test_every_aggregation_in_every_window_equals_the_oracle_to_the_bit(events: list[Told]) -> None:
    folds = everything()[1]
    wanted = as_of_each([(s, r["who"], t, r) for s, t, r in events], "sales", folds)
    found, _ = run(EVERYTHING, events, [])
    for name in folds:
        for i, values in enumerate(wanted):
            got = found[f"Everything.{name}"][i]
            merged = "_session" in name and isinstance(got, float) and values[name] is not None
            near = merged and math.isclose(
                got, values[name], rel_tol=1e-9, abs_tol=1e-6
            )  # sums of merged sums
            assert near or same(got, values[name]), (name, i)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(told(), st.data())
def test_cuts_and_restarts_change_no_byte(events: list[Told], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(events)), max_size=8)))
    whole, records = run(EVERYTHING, events, [])
    for restart in (False, True):
        found, again = run(EVERYTHING, events, cuts, restart)
        assert again == records
        assert str(found) == str(whole)


def sale(time: float, who: str = "a", n: int = 1, x: float | None = 1.0, s: str | None = "p") -> Told:
    at = START + round(time * SECOND)
    return ("sales", at, {"who": who, "n": n, "x": x, "s": s, "at": at})


def test_a_record_has_the_event_id_the_entity_the_time_and_the_public_features() -> None:
    made = feature_set("Of", {"n": agg.count("10s"), "_m": agg.mean(col.x), "r": log(agg.sum(col.x))})
    _, out = run(made, [sale(0, x=None)], [])
    assert out[0].topic == "features.Of"
    assert out[0].key == b"a"
    assert orjson.loads(out[0].value or b"") == {
        "id": "sales-0-0", "who": "a", "at": "2023-11-14T22:13:20Z", "n": 1, "r": None,
    }  # fmt: skip


def test_nothing_is_published_where_the_set_says_so() -> None:
    found, out = run(feature_set("Quiet", {"n": agg.count()}, publish=False), [sale(0)], [])
    assert found == {"Quiet.n": [1]}
    assert out == []


def test_a_batch_yields_one_change_for_each_pane_it_touches() -> None:
    step = operator(feature_set("Small", {"n": agg.count("10s"), "x": agg.sum(col.x, "10s")}))
    step.process(batch(STREAMS, [sale(0), sale(0.1), sale(1), sale(1, "b")]), [])
    assert len(list(one_by_one(step.changes()))) == 3
    assert step.changes() == []


def test_a_pane_that_leaves_the_ring_is_deleted() -> None:
    step = operator(feature_set("Gone", {"n": agg.count("10s")}))
    step.process(batch(STREAMS, [sale(0)]), [])
    [(key, _)] = one_by_one(step.changes())
    step.process(batch(STREAMS, [sale(100)]), [])
    assert (key, None) in one_by_one(step.changes())


def test_adding_a_feature_keeps_what_the_others_know() -> None:
    before = operator(feature_set("Grows", {"n": agg.count("10s")}))
    before.process(batch(STREAMS, [sale(0), sale(1)]), [])
    after = operator(
        feature_set("Grows", {"x": agg.sum(col.n, "10s"), "n": agg.count("10s"), "all": agg.count()})
    )
    after.load([(k, v) for k, v in one_by_one(before.changes()) if v is not None])
    made = batch(STREAMS, [sale(2)])
    after.process(made, [])
    fields = made.streams["sales"].fields
    assert [fields[f"Grows.{n}"].tolist() for n in ("n", "x", "all")] == [[3], [1], [1]]


def test_equal_aggregations_are_computed_once() -> None:
    made = FeatureSet(
        feature_set("Shared", {"a": agg.count("10s") / 2, "b": agg.count("10s") + agg.count("5s")})
    )
    assert [len(t.accumulators) for t in made._tables.values()] == [1]
    assert [len(t.reads) for t in made._tables.values()] == [2]


def test_an_entity_may_be_several_fields_or_an_expression_and_a_missing_one_has_no_features() -> None:
    pair = feature_set("Pair", {"n": agg.count("10s"), "t": agg.sum(col.n)}, by=("who", "s"))
    found, out = run(pair, [sale(0), sale(0, s="q"), sale(0), sale(0, s=None)], [])
    assert str(found["Pair.n"]) == "[1.0, 1.0, 2.0, nan]"
    assert orjson.loads(out[2].value or b"")["n"] == 2
    assert orjson.loads(out[3].value or b"")["n"] is None
    parity = feature_set("Parity", {"n": agg.count()}, by=col.n % 2)
    assert run(parity, [sale(0, n=1), sale(0, n=3), sale(0, n=2)], [])[0] == {"Parity.n": [1, 2, 1]}


def test_a_set_reads_the_columns_of_another_over_the_same_stream() -> None:
    base = feature_set("Base", {"n": agg.count(), "_m": agg.mean(col.x)})
    line = feature_set(
        "Line", {"twice": base.n * 2, "dear": col.x / base._m, "none": is_missing(col.s)}, by=None
    )
    assert references(line) == [base]
    made = batch(STREAMS, [sale(0, x=2.0), sale(0, x=6.0)])
    for one in (base, line):
        operator(one).process(made, [])
    fields = made.streams["sales"].fields
    assert fields["Line.twice"].tolist() == [2, 4]
    assert fields["Line.dear"].tolist() == [1.0, 1.5]
    assert [(f.name, f.kind, f.optional) for f in columns(line)] == [
        ("Line.twice", "int", False), ("Line.dear", "float", True), ("Line.none", "bool", False),
    ]  # fmt: skip


def test_sums_of_ints_saturate_at_the_ends_of_int64() -> None:
    found, _ = run(feature_set("Big", {"t": agg.sum(col.n)}), [sale(0, n=2**62)] * 3, [])
    assert found["Big.t"] == [2**62, 2**63 - 1, 2**63 - 1]


@pytest.mark.parametrize(
    ("features", "options", "says"),
    [
        ({"f": agg.count("1h") + col.nn}, {}, "sales has no field 'nn': its fields are who, n, x, s, at"),
        ({"f": agg.sum(col.s)}, {}, "needs a number, and col['s'] is str"),
        ({"f": col.s + 1}, {}, "needs a number, and col['s'] is str"),
        ({"f": agg.count("1h")}, {"where": agg.count("1h")}, "is not a condition"),
        ({"f": agg.count("1h")}, {"where": 3}, "is not a condition"),
        ({"f": agg.last(col.n, order=col.s)}, {}, "is neither a number nor a time"),
        ({"f": agg.count("1h")}, {"by": "x"}, "an entity is text or an int"),
        ({"f": agg.count("1h", where=col.n)}, {}, "is not a condition"),
        ({"f": 3}, {}, "is not a feature"),
        ({"f": agg.count("1h")}, {"of": None}, "lacks its stream"),
    ],
)
def test_a_declaration_that_cannot_be_says_why(features: Any, options: Any, says: str) -> None:
    with pytest.raises(DeclarationError) as error:
        feature_set("Wrong", features, **options)
    assert says in str(error.value)


def test_a_late_event_that_bridges_two_sessions_merges_them() -> None:
    made = feature_set("S", {"n": agg.count(session("4s")), "k": agg.distinct(col.s, session("4s"))})
    events = [sale(0, s="p"), sale(6, s="q"), sale(3, s="r"), sale(7)]
    for restart in (False, True):
        assert run(made, events, [1, 2, 3], restart)[0] == {"S.n": [1, 1, 3, 4], "S.k": [1, 1, 3, 3]}


def test_a_quantile_is_within_one_percent_and_over_the_last_events_exact() -> None:
    q = {f"q{int(q * 100)}": agg.quantile(col.x, q, "100s") for q in (0.0, 0.5, 0.9, 1.0)}
    made = feature_set("Q", q | {"last": agg.quantile(col.x, 0.5, last_n(5))})
    random = np.random.default_rng(7)
    xs = [float(x) for x in np.exp(random.normal(0, 4, 90)) * random.choice([-1, 1], 90)] + [0.0] * 5
    found, _ = run(made, [sale(i, x=x) for i, x in enumerate(xs)], [10, 50], restart=True)
    ranked = sorted(xs)
    for name, part in (("q0", 0.0), ("q50", 0.5), ("q90", 0.9), ("q100", 1.0)):
        assert found[f"Q.{name}"][-1] == pytest.approx(ranked[math.floor(part * 94)], rel=0.01)
    assert found["Q.last"][50] == sorted(xs[46:51])[2]


def test_approximate_distinct_is_within_a_tenth_of_the_exact_one() -> None:
    made = feature_set(
        "D", {"e": agg.distinct(col.n, "1h"), "a": agg.distinct(col.n, "1h", approximate=True)}
    )
    found, _ = run(made, [sale(i / 10, n=i * 7) for i in range(3000)], [1500], restart=True)
    assert found["D.e"][-1] == 3000
    for i in (0, 10, 100, 1000, 2999):
        assert found["D.a"][i] == pytest.approx(found["D.e"][i], rel=0.1)


def test_values_of_panes_that_left_the_ring_are_swept() -> None:
    step = FeatureSet(feature_set("Swept", {"k": agg.distinct(col.n, "10s")}))
    state: dict[bytes, bytes | None] = {}
    for i in range(30):
        step.process(batch(STREAMS, [sale(i * 100 + j / 100, n=i * 100 + j) for j in range(100)]), [])
        state.update(one_by_one(step.changes()))
    assert len([v for v in state.values() if v is not None]) < 1500


def test_a_set_may_aggregate_rows_that_another_operator_inserts() -> None:
    known = agg.Stream("refunds~known", STREAMS[1].fields)

    class Outcome:
        stream = known

    made = feature_set("Derived", {"n": agg.count("1h", of=Outcome()), "gap": agg.since_last(of=known)})
    at = sale(1)[1]
    made_batch = batch([*STREAMS, known], [sale(0), ("refunds~known", at, sale(1)[2]), sale(3)])
    operator(made).process(made_batch, [])
    fields = made_batch.streams["sales"].fields
    assert fields["Derived.n"].tolist() == [0, 1]
    assert str(fields["Derived.gap"].tolist()) == "[nan, 2.0]"


def test_the_operator_is_named_as_its_set() -> None:
    assert isinstance(operator(EVERYTHING), FeatureSet)
    assert operator(EVERYTHING).name == "Everything"
