"""Reports as people read them."""

from __future__ import annotations

from headrace.reports import cells


def test_a_pid_can_be_pasted_and_an_estimate_says_so() -> None:
    assert cells({"process": "worker", "pid": 13065, "metrics": None}) == {
        "process": "worker",
        "pid": "13065",
        "metrics": "-",
    }
    shown = cells({"topic": "features.Customer", "records": 9705, "exact": False, "records/s": 0.0})
    assert shown == {"topic": "features.Customer", "records": "~9,705", "records/s": "0.0"}
    assert cells({"topic": "orders", "records": 9848, "exact": True})["records"] == "9,848"
