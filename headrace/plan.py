"""From an application to stages: which tasks there are, what each reads and writes, and the operators in it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from headrace.models import artifacts
from headrace.models.drift import ERRORS, DriftMonitor
from headrace.models.evaluation import Evaluator
from headrace.models.learner import Learner
from headrace.models.maturity import Mature
from headrace.models.model import Model
from headrace.models.rehearsal import rehearse
from headrace.models.versions import REGISTRY
from headrace.serving.scorer import Scorer
from headrace.streams.aggregations import aggregates
from headrace.streams.batch import Operator
from headrace.streams.codecs import MAX_EVENT_BYTES
from headrace.streams.derived import RowCodec
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event
from headrace.streams.expressions import Col
from headrace.streams.features import (
    Features,
    Reference,
    columns,
    declaration,
    operator,
    references,
    sources,
    upstream,
)
from headrace.streams.inputs import WAKE, Input, Source
from headrace.streams.jsoncodec import codec
from headrace.streams.log import Partition
from headrace.streams.memory import Memory
from headrace.streams.outcomecolumns import OutcomeCodec, OutcomeColumns
from headrace.streams.outcomes import Match, Outcome, Settle
from headrace.streams.runner import TOMBSTONES_KEPT, Follow
from headrace.streams.store import Store
from headrace.streams.tables import LAYOUT
from headrace.streams.task import Task
from headrace.streams.topics import Kind, Processor, Topic

if TYPE_CHECKING:
    from headrace.app import App

FOREVER = {"retention.ms": "-1"}
"""Source and derived topics keep everything: a model is recomputed from them, and old event times must not expire."""

LARGEST = str(96 << 20)
"""Bytes of a record, just below what a broker reads at once (100 MiB). A rejected value is carried as it was, with its
reason, and may have been compressed when it came; a learner's state is as large as the model."""

COMPACTED = {
    "cleanup.policy": "compact",
    "retention.ms": "-1",
    "delete.retention.ms": str(int(TOMBSTONES_KEPT * 1000)),
    "max.message.bytes": LARGEST,
}


@dataclass(frozen=True, slots=True)
class Stage:
    """Tasks of one kind, one for each partition.

    build: (partition, store) to the task and what it follows beside its inputs
    ahead:  outputs published at least once, ahead of their transaction
    """

    name: str
    group: str
    partitions: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    build: Callable[[int, Store], tuple[Task, list[Follow]]]
    ahead: frozenset[str] = frozenset()

    @property
    def changelog(self) -> str:
        return f"{self.group}.changelog"

    @property
    def hurries(self) -> str | None:
        """Where its tasks tell of batches that did not wait; one input waits for no other."""
        return f"{self.group}.hurries" if len(self.inputs) > 1 else None


def feature_sets(app: App) -> list[type[Features]]:
    """Every feature set once, each after the sets it refers to or is of."""
    ordered: dict[type[Features], None] = {}

    def visit(one: type[Features], above: tuple[type[Features], ...]) -> None:
        if one in above:
            names = " -> ".join(s.__name__ for s in (*above, one))
            raise DeclarationError(f"feature sets refer to each other in a circle: {names}")
        of = upstream(one)
        for other in references(one) if of is None else [of, *references(one)]:
            visit(other, (*above, one))
        ordered.setdefault(one)

    for model in app.models:
        for one in model.features:
            visit(one, ())
    for one in app.features:
        visit(one, ())
    names = [s.__name__ for s in ordered]
    for name in names:
        if names.count(name) > 1:
            raise DeclarationError(f"two feature sets are called {name}; topics are named after them, so rename one")
    return list(ordered)


def events(app: App) -> tuple[type[Event], ...]:
    """The event classes that are read, main streams first."""
    models, sets = app.models, feature_sets(app)
    found: dict[str, type[Event]] = {}
    raw = [s for s in sets if upstream(s) is None]
    wanted = [m.on for m in models] + [_event(declaration(s).of.origin) for s in raw]
    wanted += [o.event for o in _outcomes(models, sets)]
    wanted += [_event(s.origin) for one in raw for s in sources(one) if not isinstance(s.origin, Outcome)]
    for event in wanted:
        known = found.setdefault(event.contract.topic, event)
        if known is not event:
            raise DeclarationError(
                f"events {known.__name__} and {event.__name__} both declare topic {event.contract.topic!r}"
            )
    return tuple(found.values())


def _event(origin: object) -> type[Event]:
    assert isinstance(origin, type)
    assert issubclass(origin, Event)
    return origin


