"""What `make test-stack` needs beside Python packages: a browser, Java, Maven, kcat, Prometheus and Redis from the
system's package manager, and Apache Kafka, which Maven fetches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.stack import kafka

NEEDED = {
    "chromium": "chromium",
    "javac": "default-jdk-headless",
    "mvn": "maven",
    "kcat": "kcat",
    "prometheus": "prometheus",
    "redis-server": "redis-server",
}
"""A command, and the Debian package that has it."""


def main() -> int:
    missing = {command: package for command, package in NEEDED.items() if not shutil.which(command)}
    if missing:
        if shutil.which("apt-get") is None:
            print(
                f"make test-stack needs {', '.join(missing)} on the PATH; install them with your package manager",
                file=sys.stderr,
            )
            return 1
        print(f"installing {', '.join(missing.values())}", flush=True)
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        subprocess.run([*sudo, "apt-get", "update", "-qq"], check=True)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
        subprocess.run([*sudo, *install, *missing.values()], check=True)
    kafka.provision()
    return 0


if __name__ == "__main__":
    sys.exit(main())
