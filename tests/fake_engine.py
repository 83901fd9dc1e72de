# ruff: noqa: T201
"""A stand-in for a serving engine, started as a process by the tests: vLLM's endpoints and various bad habits.

Its habits are words in the environment variable FAKE_ENGINE: "never_ready", "dies_at_start", "dies_on_request",
"ignores_sigterm", "grandchildren" (one in the process group, one in a session of its own; pids are logged),
"no_models", "answers_500", "stalls", "error_in_stream", "empty_stream", "wants_key", "no_max_len".
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HABITS = set(os.environ.get("FAKE_ENGINE", "").split())
SLEEP = [sys.executable, "-I", "-S", "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
METRICS = """# HELP vllm:num_preemptions_total x
vllm:num_preemptions_total{engine="0",model_name="m"} 3.0
vllm:generation_tokens_total{engine="0",model_name="m"} 110.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="False",num_gpu_blocks="100"} 1.0
"""
CHUNKS = [
    '{"object":"text_completion","choices":[{"index":0,"text":"a","finish_reason":null,"token_ids":[5]}]}',
    '{"object":"text_completion","choices":[{"index":0,"text":"b","finish_reason":"length","token_ids":[6]}]}',
    '{"object":"text_completion","choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}',
    "[DONE]",
]


def option(name: str, default: str) -> str:
    """The value after `name` on the command line."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if "wants_key" in HABITS and self.headers["Authorization"] != "Bearer sk-right":
            self.reply(401, json.dumps({"error": {"message": f"bad key {self.headers['Authorization']}"}}))
        elif self.path == "/health":
            self.reply(200, "")
        elif self.path == "/version":
            self.reply(200, '{"version":"0.0.fake"}')
        elif self.path == "/metrics":
            self.reply(200, METRICS)
        elif self.path == "/v1/models" and "no_models" not in HABITS:
            names = option("--served-model-name", "fake").split(",")
            length = {} if "no_max_len" in HABITS else {"max_model_len": 100}
            cards = [{"id": name, "owned_by": "vllm", **length} for name in names]
            self.reply(200, json.dumps({"object": "list", "data": cards}))
        else:
            self.reply(404, '{"detail":"Not Found"}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "dies_on_request" in HABITS:
            print("fatal: the fake engine dies now", flush=True)
            os._exit(3)
        if "stalls" in HABITS:
            threading.Event().wait()
        if "answers_500" in HABITS:
            self.reply(500, json.dumps({"error": {"message": "out of fuel", "model": body["model"]}}))
            return
        chunks = CHUNKS
        if "error_in_stream" in HABITS:
            chunks = ['{"error":{"message":"scheduler fell over","code":500}}', "[DONE]"]
        if "empty_stream" in HABITS:
            chunks = ["[DONE]"]
        self.reply(200, "".join(f"data: {chunk}\n\n" for chunk in chunks), kind="text/event-stream")

    def reply(self, status: int, text: str, kind: str = "application/json") -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    print("argv:", json.dumps(sys.argv), flush=True)
    if "dies_at_start" in HABITS:
        for line in range(30):
            print("line", line, flush=True)
        sys.exit(7)
    if "ignores_sigterm" in HABITS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "grandchildren" in HABITS:
        pids = [subprocess.Popen(SLEEP, start_new_session=alone).pid for alone in (False, True)]
        print("grandchildren:", *pids, flush=True)
    if "never_ready" in HABITS:
        threading.Event().wait()
    ThreadingHTTPServer(("127.0.0.1", int(option("--port", "0"))), Handler).serve_forever()


main()
