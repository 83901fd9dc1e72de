"""GPU telemetry: power, energy, memory, clocks and temperature, sampled beside the load.

sampler.py           the sampler as the run sees it: one process of its own for the whole run
process.py           what that process does: read at absolute deadlines, flush, answer
source.py            what a source gives: samples, or the reason why it cannot
nvml.py              the GPUs of this host; the one place where NVML's units and errors are translated
emulator_source.py   the GPUs of the embedded engine
stream.py            samples as an Arrow IPC stream that survives kill -9
"""
