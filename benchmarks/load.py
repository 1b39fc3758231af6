"""Requests a second of `convlens serve`, with batches and without, by wrk (a Debian package) on loopback.

    python benchmarks/load.py MODEL PICTURE [--seconds 15] [--connections 64] [--rounds 3] [--threads 1]

One server with `--max-batch 1` and one with batches, the same program otherwise, are measured in turn; every request
posts the picture as it is. Medians of the rounds. `--minutes 5` measures the one with batches once, that long, and its
memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LUA = """
local file = io.open(%s, "rb"); wrk.body = file:read("*a"); file:close()
wrk.method = "POST"; wrk.headers["Content-Type"] = "image/png"
done = function(summary, latency)
  local bad = summary.errors
  io.write(string.format("RESULT %%d %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), bad.status, bad.connect + bad.read + bad.write + bad.timeout))
end
"""


@contextmanager
def served(model: Path, *flags: str) -> Iterator[tuple[str, int]]:
    """The server's address and process."""
    command = [sys.executable, "-m", "convlens", "serve", str(model), "--port", "0", "--json", "--no-log", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        try:
            yield told["url"], server.pid
        finally:
            server.terminate()


def wrk(url: str, script: Path, connections: int, seconds: float) -> dict[str, float]:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s", "-s", str(script)]
    done = subprocess.run([*command, f"{url}/v1/predict"], capture_output=True, text=True, check=True)
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
    assert found, done.stdout
    count, duration, half, most, status, failed = map(int, found.groups())
    return {
        "per_second": round(count / duration * 1e6),
        "p50_ms": round(half / 1e3, 1),
        "p99_ms": round(most / 1e3, 1),
        "errors": status + failed,
    }


def resident(process: int) -> int:
    """MB."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[0]) // 1024


def seconds_of(process: int) -> float:
    """Of a processor, so far."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--wait", type=float, default=2)
    parser.add_argument("--minutes", type=float, default=0)
    options = parser.parse_args()
    threads = ["--threads", str(options.threads)]
    ways = {
        "without": [*threads, "--max-batch", "1"],
        "batched": [*threads, "--max-batch", str(options.batch), "--batch-wait", str(options.wait)],
    }
    found: dict[str, object] = {"cores": os.cpu_count(), "connections": options.connections}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        script.write_text(LUA % json.dumps(str(options.picture.resolve())))
        if options.minutes:
            found["long"] = long(options, ways["batched"], script)
        else:
            found |= in_turn(options, ways, script)
    print(json.dumps(found, indent=2))


def in_turn(options: argparse.Namespace, ways: dict[str, list[str]], script: Path) -> dict[str, object]:
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, flags in ways.items():
            with served(options.model, *flags) as (url, process):
                wrk(url, script, options.connections, 2)  # warm
                before = seconds_of(process)
                told = wrk(url, script, options.connections, options.seconds)
                told["cores_used"] = round((seconds_of(process) - before) / options.seconds, 2)
            rounds[name].append(told)
    ratios = [b["per_second"] / a["per_second"] for a, b in zip(rounds["without"], rounds["batched"], strict=True)]
    medians = {name: {key: statistics.median(r[key] for r in own) for key in own[0]} for name, own in rounds.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 2), "ratios": [round(r, 2) for r in ratios]}


def long(options: argparse.Namespace, flags: list[str], script: Path) -> dict[str, object]:
    with served(options.model, *flags) as (url, process):
        wrk(url, script, options.connections, 10)
        memory, parts = [resident(process)], list[dict[str, float]]()
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            parts.append(wrk(url, script, options.connections, 30))
            memory.append(resident(process))
    return {
        "per_second": statistics.median(part["per_second"] for part in parts),
        "p99_ms": max(part["p99_ms"] for part in parts),
        "errors": sum(part["errors"] for part in parts),
        "resident_mb": memory,
    }


if __name__ == "__main__":
    main()
