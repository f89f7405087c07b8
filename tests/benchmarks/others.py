"""
Measure idle sockets, echoing, and what needs no sockets.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import ExitStack

from .bench import Bench
from .environments import PROGRAMS, Unavailable
from .life import names
from .peers import Client, Peer
from .processes import Broken, Child, progress


def idle(bench: Bench) -> None:
    """
    Measure the CPU time of servers with idle sockets, all at the same time.
    """
    with ExitStack() as stack:
        idlers: list[tuple[Peer, Child]] = []
        for peer in bench.peers:
            if "idle" not in peer.parts:
                continue
            progress(f"idle sockets of {peer.title}")
            try:
                server, client = stack.enter_context(bench.serving(peer))
                _fill(bench.plan.sockets, peer, server, client)
            except (Broken, Unavailable, OSError) as error:
                bench.left_out[f"idle sockets of {peer.title}"] = str(error)
                continue
            idlers.append((peer, server))
        time.sleep(10.0)  # until work left by opening them is done
        for number in range(2):
            progress(f"round {number + 1}: {bench.plan.idle:.0f} s of nothing")
            begin = {peer.name: (time.monotonic(), server.cpu()) for peer, server in idlers}
            time.sleep(bench.plan.idle)
            for peer, server in idlers:
                since, cpu = begin[peer.name]
                cost = (server.cpu() - cpu) / 1e3 / (time.monotonic() - since)
                bench.note("idle-cpu", peer.name, number, cost, bench.plan.sockets)


def _fill(sockets: int, peer: Peer, server: Child, client: Client) -> None:
    sids = names("s", sockets)
    peer.visit(client, server, sids)
    opened = peer.connect(client, server, sids, "idle")
    if opened.count < sockets:
        raise Broken(f"{opened.count} of {sockets} handshakes")


def echo(bench: Bench, peer: Peer, number: int) -> None:
    """
    Measure echoing over 16 sockets, with 16 messages in flight on each.
    """
    options = ["--echo"] if peer.arguments[0] == "programs.app" else []
    with bench.serving(peer, *options) as (server, client):
        sids = names("s", 16)
        peer.visit(client, server, sids)
        peer.connect(client, server, sids, "echo")
        load = {"group": "echo", "size": 32, "in_flight": 16}
        cpu = server.cpu()
        answer = client.ask("echo", seconds=bench.plan.echo, **load)
        bench.note("echo-cpu", peer.name, number, (server.cpu() - cpu) / answer["count"])
        bench.note("echo", peer.name, number, answer["count"] / answer["seconds"])


def in_process(bench: Bench, peer: Peer, number: int) -> None:
    """
    Measure what needs no sockets, in a process of its own.
    """
    interpreter = peer.interpreter()
    wanted = [part for part in ("middleware", "register", "ends") if part in bench.only]
    plan = bench.plan
    command = [*interpreter.command, "-m", "programs.in_process", "--rounds", str(plan.calls)]
    done = subprocess.run(
        [*command, "--records", str(plan.records), *wanted],
        cwd=PROGRAMS,
        capture_output=True,
        text=True,
        env={**os.environ, **dict(interpreter.variables)},
    )
    if done.returncode:
        raise Broken(done.stderr[-2000:])
    results = json.loads(done.stdout)
    if "middleware" in results:
        bench.note("middleware", "handler", number, results["middleware"]["bare"])
        bench.note("middleware", peer.name, number, results["middleware"]["ours"])
    for who, methods in results.get("register", {}).items():
        for method, nanoseconds in methods.items():
            name = "dictionary" if who == "bare" else peer.name
            bench.note(method, name, number, nanoseconds)
    if "ends" in results:
        ratio = results["ends"]["many"] / results["ends"]["few"]
        bench.note("end", peer.name, number, results["ends"]["many"], plan.records)
        bench.note("ends", peer.name, number, ratio, plan.records)
