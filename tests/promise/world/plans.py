"""
Random plans from seeds, and the shortest plan that still causes the same violation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from .actions import ABOUT_IDENTITIES, ACTIONS
from .exchange import ENDINGS, ENDPOINTS, GATES, Plan
from .oracle import Violation
from .steps import (
    Back,
    Config,
    Deliver,
    Drain,
    GoOn,
    Leave,
    Order,
    Outage,
    Restart,
    Say,
    SetClock,
    Step,
    Theft,
    Vanish,
    Visit,
    Wait,
)
from .world import BROWSERS

T = TypeVar("T")

STORAGES = ["simple"] * 4 + ["encrypted"] * 2 + ["nacl"] + ["memory"] * 2 + ["redis"]
#: The relative frequency of actions; 1 for all others.
WEIGHTS = {
    "read": 2,
    "open": 4,
    "stream": 2,
    "adopt": 1,
    "prove": 1,
    "log_in_renewed": 2,
    "log_in": 2,
    "renew": 2,
}
#: The probability that a request is held at a gate; 0.2 elsewhere.
PAUSES = {"handler": 0.3, "handled": 0.3}
#: Just over each timeout that matters: a slow handler, SETTLED, renewal_grace, MISSED.
WAITS = [0.2, 11.0, 31.0, 70.0]


def make_config(rng: random.Random) -> Config:
    """Choose the kind of a world."""
    identify = rng.random() < 0.75
    cluster = rng.choices(["", "memory", "redis"], [73, 24, 3])[0]
    return Config(
        storage=rng.choice(STORAGES),
        identify=identify,
        ids="derived" if rng.random() < 0.2 else "unique",
        cluster=cluster,
        legacy=rng.choice(["", "", "", "bare", "1.1.1"]),
        labels=identify and rng.random() < 0.4,
        journal=not cluster and rng.random() < 0.2,
        cancels=rng.random() < 0.4,
    )


def make_plan(rng: random.Random, config: Config) -> Plan:
    """Choose what a request does."""
    names = [name for name in ACTIONS if config.identify or name not in ABOUT_IDENTITIES]
    names += [name for name in ENDPOINTS if config.identify or name != "prove"]
    action = rng.choices(names, [WEIGHTS.get(name, 1) for name in names])[0]
    return Plan(
        action,
        user=rng.choice(["ann", "ann", "bob"]),
        device=rng.choice(["phone", "desk"]),
        ending=rng.choice(ENDINGS) if rng.random() < 0.15 else "return",
        pauses=tuple(gate for gate in GATES if rng.random() < PAUSES.get(gate, 0.2)),
        lost=rng.random() < 0.1,
        upgrade=rng.random() < 0.08,
        node=rng.randrange(config.nodes),
    )


def make_step(rng: random.Random, config: Config) -> Step:
    """Choose the next step."""
    kind = rng.random()
    if kind < 0.36:
        return Visit(rng.choice(BROWSERS), make_plan(rng, config))
    if kind < 0.46:
        return Theft(rng.randrange(100), make_plan(rng, config))
    if kind < 0.80:
        return GoOn(rng.randrange(100))
    if kind < 0.86:
        return Wait(rng.choice(WAITS))
    if kind < 0.91:
        return Vanish(rng.randrange(100))
    if kind < 0.92:
        return Leave(rng.randrange(100))
    if kind < 0.935:
        return SetClock(rng.choice([-70.0, -3.0, 3.0, 70.0]))
    if kind < 0.945 and config.nodes > 1:
        return Deliver(rng.randrange(100))
    if kind < 0.955 and config.identify:
        return Say(rng.randrange(100), rng.choice(["ann", "bob", ""]))
    if kind < 0.96 and config.journal:
        return Restart(kill=rng.random() < 0.5)
    if kind < 0.962:
        return Drain(rng.randrange(config.nodes), rng.choice([0.0, 3.0]))
    return make_order(rng, config)


def make_order(rng: random.Random, config: Config) -> Order:
    """Choose an administrator's order."""
    orders = ["end_session", "end_session", "close_all_session"]
    if config.identify:
        orders += ["end_identity", "end_identity", "close_all_identity"]
    if config.labels:
        orders += ["end_label", "end_label"]
    return Order(
        rng.choice(orders),
        rng.randrange(100),
        rng.choice(["ann", "ann", "bob"]),
        rng.choice(["phone", "desk"]),
        rng.randrange(config.nodes),
    )


def make_world(seed: int) -> tuple[Config, list[Step]]:
    """Generate the world of a seed: its kind and its steps."""
    rng = random.Random(seed)
    config = make_config(rng)
    steps: list[Step] = []
    steps += [Visit(name, Plan("log_in_renewed")) for name in BROWSERS if rng.random() < 0.4]
    for _ in range(rng.randrange(5, 30)):
        if rng.random() < 0.05:
            steps += impatient(rng, config)
        elif rng.random() < 0.05:
            steps += overtaken(rng, config)
        elif config.nodes > 1 and rng.random() < 0.1:
            steps += uninformed(rng, config)
        elif config.cluster == "redis" and rng.random() < 0.25:
            steps += cut_off(rng, config)
        elif config.identify and rng.random() < 0.05:
            steps += proven(rng, config)
        elif config.journal and rng.random() < 0.1:
            steps += restarted(rng, config)
        else:
            steps.append(make_step(rng, config))
    return config, steps


