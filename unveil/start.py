"""From a recipe to everything that a training run needs: network, tokenizer, objective and corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from . import adapter as adapters
from . import hub, spec
from .attention import Attention
from .codecs.text import Text
from .codecs.train import train_tokenizer
from .data import Conversations, Corpus, Packed, compare, converse, prepare, training_texts, training_turns
from .denoiser import Denoiser
from .families import llama
from .nn.adapters import Lora
from .nn.grow import add_mask, bare
from .nn.shift import Shifted
from .nn.transformer import Shape, Transformer
from .objectives import Objective
from .objectives.adapt import Adapt
from .objectives.autoregressive import Autoregressive
from .objectives.block import Block
from .objectives.leader import Leader
from .objectives.preference import Preference
from .train.recipe import Recipe

BLANK_SHAPES = ("llama", "mistral", "qwen3")  # families of which a recipe's few numbers describe a network


@dataclass
class Start:
    """What `train.train` is given."""

    model: Denoiser
    text: Text
    objective: Objective
    corpus: Corpus[Packed] | Corpus[Conversations]
    recipe: Recipe  # with what it left open decided
    frozen: Denoiser | None = None  # the network that the objective compares with


def start(recipe: Recipe, *, report: Callable[[int, int], None] | None = None) -> Start:
    """Make what the recipe names.

    ValueError for whatever the recipe names and is not there, or does not go together.
    """
    open_ = recipe.objective == "auto"
    if open_ and not recipe.parent:
        raise ValueError("the objective auto fits a checkpoint's attention, and the recipe names no parent")
    objective = spec.build("objectives", "masked" if open_ else recipe.objective)  # a wrong one is refused at once
    if isinstance(objective, Preference) and not recipe.parent:
        raise ValueError("preference compares with the model that it starts from, and the recipe names no parent")
    sources = recipe.data
    if recipe.parent:
        model, text = hub.load(recipe.parent)
        network = bare(model)
        next_token = model.shifted or model.attention.kind == "causal"
        if open_:
            recipe = replace(recipe, objective=fitting(model.attention))
            objective = spec.build("objectives", recipe.objective)
    else:
        if recipe.chat:
            texts = training_turns(sources, held_out=recipe.held_out)
        else:
            texts = training_texts(sources, held_out=recipe.held_out, field=recipe.field)
        text = train_tokenizer(texts, recipe.vocab)
        network = bare(hub.fresh(config(recipe, text), seed=recipe.seed))
        network.bos_id = text.start_id
        next_token = False  # it has learnt nothing yet, so masked diffusion may read token i at i
    limit = network.s.context
    if recipe.length > limit:
        raise ValueError(f"rows of {recipe.length} positions are longer than the model's context of {limit}")
    held, by = recipe.held_out, (network.config.get("unveil") or {}).get("split", "tokens")
    if isinstance(objective, Preference):
        corpus = compare(sources, text, held_out=held, by=by)
    elif recipe.chat:
        corpus = converse(sources, text, held_out=held, by=by)
    else:
        options = {"field": recipe.field, "close": recipe.close, "report": report}
        corpus = prepare(sources, text, held_out=held, by=by, **options)
    before = network.attention, next_token and network.attention.kind != "causal", network.mask_id
    model = dressed(network, text, objective, next_token, recipe.shift)
    if recipe.lora:
        if before != (network.attention, model.shifted, network.mask_id):
            raise ValueError(
                f"an adapter changes neither attention, shift nor mask token of its base, which has {before[0].kind} "
                f"attention, and {recipe.objective} would: leave out the objective, or tune all weights"
            )
        adapters.begin(network, Lora.parse(recipe.lora), recipe.parent, recipe.seed)
    frozen = None
    if isinstance(objective, Leader) and (objective.kl or objective.align):
        if not recipe.parent:
            raise ValueError("leader's kl and align compare with a parent, and the recipe names none")
        frozen = objective.parent = hub.load_model(recipe.parent).requires_grad_(False)
    if isinstance(objective, Preference):
        frozen = objective.reference = hub.load_model(recipe.parent).requires_grad_(False)
    return Start(model, text, objective, corpus, recipe, frozen)


def fitting(look: Attention) -> str:
    """The objective that trains a model on in the attention that it has."""
    match look.kind:
        case "causal":
            return "autoregressive"
        case "leader":
            return f"leader(n={look.block - 1}, grow=0)" if look.block else "leader(grow=0)"
        case "block":
            return f"block(size={look.block})"
        case _:
            return "masked"


def dressed(network: Transformer, text: Text, objective: Objective, next_token: bool, shift: str) -> Denoiser:
    """The network as its objective needs it: with a mask token, the attention it will have, and a shift."""
    if isinstance(objective, Autoregressive):
        network.attention = Attention("causal")
        return network
    if isinstance(objective, Preference) and network.attention.kind == "causal":
        return network
    if network.mask_id < 0:
        used = text.vocab
        mask = text.add_mask()
        if mask < used:
            network.mask_id = mask  # the tokenizer had one all along
            network.s = replace(network.s, mask_id=mask)
        else:
            add_mask(network, used=used)
    match objective:
        case Leader(n=n):
            network.attention, usual = Attention("leader", n + 1), True
        case Block(size=size):
            network.attention, usual = Attention("block", size), False
        case Preference():
            usual = next_token  # as it is
        case Adapt():
            network.attention, usual = Attention("full"), True
        case _:
            network.attention, usual = Attention("full"), next_token
    if isinstance(objective, Leader) and shift == "no":
        raise ValueError("the leader layout reads token i at i - 1, as its parent does: it needs the shift")
    return Shifted(network) if (usual if shift == "auto" else shift == "yes") else network


def config(recipe: Recipe, text: Text) -> dict:
    """The config.json of a network with random weights."""
    if recipe.family not in BLANK_SHAPES:
        raise ValueError(
            f"random weights of the family {recipe.family!r} cannot be described by a recipe; "
            f"there are: {', '.join(BLANK_SHAPES)}; or give a parent"
        )
    if recipe.width % recipe.heads:
        raise ValueError(f"a width of {recipe.width} is no multiple of {recipe.heads} heads")
    kv_heads = recipe.kv_heads or recipe.heads
    if recipe.heads % kv_heads:
        raise ValueError(f"{recipe.heads} heads are no multiple of {kv_heads} key-value heads")
    shape = Shape(
        vocab=text.vocab,
        width=recipe.width,
        layers=recipe.layers,
        heads=recipe.heads,
        kv_heads=kv_heads,
        hidden=recipe.hidden or -(-recipe.width * 8 // 3 // 64) * 64,
        head_size=recipe.width // recipe.heads,
        context=max(1024, recipe.length),
        eps=1e-5,
        tied=recipe.tied,
    )
    names = {"mistral": "MistralForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
    # A new tokenizer reads one side alone, so the sides must not depend on it; whoever adapts the model keeps them.
    ours = {"split": "characters"}
    return {
        **llama.describe(shape),
        "model_type": recipe.family,
        "architectures": [names[recipe.family]],
        "unveil": ours,
    }
