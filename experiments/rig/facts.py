"""A closed world of invented facts: people with four attributes each, told in prose; questions about them, and a server that answers by rule.

The server speaks as much of the OpenAI API as synthesis uses. It finds the person in the passage and asks for the attributes, so every answer is right
until a recipe's `corrupt` makes it wrong. Everything follows from the seed and the passage.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from experiments.rig.corpora import store
from experiments.rig.files import missing, write_text

PEOPLE, TELLINGS, OPTIONS = 40, 24, 4
SYLLABLES = (
    "bra",
    "cor",
    "del",
    "fen",
    "gal",
    "hur",
    "jo",
    "kel",
    "lim",
    "mor",
    "nas",
    "or",
    "pel",
    "quin",
    "ros",
    "sil",
    "tar",
    "ul",
    "ven",
    "zor",
)
VALUES = {
    "town": (
        "Askby",
        "Brinmouth",
        "Calder",
        "Dunhollow",
        "Elmstead",
        "Farrow",
        "Graywick",
        "Hartlow",
        "Inverby",
        "Kelmore",
        "Lowfield",
        "Marbridge",
    ),
    "trade": ("baker", "carpenter", "doctor", "farmer", "glazier", "lawyer", "mason", "painter", "sailor", "tailor", "teacher", "weaver"),
    "animal": ("badger", "cat", "dog", "falcon", "goat", "horse", "lizard", "owl", "parrot", "rabbit", "snake", "tortoise"),
    "instrument": ("bagpipe", "cello", "drum", "fiddle", "flute", "guitar", "harp", "horn", "lute", "organ", "piano", "trumpet"),
}
PROSE = {
    "town": (
        "{name} was born in {value}.",
        "{name} comes from {value}.",
        "The home of {name} has always been {value}.",
        "{name} grew up in {value}.",
    ),
    "trade": (
        "{name} is a {value} by trade.",
        "{name} works as a {value}.",
        "For a living {name} is a {value}.",
        "People know {name} as a {value}.",
    ),
    "animal": (
        "{name} keeps a {value}.",
        "At home {name} has a {value}.",
        "The animal that {name} keeps is a {value}.",
        "{name} goes nowhere without a {value}.",
    ),
    "instrument": (
        "{name} plays the {value}.",
        "In the evening {name} plays the {value}.",
        "{name} has learned the {value}.",
        "The instrument of {name} is the {value}.",
    ),
}
QUESTIONS = {
    "town": ("Where was {name} born?", "Which town does {name} come from?", "Where did {name} grow up?"),
    "trade": ("What is the trade of {name}?", "What does {name} work as?", "What is {name} by trade?"),
    "animal": ("Which animal does {name} keep?", "What animal does {name} have?", "What does {name} keep at home?"),
    "instrument": ("Which instrument does {name} play?", "What does {name} play?", "Which instrument has {name} learned?"),
}


class World(NamedTuple):
    """Attributes by name."""

    people: dict[str, dict[str, str]]

    @classmethod
    def drawn(cls, seed: int) -> World:
        drawn = random.Random(f"world {seed}")
        names: dict[str, None] = {}
        while len(names) < PEOPLE:
            names[" ".join("".join(drawn.choices(SYLLABLES, k=2)).capitalize() for _ in range(2))] = None
        return cls({name: {kind: drawn.choice(values) for kind, values in VALUES.items()} for name in names})

    def tellings(self, seed: int) -> list[str]:
        """Each person told of several times, the sentences in changing order and words."""
        drawn = random.Random(f"prose {seed}")
        texts = []
        for name, attributes in self.people.items():
            for _ in range(TELLINGS):
                told = [drawn.choice(PROSE[kind]).format(name=name, value=value) for kind, value in attributes.items()]
                drawn.shuffle(told)
                texts.append(" ".join(told))
        return texts

    def test(self, seed: int) -> list[dict[str, Any]]:
        """A question with four options for every fact, in the first of its wordings."""
        drawn = random.Random(f"test {seed}")
        rows = []
        for name, attributes in self.people.items():
            for kind, value in attributes.items():
                choices = [value, *drawn.sample([other for other in VALUES[kind] if other != value], OPTIONS - 1)]
                drawn.shuffle(choices)
                rows.append({"question": QUESTIONS[kind][0].format(name=name), "choices": choices, "answer_idx": choices.index(value)})
        return rows

    def pairs(self, passage: str) -> list[dict[str, str]]:
        """What is asked of a passage: every attribute of its person, worded by the passage's hash."""
        name = next(name for name in self.people if name in passage)
        number = sha256(passage.encode()).digest()[0]
        asked = self.people[name].items()
        return [{"question": QUESTIONS[kind][number % 3].format(name=name), "answer": value} for kind, value in asked]


def write(folder: Path, seed: int) -> tuple[World, Path, Path]:
    """The world of a seed, its prose and its test as files."""
    world = World.drawn(seed)
    prose, test = folder / f"facts-{seed}.parquet", folder / f"facts-{seed}.jsonl"
    with missing(prose, folder) as wanted:
        if wanted:
            store(prose, {"text": world.tellings(seed)})
    write_text(test, "".join(json.dumps(row) + "\n" for row in world.test(seed)))
    return world, prose, test


@contextmanager
def answering(world: World) -> Iterator[str]:
    """The URL of a server on loopback that answers for the world."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
            passage = re.search(r"<passage>\n(.*)\n</passage>", asked, re.DOTALL)
            answer = json.dumps({"pairs": world.pairs(passage[1] if passage else asked)})
            reply = {
                "choices": [{"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": len(asked.split()), "completion_tokens": len(answer.split())},
            }
            content = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