def _outcomes(models: Iterable[Model], sets: Iterable[type[Features]]) -> list[Outcome]:
    found = {id(m.outcome): m.outcome for m in models if m.outcome is not None}
    for one in sets:
        for stream in sources(one):
            if isinstance(stream.origin, Outcome):
                found[id(stream.origin)] = stream.origin
    return list(found.values())


def check(model: Model) -> None:
    """Raises DeclarationError where the learner cannot learn the features, or a watch watches nothing."""
    every = {f.name: f.kind for one in model.features for f in columns(one)}
    kinds = {name: every[column] for column, name in model_columns(model)}
    for watch in model.watch:
        if watch.on not in ERRORS and watch.on != "score" and kinds.get(watch.on, "str") == "str":
            numbers = ", ".join(n for n, kind in kinds.items() if kind != "str")
            raise DeclarationError(
                f"Model {model.name}: {watch.kind}({watch.on!r}) watches nothing that is a number: write one of "
                f'{", ".join(ERRORS)}; "score"; or a feature: {numbers}'
            )
    rehearse(model, kinds)


def model_columns(model: Model) -> list[tuple[str, str]]:
    """(column of the batch, name for the model) of the features a model sees.

    Raises DeclarationError where two sets have a feature of one name.
    """
    found: dict[str, str] = {}
    for one in model.features:
        if declaration(one).of.name != model.on.contract.topic:
            raise DeclarationError(
                f"model {model.name} scores {model.on.__name__}, but {one.__name__} has features of "
                f"{declaration(one).of.name}"
            )
        if declaration(one).window is not None:
            raise DeclarationError(f"model {model.name}: {one.__name__} has results of windows, not features of events")
        kinds = {f.name: f.kind for f in columns(one)}
        for feature in declaration(one).public:
            column = f"{one.__name__}.{feature}"
            if kinds[column] == "time":
                raise DeclarationError(f"{column} is a time; a model takes numbers and text")
            if feature in found:
                raise DeclarationError(f"model {model.name}: {column} and {found[feature]} share a name; rename one")
            found[feature] = column
    return [(column, name) for name, column in found.items()]


def stages(
    app: App, now: Callable[[], float] = time.time, memory: Memory | None = None
) -> tuple[Stage, ...]:
    """The stages of an application, upstream first. now: seconds since 1970, by which latencies are told.

    memory: the bound that the hot state of all tasks shares; None: none

    Raises DeclarationError where they cannot be laid out.
    """
    models, sets = app.models, feature_sets(app)
    known = {e.contract.topic: e for e in events(app)}
    mains = dict.fromkeys([m.on.contract.topic for m in models] + [declaration(s).of.name for s in sets])
    made = []
    # Of a topic that several stages read, one publishes what is refused: its own, else the first that reads it.
    refused_by = {main: main for main in mains}
    for main in mains:
        here = [s for s in sets if declaration(s).of.name == main]
        if main not in known:
            made.append(_derived_stage(app, main, here, memory))
            continue
        scored = [m for m in models if m.on.contract.topic == main]
        made.append(_event_stage(app, known, main, here, scored, refused_by, now, memory))
    made += [_learning_stage(app, m) for m in models if m.outcome is not None]
    if app.guarantee == "at_least_once":
        # What this application reads itself stays in the transaction: its state and its models are exact either way.
        read = {REGISTRY}.union(*(s.inputs for s in made))
        made = [replace(s, ahead=frozenset(s.outputs) - read) for s in made]
    return tuple(made)


def _event_stage(
    app: App,
    known: dict[str, type[Event]],
    main: str,
    sets: list[type[Features]],
    models: list[Model],
    refused_by: dict[str, str],
    now: Callable[[], float],
    memory: Memory | None,
) -> Stage:
    """Features, predictions and outcomes of one topic's events, in one task a partition."""
    outcomes = _outcomes(models, sets)
    inputs = dict.fromkeys([main, *(o.event.contract.topic for o in outcomes)])
    inputs.update(dict.fromkeys(s.name for one in sets for s in sources(one) if s.name in known))
    if app.partitions > 1:
        _check_partitioning(known[main], sets, outcomes, app.partitions)
    refusing = [t for t in inputs if refused_by.setdefault(t, main) == main]
    # A stream of outcomes is made of the events that bring them.
    made_of = [s.origin for one in sets if declaration(one).window is not None for s in sources(one)]
    windowed = {(o.event if isinstance(o, Outcome) else _event(o)).contract.topic for o in made_of}
    outputs = [f"{t}.{kind}" for t in refusing for kind in ("rejected", "late")]
    outputs += [f"features.{s.__name__}" for s in sets if declaration(s).publish and declaration(s).public]
    for model in models:
        outputs.append(f"predictions.{model.name}")
        outputs += [f"outcomes.{model.name}"] if model.outcome else []
        outputs += [f"drift.{model.name}"] if any(w.moment == "prediction" for w in model.watch) else []
    group = f"{app.name}.{main}"

    def build(number: int, store: Store) -> tuple[Task, list[Follow]]:
        operators: list[Operator] = [Match(o) for o in outcomes]
        operators += [operator(s, memory) for s in sets]
        follows = []
        for model in models:
            scorer = Scorer(model, model_columns(model), baselines(model), now)
            operators.append(scorer)
            if model.outcome is not None:
                operators.append(Settle(model.name, model.outcome, scorer.column))
                follows.append(Follow(Partition(REGISTRY, 0), scorer.follow))
            if any(w.moment == "prediction" for w in model.watch):
                seen = {name: column for column, name in model_columns(model)} | {"score": scorer.scores}
                operators.append(DriftMonitor(model, "prediction", seen))
        keyless = app.partitions == 1
        sources = [_source(known[t], keyless, t in refusing, t in windowed) for t in inputs]
        read = [Input(source, Partition(source.topic, number)) for source in sources]
        changelog = Partition(f"{group}.changelog", number)
        hurries = Partition(f"{group}.hurries", number) if len(read) > 1 else None
        program = _program(sets, outcomes, models)
        return Task(main, number, read, operators, store, changelog, program, hurries), follows

    return Stage(main, group, app.partitions, tuple(inputs), tuple(outputs), build)


