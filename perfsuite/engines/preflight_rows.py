"""Before anything is started: what the rows of a file and the turns of a session ask of an arm's dialect."""

from __future__ import annotations

from collections.abc import Sequence

from perfsuite.dialects import DIALECTS
from perfsuite.engines.preflight import check_asking, dialect_of
from perfsuite.errors import ScenarioError
from perfsuite.scenario.schema import Scenario
from perfsuite.scenario.workload import Conversation, ConversationRows, FileRows, PromptRow, PromptRows


def check_row_fields(scenario: Scenario, rows: FileRows | None) -> None:
    """Does each arm, as far as its dialect is known, take the extra_body of each row of the file?

    Raises ScenarioError that names the row.
    """
    if not isinstance(rows, PromptRows | ConversationRows):
        return
    all_rows: Sequence[PromptRow | Conversation] = rows.rows
    known: set[frozenset[str]] = set()
    for number, row in enumerate(all_rows, start=1):
        extra_body = row.extra_body or {}
        if (keys := frozenset(extra_body)) in known:
            continue
        known.add(keys)
        workload = scenario.workload.model_copy(update={"extra_body": extra_body})
        try:
            check_asking(scenario.model_copy(update={"workload": workload}))
        except ScenarioError as error:
            key = (error.where or "").removeprefix("workload.")
            error.where = f"workload.path: row {number}: {key}"
            raise


def check_history(scenario: Scenario) -> None:
    """Does each arm's dialect, as far as it is known, tell the token ids that the next turn of a session is built from?

    Raises ScenarioError.
    """
    workload = scenario.workload
    sessions = workload.sessions
    if sessions is None or sessions.history == "planned" or workload.prompt_as == "text":
        return
    for arm in scenario.arms.values():
        name = dialect_of(arm)
        if name is not None and "return_token_ids" not in (dialect := DIALECTS[name]).extra_fields:
            raise ScenarioError(
                f"the dialect {dialect.name} tells no token ids of its answers, and the next turn is built from them",
                where="workload.sessions.history",
                found="received, with prompt_as: token_ids",
                cure="write history: planned, or prompt_as: text",
            )
