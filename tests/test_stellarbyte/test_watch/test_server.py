"""The server shows the runs to whoever may see them, and nothing else to anybody."""

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stellarbyte.errors import UserError
from stellarbyte.watch.report_page import Reports
from stellarbyte.watch.server import Server, serve
from stellarbyte.watch.watcher import Watcher

from .test_watched import Silent, write

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    run = write(tmp_path / "runs" / "one", range(1, 21))
    (run / "checkpoints" / "20").mkdir(parents=True)
    watcher = Watcher([tmp_path / "runs"], Silent({"checkpoints": []}))
    watcher.look()
    (tmp_path / "reports").mkdir()
    with serve("127.0.0.1", 0, watcher, Reports(tmp_path / "reports", Silent()), None) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def test_the_page_and_its_parts(served: Server) -> None:
    status, headers, content = ask(served, "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    for part in ("watch.css", "watch.js", "charts.js", "uPlot.iife.min.js"):
        assert part.encode() in content
        status, headers, content_of_part = ask(served, f"/{part}")
        assert status == 200 and len(content_of_part) > 500
    assert b"http://" not in content and b"https://" not in content
    assert b'<html lang="zh">' in ask(served, "/", Accept_Language="zh-CN")[2]
    served.lang = "en"
    assert b'<html lang="en">' in ask(served, "/", Accept_Language="zh-CN")[2]


def test_what_it_tells(served: Server, tmp_path: Path) -> None:
    (run,) = json.loads(ask(served, "/runs.json")[2])["runs"]
    assert run["name"] == "one" and run["step"] == 20 and run["state"] == "stopped"
    figures = json.loads(ask(served, f"/figures.json?run={run['number']}&generation=-1&count=-1")[2])
    assert figures["whole"] and len(figures["figures"]["loss"]["values"]) == 20
    count = figures["count"]
    write(tmp_path / "runs" / "one", range(21, 24))
    served.watcher.look()
    news = json.loads(ask(served, f"/figures.json?run=0&generation={figures['generation']}&count={count}")[2])
    assert not news["whole"] and news["figures"]["loss"]["steps"] == [21, 22, 23]
    assert json.loads(ask(served, "/details.json?run=0")[2])["checkpoints"][0]["step"] == 20


def test_answers_are_compressed_for_who_can_read_that(served: Server) -> None:
    status, headers, content = ask(served, "/watch.js", Accept_Encoding="gzip")
    assert status == 200 and headers["Content-Encoding"] == "gzip" and len(content) == int(headers["Content-Length"])
    assert gzip.decompress(content) == ask(served, "/watch.js")[2]


def test_only_looking_is_allowed(served: Server, tmp_path: Path) -> None:
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        status, headers, _ = ask(served, "/runs.json", method)
        assert status == 405 and headers["Allow"] == "GET, HEAD"
    assert ask(served, "/runs.json", "BREW")[0] == 501
    status, headers, content = ask(served, "/", "HEAD")
    assert status == 200 and content == b"" and int(headers["Content-Length"]) > 1000
    assert before == sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/static/../words.py", "//etc/passwd", "/words.py"),
        *("/uPlot.LICENSE", "/runs/one/config.yaml", "/figures.json?run=../one", "/details.json?run=7"),
        *(
            "/figures.json",
            "/report?run=-0",
            "/details.json?run=0x0",
            "/runs.json/",
            "/report?run=9999999999999999999999",
        ),
    ],
)
def test_there_is_no_way_to_other_files(path: str, served: Server) -> None:
    assert ask(served, path)[0] == 404


def test_too_much_is_refused(served: Server) -> None:
    many = "&".join(f"a{n}=1" for n in range(50))
    assert ask(served, f"/figures.json?{many}")[0] == 400
    assert ask(served, "/" + "x" * 70_000)[0] == 414


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:9"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "none"}, 200),
    ],
)
def test_who_is_answered(headers: dict[str, str], status: int, served: Server) -> None:
    found, _, content = ask(served, "/runs.json", **headers)
    assert found == status and (status == 200) == (b"one" in content)


def test_a_browser_that_says_nothing_blocks_nobody(served: Server) -> None:
    with socket.create_connection(served.server_address[:2]) as silent:
        silent.sendall(b"GET / HT")
        assert ask(served, "/runs.json")[0] == 200


def test_a_report(served: Server, tmp_path: Path) -> None:
    class Making(Silent):
        waiting: Any = None

        def begin(self, words: Any, done: Any) -> None:
            self.asked.append(words)
            self.waiting = done

    children = Making()
    served.reports = Reports(tmp_path / "reports", children)
    assert b"is being made" in ask(served, "/report?run=0")[2]
    assert b"is being made" in ask(served, "/report?run=0")[2]
    (words,) = children.asked
    assert words[:2] == ["report", str(tmp_path / "runs" / "one")] and words[-2:] == ["--lang", "en"]
    Path(words[3]).write_text("<p>report</p>")
    children.waiting("", None)
    _, headers, content = ask(served, "/report?run=0")
    assert content == b"<p>report</p>" and headers["Content-Security-Policy"].startswith("sandbox;")
    assert not list((tmp_path / "reports").iterdir()), "it is kept in memory"
    ask(served, "/report?run=0", Accept_Language="zh")
    children.waiting("", "no <model> there")
    assert "no &lt;model&gt; there" in ask(served, "/report?run=0", Accept_Language="zh")[2].decode()


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} at 127.0.0.1 cannot be used"):
            serve("127.0.0.1", port, None, None, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--host 'no\.such\.host\.invalid' is no address"):
        serve("no.such.host.invalid", 0, None, None, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--port 0 at 203\.0\.113\.1 cannot be used"):
        serve("203.0.113.1", 0, None, None, None)  # type: ignore[arg-type]


def test_the_watcher_is_asked_only_by_who_may_ask(served: Server) -> None:
    served.watcher._asked_at = 0.0
    ask(served, "/runs.json", Host="evil.example")
    assert served.watcher._asked_at == 0.0
    ask(served, "/runs.json")
    assert served.watcher._asked_at == pytest.approx(time.monotonic(), abs=5)
