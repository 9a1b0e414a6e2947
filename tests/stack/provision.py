"""What `make test-stack` needs beside Python packages: a browser, from the system's package manager."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys


def main() -> int:
    if shutil.which("chromium"):
        return 0
    if shutil.which("apt-get") is None:
        print("make test-stack needs Chromium on the PATH; install it with your package manager", file=sys.stderr)
        return 1
    print("installing Chromium", flush=True)
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    subprocess.run([*sudo, "apt-get", "update", "-qq"], check=True)
    subprocess.run([*sudo, "apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
