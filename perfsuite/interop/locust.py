"""locust's `--csv` table of statistics (PREFIX_stats.csv). Formulas: locust/stats.py and fasthttp.py, 2.47."""

from __future__ import annotations

import csv
import io

from perfsuite.interop.imported import Fact, ImportedResult, ImportedValue, Parsed, Translation, value_of

_RESPONSE = Translation(
    unit="s",
    scale=1e-3,
    definition="what the locust file times: by default from the sending to the end of the body, failures included; "
    "with stream=True to the headers only. Percentiles are rounded to two digits",
    near={"p50": "e2e_p50_s", "p99": "e2e_p99_s"},
    caveat="another instant of start and, of streams, perhaps of the end; failed requests are in it",
)
_RATE = Translation(
    unit="req/s",
    definition="requests, failed ones included / time of the test",
    near={"run": "request_rate_per_s"},
    caveat="perfsuite counts answered requests in the steady window",
)
TRANSLATIONS = {"Response Time": _RESPONSE, "Requests/s": _RATE}
_COLUMNS = {
    "Average Response Time": "mean", "Min Response Time": "min", "Max Response Time": "max", "50%": "p50",
    "90%": "p90", "95%": "p95", "99%": "p99", "99.9%": "p99.9",
}  # fmt: skip
_COUNTS = {"Request Count": "num_requests", "Failure Count": "num_failures", "Average Content Size": "mean_body_bytes"}


def read_locust(text: str) -> Parsed:
    """The text of a table. Raises KeyError, ValueError: not one."""
    try:
        rows = list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if not rows or not {"Type", "Name", "Request Count", *_COLUMNS} <= rows[0].keys():
        raise ValueError("not the columns of PREFIX_stats.csv")
    return Parsed(version=None, results=tuple(_result(row) for row in rows))


def _result(row: dict[str, str]) -> ImportedResult:
    facts: dict[str, Fact] = {word: float(row[column]) for column, word in _COUNTS.items()}
    return ImportedResult(label=f"{row['Type']} {row['Name']}".strip(), facts=facts, values=tuple(_values(row)))


def _values(row: dict[str, str]) -> list[ImportedValue]:
    out = [
        value_of("Response Time", statistic, float(row[column]), _RESPONSE)
        for column, statistic in _COLUMNS.items()
        if row[column] not in ("", "N/A") and float(row["Request Count"])
    ]
    return [*out, value_of("Requests/s", "run", float(row["Requests/s"]), _RATE)]
