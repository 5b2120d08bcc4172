"""Adapters beside their base: merged into weights of their own, asked for by name, refused where they do not fit."""

from __future__ import annotations

from argparse import Namespace

import openai
import pytest
import torch
from engines import ask
from talking import checkpoint, serving

from unveil import adapter as adapters
from unveil import cli, hub
from unveil.canvas import Canvas
from unveil.nn.adapters import Lora
from unveil.nn.grow import bare
from unveil.sample import denoise
from unveil.serve import worker
from unveil.serve.messages import Cancel, Done, Drained, Load, Refusal, Step, Submit
from unveil.serve.several import Several

PROMPT = [0, *range(40, 100)]  # long enough to be computed before and kept


def trained(base, folder, seed: int):
    """An adapter that has learnt something."""
    pytest.importorskip("peft")
    model = hub.load_model(base)
    adapters.begin(bare(model), Lora.parse("r=4,alpha=8,targets=q+v+down"), str(base), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights.add_(torch.randn(weights.shape, generator=generator) * 0.5)
    hub.save(model, folder)
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base with the adapters formal and brief."""
    place = tmp_path_factory.mktemp("adapted")
    base = checkpoint(place / "talker")
    return {"base": base} | {name: trained(base, place / name, seed) for seed, name in enumerate(("formal", "brief"))}


def words(places, *given: tuple[str, str], memory: int = 1 << 24) -> Namespace:
    """What an engine's process is started with."""
    options = {"name": "talker", "device": "cpu", "dtype": None, "memory": memory, "threads": None}
    return Namespace(model=str(places["base"]), adapter=list(given), **options)


@pytest.fixture
def engine(places) -> Several:
    found = worker.begin(words(places, ("formal", str(places["formal"])), ("brief", str(places["brief"]))))
    assert isinstance(found, Several)
    return found


def alone(places, name: str | None, order: Submit, row: int = 0) -> list[int]:
    """What the library writes with that adapter."""
    model = hub.load_model(places["base"], adapter=None if name is None else places[name])
    seed = torch.tensor([order.rows[row].seed])
    canvas = Canvas.filling([torch.tensor(order.rows[row].tokens)], model.mask_id, seed, model.attention)
    for _ in denoise(model, canvas, order.decoder, cache="causal", block=model.attention.block):
        pass
    return canvas.tokens[0].tolist()


def finish(engine: Several, *orders: Submit, most: int = 500):
    """The rows of every request, and everything that was said."""
    rows = {order.id: [list(row.tokens) for row in order.rows] for order in orders}
    for order in orders:
        engine.submit(order)
    events = []
    while not engine.idle:
        events += engine.step()
        assert sum(each.used for each in engine.engines) <= engine.memory
        assert len(events) < most
    for event in events:
        if isinstance(event, Step):
            for write in event.writes:
                rows[event.id][event.row][write.at] = write.token
    return rows, events


def test_a_merged_model_beside_its_base_is_the_merged_model(places):
    model = hub.load_model(places["base"])
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    before = model(tokens)
    found = hub.beside(model, places["base"], places["formal"])
    merged = hub.load_model(places["base"], adapter=places["formal"])
    torch.testing.assert_close(found(tokens), merged(tokens), rtol=0, atol=0)
    assert (merged(tokens) - before).abs().max() > 0.1
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=0)
    own = {name for name, weights in found.named_parameters() if weights is not dict(model.named_parameters())[name]}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in own} == {"q", "v", "down"}


def test_three_at_once_write_what_each_writes_alone(places, engine):
    masks = [engine.ready().mask_id] * 24
    hot = {"decoder": "confidence(temperature=0.8)"}
    assert engine.ready().adapters == ["formal", "brief"]
    for turn in range(2):  # the second finds its prompts computed, by the same weights
        orders = [
            ask(f"{name}{turn}", PROMPT + masks, PROMPT[:20] + masks, seed=turn, adapter=name, ends=False, **hot)
            for name in (None, "formal", "brief")
        ]
        rows, events = finish(engine, *orders)
        expected = {order.id: [alone(places, order.adapter, order, row) for row in (0, 1)] for order in orders}
        assert rows == expected
        assert len({tuple(row[0]) for row in rows.values()}) == 3
        assert sum(isinstance(event, Done) for event in events) == 6
    loads = [event for event in events if isinstance(event, Load)]
    assert (loads[-1].running, loads[-1].memory) == (0, 0)
    assert loads[-1].reused > 2 * 3 * 16