def _derived_stage(app: App, main: str, sets: list[type[Features]], memory: Memory | None) -> Stage:
    """Feature sets over what another set publishes, in one task a partition."""
    said = declaration(sets[0])
    above, stream = upstream(sets[0]), said.of
    assert above is not None
    if app.partitions > 1:
        _check_sets(said.key, main, sets, app.partitions)
    group = f"{app.name}.{main}"
    outputs = [f"features.{s.__name__}" for s in sets if declaration(s).publish and declaration(s).public]

    def build(number: int, store: Store) -> tuple[Task, list[Follow]]:
        source = Source(main, RowCodec(stream, declaration(above)), stream.out_of_orderness, stream.lateness)
        changelog = Partition(f"{group}.changelog", number)
        program = _program([above, *sets], [], [])
        read = [Input(source, Partition(main, number))]
        return Task(main, number, read, [operator(s, memory) for s in sets], store, changelog, program), []

    return Stage(main, group, app.partitions, (main,), tuple(outputs), build)


def _learning_stage(app: App, model: Model) -> Stage:
    """What a model learns of its outcomes, in one total order: one partition."""
    name = f"learn.{model.name}"
    group = f"{app.name}.{name}"
    topic = f"outcomes.{model.name}"

    def build(number: int, store: Store) -> tuple[Task, list[Follow]]:
        columns = _outcome_columns(model)
        operators: list[Operator] = [Mature(model.name, columns), Learner(model, columns), Evaluator(model)]
        if any(w.moment == "outcome" for w in model.watch):
            operators.append(DriftMonitor(model, "outcome"))
        read = [Input(Source(topic, OutcomeCodec(columns)), Partition(topic, number))]
        changelog = Partition(f"{group}.changelog", number)
        return Task(name, number, read, operators, store, changelog, _learnt(model)), []

    outputs = (REGISTRY, f"metrics.{model.name}", f"drift.{model.name}")
    return Stage(name, group, 1, (topic,), outputs, build)


def _outcome_columns(model: Model) -> OutcomeColumns:
    texts = {f.name: f.kind == "str" for one in model.features for f in columns(one)}
    features = [(name, texts[column]) for column, name in model_columns(model)]
    return OutcomeColumns(features, ["base", *baselines(model)])


def baselines(model: Model) -> dict[str, str]:
    """The baselines of a model: name to column of the batch."""
    found = {}
    for name, reference in model.baselines.items():
        if not isinstance(reference, Reference):
            raise DeclarationError(
                f"model {model.name}: baseline {name!r} is no feature of a set, such as Item._rate; "
                f"declare it in one of its feature sets (a leading underscore keeps it from the model)"
            )
        if reference.set not in model.features:
            raise DeclarationError(
                f"model {model.name}: baseline {name!r} is {reference.name}, of none of its features"
            )
        found[name] = reference.name
    return found


def _check_partitioning(
    main: type[Event], sets: list[type[Features]], outcomes: list[Outcome], partitions: int
) -> None:
    """With several partitions, all that a key needs must lie in the partition of that key."""
    key = main.contract.key
    _check_sets(key, main.contract.topic, sets, partitions)
    for outcome in outcomes:
        if key not in outcome.match:
            raise DeclarationError(
                f"the outcome is matched on {', '.join(outcome.match)}, but {main.contract.topic} is partitioned by "
                f"{key}: add it to match, or use App(partitions=1)"
            )


