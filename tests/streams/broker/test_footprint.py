"""How soon the broker's process serves, and how little it takes while nobody asks."""

import subprocess
import sys
import time
from pathlib import Path

START = """
import runpy, sys
sys.modules["hypothesis"] = None  # kio takes it along where it finds it, which is in tests alone
sys.argv = ["broker", *sys.argv[1:]]
runpy.run_module("headrace.streams.broker", run_name="__main__")
"""
START_CPU_SECONDS = 1.0
"""Of the processor, since the clock tells what else the machine has to do; it was 0.25 when this was written."""
IDLE_KB = 100_000


def test_it_starts_within_a_second_and_idles_within_100_mb(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START, "--data", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as broker:
        assert broker.stdout is not None
        assert broker.stdout.readline().startswith(b"ready")
        fields = Path(f"/proc/{broker.pid}/stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / 100
        time.sleep(0.3)
        status = Path(f"/proc/{broker.pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0])
        broker.terminate()
    assert seconds < START_CPU_SECONDS
    assert resident < IDLE_KB


def test_the_process_carries_none_of_what_the_broker_does_not_need() -> None:
    heavy = ("numba", "scipy", "river", "fastapi", "nicegui")
    code = f"import headrace.streams.broker.__main__, sys; print([n for n in {heavy} if n in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