def test_orders_reach_the_engine_they_are_for(engine):
    masks = [engine.ready().mask_id] * 24
    order = ask("x", PROMPT + masks, adapter="formal")
    engine.submit(order)
    engine.step()
    engine.cancel(Cancel("x"))
    assert [event.reason for event in engine.step() if isinstance(event, Done)] == ["cancelled"]
    _, events = finish(engine, ask("y", PROMPT + masks, adapter="rude"))
    assert [event.message for event in events if isinstance(event, Refusal)] == [
        "no adapter called 'rude'; there are: formal, brief"
    ]
    engine.submit(ask("z", PROMPT + masks, adapter="brief"))
    engine.drain()
    events = []
    while not any(isinstance(event, Drained) for event in events):
        events += engine.step()
    assert [type(event) for event in events].count(Done) == 1
    assert isinstance(events[-1], Drained)


def test_all_share_one_memory(places):
    names = [(name, str(places[name])) for name in ("formal", "brief")]
    engine = worker.begin(words(places, *names, memory=60_000))
    masks = [engine.ready().mask_id] * 24
    orders = [ask(f"{i}{name}", PROMPT + masks, adapter=name) for i in range(3) for name in (None, "formal", "brief")]
    _, events = finish(engine, *orders, most=3000)  # which watches the sum
    assert sum(isinstance(event, Done) for event in events) == 9
    assert sum(each.prefixes.bytes for each in engine.engines) <= 60_000
    _, events = finish(engine, ask("large", *[PROMPT + masks] * 20, adapter="brief"))
    assert "for keys, values and logits" in next(event.message for event in events if isinstance(event, Refusal))


def test_what_does_not_fit_is_refused_at_the_start(places, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    model, text = hub.load(places["base"])
    with torch.no_grad():
        next(iter(model.parameters())).add_(1)
    hub.save(model, other, text)
    with pytest.raises(ValueError, match=r"the adapter \S+strange was trained on another base .* than "):
        worker.begin(words(places, ("a", str(trained(other, tmp_path / "strange", 1)))))
    with pytest.raises(ValueError, match="is no adapter: it has no adapter_config.json"):
        worker.begin(words(places, ("a", str(tmp_path))))
    with pytest.raises(ValueError, match="an adapter is called 'talker' as its base is"):
        worker.begin(words(places, ("talker", str(places["brief"]))))
    for given in ("formal", "=formal", "formal="):
        monkeypatch.setattr("sys.argv", ["unveil", "serve", "--adapter", given])
        with pytest.raises(SystemExit, match="2"):
            cli.main()
        assert f"--adapter is {given!r}; expected NAME=FOLDER" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["unveil", "serve", "--adapter", "a=x", "--adapter", "a=y"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "two adapters have one name" in capsys.readouterr().err


def test_adapters_are_asked_for_by_name(places):
    options = [f"--adapter={name}={places[name]}" for name in ("formal", "brief")]
    with (
        serving(places["base"], *options, "--threads", "1", "--memory", "16MB") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        listed = client.models.list().data
        assert [each.id for each in listed] == ["talker", "formal", "brief"]
        assert [getattr(each, "parent", None) for each in listed] == [None, "talker", "talker"]
        asked = {"prompt": "def f(x):", "max_tokens": 24}
        found = {each.id: client.completions.create(model=each.id, **asked) for each in listed}
        assert [each.model for each in found.values()] == ["talker", "formal", "brief"]
        assert len({each.choices[0].text for each in found.values()}) == 3
        said = "".join(each.choices[0].text for each in client.completions.create(model="brief", stream=True, **asked))
        assert said == found["brief"].choices[0].text
        there = "there is no model 'rude' here; there is 'talker', 'formal', 'brief'"
        with pytest.raises(openai.NotFoundError, match=there) as caught:
            client.completions.create(model="rude", **asked)
        assert caught.value.code == "model_not_found"
        assert client.models.retrieve("formal").id == "formal"
