"""The adapter beside the harness's own model on the same checkpoint and task files, and the bound beside its source."""

import json
import os
import warnings

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from unveil import cli, hub
from unveil.codecs.text import Text
from unveil.evaluate.conditional import conditional, encoded
from unveil.evaluate.suite import Candidate, How, choose, weigh, write
from unveil.tasks import Example, Question, Task

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from unveil.evaluate.harness import Unveil, Writing

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the harness
TASKS = ["local_choice", "local_rolling", "local_write"]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""
WRITE = """
task: local_write
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: answer
generation_kwargs: {until: ["t", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROWS = [
    {
        "question": f"what is it, {i}?",
        "choices": ["yes", "no way", "maybe red green"],
        "gold": i % 3,
        "text": " ".join(f"the cat {i * j} sat {j * j} on" for j in range(3 + 6 * i)),
        "answer": "red",
    }
    for i in range(5)
]


def tokenizer(begins: bool) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [f"the cat sat on the mat and saw a dog {i}" for i in range(20)] + [row["text"] for row in ROWS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    if begins:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "begins"])
def parent(request, tmp_path_factory):
    """A random Llama as transformers saves it; its tokenizer puts a token before a text, or does not."""
    folder = tmp_path_factory.mktemp("parent")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(request.param), bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=len(fast), max_position_embeddings=64, initializer_range=0.3, bos_token_id=0, eos_token_id=1, **shape
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["leader", "full"])
def diffusion(request, tmp_path_factory):
    """A random diffusion model of the same family."""
    folder = tmp_path_factory.mktemp("diffusion") / "model"
    text = Text(tokenizer(False), special={"bos": "<s>", "eos": "</s>"}, template=TEMPLATE)
    mask = text.add_mask()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ours = {"attention": request.param, "block": 4 if request.param == "leader" else None, "mask_id": mask}
    ours["shift"] = request.param == "leader"
    model = hub.fresh(
        {"model_type": "llama", "vocab_size": text.vocab, "max_position_embeddings": 64, "unveil": ours, **shape}
    )
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(8 if weights.dim() > 1 else 1)
    hub.save(model, folder, text)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for name, text in (("choice", CHOICE), ("rolling", ROLLING), ("write", WRITE)):
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(folder / "data.jsonl")), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        import datasets

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # it takes seconds
        yield folder


def measured(lm, place, tasks=TASKS, **options) -> dict:
    manager = TaskManager(include_path=str(place), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, log_samples=True, **options
    )


def asked(*arguments, kind="loglikelihood") -> list[Instance]:
    return [Instance(kind, {}, each, i, metadata=("made", 0, 1)) for i, each in enumerate(arguments)]


def answers(results: dict, task: str) -> list:
    """What was answered to each request."""
    return [answer for sample in results["samples"][task] for (answer,) in sample["resps"]]


def test_a_parent_gets_the_numbers_that_the_harness_gives_it(parent, place):
    # logits_cache reads the first tokens where it means the last, when equal texts are divided at different places.
    theirs = measured(HFLM(str(parent), device="cpu", batch_size=2, logits_cache=False), place)
    ours = measured(Unveil(str(parent), batch_size=3), place)
    for task, metric in zip(TASKS, ("acc,none", "bits_per_byte,none", "exact_match,none"), strict=True):
        assert ours["results"][task][metric] == pytest.approx(theirs["results"][task][metric], abs=1e-6)
        found, wanted = answers(ours, task), answers(theirs, task)
        if task == "local_choice":
            assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in wanted], abs=1e-4)
            assert [sure for _, sure in found] == [sure for _, sure in wanted]
        else:
            assert found == (wanted if task == "local_write" else pytest.approx(wanted, abs=1e-3))
    assert ours["config"]["likelihood"] == "exact"
    assert max(map(len, answers(ours, "local_write"))) > 1
    assert max(len(Text.load(parent).encode(row["text"])) for row in ROWS) > 64 * 2, "several windows"


def test_greedy_continuations_are_known_as_such(parent):
    lm, other = Unveil(str(parent)), HFLM(str(parent), device="cpu")
    context = "the cat sat"
    best = other.generate_until(asked((context, {"until": [], "max_gen_toks": 3}), kind="generate_until"))[0]
    pairs = asked((context, best), (context, " on the mat"))
    assert [sure for _, sure in lm.loglikelihood(pairs)] == [sure for _, sure in other.loglikelihood(pairs)]


def test_empty_contexts_and_spaces_are_divided_as_the_harness_does(parent):
    lm, other = Unveil(str(parent)), HFLM(str(parent), device="cpu")
    pairs = asked(("", "the cat"), ("the cat ", "sat on"), ("a dog\n", "<s> saw"), ("x" * 200, " the mat"))
    for (found, _), (wanted, _) in zip(lm.loglikelihood(pairs), other.loglikelihood(pairs), strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    assert lm.loglikelihood([]) == []
    assert lm.loglikelihood_rolling([]) == []


def test_chat_templates(parent, place):
    lm, other = Unveil(str(parent)), HFLM(str(parent), device="cpu")
    said = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello <s> you "}]
    assert lm.apply_chat_template(said) == other.apply_chat_template(said)
    said.append({"role": "assistant", "content": "the answer is"})
    assert lm.apply_chat_template(said, False) == other.apply_chat_template(said, False)
    assert lm.chat_template(True) == other.chat_template(True) == TEMPLATE
    spelled = lm.apply_chat_template(said[:2])
    assert lm.tok_encode(spelled) == other.tok_encode(spelled)
    ours, theirs = (measured(each, place, ["local_choice"], apply_chat_template=True, limit=2) for each in (lm, other))
    found, wanted = answers(ours, "local_choice"), answers(theirs, "local_choice")
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in wanted], abs=1e-4)


def test_a_diffusion_model_gets_its_bound(diffusion, place):
    lm = Unveil(str(diffusion), draws=6, seed=3)
    found = measured(lm, place, ["local_choice"])
    assert found["config"]["likelihood"] == "bound"
    assert found["config"]["draws"] == 6
    model, text = hub.load(diffusion)
    pairs = [
        encoded(text, f"Question: {row['question']}\nAnswer:", f" {option}", key, number)
        for key, row in enumerate(ROWS)
        for number, option in enumerate(row["choices"])
    ]
    direct = (-conditional(model, pairs, draws=6, seed=3).nats).tolist()
    assert [nats for nats, _ in answers(found, "local_choice")] == pytest.approx(direct, abs=1e-5)
    right = [max(range(3), key=direct[3 * i : 3 * i + 3].__getitem__) == row["gold"] for i, row in enumerate(ROWS)]
    assert found["results"]["local_choice"]["acc,none"] == pytest.approx(sum(right) / len(ROWS))


def test_more_at_a_time_changes_nothing(diffusion):
    prompts = ["the cat", "Question: what is it?\nAnswer:", "a dog saw the mat on the", ""]
    wanted = {"until": ["q"], "max_gen_toks": 9, "do_sample": True, "temperature": 1.0}
    requests = asked(*((each, wanted) for each in prompts), kind="generate_until")
    one, four = (Unveil(str(diffusion), batch_size=size, decoder="threshold(tau=0.5)") for size in (1, 4))
    texts = one.generate_until(requests)
    assert texts == four.generate_until(requests)
    assert len(set(texts)) == 4
    pairs = asked(*((prompt, f" {word}") for prompt in prompts for word in ("yes", "red green", "no way")))
    alone = [one.loglikelihood([pair])[0][0] for pair in pairs]
    assert alone == pytest.approx([found for found, _ in four.loglikelihood(pairs)], abs=1e-5)
    texts = [row["text"][:150] for row in ROWS]
    whole = four.loglikelihood_rolling(asked(*((each,) for each in texts), kind="loglikelihood_rolling"))
    assert all(found < 0 for found in whole)


def test_the_bound_says_what_greedy_decoding_writes_where_it_is_asked_to(diffusion):
    lm = Unveil(str(diffusion), greedy=True, draws=2, decoder="confidence")
    context, length = "the cat sat", 3
    written = lm.generate_until(asked((context, {"until": [], "max_gen_toks": length}), kind="generate_until"))[0]
    ids = lm.tok_encode(context + written)
    pair = encoded(lm.text, context, written)
    if len(pair.continuation) == length and ids[: len(pair.context)] == list(pair.context):  # text splits as it was
        assert lm.loglikelihood(asked((context, written)))[0][1]
    assert not lm.loglikelihood(asked((context, written + " no")))[0][1]
    assert not Unveil(str(diffusion), draws=2).loglikelihood(asked((context, written)))[0][1]


def test_nothing_is_written_beyond_a_stop(parent):
    lm = Unveil(str(parent))
    free = lm.generate_until(asked(("the cat", {"until": [], "max_gen_toks": 30}), kind="generate_until"))[0]
    stop = free[len(free) // 3 : len(free) // 3 + 2]
    request = asked(("the cat", {"until": [stop], "max_gen_toks": 30}), kind="generate_until")
    seen = []

    class Watched(Writing):
        def said(self):
            seen.append(self.canvas.forwards)
            return super().said()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unveil.evaluate.harness.Writing", Watched)
        assert lm.generate_until(request) == [free.split(stop)[0]]
    assert seen[0] < 30


def test_pairs_are_those_of_our_own_measurements(diffusion):
    lm = Unveil(str(diffusion))
    request = asked(("the cat sat on ", "the mat"))[0]
    assert lm.pair(request, *request.args) == encoded(lm.text, *request.args)


def test_our_own_measurements_of_a_parent_agree(parent, place):
    agree(parent, place)


def test_our_own_measurements_of_a_diffusion_model_agree(diffusion, place):
    agree(diffusion, place)


def agree(folder, place):
    """Choices, nats of texts and texts written, by the harness and by `unveil eval`."""
    lm = Unveil(str(folder), decoder="confidence", draws=8, seed=2, add_bos_token=True)
    ours, how = Candidate("it", *hub.load(folder)), How(draws=8, seed=2, decoder="confidence")
    prompts = [f"Question: {row['question']}\nAnswer:" for row in ROWS]
    questions = [
        Question((prompt,) * 3, tuple(f" {choice}" for choice in row["choices"]), row["gold"])
        for prompt, row in zip(prompts, ROWS, strict=True)
    ]
    found = measured(lm, place, ["local_choice"])
    accuracy = [sample["acc"] for sample in found["samples"]["local_choice"]]
    assert choose(ours, questions, 0, how).figures["accuracy"] == accuracy
    texts = [row["text"][:60] for row in ROWS]
    whole = lm.loglikelihood_rolling(asked(*((text,) for text in texts), kind="loglikelihood_rolling"))
    part = weigh(ours, texts, 0, how)
    nats = [
        per * count
        for per, count in zip(*(side["nats_per_token"] for side in (part.figures, part.weights)), strict=True)
    ]
    assert [-found for found in whole] == pytest.approx(nats, rel=1e-6)
    options = {"until": [], "max_gen_toks": 9}
    wanted = lm.generate_until(asked(*((prompt, options) for prompt in prompts), kind="generate_until"))
    examples = [Example(prompt, "") for prompt in prompts]
    assert write(ours, Written(length=9), examples, 0, how).written == wanted


class Written(Task):
    """Plain prompts, whatever the model's template."""

    continued = True

    def examples(self, count, split="test", seed=0):
        return []

    def score(self, example, completion):
        return 0.0


