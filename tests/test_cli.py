"""Commands as a user types them: help, output, and one sentence for each mistake."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from unveil import cli
from unveil.cli import places
from unveil.codecs import blanks

TOP = Path(__file__).parent.parent
TRAIN = ["--vocab", "300", "--width", "32", "--layers", "1", "--heads", "2", "--rows", "2", "--length", "32"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A parent and its adaptation, made by the commands themselves."""
    place = tmp_path_factory.mktemp("cli")
    lines = "".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(400))
    (place / "text.txt").write_text(lines, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNVEIL_CACHE", str(place / "cache"))
        data = ["--data", str(place / "text.txt"), "--steps", "3", "--set", "ema=0"]
        assert ours(patch, "train", *TRAIN, *data, "--out", str(place / "ar")) == 0
        data += ["--rows", "2", "--length", "32", "--objective", "leader(n=3)"]
        assert ours(patch, "adapt", str(place / "ar"), *data, "--out", str(place / "dlm")) == 0
    return place


def ours(patch, *words: str) -> int:
    """The exit code of a command run in this process."""
    patch.setattr(sys, "argv", ["unveil", *words])
    with pytest.raises(SystemExit) as found:
        cli.main()
    code = found.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture
def run(monkeypatch, capsys, folder):
    """Run a command in this process: its exit code, its output and its errors."""
    monkeypatch.setenv("UNVEIL_CACHE", str(folder / "cache"))
    monkeypatch.setenv("COLUMNS", "100")

    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = ours(monkeypatch, *words)
        return code, *capsys.readouterr()

    return command


def machine(out: str) -> dict:
    """The JSON object in the last line."""
    return json.loads(out.splitlines()[-1])


def test_help_is_quick_and_without_torch():
    code = "import sys; sys.argv = ['unveil', '--help']\nfrom unveil.cli import main\n"
    code += "try: main()\nfinally: print('torch' in sys.modules, 'numpy' in sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TOP, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert found.stdout.splitlines()[-1] == "False False"
    assert "adapt" in found.stdout
    assert spent < 1.0, "seconds of the processor: unlike the clock's, they do not depend on what else is running"


def test_python_m_unveil_is_the_same_command():
    words = [sys.executable, "-m", "unveil", "--version"]
    found = subprocess.run(words, capture_output=True, text=True, cwd=TOP, check=True)
    assert found.stdout.strip().count(".") == 2


COMMANDS = ["train", "adapt", "generate", "fill", "score", "list", "info", "export", "demo", "task", "bench", "watch"]
COMMANDS += ["harness", "texts", "quality", "trajectory"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"unveil {command}" in out.split("Examples")[1]


def test_list_reads_the_folders(run):
    code, out, _ = run("list")
    assert code == 0
    found = machine(run("list", "--json")[1])
    for kind in ("decoders", "caches", "guides", "objectives", "families", "tasks"):
        files = {path.stem for path in (TOP / "unveil" / kind).glob("[a-z]*.py")}
        assert set(found[kind]) == files
        assert all(found[kind].values()), f"a {kind[:-1]} says nothing of itself"
        assert all(name in out for name in files)
    assert "stdlib-ar" in found["recipes"]
    assert list(machine(run("list", "caches", "--json")[1])) == ["caches"]


def test_recipes_are_recipes():
    from unveil import spec
    from unveil.train import Recipe

    for name, path in places.recipes().items():
        recipe = Recipe.read(path)
        assert recipe.objective == "auto" or spec.build("objectives", recipe.objective), name
        assert places.first_comment(path).endswith("."), name


def test_info(run, folder):
    code, out, _ = run("info", str(folder / "dlm"))
    assert code == 0
    assert "leader, block 4" in out
    found = machine(run("info", str(folder / "dlm"), "--json")[1])
    parent = machine(run("info", str(folder / "ar"), "--json")[1])
    assert found["attention"] == "leader"
    assert found["shift"] is True
    assert found["family"] == parent["family"] == "llama"
    assert parent["mask_id"] == -1
    assert found["mask_id"] == parent["vocabulary"]
    assert found["parameters"] == parent["parameters"] + 32
    assert found["trained"]["tokens_seen"] == 3 * 2 * 32


@pytest.mark.parametrize("how", [[], ["--decoder", "threshold(tau=0.5)"], ["--block", "1"], ["-t", "0.8", "-n", "2"]])
def test_generate(run, folder, how):
    words = ["generate", "def f1(x):", "def", "--model", str(folder / "dlm"), "--length", "12", *how]
    found = machine(run(*words, "--json")[1])
    assert len(found["samples"]) == (4 if "-n" in how else 2)
    assert found["samples"][0]["text"].startswith("def f1(x):")
    assert found["cache"] == "causal"
    assert found["forwards"] > 0
    again = machine(run(*words, "--json")[1])
    assert [s["text"] for s in again["samples"]] == [s["text"] for s in found["samples"]]
    assert run(*words)[1].rstrip("\n").startswith(found["samples"][0]["text"].split("\n")[0])


def test_generate_reads_standard_input(run, folder, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("def f2(\n"))
    found = machine(run("generate", "-m", str(folder / "dlm"), "-l", "4", "--json")[1])
    assert found["samples"][0]["prompt"] == "def f2("


def test_fill_keeps_what_was_given(run, folder):
    words = ["fill", "def f(x):\\n    [[6]] + [[]]\\n", "--length", "3", "--model", str(folder / "dlm")]
    found = machine(run(*words, "--json")[1])["filled"][0]
    assert found["lengths"] == [6, 3]
    assert found["text"].startswith("def f(x):\n    ")
    assert found["text"].endswith("\n")
    first, second = found["blanks"]
    assert found["text"] == f"def f(x):\n    {first} + {second}\n"
    assert run(*words)[1].rstrip("\n") == found["text"].rstrip("\n")


def test_fill_searches_a_range(run, folder):
    found = machine(run("fill", "def f(x):[[2-5]]\\n", "--model", str(folder / "dlm"), "--json")[1])["filled"][0]
    assert 2 <= found["lengths"][0] <= 5
    assert found["bound"] > 0


def test_blanks_are_read():
    template = blanks.parse("a[[3]]bc[[2-4]][[]]", lambda text, begins: [ord(c) for c in text], 7, 9)
    assert template.pieces == [[7, 97], [98, 99], [], []]
    assert template.lengths == [range(3, 4), range(2, 5), range(9, 10)]
    rows = dict(template.rows(0))
    assert list(rows) == [(3, 2, 9), (3, 3, 9), (3, 4, 9)]
    assert rows[3, 2, 9] == [7, 97, 0, 0, 0, 98, 99, *[0] * 11]
    many = blanks.parse("[[1-90]] [[1-90]]", lambda text, begins: [1], None, 1)
    assert 1 < len(list(many.rows(0))) <= blanks.MOST
    with pytest.raises(ValueError, match="low <= high"):
        blanks.parse("[[4-2]]", lambda text, begins: [], None, 1)


def test_the_demo_cuts_whole_lines_out_of_held_out_functions(folder):
    from unveil.cli.demo import functions, gaps
    from unveil.data import prepare
    from unveil.hub import load

    _, text = load(folder / "dlm")
    (folder / "code").mkdir(exist_ok=True)
    for i in range(6):
        lines = ["class A:", f"    def f{i}(self, x):", "        a = x", "        b = x + a", f"        c = b + {i}"]
        (folder / "code" / f"{i}.txt").write_text("\n".join([*lines, "        return c", ""]), encoding="utf-8")
    side = prepare(str(folder / "code"), text, held_out=0.5, cache=folder / "cache").held_out
    found = list(gaps(side, text))
    assert len(found) == len(side)
    for gap in found:
        whole = text.decode([*gap.before, *gap.middle, *gap.after])
        _, code, start, stop = next(functions(whole))
        assert code == whole
        assert text.decode(gap.middle).strip() == whole[start:stop] == "b = x + a"
    assert not list(functions("def f(:"))


def test_score_says_bound_or_exact(run, folder):
    words = ["--data", str(folder / "text.txt"), "--length", "32", "--windows", "8", "--all", "--json"]
    parent = machine(run("score", str(folder / "ar"), *words)[1])
    adapted = machine(run("score", str(folder / "dlm"), *words)[1])
    assert parent["kind"] == "exact"
    assert adapted["kind"] == "bound"
    assert adapted["autoregressive"]["kind"] == "exact"
    for each in (parent, adapted):
        assert each["tokens"] > 0
        assert each["standard_error"] > 0
        assert each["perplexity"] > 1


def test_several_sources_are_named_one_by_one(run, folder, tmp_path):
    """A comma is a letter like any other."""
    lines = (folder / "text.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("a, b.txt", lines[:800]), ("c.txt", lines[800:])):
        (tmp_path / name).write_text("".join(part), encoding="utf-8")
    words = ["--data", str(tmp_path / "a, b.txt"), "--data", str(tmp_path / "c.txt")]
    options = ["--steps", "1", "--set", "ema=0", "--set", "held_out=0.5", "--out", str(tmp_path / "ar")]
    code, _, err = run("train", *TRAIN, *words, *options)
    assert code == 0, err
    both = [str(tmp_path / "a, b.txt"), str(tmp_path / "c.txt")]
    assert machine(run("info", str(tmp_path / "ar"), "--json")[1])["trained"]["data"] == both
    assert ", ".join(both) in run("info", str(tmp_path / "ar"))[1]
    found = machine(run("score", str(tmp_path / "ar"), "--length", "32", "--json")[1])
    assert (found["data"], found["held_out"]) == (", ".join(both), True)


def test_score_of_one_row_claims_no_error(run, folder):
    words = ("--data", str(folder / "text.txt"), "--all", "--length", "32", "--windows", "1")
    assert machine(run("score", str(folder / "ar"), *words, "--json")[1])["standard_error"] is None
    assert "nan" not in run("score", str(folder / "ar"), *words)[1]


def test_export_round_trips(run, folder, tmp_path):
    from unveil.hub import load_model

    assert run("export", str(folder / "dlm"), str(tmp_path / "a"))[0] == 0
    before, after = load_model(folder / "dlm"), load_model(tmp_path / "a")
    assert after.attention == before.attention
    for name, value in before.state_dict().items():
        assert value.equal(after.state_dict()[name])
    assert run("export", str(folder / "dlm"), str(tmp_path / "b"), "--parent", "--dtype", "bfloat16")[0] == 0
    config = json.loads((tmp_path / "b" / "config.json").read_text(encoding="utf-8"))
    assert "unveil" not in config
    assert config["torch_dtype"] == "bfloat16"
    code, _, err = run("export", str(folder / "dlm"), str(tmp_path / "a"))
    assert (code, "exists" in err) == (2, True)
    assert run("export", str(folder / "dlm"), str(tmp_path / "a"), "--overwrite")[0] == 0


MISTAKES = [
    (["fill", "no blanks here"], "no blank"),
    (["fill", "[[0]]"], "at least 1"),
    (["fill", "x[[3]]", "--decoder", "nonsense"], "there are: "),
    (["fill", "x[[3]]", "--decoder", "threshold(mu=1)"], "has no option 'mu'"),
    (["fill", "x[[3]]", "--cache", "causal"], "full attention"),
    (["fill", "x[[9999]]"], "context"),
    (["generate", "x", "--length", "0"], "length is 0"),
    (["generate", "x", "--cache", "dual"], "use causal"),
    (["generate", "x", "--length", "99999"], "context"),
    (["generate", "x", "--steps", "0"], "steps is 0"),
    (["generate", "x", "--chat"], "no chat template"),
    (["generate", "x", "-n", "0"], "at least one answer"),
    (["list", "nonsense"], "there are: decoders"),
    (["info", "no/such/place"], "no folder"),
    (["train", "--recipe", "nonsense", "--out", "o"], "no recipe called"),
    (["train", "--set", "nonsense=1", "--out", "o"], "no field 'nonsense'"),
    (["train", "--set", "nonsense", "--out", "o"], "NAME=VALUE"),
    (["train", "--data", "no-such-file.txt", "--out", "o"], "no such file"),
    (["train", "--data", "a.txt,b.txt", "--out", "o"], "name each by its own --data"),
    (["train", "--objective", "nonsense", "--out", "o"], "no objective called"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_a_mistake_is_one_sentence(run, folder, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(folder / "dlm")] if words[0] in ("fill", "generate") else []
    code, out, err = run(*words, *model)
    assert code == 2
    assert err.startswith("unveil: ") or "\nunveil: " in err
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_not_overwritten(run, folder):
    code, _, err = run("train", "--out", str(folder / "ar"), "--steps", "1")
    assert code == 2
    assert "--overwrite" in err


def test_resume_with_another_recipe_names_the_difference(run, folder):
    words = [*TRAIN, "--data", str(folder / "text.txt"), "--set", "ema=0", "--out", str(folder / "ar"), "--resume"]
    code, _, err = run("train", *words, "--steps", "9")
    assert code == 2
    assert "steps" in err


def test_a_full_disk_is_one_sentence(run, folder, tmp_path, monkeypatch):
    from unveil import hub

    def full(*_args, **_options):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(hub, "save_file", full)
    code, _, err = run("export", str(folder / "dlm"), str(tmp_path / "x"))
    assert code == 2
    assert "No space left" in err
    assert not (tmp_path / "x").exists()


def test_a_bug_is_a_traceback(monkeypatch, folder):
    def broken(name):
        return int("nonsense" + name)

    monkeypatch.setattr(places, "described", broken)
    monkeypatch.setattr(cli.describe, "described", broken)
    monkeypatch.setattr(sys, "argv", ["unveil", "list"])
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main()
