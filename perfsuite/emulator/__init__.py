"""The embedded engine: vLLM's API over a continuous-batching scheduler whose steps take the time of a roofline model.

Everything it produces is marked `emulated`. `server.serve` runs it in this process, `python -m perfsuite.emulator` in
one of its own. In flow order: config, http, api, stream, realtime (scheduler, blocks, device), sse, truth_log, facts.
"""
