"""Models as bytes, and what makes two of them the same.

A pickle can run anything when it is read, so stored models are read through an allow-list: classes of river, and
the few containers and rebuilders that they are made of.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

from headrace.models.errors import ArtifactError
from river import base

PROTOCOL = 5

MAX_ARTIFACT_BYTES = 64 << 20
"""A larger model would not fit a record of the registry; it needs an artifact store."""

_PLAIN: frozenset[tuple[str, str]] = frozenset(
    {
        ("builtins", name)
        for name in (
            "set",
            "frozenset",
            "dict",
            "list",
            "tuple",
            "int",
            "float",
            "bool",
            "str",
            "bytes",
            "complex",
            "range",
            "slice",
            "bytearray",
        )
    }
    | {
        ("collections", "defaultdict"),
        ("collections", "deque"),
        ("collections", "Counter"),
        ("collections", "OrderedDict"),
        ("functools", "partial"),
        ("datetime", "datetime"),
        ("datetime", "timedelta"),
        ("copyreg", "_reconstructor"),
        ("builtins", "object"),
        ("random", "Random"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
    }
)


class _AllowListed(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        if module == "river" or module.startswith(("river.", "headrace.models.")):
            found = super().find_class(module, name)
            # Classes and the rebuilders that Cython makes for them; never an arbitrary function.
            if isinstance(found, type) or name.startswith("__pyx_unpickle_"):
                return found
        raise ArtifactError(
            f"the stored model names {module}.{name}, which is not on the allow-list of river's classes; "
            f"it was not read. Train it again, or publish it from a program you trust"
        )


def dump(model: object) -> bytes:
    """The model as bytes. Raises ArtifactError where it cannot be stored."""
    try:
        data = pickle.dumps(model, PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
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


def fingerprint(model: base.Base) -> str:
    """Equal for models of equal state, whatever objects they share: the first 16 hex digits of SHA-256.

    A pickle differs where two equal strings are one object in one model and two in the other, so it is written
    without a memo.
    """
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, PROTOCOL)
    pickler.fast = True
    try:
        pickler.dump(model)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the model {type(model).__name__} cannot be compared: {error}") from error
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
