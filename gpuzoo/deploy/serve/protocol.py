"""The limits of connections to the service."""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpuzoo.deploy.serve.guard import HEADERS, Limits, error_body, refuse
from gpuzoo.deploy.serve.inputs import Refused


class Protocol(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol with limits that it lacks: seconds for a request's
    header, twice as many for a client that does not read its answer, and a number of
    open connections."""

    limits: Limits
    _timer = _unread = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > 4 * self.limits.concurrency:
            self.app = _busy
        self._timer = self.loop.call_later(self.limits.seconds, self._late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        reads_header = self.conn.their_state is h11.IDLE
        if not reads_header:
            self._stop_timer()
        elif self._timer is None and self.conn.trailing_data[0]:
            # Uvicorn's own timer waits for the first byte of the next request.
            self._timer = self.loop.call_later(self.limits.seconds, self._late)

    def connection_lost(self, exc) -> None:
        self._stop_timer()
        super().connection_lost(exc)  # calls resume_writing

    def pause_writing(self) -> None:
        super().pause_writing()
        abort = self.transport.abort
        self._unread = self.loop.call_later(2 * self.limits.seconds, abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "the request is not valid HTTP")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        self._refuse(
            408, f"the header was not received within {self.limits.seconds:g} seconds"
        )

    def _refuse(self, status: int, text: str) -> None:
        body = error_body(text)
        headers = [
            ("content-type", "application/json"), ("connection", "close"),
            ("content-length", str(len(body))), *HEADERS.items(),
        ]  # fmt: skip
        try:
            events = (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event))
        except h11.LocalProtocolError:  # an answer has begun
            pass
        self.transport.close()


def protocol(limits: Limits) -> type[Protocol]:
    """Return the class of a connection, which uvicorn makes one of for each."""
    return type("Limited", (Protocol,), {"limits": limits})


async def _busy(scope, receive, send) -> None:
    error = Refused(503, "too many connections", retry_after="1", connection="close")
    await refuse(send, error)
