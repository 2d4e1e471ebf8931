"""Asks models that this program runs itself: one in the build's own process, or one in every process that the engine has for them on a cluster.

On a cluster each process has as many requests as it may, and one call of it is under way at all times: it takes what is new, generates for `SECONDS`, and gives what is finished. Only this process
writes answers down. What a lost process has not answered is asked of another.
"""

from __future__ import annotations

from contextlib import closing

from curation.engine.local import Residents
from curation.synthesis.asking import Desk, UnderWay
from curation.synthesis.config import Generation
from curation.synthesis.local import Exchange

SECONDS = 0.2  # of a call: what lies between two of them is some milliseconds


class Here:
    """A model in this process, which asks it for as little at a time as it can give."""

    def __init__(self, exchange: Exchange, in_flight: int) -> None:
        self._exchange, self._in_flight = exchange, in_flight

    def run(self, desk: Desk, generation: Generation) -> None:
        under_way = UnderWay(desk, self._in_flight)
        while (new := under_way.taken()) or under_way:
            under_way.settle(self._exchange(new, 0.0))


class Spread:
    """A model in each of several processes elsewhere."""

    def __init__(self, residents: Residents, in_flight: int) -> None:
        self._residents, self._in_flight = residents, in_flight

    def run(self, desk: Desk, generation: Generation) -> None:
        under_way, idle = dict[int, UnderWay](), set[int]()
        with closing(self._residents) as residents:
            while not idle or any(under_way.values()):
                number, answers, is_lost = residents.wait()
                if is_lost:
                    under_way.pop(number, UnderWay(desk, 0)).lose()
                else:
                    under_way.setdefault(number, UnderWay(desk, self._in_flight)).settle(answers or [])
                    idle.add(number)
                for one in sorted(idle):
                    new = under_way[one].taken()
                    if under_way[one]:
                        residents.send(one, new, SECONDS)
                        idle.remove(one)
