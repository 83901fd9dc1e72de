"""Builds the compiled part of the load client into the wheel, or into the tree of an editable install.

Without a C compiler or Python's headers perfsuite is installed without it, and says so in `perfsuite doctor`.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledReads(BuildHookInterface):  # type: ignore[type-arg, misc, unused-ignore]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling's BuildHookInterface."""
        folder = Path(self.root, "perfsuite", "load")
        made = runpy.run_path(str(folder / "compiling.py"))["compile_reads"](folder)
        if isinstance(made, str):
            self.app.display_warning(f"perfsuite without its compiled part: {made}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(f"perfsuite/load/{made.name}")
