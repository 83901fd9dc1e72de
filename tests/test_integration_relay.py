"""A worker elsewhere: its clock, its batches, and what is said when it is lost, late, doubled or of another version."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfsuite.errors import UsageError
from perfsuite.integrations.clock_offset import ClockOffset, PingPong, drift_ppm, on_our_clock, ranges_text
from perfsuite.integrations.messages import (
    Batch,
    Done,
    Ping,
    RemotePlay,
    Resend,
    boot_id,
    from_bytes,
    own_version,
    schedule_digest,
    to_bytes,
)
from perfsuite.integrations.player import RemotePlayer
from perfsuite.integrations.relay import Outbox, Relay, note_worker
from perfsuite.load.lags import Lags
from perfsuite.load.lead import Failed, Meeting, Play, WorkerLost
from perfsuite.load.order import Control, PlayOrder, PlayReport, RecordSink, Target
from perfsuite.load.shares import deal
from perfsuite.records import RequestRecord
from perfsuite.report.workers import worker_lines
from tests.made_run import audit
from tests.plays import ListSink, order, target

S = 1_000_000_000
MS = 1_000_000
THEIRS_NS = 5_000 * S  # their clock is so far ahead of ours


def pong(at_ns: int, offset_ns: int, *, trip_ns: int = MS, skew_ns: int = 0) -> PingPong:
    """A ping-pong of which the way out took trip/2 + skew."""
    return PingPong(t_sent_ns=at_ns, t_theirs_ns=at_ns + trip_ns // 2 + skew_ns + offset_ns, t_back_ns=at_ns + trip_ns)


def test_the_offset_is_right_within_half_of_the_round_trip() -> None:
    for skew_ns in (-MS // 2, 0, MS // 2):
        found = pong(0, THEIRS_NS, skew_ns=skew_ns)
        assert abs(found.offset_ns - THEIRS_NS) <= found.uncertainty_ns == MS // 2


def test_of_each_window_the_shortest_round_trip_counts() -> None:
    clock = ClockOffset()
    for trip_ms in (9, 1, 7):
        clock.add(pong(0, THEIRS_NS, trip_ns=trip_ms * MS, skew_ns=trip_ms * MS // 3))
    facts = clock.facts()
    assert facts is not None and facts.num_ping_pongs == 3
    assert (facts.uncertainty_ns, abs(facts.offset_ns - THEIRS_NS) <= MS // 2) == (MS // 2, True)


@pytest.mark.parametrize("ppm", [-80.0, 0.0, 35.0])
def test_a_drifting_clock_is_followed_and_its_drift_told(ppm: float) -> None:
    clock = ClockOffset()
    for second in range(0, 61, 2):
        clock.add(pong(second * S, THEIRS_NS + round(second * S * ppm * 1e-6)))
    facts = clock.facts()
    assert facts is not None and facts.drift_ppm == pytest.approx(ppm, abs=0.1)
    assert facts.drift_uncertainty_ppm == pytest.approx(1e6 * MS / (60 * S))
    for second in (7, 33, 59):
        theirs_ns = THEIRS_NS + second * S + round(second * S * ppm * 1e-6)
        assert abs(clock.to_ours_ns(theirs_ns) - second * S) < 10_000
        assert abs(clock.to_theirs_ns(second * S) - theirs_ns) < 10_000


def test_no_drift_is_told_of_a_short_time() -> None:
    assert drift_ppm([pong(0, 0), pong(4 * S, 0)]) is None


def test_one_host_has_one_clock_and_a_time_namespace_on_it_has_not() -> None:
    same, apart = ClockOffset(is_same_host=True), ClockOffset(is_same_host=True)
    same.add(pong(0, 0, skew_ns=MS // 3))
    apart.add(pong(0, THEIRS_NS))
    assert same.to_ours_ns(123) == 123
    assert apart.to_ours_ns(THEIRS_NS + S) == S


def record(index: int, t_sched_ns: int = S) -> RequestRecord:
    return RequestRecord(
        trial=3, index=index, phase="measured", outcome="ok", input_tokens_planned=8, output_tokens_planned=4,
        t_sched_ns=t_sched_ns, t_send_ns=t_sched_ns + 5, t_first_ns=t_sched_ns + 10, t_done_ns=t_sched_ns + 30,
        chunk_ns=[t_sched_ns + 10, t_sched_ns + 20], chunk_read_events=[1, 1],
    )  # fmt: skip


def test_instants_move_to_our_clock_and_durations_stay() -> None:
    clock = ClockOffset()
    clock.add(pong(0, THEIRS_NS))
    moved = on_our_clock(record(0, THEIRS_NS + S), clock)
    assert moved == replace(record(0, S), chunk_ns=[S + 10, S + 20])


@pytest.mark.parametrize(
    ("indices", "text"),
    [([], ""), ([4], "4"), ([0, 1, 2, 3, 7], "0–3, 7"), ([1, 3, 5, 7], "1–7 by 2"), ([2, 9], "2, 9")],
)
def test_ranges_are_named(indices: list[int], text: str) -> None:
    assert ranges_text(indices) == text


class Elsewhere:
    """A relay, and what it wrote; its player is played by the test. The clock of this host stands at 1 s."""

    def __init__(self, folder: Path, *, num: int = 4) -> None:
        (folder / "logs").mkdir(parents=True)
        (folder / "live").mkdir()
        self.folder = folder
        self.sink = ListSink()
        self.order = deal(order(num, offsets_ns=[i * MS for i in range(num)]), 2)[1]
        self.relay = Relay("node-b", now_ns=lambda: S)
        self.take(Ping(t_sent_ns=S, t_theirs_ns=S + THEIRS_NS))
        self.sent_path = str(folder / "live" / "x.arrows")
        play = Play(order=self.order, target=target("http://x"), open_sink=lambda path: self.sink,
                    sink_path=self.sent_path)  # fmt: skip
        self.sent = self.relay.from_lead(play)

    def take(self, message: object) -> Outbox:
        """What the relay makes of a message, which comes over the wire."""
        return self.relay.from_player(from_bytes(to_bytes(message)))

    def batch(self, sequence: int, *indices: int) -> Batch:
        return Batch(trial=3, sequence=sequence, records=[record(index, THEIRS_NS + S) for index in indices])

    def done(self, num_batches: int, num_records: int) -> Done:
        report = PlayReport(t_start_ns=THEIRS_NS, t_end_ns=THEIRS_NS + S, interrupted=False, audit=audit(), lags=Lags())
        return Done(trial=3, num_batches=num_batches, num_records=num_records, report=report)

    def log(self) -> list[dict[str, Any]]:
        lines = (self.folder / "logs" / "workers.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def test_records_of_batches_in_any_order_are_written_once(tmp_path: Path) -> None:
    there = Elsewhere(tmp_path)
    assert there.take(there.batch(1, 3)) == Outbox()
    assert there.take(there.done(2, 2)).to_player == [Resend(trial=3, sequences=(0,))]
    there.take(there.batch(1, 3))
    ended = there.take(there.batch(0, 1))
    assert [r.index for r in there.sink.by_index()] == [1, 3]
    assert {r.t_sched_ns for r in there.sink.records} == {S}
    (report,) = ended.to_lead
    assert isinstance(report, PlayReport) and (report.t_start_ns, report.t_end_ns) == (0, S)
    kinds = [row["kind"] for row in there.log()]
    assert kinds == ["duplicate", "played"] and there.log()[1]["clock"]["offset_ns"] == THEIRS_NS


def test_a_lost_worker_is_named_and_what_it_left_is_unsent_at_its_due_time(tmp_path: Path) -> None:
    there = Elsewhere(tmp_path, num=8)
    there.relay.from_lead(Meeting(stage="start", t_ns=2 * S))
    there.take(there.batch(0, 1, 3))
    (failed,) = there.relay.lost("no heartbeat").to_lead
    assert isinstance(failed, Failed) and isinstance(failed.error, WorkerLost)
    assert "node-b" in str(failed.error) and "no heartbeat; requests without a record: 5, 7" in str(failed.error)
    left = there.sink.by_index()[2:]
    assert [(r.index, r.outcome, r.t_sched_ns) for r in left] == [
        (5, "unsent", 2 * S + 5 * MS),
        (7, "unsent", 2 * S + 7 * MS),
    ]
    assert there.log()[0]["kind"] == "lost" and there.log()[0]["indices"] == "5, 7"


def test_records_of_a_host_whose_clock_drifts_during_the_play_are_placed_where_they_were(tmp_path: Path) -> None:
    there, ppm = Elsewhere(tmp_path, num=8), 100e-6
    theirs_ns = {second: THEIRS_NS + second * S + round((second - 1) * S * ppm) for second in range(1, 62)}
    pongs = ClockOffset()
    for second in range(1, 62, 2):
        pongs.add(pong(second * S, theirs_ns[second] - second * S, trip_ns=1000))
    there.relay.clock = pongs
    for sequence, (index, second) in enumerate(((1, 5), (3, 33), (5, 59))):
        there.take(Batch(trial=3, sequence=sequence, records=[record(index, theirs_ns[second])]))
    found_ns = [found.t_sched_ns for found in there.sink.by_index()]
    assert found_ns == pytest.approx([5 * S, 33 * S, 59 * S], abs=10_000)


def test_instants_go_out_on_the_workers_clock(tmp_path: Path) -> None:
    sent = Elsewhere(tmp_path).relay.from_lead(Meeting(stage="start", t_ns=2 * S)).to_player
    assert sent == [Meeting(stage="start", t_ns=2 * S + THEIRS_NS)]


def test_records_that_do_not_add_up_are_an_error(tmp_path: Path) -> None:
    there = Elsewhere(tmp_path)
    there.take(there.batch(0, 1))
    (failed,) = there.take(there.done(1, 2)).to_lead
    assert isinstance(failed, Failed) and "1 of 2" in str(failed.error)


def played_by(asked: RemotePlay) -> list[object]:
    """What a player answers that plays nothing but one record."""

    def play(order: PlayOrder, target: Target, sink: RecordSink, control: Control) -> PlayReport:
        sink.append([record(1)])
        return PlayReport(t_start_ns=0, t_end_ns=1, interrupted=False, audit=audit(), lags=Lags())

    said: list[object] = []
    player = RemotePlayer(said.append, play=play)
    taken = player.take(from_bytes(to_bytes(asked)))
    assert taken is not None
    player.play(taken)
    if isinstance(said[-1], Done):
        player.take(Resend(trial=3, sequences=(0,)))
    return said


def test_a_player_numbers_its_batches_and_sends_them_again(tmp_path: Path) -> None:
    (asked,) = Elsewhere(tmp_path).sent.to_player
    assert isinstance(asked, RemotePlay)
    first, done, again = played_by(asked)
    assert isinstance(first, Batch) and isinstance(done, Done) and first is again
    assert (done.num_batches, done.num_records) == (1, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"perfsuite": "0.0.0"}, "another version"), ({"digest": "0" * 64}, "another schedule")],
)
def test_a_mismatch_of_version_or_schedule_is_refused(tmp_path: Path, change: dict[str, str], words: str) -> None:
    (asked,) = Elsewhere(tmp_path).sent.to_player
    assert isinstance(asked, RemotePlay)
    (failed,) = played_by(replace(asked, **change))  # type: ignore[arg-type]
    assert isinstance(failed, Failed) and isinstance(failed.error, UsageError) and words in str(failed.error)


def test_the_digest_of_a_schedule_changes_with_every_column_and_index() -> None:
    whole = order(4, offsets_ns=[0, 1, 2, 3])
    shares = deal(whole, 2)
    moved = replace(whole, specs=replace(whole.specs, t_offset_ns=whole.specs.t_offset_ns + np.int64(1)))
    assert len({schedule_digest(o) for o in (whole, *shares, moved)}) == 4
    assert schedule_digest(from_bytes(to_bytes(whole))) == schedule_digest(whole)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("evil",))


def test_the_wire_lets_in_values_only() -> None:
    for evil in (Evil(), Path("x"), played_by):
        with pytest.raises(pickle.UnpicklingError, match="is no value of a message"):
            from_bytes(pickle.dumps(evil))
    failed = from_bytes(to_bytes(Failed(error=WorkerLost("x", found="y"))))
    assert (failed.error.what, failed.error.found) == ("x", "y")


def test_a_player_tells_its_clock_and_its_host() -> None:
    said: list[object] = []
    RemotePlayer(said.append).take(Ping(t_sent_ns=7))
    (answer,) = said
    assert isinstance(answer, Ping) and answer.t_sent_ns == 7 and answer.t_theirs_ns > 0
    assert answer.boot_id == boot_id()
    assert own_version() != "unknown"


def test_check_names_each_worker_with_its_clock_and_what_went_wrong(tmp_path: Path) -> None:
    there = Elsewhere(tmp_path, num=8)
    there.take(there.batch(0, 1, 3))
    there.take(there.batch(0, 1, 3))
    there.relay.lost("no heartbeat")
    note_worker(there.sent_path, "late", name="node-c")
    text = "\n".join(worker_lines(there.log(), 200))
    assert "1  node-b: 2 records; offset +5000.000000 s ± 0.00 ms" in text
    assert "node-b sent a batch of trial 3 twice" in text
    assert "lost in trial 3: node-b, worker node-b was lost: no heartbeat; requests without a record: 5, 7" in text
    assert "late worker node-c: it took no part" in text
    assert worker_lines([], 200) == []


def test_the_drift_of_a_clock_is_shown_with_its_bound() -> None:
    clock = {"offset_ns": -2_500_000, "uncertainty_ns": 400_000, "drift_ppm": 35.0, "drift_uncertainty_ppm": 1.25}
    note = {"kind": "played", "name": "a", "worker": 0, "num_records": 1200, "num_duplicate_records": 0, "clock": clock}
    (_, line, _) = worker_lines([note], 200)
    assert line == "  0  a: 1,200 records; offset -0.002500 s ± 0.40 ms, drift +35.0 ± 1.2 ppm"
