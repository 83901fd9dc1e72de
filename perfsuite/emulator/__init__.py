"""The embedded engine: a continuous-batching scheduler whose steps take the time of a roofline model, in the API of
vLLM, SGLang or TensorRT-LLM.

Everything it produces is marked `emulated`. `server.serve` runs it in this process, `python -m perfsuite.emulator` in
one of its own. In flow order: config, http, surface with a module for each dialect (vllm, sglang, trtllm: words and
endpoints; *_bytes: answers; *_metrics), api, stream, realtime (scheduler, blocks, device), truth_log, facts.
"""
