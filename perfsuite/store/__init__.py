"""Bundles: the folder of a run, which is the truth about it.

streams.py     raw records on disk while the run goes on: Arrow IPC streams that survive kill -9
bundle.py      a run's folder from its opening to its manifest
finalize.py    streams become Parquet, with one record for every planned request
merging.py     the records of a trial by index, out of its workers' streams
recover.py     finishes the bundle of a run that was killed
reading.py     bundles as values, and the list of them
layout.py, documents.py, redact.py, processes.py   names of files, JSON documents, secrets, marks of processes
"""
