"""What is asked of the history of a sound broker: that nothing is wrong, and that much has happened."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.history.checker import anomalies
from tests.history.history import Fault, History, Outcome, Send, Transaction

SHOWN = 20
"""Anomalies printed: one cause often has thousands."""


def assert_sound(history: History, file: Path, seed: int, least: int) -> None:
    """Nothing is wrong, and enough has happened for that to say something; the history is kept in a file."""
    history.save(file)
    found = anomalies(history)
    sends = Counter(send.outcome for send in history.all(Send))
    ends = Counter((transaction.commit, transaction.outcome) for transaction in history.all(Transaction))
    faults = Counter(fault.kind for fault in history.all(Fault))
    print(f"SEED={seed}: {sends.total()} records, {ends.total()} transactions, {dict(faults)}")
    shown = "\n".join(map(str, found[:SHOWN]))
    assert not found, f"SEED={seed}; {len(found)} anomalies in {file}, as:\n{shown}"
    assert sends[Outcome.OK] >= least
    assert ends[True, Outcome.OK] >= least / 100
    assert ends[False, Outcome.OK] >= least / 200
    assert sends[Outcome.FAIL] > 0
