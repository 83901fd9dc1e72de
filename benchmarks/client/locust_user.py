"""A locust user that streams chat completions: what a careful locust user would write, on locust's fast client.

Settings come from the environment, see locust_env in tools.py. Runs in locust's own environment.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-not-found, unused-ignore]
from locust import FastHttpUser, events, task  # type: ignore[import-not-found, unused-ignore]
from locust.exception import StopUser  # type: ignore[import-not-found, unused-ignore]

NUM_REQUESTS = int(os.environ["BENCH_REQUESTS"])
BODY = {
    "model": os.environ["BENCH_MODEL"],
    "messages": [{"role": "user", "content": "the " * 16}],
    "max_tokens": int(os.environ["BENCH_TOKENS"]),
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}
issued = 0
ended = 0
ttft_s: list[float] = []
gap_s: list[float] = []


class Streamer(FastHttpUser):  # type: ignore[misc, unused-ignore]
    """Sends one request after the other and times each event that holds text."""

    @task  # type: ignore[misc, unused-ignore]
    def stream(self) -> None:
        global issued, ended
        if issued >= NUM_REQUESTS:
            raise StopUser
        issued += 1
        start = time.perf_counter()
        stamps = []
        with self.client.post("/v1/chat/completions", json=BODY, stream=True, catch_response=True) as response:
            while True:
                event = response.stream.readline(b"\n\n")
                if not event or event.startswith(b"data: [DONE]"):
                    break
                choices = json.loads(event[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    stamps.append(time.perf_counter())
            response.stream.read()
        if stamps:
            ttft_s.append(stamps[0] - start)
            gap_s.extend(b - a for a, b in itertools.pairwise(stamps))
        ended += 1
        if ended == NUM_REQUESTS:
            gevent.spawn(self.environment.runner.quit)  # from outside of the users that it ends


@events.quitting.add_listener  # type: ignore[untyped-decorator, unused-ignore]
def report(environment: Any, **_: Any) -> None:
    """Write what was measured."""
    content = {"num_ok": len(ttft_s), "ttft_s": ttft_s, "gap_s": gap_s}
    Path(os.environ["BENCH_REPORT"]).write_text(json.dumps(content))
