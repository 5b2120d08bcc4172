"""`unveil harness` in two processes: each answers its share, and the numbers are those of one."""

import json
import os

import pytest
import torch

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
pytest.importorskip("lm_eval")

from harnessing import all_harnessed, harnessed
from launching import launched
from test_harness import ROLLING
from toy import checkpoint

from unveil.evaluate.shares import collected, joint, met, numbers, own

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the harness
COMMON = "dataset_path: json\ndataset_kwargs: {data_files: {test: DATA}}\ntest_split: test\n"
CHOICE = """
task: local_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = """
task: local_write
output_type: generate_until
repeats: 2
doc_to_text: "{{question}}"
doc_to_target: "a"
generation_kwargs: {until: ["n"], max_gen_toks: 9, do_sample: true, temperature: 1.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
QUESTIONS = ("abc", "dem", "gfab", "klm", "cab")  # which two processes cannot share equally


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Words that ask a tiny leader model three local tasks."""
    rows = [{"question": each, "choices": ["ab", "cd", "ef"], "text": each * 4} for each in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, task in enumerate((CHOICE + COMMON, ROLLING, WRITE + COMMON)):
        (tmp_path / f"{number}.yaml").write_text(task.replace("DATA", str(tmp_path / "rows.jsonl")))
    checkpoint(tmp_path / "model", "leader", 4)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = ["--model_args", f"pretrained={tmp_path / 'model'}", "draws=2", "max_length=40"]
    return ["--include_path", str(tmp_path), "--tasks", "local_choice,local_rolling,local_write", *model, "--json"]


def answered(folder) -> dict:
    """What each problem of each task was answered."""
    found = {}
    for path in folder.rglob("samples_*.jsonl"):
        for line in path.read_text().splitlines():
            each = json.loads(line)
            found[path.name.split("_2")[0], each["doc_id"]] = each["resps"]
    return found


def test_two_processes_give_the_numbers_of_one(given, tmp_path):
    words = [[*given, "--log_samples", "--output_path", str(tmp_path / name)] for name in ("one", "two")]
    code, out, errors = harnessed(words[0])
    assert not code, errors
    wanted = json.loads(out.splitlines()[-1])
    wrong = [each.replace("draws=2", "drawz=2") for each in words[1]]
    (refused, (code, out, errors)), (quiet, (other, silent, _)) = launched(2, all_harnessed, [wrong, words[1]])
    assert code == other == 0, errors
    assert not silent, "one of the processes speaks"
    assert refused[0] == quiet[0] == 2, "what one refuses all refuse"
    assert "unveil: no model argument called 'drawz'" in refused[2]
    assert "unveil: " not in quiet[2]
    assert json.loads(out.splitlines()[-1])["results"] == wanted["results"]
    one, two = answered(tmp_path / "one"), answered(tmp_path / "two")
    assert len(one) == 3 * len(QUESTIONS)
    assert two.keys() == one.keys()
    for problem, wanted in one.items():  # the harness has the smaller share answer its last request over and over
        assert [told[: len(each)] for told, each in zip(two[problem], wanted, strict=True)] == wanted
    drawn = [found[0] for (task, _), found in one.items() if task == "samples_local_write"]
    assert any(first != second for first, second in drawn), "what is written twice is drawn twice"


def test_the_numbers_of_problems_do_not_depend_on_the_share():
    problems = [("a", i, 2) for i in range(4) for _ in range(2)]
    assert numbers(problems) == list(range(8))
    assert numbers(problems[2:4] + problems[6:]) == [2, 3, 6, 7]
    assert numbers([(None, None, None)] * 3) == [0, 1, 2]


def test_one_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert met() == (0, 1)
    assert own("cuda:0") == "cuda:0"
    assert collected("it", 0, 1) == ["it"]
    assert joint(found := torch.ones(2), 1) is found
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (own("cuda"), own("cuda:0"), own("cpu")) == ("cuda:1", "cuda:1", "cpu")
