"""Runs the workloads of `demist bench` in PyTorch and writes the same report.

    python benches/compare/pytorch.py --json pytorch.json
    demist bench --json demist.json
    demist bench --compare pytorch.json demist.json

With `--demist target/release/demist` both take turns, so that what else the machine does
meets both, and the ratios are printed at once. Needs nothing but torch. `README.md` beside
this file says how the two are made to do the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from workloads import DIRECTIONS, FLOPS, WORKLOADS, Case, Run, Settings, Workload

# As in src/bench/measure.rs: runs are queued until they last this long in seconds, most
# runs of a round, and rounds that are worth a median and that are enough for one.
ROUND = 0.02
MOST_QUEUED = 32
LEAST_ROUNDS, MOST_ROUNDS = 3, 200

# A case of a report, with the keys of `CaseResult` in src/bench/report.rs.
Result = dict[str, Any]


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def measure(run: Run, device: torch.device, args: argparse.Namespace) -> list[float]:
    """Seconds of a run in each of the rounds, after two runs to warm up.

    What the first run does beside, compiling and choosing algorithms, is not within the
    budget of `--seconds`.
    """
    seconds: float = args.seconds
    clock = time.process_time if args.cpu else time.perf_counter

    def one_round(runs: int) -> float:
        begun = clock()
        for _ in range(runs):
            run()
        wait(device)
        return (clock() - begun) / runs

    one_round(1)
    begun = time.perf_counter()
    queued = min(math.ceil(ROUND / one_round(1)), MOST_QUEUED)
    times: list[float] = []
    while len(times) < MOST_ROUNDS:
        spent = time.perf_counter() - begun
        enough = len(times) >= LEAST_ROUNDS or spent > 3 * seconds
        if times and spent > seconds and enough:
            break
        times.append(one_round(queued))
    return times


def result(case: Case, settings: Settings, times: list[float]) -> Result:
    """A case of the report."""
    median = statistics.median(times)
    flops = FLOPS[case.name]
    order = "channels last" if settings.channels_last else "channels first"
    return {
        "workload": case.workload,
        "op": case.op,
        "direction": case.direction,
        "half": settings.dtype != torch.float32,
        "variant": "default",
        "chosen": f"{'compiled' if settings.compiled else 'eager'}, {order}",
        "chosen_by": "rule",
        "shape": list(case.shape),
        "median_ms": median * 1e3,
        "min_ms": min(times) * 1e3,
        "rounds": len(times),
        "gflop": flops / 1e9,
        "gflops": flops / 1e9 / median,
    }


def name_of(found: Result) -> str:
    """What demist calls a case of a report."""
    half = " in half" if found["half"] else ""
    return f"{found['workload']} {found['op']} {DIRECTIONS[found['direction']]}{half}"


def processor() -> str:
    """The processor's name, or what the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def adapter(device: torch.device) -> str:
    """The name of what computes."""
    named = {"cuda": torch.cuda, "xpu": torch.xpu}.get(device.type)
    return named.get_device_name(device) if named else processor()


def driver(settings: Settings) -> str:
    """What lies between PyTorch and the device, and how it is used."""
    device, parts = settings.device.type, [f"torch {torch.__version__}"]
    if device == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        threads = torch.get_num_threads()
        parts += [capability, f"{threads} thread{'s' if threads > 1 else ''}"]
    if device == "cuda":
        version = torch.version.cuda
        parts.append(f"CUDA {version}" if version else f"ROCm {torch.version.hip}")
        parts.append(f"cuDNN {torch.backends.cudnn.version()}")
    parts.append(str(settings.dtype).removeprefix("torch."))
    parts.append("compiled" if settings.compiled else "eager")
    return ", ".join(parts)


def report(settings: Settings, cpu: bool, cases: list[Result]) -> dict[str, Any]:
    """The report, with the keys of `Report` in src/bench/report.rs."""
    return {
        "program": "PyTorch",
        "version": torch.__version__,
        "commit": torch.version.git_version,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "adapter": adapter(settings.device),
        "driver": driver(settings),
        "backend": settings.device.type,
        "time": "processor" if cpu else "elapsed",
        "cases": cases,
    }


def prepared(workload: Workload, settings: Settings) -> Iterator[tuple[Case, Run]]:
    """The cases of a workload that fit the device's memory, ready to run."""
    for case in workload.cases:
        try:
            run = case.prepare(settings)
            run()
            wait(settings.device)
            yield case, run
        except torch.OutOfMemoryError as error:
            print(f"{case.name} left out: {error}", file=sys.stderr)


def release(settings: Settings) -> None:
    """Gives back what the last workload held."""
    gc.collect()
    torch.compiler.reset()
    if settings.device.type != "cpu":
        torch.accelerator.empty_cache()