REFUSED = {
    "no model argument called 'draw'": {"draw": 3},
    "no mode called 'exactly'": {"mode": "exactly"},
    "no decoder called 'best'": {"decoder": "best"},
    "batch_size": {"batch_size": 0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_arguments_that_there_are_none_of(diffusion, message):
    with pytest.raises(ValueError, match=message):
        Unveil(str(diffusion), **REFUSED[message]).loglikelihood(asked(("a", " b")))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_beams": 4}, "no generation option called 'num_beams'"), ({"max_gen_toks": 64}, "nothing is left")],
)
def test_requests_for_text_that_cannot_be_met(diffusion, options, message):
    with pytest.raises(ValueError, match=message):
        Unveil(str(diffusion)).generate_until(asked(("a", {"until": [], **options}), kind="generate_until"))


def test_the_command(diffusion, place, monkeypatch, capsys):
    plain = TaskManager.__init__
    monkeypatch.setattr(
        TaskManager, "__init__", lambda self, *a, **o: plain(self, *a, **{**o, "include_defaults": False})
    )  # reading its thousands of tasks takes longer than all of these tests

    def ours(*words):
        monkeypatch.setattr("sys.argv", ["unveil", "harness", *words])
        with pytest.raises(SystemExit) as found:
            cli.main()
        return found.value.code, capsys.readouterr()

    told = ["--include_path", str(place), "--tasks", "local_choice", "--limit", "2"]
    code, said = ours(*told, "--model_args", f"pretrained={diffusion}", "draws=2", "--json")
    assert not code
    found = json.loads(said.out.splitlines()[-1])
    assert found["config"]["model"] == "unveil"
    assert found["config"]["draws"] == 2
    assert 0 <= found["results"]["local_choice"]["acc,none"] <= 1
    code, said = ours(*told, "--model_args", f"pretrained={diffusion},drawz=2")
    assert code == 2
    assert said.err.splitlines()[-1].startswith("unveil: no model argument called 'drawz'; there are: adapter, ")
    code, said = ours(
        "--tasks", "no_such_task", "--include_path", str(place), "--model_args", f"pretrained={diffusion}"
    )
    assert code == 2
    assert "no_such_task" in said.err.splitlines()[-1]


def test_without_the_harness_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["unveil", "harness", "--tasks", "x"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "pip install 'unveil[eval]'" in capsys.readouterr().err
