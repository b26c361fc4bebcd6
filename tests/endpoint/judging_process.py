"""A process that asks 64 questions at once: `python judging_process.py URL FOLDER COUNT WORKERS`. It prints its answers."""

import sys
from pathlib import Path

from loopback import Said, call_settings, words

from taskmem.endpoint.client import Endpoint
from taskmem.endpoint.parallel import in_order


def main(url: str, folder: str, count: str, workers: str) -> None:
    settings = call_settings(url, retries=20, connect_seconds=60.0, reply_seconds=60.0)
    with Endpoint(settings, Path(folder), {}) as endpoint:
        said = in_order(
            lambda n: endpoint.ask("fidelity", words(f"question {n}"), Said).said, range(int(count)), int(workers)
        )
        print("\n".join(said))
        endpoint.check()


if __name__ == "__main__":
    main(*sys.argv[1:])