def ask_demist(args: argparse.Namespace, workload: str) -> dict[str, Any]:
    """The report of `demist bench` on one workload."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [args.demist.resolve(), "bench", "--workload", workload, "--json", path]
        command += ["--seconds", str(args.seconds)]
        command += ["--half"] if args.dtype != "float32" else []
        command += ["--cpu"] if args.cpu else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"demist bench --workload {workload} failed: {done.stderr.strip()}")
        return json.loads(path.read_text())


def middle(runs: list[Result]) -> Result:
    """Of the same case measured several times, the one with the middle time."""
    return sorted(runs, key=lambda run: run["median_ms"])[(len(runs) - 1) // 2]


class Session:
    """Measures workloads, one after the other, and prints a line for each case."""

    def __init__(self, args: argparse.Namespace, settings: Settings) -> None:
        self.args, self.settings = args, settings
        self.ours: list[Result] = []
        # demist's report, its cases replaced by the middle ones.
        self.theirs: dict[str, Any] = {}

    def run(self, workloads: list[Workload]) -> None:
        self.print_header()
        for workload in workloads:
            self.run_workload(workload)
            release(self.settings)

    def run_workload(self, workload: Workload) -> None:
        """Both systems in turns, as often as asked."""
        cases = list(prepared(workload, self.settings))
        ours: dict[str, list[Result]] = {}
        theirs: dict[str, list[Result]] = {}
        for _ in range(self.args.turns if self.args.demist else 1):
            for case, run in cases:
                times = measure(run, self.settings.device, self.args)
                found = result(case, self.settings, times)
                ours.setdefault(name_of(found), []).append(found)
            for found in self.turn_of_demist(workload):
                theirs.setdefault(name_of(found), []).append(found)
        for name, runs in ours.items():
            self.ours.append(middle(runs))
            self.print_row(name, middle(runs), middle(theirs[name]) if name in theirs else None)
        if self.args.demist:
            self.theirs["cases"] += [middle(runs) for runs in theirs.values()]

    def turn_of_demist(self, workload: Workload) -> list[Result]:
        if not self.args.demist:
            return []
        found = ask_demist(self.args, workload.id)
        if not self.theirs:
            self.theirs = {**found, "cases": []}
            print(f"demist   {found['adapter']} ({found['driver']})", file=sys.stderr)
        return found["cases"]

    def print_header(self) -> None:
        s = self.settings
        print(f"PyTorch  {adapter(s.device)} ({driver(s)})", file=sys.stderr)
        if self.args.demist:
            print(f"{'case':<42}  {'PyTorch ms':>10}  {'demist ms':>10}  {'demist / PyTorch':>16}")
        else:
            print(f"{'case':<42}  {'median ms':>10}  {'min ms':>10}  {'GFLOP/s':>10}")

    def print_row(self, name: str, ours: Result, theirs: Result | None) -> None:
        median = ours["median_ms"]
        if theirs:
            other = theirs["median_ms"]
            columns = f"{median:>10.3f}  {other:>10.3f}  {other / median:>16.3f}"
        elif self.args.demist:
            columns = f"{median:>10.3f}  {'missing':>10}  {'-':>16}"
        else:
            columns = f"{median:>10.3f}  {ours['min_ms']:>10.3f}  {ours['gflops']:>10.2f}"
        print(f"{name:<42}  {columns}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--json", type=Path, metavar="FILE", help="write PyTorch's report")
    option("--demist", type=Path, metavar="PROGRAM", help="take turns with this demist")
    option("--demist-json", type=Path, metavar="FILE", help="with --demist: write its report")
    option("--turns", type=int, default=3, help="with --demist: turns of each (3)")
    option("--device", help="cpu, cuda, mps or xpu (the fastest that torch finds)")
    option("--mode", choices=["eager", "compile"], default="eager")
    option("--dtype", choices=["float32", "bfloat16"], default="float32")
    option("--channels-last", action="store_true", help="images as [n, h, w, c] in memory")
    option("--workload", metavar="W1,..", help="only these; else all, the large ones on GPUs")
    option("--seconds", type=float, default=1.0, help="about how long to measure a case (1)")
    option("--cpu", action="store_true", help="processor time, of one thread: for a busy machine")
    option("--threads", type=int, help="threads on a processor (all of them, 1 with --cpu)")
    args = parser.parse_args()
    if args.demist_json and not args.demist:
        parser.error("--demist-json needs --demist")
    if args.demist and not args.demist.is_file():
        parser.error(f"{args.demist}: there is no such program")
    if args.turns < 1 or args.seconds <= 0 or (args.threads is not None and args.threads < 1):
        parser.error("--turns, --seconds and --threads must be above 0")
    return args


def settings_of(args: argparse.Namespace) -> Settings:
    """What the arguments ask of PyTorch."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device(args.device or found or "cpu")
    if device.type != "cpu" and found is None:
        sys.exit(f"torch {torch.__version__} finds no {device}")
    if args.threads or args.cpu:
        # Threads that wait for each other spin, which would count as time.
        torch.set_num_threads(args.threads or 1)
    # Full precision, and the fastest algorithm for each shape.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    return Settings(device, dtype, args.mode == "compile", args.channels_last)


def warn_if_busy(settings: Settings) -> None:
    """Says so if others use the processor that PyTorch will be measured on."""
    if settings.device.type != "cpu" or not hasattr(os, "getloadavg"):
        return
    if os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
        print("the machine is busy: --cpu will say more than elapsed time", file=sys.stderr)


def chosen(names: str | None, device: torch.device) -> list[Workload]:
    """The named workloads, or those that are not too much for the device."""
    if names is None:
        return [w for w in WORKLOADS if device.type != "cpu" or not w.heavy]
    asked = names.upper().split(",")
    unknown = set(asked) - {w.id for w in WORKLOADS}
    if unknown:
        sys.exit(f"no workload {', '.join(sorted(unknown))}; there are W1 to W9")
    return [w for w in WORKLOADS if w.id in asked]


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path}")


def main() -> None:
    args = arguments()
    settings = settings_of(args)
    if not args.cpu:
        warn_if_busy(settings)
    session = Session(args, settings)
    if args.cpu and settings.device.type != "cpu":
        sys.exit("--cpu does not count what a GPU does")
    session.run(chosen(args.workload, settings.device))
    if args.json:
        write(args.json, report(settings, args.cpu, session.ours))
    if args.demist_json:
        write(args.demist_json, session.theirs)


if __name__ == "__main__":
    main()