def impatient(rng: random.Random, config: Config) -> list[Step]:
    """Return a request whose client disconnects while it is held in the handler or after it."""
    plan = replace(make_plan(rng, config), pauses=(rng.choice(["handled", "identify", "save"]),))
    return [Visit(rng.choice(BROWSERS), plan), Vanish(-1)]


def uninformed(rng: random.Random, config: Config) -> list[Step]:
    """Return steps in which a node has queried lately, then misses an order given on another."""
    name, node = rng.choice(BROWSERS), rng.randrange(config.nodes)
    what = rng.choice(["end_session", "end_identity" if config.identify else "end_session"])
    plan = make_plan(rng, config)
    return [
        Visit(name, Plan("read", node=node)),
        Order(what, rng.randrange(100), node=1 - node),
        Visit(name, replace(plan, action=rng.choice(["renew", plan.action]), node=node)),
    ]


def cut_off(rng: random.Random, config: Config) -> list[Step]:
    """Return steps in which a node loses Redis, briefly or for long, while both are used."""
    node = rng.randrange(config.nodes)
    between = [make_step(rng, config) for _ in range(rng.randrange(1, 6))]
    pause = [Wait(rng.choice([0.5, 3.0, 31.0]))] if rng.random() < 0.7 else []
    knock: list[Step] = []
    if rng.random() < 0.6:
        knock = [Visit(rng.choice(BROWSERS), Plan("open", node=node))]
    return [Outage(node, silent=rng.random() < 0.4), *pause, *knock, *between, Back(node)]


def proven(rng: random.Random, config: Config) -> list[Step]:
    """Return steps in which a client proves its identity and that is ended, perhaps meanwhile."""
    name, user = rng.choice(BROWSERS), rng.choice(["ann", "bob"])
    gates = ("proving",) if rng.random() < 0.5 else ()
    opened = Visit(name, Plan("prove", pauses=gates, node=rng.randrange(config.nodes)))
    end = Order("end_identity", user=user, node=rng.randrange(config.nodes))
    between = [make_step(rng, config) for _ in range(rng.randrange(3))]
    back: list[Step] = [] if rng.random() < 0.7 else [Say(-1, "")]
    return [opened, Say(-1, user), *between, *back, end]


def restarted(rng: random.Random, config: Config) -> list[Step]:
    """Return steps in which a session ends and the server restarts."""
    plan = make_plan(rng, config)
    what = rng.choice(["log_out", "empty", "renew", "log_out_by_pattern", plan.action])
    steps: list[Step] = [Visit(rng.choice(BROWSERS), replace(plan, action=what))]
    if rng.random() < 0.5:
        steps.append(make_order(rng, config))
    return [*steps, Restart(kill=rng.random() < 0.5)]


def overtaken(rng: random.Random, config: Config) -> list[Step]:
    """Return steps in which a browser renews its session while another request is slow."""
    name = rng.choice(BROWSERS)
    slow = replace(make_plan(rng, config), pauses=(rng.choice(["load", "handler", "handled"]),))
    renewal = Plan(rng.choice(["renew", "refresh", "delete_id", "log_in_renewed"]))
    return [Visit(name, slow), Visit(name, renewal), Visit(name, Plan("read"))]


def shrink(
    config: Config,
    steps: Sequence[Step],
    broken: Callable[[Config, Sequence[Step]], list[Violation]],
) -> list[Step]:
    """Remove every step that isn't needed to cause the same violation.

    Args:
        config: The kind of the world.
        steps: Its steps.
        broken: Runs a world and returns its violations.
    """
    kinds = {violation.kind for violation in broken(config, steps)}

    def still(candidate: Sequence[Step]) -> bool:
        return bool(kinds & {violation.kind for violation in broken(config, candidate)})

    kept = list(steps)
    for size in (8, 4, 2, 1, 1):
        position = len(kept)
        while (position := position - size) > -size:
            start = max(position, 0)
            candidate = kept[:start] + kept[start + size :]
            if still(candidate):
                kept = candidate
    for position, step in enumerate(kept):
        for simpler in simplified(step):
            candidate = [*kept[:position], simpler, *kept[position + 1 :]]
            if still(candidate):
                kept = candidate
                break
    return kept


def simplified(step: Step) -> list[Step]:
    """Return simpler steps of the same kind, the simplest first."""
    if not isinstance(step, Visit | Theft):
        return []
    plan = step.plan
    plans = [replace(plan, ending="return", pauses=(), lost=False, upgrade=False)]
    plans += [replace(plan, ending="return"), replace(plan, upgrade=False)]
    plans += [replace(plan, pauses=()), replace(plan, lost=False)]
    plans += [replace(plan, pauses=(gate,)) for gate in plan.pauses if len(plan.pauses) > 1]
    return [replace(step, plan=simpler) for simpler in plans if simpler != plan]
