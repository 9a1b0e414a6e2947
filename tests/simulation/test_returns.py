"""The returns pipeline as users run it, all its stages, on the simulated log: nothing lost, twice or different."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from headrace.models import drift
from headrace.streams.batch import Record
from headrace.streams.log import Partition
from river import base

from headrace import program
from headrace.plan import stages
from tests.scene import ROOT
from tests.simulation import shop
from tests.simulation.fleet import Chaos, Fleet
from tests.simulation.log import SimulatedLog
from tests.simulation.seeds import BLOCKS, bound, check
from tests.simulation.source import publish
from tests.simulation.state import from_source, other_bytes, unequal
from tests.simulation.world import World

APP = program.load(str(ROOT / "examples" / "returns" / "pipeline.py"))
MODEL = APP.models[0]
LEARNER = MODEL.learner
# Scenarios are short: versions and alarms come often, that there may be some.
MODEL.publish_every = EVERY = 4
MODEL.watch = (
    drift.ADWIN("log_loss", clock=1, grace_period=1),
    drift.PageHinkley("brier", min_instances=3, delta=0.0, threshold=0.01),
    drift.PageHinkley("score", min_instances=3, delta=0.0, threshold=0.01),
    drift.PageHinkley("value_deviation", min_instances=3, threshold=1.0),
    drift.HDDM_A("outcome", drift_confidence=0.5),
)

T0 = datetime(2010, 1, 4, 9, tzinfo=UTC)
STEPS = [timedelta(0), timedelta(minutes=7), timedelta(hours=5), timedelta(days=1), timedelta(days=3), timedelta(8)]
SPOILED: list[dict[str, Any]] = [
    {"quantity": 0}, {"price": -1.5}, {"price": "free"}, {"customer": ""}, {"customer": None}, {"colour": "red"},
    {"quantity": 1.5}, {"item": 7},
]  # fmt: skip


def scenario(world: World) -> dict[Partition, list[Record]]:
    """Orders, and cancellations of some of them; a few broken, a few out of time."""
    random = world.random
    found: dict[str, list[Record]] = {"orders": [], "returns": []}
    at, ordered = T0, list[dict[str, Any]]()
    for n in range(random.choice([10, 40, 40, 70])):
        at += random.choice(STEPS)
        if ordered and random.random() < 0.4:
            line = random.choice(ordered[-6:])
            row = {**line, "invoice": f"C{n}", "quantity": -random.randint(1, line["quantity"] + 1)}
            topic = "returns"
        else:
            row = {
                "invoice": str(n), "customer": random.choice(["ann", "bob", "cleo"]),
                "item": random.choice(["cup", "jug"]), "description": "", "quantity": random.choice([1, 1, 2, 12]),
                "price": random.choice([0.85, 2.1, 4.95]), "country": random.choice(["UK", "France"]),
            }  # fmt: skip
            ordered.append(row)
            topic = "orders"
        shift = timedelta(hours=30) if random.random() < 0.05 else timedelta(0)
        found[topic].append(written(topic, {**row, "at": (at - shift).isoformat()}))
        if random.random() < 0.1:
            found[topic].append(spoiled(world, topic, {**row, "at": at.isoformat()}))
    return {Partition(topic, 0): records for topic, records in found.items()}


def written(topic: str, row: Mapping[str, Any]) -> Record:
    key = row["customer"]
    return Record(topic, key.encode() if isinstance(key, str) and key else None, json.dumps(row).encode(), 0)


def spoiled(world: World, topic: str, row: Mapping[str, Any]) -> Record:
    kind = world.random.random()
    if kind < 0.2:
        return Record(topic, b"ann", world.random.choice([b"", None, b"{", b"\xff\xfe", b"[]"]), 0)
    if kind < 0.3:
        return Record(topic, b"zoe", json.dumps(row).encode(), 0)
    return written(topic, {**row, **world.random.choice(SPOILED)})


def simulate(seed: int) -> Fleet:
    world = World(seed)
    # Latency would tell when a task ran: with this clock it is 0, and every byte is a function of the data.
    fleet = Fleet(world, SimulatedLog(world), stages(APP, now=lambda: 0.0, memory=bound(seed)), Chaos.drawn(world))
    world.spawn("clients", publish(fleet, scenario(world)))
    world.spawn("supervisor", fleet.supervise())
    world.run()
    return fleet


def source(fleet: Fleet, topic: str) -> list[shop.Published]:
    here = Partition(topic, 0)
    found = fleet.log.committed_entries(topic)
    return [shop.Published(o, e.record.key, e.record.value, fleet.age(here, o)) for o, e in found]


def values(log: SimulatedLog, topic: str) -> list[Any]:
    return [json.loads(record.value or b"") for record in log.committed_records(topic)]


def wrong(fleet: Fleet) -> list[str]:
    """What the log has that the oracle has not, and the other way round."""
    log = fleet.log
    told = shop.told(source(fleet, "orders"), source(fleet, "returns"))
    found = []
    for topic in ("orders", "returns"):
        for kind, wanted in (("rejected", told.rejected[topic]), ("late", told.late[topic])):
            got = [record.value for record in log.committed_records(f"{topic}.{kind}")]
            found += [f"{topic}.{kind}: {got}, not {wanted}"] if got != wanted else []
    found += wrong_features(log, told)
    found += wrong_outcomes(log, told)
    found += wrong_models(log, told)
    for stage in fleet.stages:
        remade = from_source(fleet, stage, 0)
        # Artifacts are pickles, compared above by what they answer; the alarms of two stages lie on one topic.
        found += other_bytes(log, [t for t in stage.outputs if t not in ("registry", "drift.returns")], 0, remade)
        found += unequal(fleet, (stage.name, 0), remade, PROBES[stage.name.partition(".")[0]](fleet))
    return found


def wrong_features(log: SimulatedLog, told: shop.Told) -> list[str]:
    found = []
    for name, by in (("Customer", "customer"), ("Item", "item")):
        wanted = [
            {"id": f["id"], by: f["row"][by], "at": f["at"], **f[name.lower()]} for f in told.features
        ]
        got = [{**value, "at": shop.moment(value["at"])} for value in values(log, f"features.{name}")]
        found += lines(f"features.{name}", got, wanted)
    return found


def wrong_outcomes(log: SimulatedLog, told: shop.Told) -> list[str]:
    predictions = {p["id"]: p for p in values(log, "predictions.returns")}
    got = []
    found = []
    for value in values(log, "outcomes.returns"):
        moments = {name: shop.moment(value[name]) for name in ("at", "known", "matures", "watermark")}
        got.append({"id": value["id"], "outcome": value["outcome"], **moments})
        made = predictions[value["id"]]
        for name in ("key", "score", "baselines", "version", "features"):
            if value[name] != made[name]:
                found.append(f"outcomes.returns: {value['id']} has {name} {value[name]}, predicted {made[name]}")
    wanted = [{**vars(outcome), "matures": outcome.matures} for outcome in told.outcomes]
    return found + lines("outcomes.returns", got, wanted)


def wrong_models(log: SimulatedLog, told: shop.Told) -> list[str]:
    """Versions, predictions, metrics and alarms, from the outcomes and from what each prediction names."""
    settled = [(o, json.loads(e.record.value or b"")) for o, e in log.committed_entries("outcomes.returns")]
    matured = shop.in_order_of_maturity(settled)
    order = [one for _, ready in matured for one in ready]
    versions = shop.learnt(matured, LEARNER.clone(), EVERY)
    registered = values(log, "registry")
    got = [{n: v[n] for n in ("version", "offset", "learnt", "positives", "rate")} for v in registered]
    wanted: list[dict[str, Any]] = [
        {"version": f"returns@{v.offset}", "offset": v.offset, "learnt": v.learnt, "positives": v.positives,
         "rate": v.rate} for v in versions
    ]  # fmt: skip
    found = lines("registry", got, wanted)
    by_name = {f"returns@{v.offset}": v for v in versions}
    predictions = values(log, "predictions.returns")
    found += wrong_predictions(predictions, told, by_name)
    reports = [{k: v for k, v in r.items() if k != "model"} for r in values(log, "metrics.returns")]
    found += lines("metrics.returns", reports, shop.metrics(order, EVERY))
    return found + wrong_alarms(log, predictions, order)


def wrong_predictions(
    predictions: Sequence[dict[str, Any]], told: shop.Told, versions: Mapping[str, shop.Version]
) -> list[str]:
    wanted = []
    for made, features in zip(predictions, told.features, strict=False):
        version = versions.get(made["version"])
        known = {k: v for k, v in made["features"].items() if v is not None}
        score = answer(version.estimator, known) if version else shop.PRIOR
        wanted.append(
            {
                "id": features["id"], "key": features["row"]["customer"], "at": features["at"], "score": score,
                "version": made["version"] if version or made["version"] == "returns@0" else "no such version",
                "base": version.rate if version else shop.PRIOR, **features["baselines"],
                **features["customer"], **features["item"], **features["others"],
            }
        )  # fmt: skip
    got = [
        {"id": p["id"], "key": p["key"], "at": shop.moment(p["at"]), "score": p["score"], "version": p["version"],
         **p["baselines"], **p["features"]} for p in predictions
    ]  # fmt: skip
    found = lines("predictions.returns", got, wanted + [{"id": f["id"]} for f in told.features[len(wanted) :]])
    offsets = [int(p["version"].partition("@")[2]) for p in predictions]
    found += [f"predictions.returns: version {b} follows {a}" for a, b in pairwise(offsets) if b < a]
    return found


def answer(estimator: Any, features: dict[str, float]) -> float:
    score = estimator.predict_proba_one(features).get(True)
    return float(score) if score is not None and math.isfinite(score) else shop.PRIOR


def wrong_alarms(
    log: SimulatedLog, predictions: Sequence[dict[str, Any]], order: Sequence[dict[str, Any]]
) -> list[str]:
    """Each detector fed with its numbers alone, in order, by river itself."""
    numbers: dict[str, list[tuple[str, float]]] = {
        "log_loss": [(one["id"], shop.loss(one["score"], one["outcome"])) for one in order],
        "brier": [(one["id"], (one["score"] - one["outcome"]) ** 2) for one in order],
        "outcome": [(one["id"], one["outcome"]) for one in order],
        "score": [(p["id"], p["score"]) for p in predictions],
        "value_deviation": [(p["id"], p["features"]["value_deviation"]) for p in predictions],
    }
    found = []
    alarms = values(log, "drift.returns")
    for watch in MODEL.watch:
        detector: base.DriftDetector = watch.make()
        wanted = []
        for event, number in numbers[watch.on]:
            detector.update(number)
            wanted += [event] if detector.drift_detected else []
        got = [a["event"] for a in alarms if (a["detector"], a["on"]) == (watch.kind, watch.on)]
        found += [f"drift.returns: {watch.key} alarms at {got}, not {wanted}"] if got != wanted else []
    return found


def lines(topic: str, got: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> list[str]:
    """How rows differ; numbers that are made of sums may differ in their last digits."""
    found = [] if len(got) == len(wanted) else [f"{topic}: {len(got)} records, not {len(wanted)}"]
    for i, (mine, theirs) in enumerate(zip(got, wanted, strict=False)):
        names = [n for n in {**mine, **theirs} if not near(mine.get(n), theirs.get(n))]
        found += [f"{topic} {i}: {n} is {mine.get(n)!r}, not {theirs.get(n)!r}" for n in names]
    return found


def near(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-7)
    return a == b


def orders_probe(fleet: Fleet) -> dict[str, list[Record]]:
    """A cancellation of every kind of line, then an order long after all horizons, then one of each kind."""
    at = T0 + timedelta(days=700)
    kinds = [(c, i) for c in ("ann", "bob", "cleo") for i in ("cup", "jug")]
    row = {"invoice": "P", "description": "", "price": 2.0, "country": "UK", "at": at.isoformat()}
    orders = [{**row, "customer": c, "item": i, "quantity": q} for c, i in kinds for q in (1, 2, 12)]
    early = (T0 + timedelta(days=650)).isoformat()
    returns = [{**row, "at": early, "customer": c, "item": i, "quantity": -3} for c, i in kinds]
    valid = [v["at"] for r in source(fleet, "returns") if (v := shop.valid("returns", r)) is not None]
    near = [{**r, "at": max(valid)} for r in returns] if valid else []
    return {
        "orders": [written("orders", r) for r in orders],
        "returns": [written("returns", r) for r in near + returns],
    }


def learning_probe(fleet: Fleet) -> dict[str, list[Record]]:
    """An outcome that lets all others mature."""
    records = fleet.log.committed_records("outcomes.returns")
    if not records:
        return {}
    value = json.loads(records[-1].value or b"") | {"watermark": "2019-01-01T00:00:00Z"}
    return {"outcomes.returns": [Record("outcomes.returns", records[-1].key, msgspec.json.encode(value))] * EVERY}


PROBES = {"orders": orders_probe, "learn": learning_probe}


@pytest.mark.parametrize("block", range(BLOCKS))
def test_what_the_pipeline_publishes_and_keeps_is_a_function_of_its_events_whatever_dies(block: int) -> None:
    check("returns", block, lambda seed: wrong(simulate(seed)))
