"""A local HTTP server whose answers a test decides, and which remembers what it was asked."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What lies at one path."""

    body: bytes
    status: int = 200
    kind: str = "application/octet-stream"
    ranges: bool = True
    tag: bool = True  # an ETag, so that a transfer without a known hash can be continued
    cut: int | None = None  # bytes after which the first answer breaks off
    pause: float = 0.0  # seconds in the middle of the body
    length: bool = True  # tells the Content-Length


@dataclass
class Server:
    """`pages` by path, also a function of the path with its query; `asked` holds (path, Range header) in order."""

    pages: dict[str, Page] = field(default_factory=dict)
    special: Callable[[str], Page | None] = lambda path: None
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0  # bytes of bodies
    url: str = ""
    stopped: threading.Event = field(default_factory=threading.Event)

    def put(self, path: str, body: bytes, **more) -> str:
        self.pages[path] = Page(body, **more)
        return self.url + path

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")


def start(server: Server) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            server.asked.append((self.path, self.headers.get("Range", "")))
            page = server.special(self.path) or server.pages.get(self.path)
            if page is None:
                page = Page(b"<html>no such thing</html>", 404, "text/html")
            tag = f'"{hashlib.md5(page.body).hexdigest()}"'
            begin, asked = 0, self.headers.get("Range", "")
            if page.ranges and asked and self.headers.get("If-Range", tag) == tag:
                begin = int(asked.removeprefix("bytes=").rstrip("-"))
            if begin and begin >= len(page.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(page.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = page.body[begin:]
            self.send_response(206 if begin else page.status)
            self.send_header("Content-Type", page.kind)
            if page.length:
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("Connection", "close")
                self.close_connection = True
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(page.body) - 1}/{len(page.body)}")
            if page.tag:
                self.send_header("ETag", tag)
            self.end_headers()
            cut, page.cut = page.cut, None
            self._send(body[: cut if cut is not None else len(body)], page.pause)
            if cut is not None:
                self.close_connection = True

        def _send(self, body, pause):
            middle = len(body) // 2 if pause else 0
            server.sent += len(body)  # before the client can have it all and look
            try:
                self.wfile.write(body[:middle])
                self.wfile.flush()
                server.stopped.wait(pause)
                self.wfile.write(body[middle:])
            except OSError:  # the client left
                return

        def log_message(self, *arguments):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    server.url = f"http://127.0.0.1:{found.server_port}"
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return found
