"""GPU telemetry: power, energy, memory, clocks and temperature, sampled beside the load.

sampler.py           the sampler as the run sees it: one process of its own for the whole run
process.py           what that process does: read at absolute deadlines, flush, answer
source.py            what a source gives: samples, or the reason why it cannot
nvml.py              the GPUs of this host; the one place where NVML's units are translated
nvml_reading.py      one reading of one GPU; the one place where NVML's errors are translated
prometheus.py        the GPUs of another host through an exporter
agent.py             the agent of a GPU host: its samples over HTTP, to whoever has the token
agent_source.py      the GPUs of another host through its agent, on our clock
smi_csv.py           the CSV that nvidia-smi writes, followed while it grows
emulator_source.py   the GPUs of the embedded engine
probe.py             what a source tells, read a few times
stream.py            samples as an Arrow IPC stream that survives kill -9
"""
