"""Models as bytes, and what makes two of them the same.

A pickle can run anything when it is read, so stored models are read through an allow-list: classes of river and
methods of theirs, and the few containers and rebuilders that they are made of.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import types
from datetime import datetime, timedelta
from random import Random
from typing import Any

import numpy as np
from headrace.models.errors import ArtifactError
from river.proba.base import Distribution

PROTOCOL = 5

MAX_ARTIFACT_BYTES = 64 << 20
"""A larger model would not fit a record of the registry; it needs an artifact store."""

_PLAIN: frozenset[tuple[str, str]] = frozenset(
    {("builtins", name) for name in ("object", "set", "frozenset", "dict", "list", "tuple", "range", "slice")}
    | {("builtins", name) for name in ("int", "float", "complex", "bool", "str", "bytes", "bytearray")}
    | {("collections", name) for name in ("defaultdict", "deque", "Counter", "OrderedDict")}
    | {
        ("copy", "deepcopy"),
        ("copyreg", "_reconstructor"),
        ("datetime", "datetime"),
        ("datetime", "timedelta"),
        ("functools", "partial"),
        ("numbers", "Number"),
        ("random", "Random"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.random._mt19937", "MT19937"),
        ("numpy.random._pcg64", "PCG64"),
        ("numpy.random._pickle", "__bit_generator_ctor"),
        ("numpy.random._pickle", "__generator_ctor"),
        ("numpy.random._pickle", "__randomstate_ctor"),
        ("numpy.random.bit_generator", "SeedSequence"),
        ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
    }
)

_NO_MODELS = ("river.api", "river.checks", "river.datasets", "river.evaluate", "river.stream")
"""Packages of river that open files and sockets; no estimator is made of them."""

_PURE = ("river._river_rust.", "river.utils.math")
"""Where river's plain functions of numbers are; estimators hold them as distances and the like."""


class _AllowListed(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _method
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        package = ".".join(module.split(".")[:2])
        if module.startswith("river.") and package not in _NO_MODELS:
            found = super().find_class(module, name)
            if _is_rivers(found, module):
                return found
        raise _refused(f"{module}.{name}")


def _is_rivers(found: object, module: str) -> bool:
    """Whether this is river's own class, a method of one, or a plain function of numbers.

    A name may lead through river to what it imports (`river.stats.base.os.system`), so it is not the name that
    counts but where the thing found was defined.
    """
    if not str(getattr(found, "__module__", "")).startswith("river."):
        return False
    if isinstance(found, type):
        return True
    if isinstance(found, types.FunctionType) and "." in found.__qualname__:
        return True
    return callable(found) and module.startswith(_PURE)


def _method(owner: object, name: str) -> Any:
    """A bound method of an object of river, as pickles ask for it; in place of `getattr`."""
    kind = type(owner)
    found = getattr(kind, str(name), None)
    if not isinstance(found, types.FunctionType) or not all(m.__module__.startswith("river.") for m in (kind, found)):
        raise _refused(f"attribute {name!r} of {kind.__module__}.{kind.__name__}")
    return getattr(owner, name)


def _refused(what: str) -> ArtifactError:
    return ArtifactError(
        f"the stored model names {what}, which is not on the allow-list of river's classes; it was not read. "
        f"Use river's own parts, train it again, or read it in a program of your own that trusts it"
    )


def dump(model: object) -> bytes:
    """The model as bytes. Raises ArtifactError where it cannot be stored."""
    try:
        data = pickle.dumps(model, PROTOCOL)
    except Exception as error:
        raise ArtifactError(f"the model {type(model).__name__} cannot be stored: {error}") from error
    if len(data) > MAX_ARTIFACT_BYTES:
        raise ArtifactError(f"the model has {len(data):,} bytes; at most {MAX_ARTIFACT_BYTES:,} are stored")
    return data


def load(data: bytes) -> Any:
    """The model from its bytes. Raises ArtifactError where they name anything that is not allow-listed."""
    try:
        return _AllowListed(io.BytesIO(data)).load()
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"the stored model cannot be read: {type(error).__name__}: {error}") from error


_VALUES = (
    type(None), bool, int, float, complex, str, bytes, tuple, datetime, timedelta, type, np.generic, np.dtype,
    types.FunctionType, types.BuiltinFunctionType, types.MethodType,
)  # fmt: skip
"""What equals another of its value whichever object it is."""


class _Canonical(pickle.Pickler):
    """Writes equal states alike.

    A pickle tells whether two equal strings are one object, and the order of a set follows the process's hash
    seed. Here values are written out each time, sets in the order of their elements' bytes; only what can change
    has an identity, and is written once.
    """

    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer, PROTOCOL)
        self.fast = True
        # The objects themselves are kept, or a later one could take the place of one that has gone.
        self._met: dict[int, tuple[int, object]] = {}

    def persistent_id(self, thing: Any) -> tuple[object, ...] | None:
        if isinstance(thing, _VALUES):
            return None
        met = self._met.get(id(thing))
        if met is not None:
            return ("again", met[0])
        self._met[id(thing)] = (len(self._met), thing)
        if isinstance(thing, set | frozenset):
            return (type(thing).__name__, *sorted(map(_canonical, thing)))
        if isinstance(thing, Distribution):
            # It may be sampled, by a generator that river seeds from the clock; classifiers only ask for densities.
            return (type(thing).__name__, *((k, v) for k, v in vars(thing).items() if not isinstance(v, Random)))
        return None


def fingerprint(model: object) -> str:
    """Equal for models of equal state, whatever objects they share: the first 16 hex digits of SHA-256.

    Raises ArtifactError where it cannot be told.
    """
    return hashlib.sha256(_canonical(model)).hexdigest()[:16]


def _canonical(thing: object) -> bytes:
    buffer = io.BytesIO()
    try:
        _Canonical(buffer).dump(thing)
    except Exception as error:
        raise ArtifactError(f"the model {type(thing).__name__} cannot be compared: {error}") from error
    return buffer.getvalue()
