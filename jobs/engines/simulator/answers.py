"""Writing an answer: as an event stream, chunk by chunk, or whole."""

from __future__ import annotations

import asyncio

from jobs.engines.simulator.replies import DONE, WORDS, Form, error_event

_WORDS = tuple(word.encode() for word in WORDS)


def frame(data: bytes) -> bytes:
    """Return data as one chunk of HTTP's chunked encoding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class StreamAnswer:
    """The event stream of one request. Chunks go straight to the transport: one write for each token.

    Args:
        transport: of the connection; the response's head has been sent.
        prompts: prompt tokens of each choice.

    Attributes:
        ended: done once the last chunk is written.
    """

    def __init__(self, transport: asyncio.WriteTransport, form: Form, prompts: list[int]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.parts = [StreamPart(self, form, index, prompt) for index, prompt in enumerate(prompts)]
        self._transport, self._form = transport, form
        self._open = len(self.parts)

    def write(self, data: bytes) -> None:
        """Send bytes that are framed already."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def finish(self) -> None:
        """Take the news that one choice is complete."""
        self._open -= 1
        if self._open or self.ended.done():
            return
        if self._form.include_usage:
            prompt, made = sum(p.prompt for p in self.parts), sum(p.made for p in self.parts)
            self.write(frame(self._form.usage_chunk(prompt, made)))
        self.write(frame(DONE))
        self.ended.set_result(None)

    def break_off(self, words: str) -> None:
        """End with an error event; the status stays 200, as in vLLM."""
        if not self.ended.done():
            self.write(frame(error_event(words)) + frame(DONE))
            self.ended.set_result(None)


class StreamPart:
    """One choice of an event stream; a listener of the front end."""

    def __init__(self, answer: StreamAnswer, form: Form, index: int, prompt: int) -> None:
        self.prompt, self.made = prompt, 0
        self._answer, self._form, self._index = answer, form, index
        self._before, self._after = form.token_parts(index)
        self._ready: tuple[bytes, ...] = ()
        if not form.continuous_usage:
            end = form.chunk_end(prompt, 0)
            self._ready = tuple(frame(self._before + word + self._after + end) for word in _WORDS)

    def token(self, reason: str | None) -> None:
        """Write the chunk of one token."""
        turn = self.made % len(_WORDS)
        if self.made == 0 and self._form.chat:
            self._answer.write(frame(self._form.role_chunk(self._index, self.prompt)))
        self.made += 1
        if reason is None and self._ready:
            self._answer.write(self._ready[turn])
            return
        after = self._after if reason is None else self._form.last_part(reason)
        end = self._form.chunk_end(self.prompt, self.made)
        self._answer.write(frame(self._before + _WORDS[turn] + after + end))
        if reason is not None:
            self._answer.finish()

    def fail(self, words: str) -> None:
        """Break the stream off."""
        self._answer.break_off(words)


class WholePart:
    """One choice of an answer without a stream; a listener of the front end.

    Args:
        begin: words that it begins with; they stand for its first token.
    """

    def __init__(self, begin: str = "") -> None:
        self._begin = begin
        self.ended: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        self.made = 0

    def token(self, reason: str | None) -> None:
        """Count one token."""
        self.made += 1
        if reason is not None and not self.ended.done():
            text = self._begin + "".join(WORDS[i % len(WORDS)] for i in range(bool(self._begin), self.made))
            self.ended.set_result((text, reason))

    def fail(self, words: str) -> None:
        """Let the request fail."""
        if not self.ended.done():
            self.ended.set_exception(RuntimeError(words))
