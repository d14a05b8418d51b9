"""Whole lives of two ends, by chance: what happens in them, and how often."""

import random

from ordeal import Ordeal

#: What may happen in a life, and how likely each is next to the others.
EVENTS = {
    "burst": 30,
    "wait": 20,
    "mood": 6,
    "cut": 3,
    "cut_after": 8,
    "drop": 4,
    "stall": 4,
    "unnoticed": 6,
    "crash": 2,
    "restart": 1,
    "back up": 4,
    "restore": 3,
    "absence": 0.3,
}


def live(seed, deliveries, **options):
    """A whole life by chance, until so many messages were delivered; returns the ordeal that it was."""
    ordeal = Ordeal(seed, **options)
    chance, names, weights = ordeal.chance, list(EVENTS), list(EVENTS.values())
    ends = ordeal.client_end, ordeal.server_end
    while ordeal.deliveries < deliveries:
        _HAPPENS[chance.choices(names, weights)[0]](ordeal, chance, chance.choice(ends))
        ordeal.advance(chance.choice((0.0, 0.01, 0.05, 0.3, 1.0)) * chance.random())
    ordeal.finish()
    return ordeal


def crowd(seed, **options):
    """A life at the bounds: small ones, both ends send up to them, and so do their handlers. No more than that happens.

    Ends when all is handled; an ordeal in which that does not come says so.
    """
    chance = random.Random(seed)
    ordeal = Ordeal(
        seed,
        kept_limit=chance.choice((4, 8, 16)),
        kept_bytes=chance.choice((4096, 65_536)),
        commit=chance.choice((0.02, 0.3)),
        **options,
    )
    ordeal.mood = {
        "slow": chance.choice((0.0, 0.05, 0.5, 1.0)),
        "fail": chance.choice((0.0, 0.1)),
        "replies": chance.choice((0, 1, 3)),
        "sends": chance.choice((0, 1, 3)),
    }
    for _ in range(chance.choice((1, 5, 20))):
        for end in (ordeal.client_end, ordeal.server_end):
            ordeal.send(end, 30, hops=chance.choice((1, 2, 4)))
        ordeal.advance(chance.choice((0.01, 0.1, 1.0)))
    return ordeal


def _burst(ordeal, chance, end):
    ordeal.send(end, chance.choice((1, 3, 20, 100)), hops=chance.choice((0, 0, 0, 1, 2)))


def _wait(ordeal, chance, end):
    if chance.random() < 0.5:
        ordeal.heal()
    ordeal.advance(chance.choice((0.1, 1.0, 3.0, 8.0)) * chance.random())


def _mood(ordeal, chance, end):
    ordeal.mood = {
        "slow": chance.choice((0.0, 0.0, 0.02, 0.3)),
        "fail": chance.choice((0.0, 0.0, 0.02, 0.2)),
        "replies": chance.choice((0, 0, 1, 3)),
        "sends": chance.choice((0, 0, 1, 2)),
    }


def _cut_after(ordeal, chance, end):
    ordeal.cut_after(int(chance.choice((10, 300, 3000, 20_000)) * chance.random()), chance.choice((None, end)))
    ordeal.send(ordeal.client_end, 10)
    ordeal.send(ordeal.server_end, 10)
    ordeal.advance(0.1)
    if chance.random() < 0.7:
        ordeal.heal() if ordeal.world.is_cut else ordeal.drop()


_HAPPENS = {
    "burst": _burst,
    "wait": _wait,
    "mood": _mood,
    "cut": lambda ordeal, chance, end: ordeal.cut(),
    "cut_after": _cut_after,
    "drop": lambda ordeal, chance, end: ordeal.drop(),
    "stall": lambda ordeal, chance, end: ordeal.stall(end, chance.choice((0.2, 2.0, 10.0)) * chance.random()),
    "unnoticed": lambda ordeal, chance, end: ordeal.lose_unnoticed(end),
    "crash": lambda ordeal, chance, end: ordeal.crash(end),
    "restart": lambda ordeal, chance, end: ordeal.restart(end),
    "back up": lambda ordeal, chance, end: ordeal.back_up(),
    "restore": lambda ordeal, chance, end: ordeal.restore(),
    "absence": lambda ordeal, chance, end: (ordeal.cut(), ordeal.advance(45.0)),
}
