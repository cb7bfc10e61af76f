"""The journal: whole records in order, torn ends dropped, anything else refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.journal import JOURNAL_NAME, Journal, JournalReader, read_journal
from repsearch.errors import NumericalError, StoreError
from tests.tracking_helpers import begin, end, learn, whole_run


def test_records_come_back_in_order_with_numbers_and_times(tmp_path: Path) -> None:
    whole_run(tmp_path)
    records = read_journal(tmp_path)
    assert [record["n"] for record in records] == list(range(len(records)))
    assert [record["time"] for record in records] == sorted(record["time"] for record in records)
    assert records[0]["kind"] == "run_started"
    assert records[-1]["kind"] == "run_finished"


def test_appended_record_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        record = journal.append("round_started", round=0, plan={})
        assert read_journal(tmp_path) == [record]


def test_numbers_go_on_after_reopening(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        begin(journal)
    with Journal(tmp_path) as journal:
        end(journal)
    assert [record["n"] for record in read_journal(tmp_path)] == [0, 1]


def test_a_point_is_written_once_per_round_key_and_step(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        assert len(journal.append_points(0, [("learn/loss", 1, 0.5), ("learn/loss", 1, 0.6), ("learn/loss", 2, 0.4)])) == 2
    with Journal(tmp_path) as journal:
        assert journal.append_points(0, [("learn/loss", 2, 0.4)]) == []
        assert len(journal.append_points(1, [("learn/loss", 2, 0.4)])) == 1
    assert [(record["step"], record["value"]) for record in read_journal(tmp_path) if record["round"] == 0] == [(1, 0.5), (2, 0.4)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_point_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    with Journal(tmp_path) as journal, pytest.raises(NumericalError, match="round 2: learn/loss at step 7"):
        journal.append_points(2, [("learn/loss", 7, value)])
    assert read_journal(tmp_path) == []


@pytest.mark.fault(27)
def test_a_file_cut_at_any_byte_keeps_its_whole_lines_and_can_be_continued(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        learn(journal, 0, epochs=1)
        end(journal)
    path = tmp_path / JOURNAL_NAME
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        whole = data[:length].count(b"\n")
        assert len(read_journal(tmp_path)) == whole
        with Journal(tmp_path) as journal:
            end(journal, "KILLED")
        assert [record["n"] for record in read_journal(tmp_path)] == list(range(whole + 1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 1: not JSON"),
        ("[]", "line 1: not a record"),
        ('{"n": 1, "time": 0.0, "kind": "round_started", "round": 0, "plan": {}}', "record number 1, expected 0"),
        ('{"n": 0, "time": 0.0, "kind": "round_began", "round": 0}', "unknown kind 'round_began'"),
        ('{"n": 0, "time": 0.0, "kind": "point", "round": 0, "key": "a", "step": 1}', "point without value"),
        ('{"n": 0, "time": 0.0, "kind": "run_finished", "status": "DONE", "error": ""}', "unknown status 'DONE'"),
    ],
)
def test_a_malformed_line_is_an_error_that_names_it(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / JOURNAL_NAME).write_text(line + "\n")
    with pytest.raises(StoreError, match=message):
        read_journal(tmp_path)
    with pytest.raises(StoreError, match=message):
        Journal(tmp_path)


def test_a_reader_sees_each_record_once_while_the_file_grows(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path)
    assert reader.read() == []
    with Journal(tmp_path) as journal:
        begin(journal)
        assert [record["kind"] for record in reader.read()] == ["run_started"]
        learn(journal, 0, epochs=1)
        with (tmp_path / JOURNAL_NAME).open("a") as file:
            file.write('{"n": 3, "ti')
        assert [record["kind"] for record in reader.read()] == ["point", "point"]
        assert reader.read() == []


@pytest.mark.fault(22)
def test_a_full_disk_is_a_clear_error_and_leaves_whole_lines(tmp_path: Path) -> None:
    code = f"""
import resource, signal
from pathlib import Path
from orchestrator.journal import Journal
from repsearch.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with Journal(Path({str(tmp_path)!r})) as journal:
    try:
        for round in range(100):
            journal.append("round_started", round=round, plan={{}})
    except StoreError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "cannot be written" in done.stdout
    lines = (tmp_path / JOURNAL_NAME).read_text().splitlines()
    assert len(lines) > 5
    assert [json.loads(line)["n"] for line in lines] == list(range(len(lines)))


def test_journal_and_report_import_neither_torch_nor_mlflow_nor_matplotlib() -> None:
    code = "import sys, orchestrator.journal, orchestrator.report, orchestrator.tracking; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "mlflow", "matplotlib", "zarr", "grpc"} & set(done.stdout.split())
