"""What the server refuses: the limits of a request, and refusals as exceptions that become answers."""

from collections.abc import Mapping

REGION_PIXELS = 1 << 24  # of one answer: 4096 × 4096, 48 MiB
SCALED_PIXELS = 1 << 22  # of one answer that is scaled: the level that it is made from may have 16 times as many
SOURCE_PIXELS = 1 << 26  # that one answer is made from
COMPARED_PIXELS = 1 << 22  # of each of the two images that are compared
WAITING = 256  # requests that wait for a worker; more get 503
CONNECTIONS = 1024  # at a time
HEADER_BYTES = 16 << 10
HEADER_SECONDS = 10.0  # for a request to arrive, and for an idle connection
REQUEST_SECONDS = 60.0  # from a request's arrival to the last byte of its answer
RETRY_SECONDS = 1  # what a busy server asks for
ANSWER_CACHE = 64 << 20  # bytes of encoded images
OPEN_SLIDES = 128
LISTED_SLIDES = 10_000  # in a folder
PAGE_SLIDES = 200  # in one answer of the list


class RefusedError(Exception):
    """A request that gets an error for an answer: its HTTP status, and a sentence for people."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


def busy(message: str) -> RefusedError:
    """The answer of a server that has enough to do: 503, and when to try again."""
    return RefusedError(503, message, {"Retry-After": str(RETRY_SECONDS)})
