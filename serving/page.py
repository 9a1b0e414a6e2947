"""The live page."""

from __future__ import annotations

from fastapi import FastAPI
from headrace.serving.gateway import Settings


def mount(app: FastAPI, settings: Settings) -> None:
    pass
