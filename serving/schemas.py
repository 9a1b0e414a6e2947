"""The schemas of events, as OpenAPI tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from headrace.streams.event import Event
from headrace.streams.topics import Topic

REF = "#/components/schemas/{name}"


def schema_of(event: type[Event]) -> dict[str, Any]:
    """The JSON schema of an event."""
    return msgspec.json.schema(event)


def add_schemas(app: FastAPI, topics: Sequence[Topic]) -> None:
    """Let the OpenAPI document of the gateway name the events of its topics."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        document = plain()
        events = [t.event for t in topics if t.event is not None]
        refs, components = msgspec.json.schema_components(events, ref_template=REF)
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        post = document["paths"]["/topics/{topic}"]["post"]
        one = {"oneOf": list(refs)} if refs else {}
        post["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {"schema": one},
                "application/x-ndjson": {"schema": {"type": "string", "description": "an event a line"}},
            },
        }
        names = [t.name for t in topics if t.event is not None]
        for parameter in post.get("parameters", []):
            if parameter["name"] == "topic":
                parameter["schema"] = {"type": "string", "enum": names} if names else {"type": "string"}
        for status, why in _ANSWERS.items():
            post["responses"][status] = {"description": why}
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation tells to extend it


_ANSWERS = {
    "404": "no such topic; near names are told",
    "405": "the topic is written by the program",
    "408": "the body did not end in time",
    "413": "the body is too large, or holds too many events",
    "415": "the content type is neither JSON nor NDJSON",
    "422": "an event breaks its contract: `reason`, `field`, and for NDJSON `line` and all `errors`",
    "503": "the log does not answer, or too many requests are publishing; see Retry-After",
}
