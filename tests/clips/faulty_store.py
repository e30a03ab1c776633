"""A store of a few objects that speaks S3, in this process, and fails as it is told."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

BUCKET = "mill"


@dataclass
class FaultyStore:
    """Attributes:
    environment: where it is and who may use it.
    objects: by their keys.
    fails: gives the status with which a request is refused, such as `GET /mill/a.wav`, or None.
    halves: whether a request is answered with the first half of what it asks for, and a length that matches.
    asked: all requests until now.
    n_halved: how many were answered so.
    """

    environment: dict[str, str]
    objects: dict[str, bytes]
    fails: Callable[[str], int | None] = lambda _: None
    halves: Callable[[str], bool] = lambda _: False
    asked: list[str] = field(default_factory=list)
    n_halved: int = 0

    def answer(self, method: str, target: str, part: str | None) -> tuple[int, bytes]:
        """The status and the body for a request, `part` being the range of bytes that it asks for."""
        self.asked.append(f"{method} {target}")
        if (status := self.fails(self.asked[-1])) is not None:
            return status, b"<Error><Code>Told</Code><Message>as it was told</Message></Error>"
        key = urlsplit(target).path.removeprefix(f"/{BUCKET}").lstrip("/")
        if not key:
            prefix = parse_qs(urlsplit(target).query).get("prefix", [""])[0]
            found = [f"<Contents><Key>{key}</Key></Contents>" for key in self.objects if key.startswith(prefix)]
            count = f"<KeyCount>{len(found)}</KeyCount>"
            return 200, f"<ListBucketResult>{count}{''.join(found)}</ListBucketResult>".encode()
        if key not in self.objects:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>"
        content, status = self.objects[key], 200
        if part is not None:
            first, last = re.findall(r"\d+", part)
            content, status = content[int(first) : int(last) + 1], 206
        if self.halves(self.asked[-1]):
            self.n_halved += 1
            content = content[: len(content) // 2]
        return status, content


@contextlib.contextmanager
def faulty_store(objects: dict[str, bytes]) -> Iterator[FaultyStore]:
    """The store, on loopback."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = store.answer(self.command, self.path, self.headers.get("Range"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    account = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    store = FaultyStore({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}", **account}, objects)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
