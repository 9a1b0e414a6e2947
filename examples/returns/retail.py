"""Online Retail II as events: every line of the file, in the order of time."""

from __future__ import annotations

import csv
import lzma
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
from headrace.streams.publisher import Row

from headrace import data

SAMPLE = Path(__file__).parent / "data" / "online_retail_120_days.csv.xz"


class Line(NamedTuple):
    topic: str
    row: Row


def file(which: str) -> Path:
    """The file of `sample` (the first 120 days, shipped) or `full` (all of it, fetched once)."""
    return SAMPLE if which == "sample" else data.fetch("online-retail")


def lines(path: Path) -> list[Line]:
    """Every line as a record for `orders` or `returns`.

    Sorted by time, lines of one minute in the file's order: its second sheet begins nine days before its first ends.
    Nothing is left out or mended here: what breaks the contract is for the pipeline to reject.
    """
    with lzma.open(path, "rt", encoding="utf-8", newline="") as text:
        timed = sorted(_parsed(text), key=lambda pair: pair[0])
    return [line for _, line in timed]


def _parsed(text: Iterator[str]) -> Iterator[tuple[str, Line]]:
    encode = msgspec.json.Encoder().encode
    moments: dict[str, str] = {}
    for record in csv.DictReader(text):
        moment = moments.get(record["InvoiceDate"])
        if moment is None:
            at = datetime.strptime(record["InvoiceDate"], "%m/%d/%Y %H:%M").replace(tzinfo=UTC)
            moment = moments[record["InvoiceDate"]] = at.strftime("%Y-%m-%dT%H:%M:%SZ")
        customer = record["Customer ID"].removesuffix(".0")
        value = {
            "invoice": record["Invoice"],
            "customer": customer,
            "item": record["StockCode"],
            "description": record["Description"],
            "quantity": int(record["Quantity"]),
            "price": float(record["Price"]),
            "country": record["Country"],
            "at": moment,
        }
        topic = "returns" if record["Invoice"].startswith("C") else "orders"
        yield moment, Line(topic, Row(customer.encode() or None, encode(value)))
