"""Make bundles.tar.xz of the generated runs: `python dashboards/demo/make_bundles.py`. The same seed, the same runs."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from made_profile import made_profile
from made_runs import make_all

from perfsuite.report.site_profile import profile_data
from perfsuite.results import conclude
from perfsuite.store.documents import to_json
from perfsuite.store.layout import KERNEL_PROFILE, MANIFEST, PROFILES, SUMMARY

HERE = Path(__file__).parent
PROFILED, ARMS = "demo-deepseek-v4-flash", ("vllm-fp8", "vllm-nvfp4")
HOST = {"hostname": "generated-fixture", "kernel": "none", "machine": "none", "python": "3.11", "num_cpus": 16,
        "clock_source": None, "boot_id": None}  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        for path in make_all(results):
            target = settle(path, results)
            if PROFILED in target.name:
                (target / PROFILES).mkdir()
                (target / PROFILES / KERNEL_PROFILE).write_bytes(to_json(profile_data(made_profile(ARMS))))
        with tarfile.open(HERE / "bundles.tar.xz", "w:xz", preset=9) as tar:
            for path in sorted(results.rglob("*")):
                if path.is_file() and path.stat().st_size:
                    _add(tar, path, path.relative_to(results).as_posix())
    print(f"{(HERE / 'bundles.tar.xz').stat().st_size:,} bytes")


def settle(path: Path, results: Path) -> Path:
    """Give a bundle a name and a host that do not depend on where it was made, and its summary."""
    target = path.with_name(re.sub(r"[0-9a-f]{4}$", "demo", path.name))
    path.rename(target)
    manifest = json.loads((target / MANIFEST).read_text())
    manifest |= {"run_id": target.name, "host": HOST, "processes": [], "fixture": True}
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1))
    conclude(target, results=results, catalog="none")
    summary = json.loads((target / SUMMARY).read_text())
    (target / SUMMARY).write_text(json.dumps(summary | {"bundle": target.name}, indent=1, ensure_ascii=False))
    return target


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    data = path.read_bytes()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main()