def _check_sets(key: str, topic: str, sets: list[type[Features]], partitions: int) -> None:
    """A topic is partitioned by `key`, if by any field."""
    for one in sets:
        said = declaration(one)
        by = list(said.by)
        if by and key not in by:
            keyed = f"is partitioned by {key}" if key else "lies in the partitions of the events it comes of"
            raise DeclarationError(
                f"{one.__name__} is by {', '.join(by)}, but {topic} {keyed}: over "
                f"{partitions} partitions no task sees all of one {by[0]}. Use App(partitions=1)"
            )
        if not by and any(True for e in said.expressions.values() for _ in aggregates(e)):
            raise DeclarationError(
                f"{one.__name__} is by nothing, so it is of all events of {topic}: over {partitions} partitions no "
                f"task sees them all. Use App(partitions=1), or add by=<field>"
            )
        for stream in sources(one):
            theirs = said.beside.get(stream.name)
            if theirs is None:
                continue
            other, same = _event(stream.origin).contract.key, theirs[key]
            if not (isinstance(same, Col) and same.name == other):
                raise DeclarationError(
                    f"{one.__name__} finds its {key} in {stream.name} by {same}, but {stream.name} is partitioned by "
                    f"{other}: over {partitions} partitions no task sees all of one {key}. Use App(partitions=1)"
                )


def _source(event: type[Event], keyless: bool, refusing: bool, windowed: bool) -> Source:
    contract = event.contract
    topic = contract.topic
    return Source(
        topic,
        codec(event, keyless),
        contract.out_of_orderness,
        contract.lateness,
        f"{topic}.rejected",
        f"{topic}.late",
        refusing,
        0 if windowed else WAKE,
    )


def _program(sets: list[type[Features]], outcomes: list[Outcome], models: list[Model]) -> str:
    """A fingerprint of what shapes the state: another one's state is refused."""
    parts = [f"layout {LAYOUT}"] if sets else []
    for one in sets:
        said = declaration(one)
        shape = [f"{n}={e}" for part in (said.by, said.features) for n, e in part.items()]
        shape += [f"{n} in {stream}={e}" for stream, by in said.beside.items() for n, e in by.items()]
        shape += [f"{what} {how}" for what, how in (("where", said.where), ("clock", said.clock)) if how is not None]
        parts.append(f"{said.name} of {said.of.name} {said.window} {' '.join(shape)}")
    parts += [f"{o.known_stream} {o.match} {o.within} {o.quantity}" for o in outcomes]
    parts += [f"{m.name} {[w.key for w in m.watch]}" for m in models]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _learnt(model: Model) -> str:
    """A fingerprint of what shapes the state of learning."""
    assert model.outcome is not None
    shape = [
        artifacts.fingerprint(model.learner.clone()), model.outcome.prior, model.outcome.within, model.publish_every,
        model_columns(model), list(model.baselines), [w.key for w in model.watch],
    ]  # fmt: skip
    return hashlib.sha256(repr(shape).encode()).hexdigest()[:16]


def topics(app: App) -> tuple[Topic, ...]:
    """Every topic of an application, sources first, each once."""
    large = {**FOREVER, "max.message.bytes": str(2 * MAX_EVENT_BYTES)}
    found: dict[str, Topic] = {}

    def add(topic: Topic) -> None:
        found.setdefault(topic.name, topic)

    for event in events(app):
        add(Topic(event.contract.topic, "event", app.partitions, event, large))
    laid = stages(app)
    kinds = ("features", "predictions", "outcomes", "metrics", "drift")
    for stage in laid:
        for name in stage.outputs:
            kind = next((k for k in kinds if name.startswith(f"{k}.")), None)
            if name == REGISTRY:
                add(Topic(name, "registry", 1, None, COMPACTED))
            elif kind in ("features", "predictions"):
                add(Topic(name, cast(Kind, kind), app.partitions, None, FOREVER))
            elif kind is not None:
                add(Topic(name, cast(Kind, kind), 1, None, FOREVER))
            else:
                kept = {**FOREVER, "max.message.bytes": LARGEST}
                add(Topic(name, "rejected" if name.endswith(".rejected") else "late", app.partitions, None, kept))
    for stage in laid:
        add(Topic(stage.changelog, "changelog", stage.partitions, None, COMPACTED))
        if stage.hurries:
            add(Topic(stage.hurries, "changelog", stage.partitions, None, FOREVER))
    return tuple(found.values())


def processors(app: App) -> tuple[Processor, ...]:
    """Every processor, upstream first."""
    return tuple(Processor(s.name, s.group, s.inputs, s.outputs, s.partitions) for s in stages(app))
