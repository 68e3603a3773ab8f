"""The command `stellarbyte watch`."""

import argparse
import os
import sys
import tempfile
import threading
from pathlib import Path

from stellarbyte.command_line import check_text, folder_or_bucket


def watch(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte watch`."""
    parser.description = (
        "Show a page that follows runs while they train: curves, state, time left, checkpoints, log. It only reads, "
        "and is served to this machine alone. Ctrl-C ends it; the runs do not notice."
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=folder_or_bucket,
        nargs="+",
        help="a run's output_dir, which may be yet to come, or a folder of runs",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="of pretraining: have the newest checkpoint continue this text, and show it; may be given several times",
    )
    parser.add_argument("--port", type=int, metavar="N", help="0 for any (default: 8180, or the next that is free)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="listen at this address, such as 0.0.0.0 for all; whoever reaches it sees the runs (default: 127.0.0.1)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--lang", choices=("en", "zh"), help="the page's language (default: the browser's)")
    parser.set_defaults(run=_watch)


def _watch(options: argparse.Namespace) -> None:
    from stellarbyte.errors import UserError
    from stellarbyte.interrupt import interruptible
    from stellarbyte.watch.children import Children
    from stellarbyte.watch.found import check_named
    from stellarbyte.watch.hosts import is_loopback
    from stellarbyte.watch.report_page import Reports
    from stellarbyte.watch.samples import check_prompts
    from stellarbyte.watch.server import serve
    from stellarbyte.watch.watcher import Watcher

    if options.port is not None and not 0 <= options.port < 65536:
        raise UserError(f"--port {options.port} is no port: give a number from 1024 to 65535, or 0 for any")
    if not options.host:  # which sockets take for every address
        raise UserError("--host '' is no address: give one of this machine, such as 127.0.0.1")
    check_prompts(options.prompt)
    for prompt in options.prompt:
        check_text("--prompt", prompt)
    for place in options.runs:
        check_named(place)
    with (
        interruptible(),
        tempfile.TemporaryDirectory(prefix="stellarbyte-watch-") as folder,
        Children(os.environ) as children,
        Watcher(options.runs, children, options.prompt) as watcher,
    ):
        reports = Reports(Path(folder), children)
        server = serve(options.host, options.port, watcher, reports, options.lang)
        threading.Thread(target=server.serve_forever, name="server", daemon=True).start()
        if not is_loopback(options.host):
            print(
                f"warning: --host {options.host} shows these runs to everybody who reaches this machine, unencrypted "
                "and without a password",
                file=sys.stderr,
            )
        print(f"{server.url} shows {', '.join(map(str, options.runs))}; Ctrl-C ends it", flush=True)
        if options.open:
            import webbrowser

            webbrowser.open(server.url)
        try:
            _wait_for_a_signal()
        finally:
            server.shutdown()
            server.server_close()


def _wait_for_a_signal() -> None:
    threading.Event().wait()
