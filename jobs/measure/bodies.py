"""Request bodies as JSON bytes.

Writing one must not disturb the load: drawn numbers become JSON by one look-up in a table of fixed-width pieces,
about 0.2 ms for 32,768 tokens (`benchmarks/client_overhead.py --bodies`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.core.config import Bench, Model

VOCABULARY = tuple(
    """
    above actor adapt admit adult after agent agree ahead alarm album alert alike allow alone along alter amber
    ample angle apple apply april arena argue arise armor array arrow aside asset audio avoid award aware bacon
    badge baker basic basin beach beard begin being bench berry birch birth blank blend block bloom board boast
    bonus boost bound brain brave bread break brick brief bring broad brook brown brush build bunch cabin cable
    camel canal candy cargo carry catch cause cedar chain chair chalk charm chart chase cheap check chess chest
    chief child civic claim class clean clear clerk cliff climb clock close cloth cloud coach coast coral could
    count court cover craft crane cream crisp crowd crown curve cycle daily dairy dance delay depth diary diner
    dozen draft drama dream dress drift drink drive eager eagle early earth elbow elder empty enjoy enter entry
    equal essay event every exact exist extra fable faith fancy fault favor feast fence ferry fever fiber field
    final first flame flash fleet float flood floor flour fluid focus force forge forth found frame fresh front
    frost fruit giant given glade glass globe glove grace grade grain grand grant grape graph grass great green
    greet group guard guess guest guide habit happy harsh hasty heart heavy hedge hello hobby honey honor horse
    hotel house human humor ideal image index inner input ivory jelly jewel joint judge juice kayak knife label
    large laser later laugh layer learn lemon level light limit linen local lodge logic loyal lunar lunch magic
    major maple march match maybe mayor medal melon mercy merge metal meter might minor model money month moral
    motor mount mouse mouth movie music nerve never night noble noise north novel nurse ocean offer often olive
    onion opera orbit order other outer owner paint panel paper party pasta patch pause peace peach pearl phase
    phone photo piano piece pilot pitch place plain plane plant plate plaza point polar porch pound power press
    price pride prime print prize proof proud pupil quack queen quest quick quiet quilt quote radar radio raise
    ranch range rapid reach ready realm rebel refer relax reply rider ridge right rigid river roast robin robot
    rough round route royal rural salad sauce scale scene scent score scout sense serve seven shade shape share
    sharp sheep sheet shelf shell shift shine shirt shore short sight silky skill sleep slice slide slope small
    smart smile smoke snack solar solid solve sound south space spare spark speak speed spice spoon sport stack
    staff stage stair stand start state steam steel stone store storm story sugar sunny sweet table tempo thank
    their theme there thick third three tiger title toast today token topic total touch tower track trade trail
    train treat trend trial truck trust truth tulip twice uncle under union unity until upper urban usual value
    vapor vault video visit vital vivid vocal voice wagon waste watch water wheat wheel where which white whole
    world worth wrist write young yield zebra
    """.split()  # noqa: SIM905 - a list of 500 quoted words would hide them
)
"""Of text prompts. All have five letters, so that a prompt is one look-up in a fixed-width table."""


class Writer:
    """Writes the bodies of one point.

    Args:
        bench: endpoint and sampling.
        model: ordinary token ids.
        name: the value of "model" in each request.

    Attributes:
        path: of the endpoint.
        low, high: the numbers that stand for tokens (completions) or words (chat) are of [low, high).
    """

    def __init__(self, bench: Bench, model: Model, name: str) -> None:
        self.chat = bench.endpoint == "chat"
        self.path = "/v1/chat/completions" if self.chat else "/v1/completions"
        options = {
            "model": name,
            "temperature": bench.temperature,
            "ignore_eos": bench.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self._head = json.dumps(options).removesuffix("}") + ', "max_tokens": '
        if self.chat:
            self.low, self.high = 0, len(VOCABULARY)
            self._table = _table([word + " " for word in VOCABULARY])
        else:
            self.low, self.high = model.shape.token_ids
            self._table = _table([f"{i}," for i in range(self.low, self.high)])

    def numbers(self, drawn: NDArray[np.int32], max_tokens: int) -> bytes:
        """Return a request whose prompt are these token ids, or whose one user message are these words."""
        pieces = self._pieces(drawn)
        if self.chat:
            return self._open(max_tokens, '"messages": [{"role": "user", "content": "') + pieces + b'"}]}'
        return self.ids(pieces, max_tokens)

    def ids(self, pieces: bytes, max_tokens: int) -> bytes:
        """Return a request whose prompt are these token ids, JSON text without brackets."""
        return self._open(max_tokens, '"prompt": [') + pieces + b"]}"

    def turns(self, parts: Sequence[NDArray[np.int32]], max_tokens: int) -> bytes:
        """Return a chat request whose messages are, in turn, of the user and of the assistant."""
        said = [
            b'{"role": "%s", "content": "%s"}' % (b"assistant" if turn % 2 else b"user", self._pieces(part))
            for turn, part in enumerate(parts)
        ]
        return self._open(max_tokens, '"messages": [') + b", ".join(said) + b"]}"

    def text(self, text: str, max_tokens: int) -> bytes:
        """Return a request with this text as its prompt or its one user message."""
        quoted = json.dumps(text).encode()
        if self.chat:
            return self._open(max_tokens, '"messages": [{"role": "user", "content": ') + quoted + b"}]}"
        return self._open(max_tokens, '"prompt": ') + quoted + b"}"

    def _open(self, max_tokens: int, begin: str) -> bytes:
        return f"{self._head}{max_tokens}, {begin}".encode()

    def _pieces(self, drawn: NDArray[np.int32]) -> bytes:
        return self._table.take(drawn - self.low).tobytes()[:-1]


def _table(pieces: Sequence[str]) -> NDArray[np.void]:
    """Return pieces of JSON as opaque items of one width; JSON allows the padding before a number."""
    width = max(map(len, pieces))
    return np.array([piece.rjust(width).encode() for piece in pieces], dtype=f"V{width}")
