"""
Measure what the package costs, compared with a floor (the least that the task takes) and with
alternatives.

Nothing is asserted: figures depend on the machine and on its load. Environments of the
alternatives are created when they are first needed, which takes a few minutes once.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from .bench import Bench, Plan
from .calls import calls, joined, published
from .cluster import cluster
from .environments import PROGRAMS, Unavailable, environment
from .life import STAGES, life, scaling
from .others import echo, idle, in_process
from .peers import all_peers
from .processes import progress, redis_server
from .report import as_json, table
from .turns import turns

IN_PROCESS: Final = frozenset({"middleware", "register", "ends"})
PARTS: Final = {
    "in-process": (in_process, IN_PROCESS),
    "life": (life, STAGES),
    "turns": (turns, frozenset({"turns"})),
    "echo": (echo, frozenset({"echo"})),
    "cluster": (cluster, frozenset({"cluster"})),
    "scaling": (scaling, frozenset({"scaling"})),
    "calls": (calls, frozenset({"calls"})),
    "joined": (joined, frozenset({"calls"})),
    "published": (published, frozenset({"calls"})),
}
CHOICES: Final = sorted({"idle"}.union(*(wanted_by for _, wanted_by in PARTS.values())))
QUICK: Final = Plan(
    rounds=1,
    sockets=2_000,
    curve=(100, 1_000),
    fresh=1_000,
    ones=40,
    idle=30.0,
    echo=1.0,
    orders=100,
    flood=5_000,
    burst=10_000,
    calls=7,
    records=100_000,
)
DESCRIPTORS: Final = 1_000  # file descriptors of a process besides its sockets'


def parse() -> argparse.Namespace:
    """
    Parse the command line.
    """
    names = [peer.name for peer in all_peers(Path())]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    add = parser.add_argument
    add("--only", metavar="WHAT,...", help=f"some of {', '.join(CHOICES)}")
    add("--peers", metavar="NAME,...", help=f"some of {', '.join(names)}")
    add("--quick", action="store_true", help="fewer sockets and one round: some five minutes")
    add("--rounds", type=int, metavar="N", help=f"default: {Plan().rounds}")
    add("--sockets", type=int, metavar="N", help=f"default: {Plan().sockets}")
    add("--before", type=Path, metavar="DIR", help="a checkout of another version, to compare")
    add("--unpinned", action="store_true", help="don't keep servers and clients on cores apart")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--plot", type=Path, metavar="DIR", help="draw them, light and dark")
    return parser.parse_args()


def plan(given: argparse.Namespace) -> Plan:
    """
    Return the plan, within the number of file descriptors that the system allows.
    """
    result = QUICK if given.quick else Plan()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = hard - DESCRIPTORS
    sockets = min(given.sockets or result.sockets, most)
    curve = [size for size in result.curve if size <= most]
    if not given.quick and most >= 50_000:
        curve.append(50_000)
    return replace(
        result,
        rounds=given.rounds or result.rounds,
        sockets=sockets,
        fresh=min(result.fresh, sockets // 2),
        curve=tuple(curve),
        pinned=not given.unpinned,
    )


def draw(json: Path, folder: Path) -> None:
    """
    Draw the figures, in an environment with matplotlib.
    """
    try:
        interpreter = environment("plot")
    except Unavailable as error:
        progress(f"nothing was drawn: {error}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    paths = str(json.resolve()), str(folder.resolve())
    command = [*interpreter.command, "-m", "programs.plot", *paths]
    subprocess.run(command, cwd=PROGRAMS, check=True)


def main() -> None:
    """
    Measure, and print, store and draw the figures.
    """
    given = parse()
    only = frozenset(given.only.split(",") if given.only else CHOICES)
    if unknown := only - frozenset(CHOICES):
        sys.exit(f"--only knows no {', '.join(sorted(unknown))}: it is {', '.join(CHOICES)}")
    peers = all_peers(given.before)
    if given.peers:
        chosen = given.peers.split(",")
        if unknown := frozenset(chosen) - {peer.name for peer in peers}:
            sys.exit(f"--peers knows no {', '.join(sorted(unknown))}")
        peers = [peer for peer in peers if peer.name in chosen]
    with redis_server() as redis:
        bench = Bench(plan(given), peers, only, redis)
        try:
            bench.run(PARTS)
            if "idle" in only:
                idle(bench)
        except KeyboardInterrupt:
            progress("interrupted: this is what was measured until now")
    for line in table(bench):
        sys.stdout.write(f"{line}\n")
    path = given.json or (given.plot and given.plot / "figures.json")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_json(bench) + "\n")
    if given.plot:
        draw(path, given.plot)


if __name__ == "__main__":
    main()
