"""`headrace run` with the worker that does nothing."""

from __future__ import annotations

from headrace.command import main
from headrace.stack import Stack

if __name__ == "__main__":
    Stack.worker_module = "tests.headrace.stub_worker"
    main()
