"""Serves the page over HTTP: read-only, to this machine alone unless another address was asked for."""

import gzip
import json
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from stellarbyte.errors import UserError, shown
from stellarbyte.watch.hosts import may_name
from stellarbyte.watch.page import SCRIPTS, asset, message, page, style
from stellarbyte.watch.report_page import Reports
from stellarbyte.watch.watched import Watched
from stellarbyte.watch.watcher import Watcher
from stellarbyte.watch.words import WORDS, Lang, language

DEFAULT_PORT = 8180
# If nobody has asked for a port, the next ones are tried.
_PORTS_TRIED = 20
_SECONDS_TO_ASK = 20
_LEAST_COMPRESSED = 1024

# What the page may load: its own script and style, and answers of this server.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report holds all it shows, and may not even ask this server.
_POLICY_OF_REPORTS = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """The server. host: the address that it listens at. lang: the page's language; None for the browser's."""

    daemon_threads = True

    def __init__(self, host: str, port: int, watcher: Watcher, reports: Reports, lang: Lang | None) -> None:
        self.host, self.watcher, self.reports, self.lang = host, watcher, reports, lang
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """The address of the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that has gone; a fault of ours is told."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def serve(host: str, port: int | None, watcher: Watcher, reports: Reports, lang: Lang | None) -> Server:
    """A server that listens, and does not answer yet.

    port: None for the first that is free from DEFAULT_PORT on; 0 for any.

    Raises:
        UserError: the address is none of this machine's, or the port is taken or not allowed.
    """
    ports = range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED) if port is None else (port,)
    problem: OSError | None = None
    for each in ports:
        try:
            return Server(host, each, watcher, reports, lang)
        except (socket.gaierror, UnicodeError) as error:  # the latter for what can be no name at all
            why = "give one of this machine, such as 127.0.0.1"
            raise UserError(f"--host {shown(host)} is no address: {why}") from error
        except OSError as error:
            problem = error
    assert problem is not None
    what = f"--port {port}" if port is not None else f"a port from {ports[0]} to {ports[-1]}"
    raise UserError(f"{what} at {host} cannot be used ({problem.strerror}): give another by --port, or 0 for any")


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = _SECONDS_TO_ASK

    def do_GET(self) -> None:
        if not may_name(self.headers.get("Host"), self.server.host):
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "This server is not of that name.\n")
            return
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            self._answer(
                HTTPStatus.FORBIDDEN, "text/plain", "Open the address itself: links of other pages get nothing.\n"
            )
            return
        parts = urlsplit(self.path)
        routes: dict[str, Callable[[dict[str, str]], None]] = {
            "/": lambda _: self._answer(HTTPStatus.OK, "text/html", page(self._lang())),
            "/watch.css": lambda _: self._answer(HTTPStatus.OK, "text/css", style()),
            "/runs.json": self._runs,
            "/figures.json": self._figures,
            "/details.json": self._details,
            "/report": self._report,
        }
        name = parts.path.removeprefix("/")
        if name in SCRIPTS:
            self._answer(HTTPStatus.OK, SCRIPTS[name], asset(name))
        elif parts.path in routes:
            try:
                query = {key: values[-1] for key, values in parse_qs(parts.query, max_num_fields=10).items()}
            except ValueError:
                self._answer(HTTPStatus.BAD_REQUEST, "text/plain", "The address asks for too much.\n")
                return
            routes[parts.path](query)
        else:
            self._missing()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.close_connection = True  # its body is not read
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", "This server only shows.\n", {"Allow": "GET, HEAD"})

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = do_POST

    def version_string(self) -> str:
        """Tells neither a version nor Python's."""
        return "StellarByte"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing: a page asks every two seconds."""

    def _lang(self) -> Lang:
        return self.server.lang or language(self.headers.get("Accept-Language"))

    def _runs(self, _: dict[str, str]) -> None:
        found = {number: run.summary() for number, run in self.server.watcher.runs().items()}
        self._answer_json({"runs": [{"number": number, **summary} for number, summary in found.items()]})

    def _figures(self, query: dict[str, str]) -> None:
        if (run := self._run(query)) is not None:
            self._answer_json(run.since(_number(query.get("generation")), _number(query.get("count"))))

    def _details(self, query: dict[str, str]) -> None:
        if (run := self._run(query)) is not None:
            self._answer_json(run.details())

    def _report(self, query: dict[str, str]) -> None:
        if (run := self._run(query)) is None:
            return
        lang = self._lang()
        if self.command == "HEAD":
            self._answer(HTTPStatus.OK, "text/html", "")
            return
        made = self.server.reports.get(_number(query["run"]), run, lang)
        if made.state == "there":
            policy = {"Content-Security-Policy": _POLICY_OF_REPORTS}
            self._answer(HTTPStatus.OK, "text/html", made.content, policy)
        elif made.state == "failed":
            words = WORDS[lang]["report_failed"].format(error=made.content)
            self._answer(HTTPStatus.OK, "text/html", message(lang, words, again=False))
        else:
            self._answer(HTTPStatus.OK, "text/html", message(lang, WORDS[lang]["report_making"], again=True))

    def _run(self, query: dict[str, str]) -> Watched | None:
        """The run that a query names; None after the answer that there is none."""
        run = self.server.watcher.runs().get(_number(query.get("run")))
        if run is None:
            self._missing()
        return run

    def _missing(self) -> None:
        self._answer(HTTPStatus.NOT_FOUND, "text/plain", "There is no such page.\n")

    def _answer_json(self, content: Any) -> None:
        self._answer(HTTPStatus.OK, "application/json", json.dumps(content, allow_nan=False))

    def _answer(self, status: HTTPStatus, kind: str, text: str, headers: dict[str, str] | None = None) -> None:
        content = text.encode("utf-8", "replace")
        extra = {"Content-Security-Policy": _POLICY, **_HEADERS, **(headers or {})}
        if len(content) >= _LEAST_COMPRESSED and "gzip" in self.headers.get("Accept-Encoding", ""):
            content = gzip.compress(content, compresslevel=1)
            extra["Content-Encoding"] = "gzip"
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in extra.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _number(word: str | None) -> int:
    """The number that a query gives; -1 for none."""
    return int(word) if word is not None and word.isascii() and word.isdecimal() and len(word) < 19 else -1
