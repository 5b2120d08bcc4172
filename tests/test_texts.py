"""Statistics of texts against other libraries, the definitions worked by hand, and what chance does."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra eval")

from unveil.evaluate.texts.bleu import self_bleu
from unveil.evaluate.texts.collection import collect, gather
from unveil.evaluate.texts.compare import compare, describe, even
from unveil.evaluate.texts.embedders import Ppmi, Sentences, Tfidf, fitted, information, near, passages
from unveil.evaluate.texts.frontier import area, frontier
from unveil.evaluate.texts.meaning import coherence, sentences
from unveil.evaluate.texts.measures import Diversity, Ratio
from unveil.evaluate.texts.ngrams import Distinct, Entropy, Grams, Zipf, entropy, repetition
from unveil.evaluate.texts.resampling import difference, estimate

ONE = np.ones((1, 3))
TOPICS = {
    "sea": "the ship sailed over waves and the captain saw fish under the keel",
    "kitchen": "the cook baked bread in an oven and put butter on warm cakes",
    "school": "a teacher wrote numbers on the board while children read their books",
}


def whole(measure, texts: int) -> float:
    return float(measure(np.ones((1, texts)))[0])


def zipfian(numbers: np.random.Generator, texts: int, length: int) -> list[list[int]]:
    """Texts of words drawn by rank."""
    p = 1 / np.arange(1, 401)
    return numbers.choice(400, size=(texts, length), p=p / p.sum()).tolist()


def shuffled(numbers: np.random.Generator, topic: str) -> str:
    return " ".join(numbers.permutation(TOPICS[topic].split()))


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    numbers = np.random.default_rng(0)
    return [". ".join(shuffled(numbers, topic) for _ in range(6)) for topic in TOPICS for _ in range(20)]


# What is counted


def test_entropies_pool_the_ngrams_of_all_texts_and_none_across_them():
    texts = [[1, 2, 1], [2, 1], [1]]
    assert whole(Entropy(Grams.of(texts, 1)), 3) == pytest.approx(-(4 / 6) * math.log(4 / 6) - 2 / 6 * math.log(2 / 6))
    pairs = Grams.of(texts, 2)  # 12, 21, 21
    assert pairs.kinds == 2
    assert whole(Entropy(pairs), 3) == pytest.approx(-(1 / 3) * math.log(1 / 3) - 2 / 3 * math.log(2 / 3))
    assert math.isnan(whole(Entropy(Grams.of([[1], [2]], 2)), 2))


def test_entropy_agrees_with_scipy():
    from scipy.stats import entropy as theirs

    texts = zipfian(np.random.default_rng(1), 30, 40)
    for n in (1, 2, 3):
        counts: dict[tuple, int] = {}
        for row in texts:
            for i in range(len(row) - n + 1):
                counts[tuple(row[i : i + n])] = counts.get(tuple(row[i : i + n]), 0) + 1
        assert whole(Entropy(Grams.of(texts, n)), 30) == pytest.approx(theirs(list(counts.values())))


def test_distinct_repetition_and_weights():
    texts = [[1, 2, 3, 4, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert whole(Distinct(Grams.of(texts, 1)), 2) == 9 / 13
    repeated = repetition(Grams.of(texts, 4))  # 1234 comes again, of five; none of two
    assert whole(repeated, 2) == pytest.approx((1 / 5 + 0) / 2)
    only = Entropy(Grams.of(texts, 1))(np.array([[2.0, 0.0]]))
    assert only[0] == pytest.approx(math.log(4))
    assert Distinct(Grams.of(texts, 1))(np.array([[2.0, 0.0]]))[0] == 4 / 16


def test_the_law_of_ranks_is_found():
    counts = np.round(1e4 / np.arange(1, 200) ** 1.3)
    texts = [np.repeat(np.arange(199), counts.astype(int)).tolist()]
    assert whole(Zipf(Grams.of(texts, 1)), 1) == pytest.approx(1.3, abs=0.03)


def test_self_bleu_agrees_with_nltk():
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    numbers = np.random.default_rng(2)
    p = 1 / np.arange(1, 13)
    texts = [numbers.choice(12, size=size, p=p / p.sum()).tolist() for size in (5, 9, 14, 14, 20, 26)]
    ours = self_bleu(texts)
    smooth = bleu.SmoothingFunction().method1
    for i, text in enumerate(texts):
        others = texts[:i] + texts[i + 1 :]
        assert ours[i] == pytest.approx(bleu.sentence_bleu(others, text, smoothing_function=smooth))
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx([1, 1, 1])
    assert math.isnan(self_bleu([[1, 2], [1, 2, 3, 4]])[0])


# What is embedded


def test_sentences_end_at_ends_also_at_full_width_ones():
    assert sentences('He came. "Who?!" she said... Nobody\u3002\u4f60\u597d\uff1f yes') == [
        "He came.",
        '"Who?!',
        '" she said...',
        "Nobody\u3002",
        "\u4f60\u597d\uff1f",
        "yes",
    ]
    assert sentences("... ! ?") == []


def test_diversity_is_one_less_the_square_of_the_mean():
    vectors = np.eye(3)
    assert whole(Diversity(vectors), 3) == pytest.approx(1 - 1 / 3)
    cosines = vectors @ vectors.T
    assert whole(Diversity(vectors), 3) == pytest.approx(1 - cosines.mean())
    assert whole(Diversity(np.array([[1.0, 0], [1, 0], [0, 0]])), 3) == 0  # what is not known does not count


def test_coherence_is_the_mean_cosine_of_neighbours():
    known = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [math.sqrt(0.5)] * 2}

    class Table:
        name = "table"

        def __call__(self, texts):
            return np.array([known.get(text[0], [0.0, 0.0]) for text in texts])

    texts = ["a. b. c.", "a", "x. y.", "c. a. x."]  # (0 + .7) / 2; no second; nothing known; .7
    assert whole(coherence(texts, Table()), 4) == pytest.approx((math.sqrt(0.5) / 2 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("kind", [Tfidf, Ppmi])
def test_embedders_know_topics(kind, corpus):
    embed, numbers = kind(passages(corpus), size=16), np.random.default_rng(3)
    names = [topic for topic in TOPICS for _ in range(4)]
    vectors = embed([shuffled(numbers, topic)[:40] for topic in names])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(12))
    near_, same = vectors @ vectors.T, np.array(names)[:, None] == np.array(names)
    assert near_[same].mean() > near_[~same].mean() + 0.3
    assert not embed(["zzz qqq"]).any()
    assert embed([]).shape[0] == 0


def test_an_embedder_from_a_folder(tmp_path, monkeypatch):
    """The library is not installed here: what it would be is played by a class with its two calls."""

    class SentenceTransformer:
        def __init__(self, folder, device):
            assert (folder, device) == (str(tmp_path), "cpu")

        def encode(self, texts, show_progress_bar, convert_to_numpy):
            return np.array([[3.0, 4.0]] * len(texts), dtype=np.float32)

    (tmp_path / "modules.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match="pip install sentence-transformers"):
        Sentences(str(tmp_path))
    played = ModuleType("sentence_transformers")
    played.__dict__["SentenceTransformer"] = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", played)
    embed = Sentences(str(tmp_path))
    assert embed.name == tmp_path.name
    assert embed(["a", "b"]) == pytest.approx(np.array([[0.6, 0.8]] * 2))


def test_information_by_hand():
    counts = near([["a", "b", "a"], ["b"]], {"a": 0, "b": 1}, 1)
    assert counts.toarray().tolist() == [[0, 2], [2, 0]]
    found = information(near([list("aab"), list("ccb")], {"a": 0, "b": 1, "c": 2}, 1), power=1.0).toarray()
    total = 2 + 1 + 1 + 2 + 1 + 1  # aa twice, ab, ba, and the same with c
    assert found[0, 0] == pytest.approx(math.log(2 * total / (3 * 3)))
    assert found[0, 1] == pytest.approx(math.log(1 * total / (3 * 2)))
    assert found[0, 2] == 0


def test_a_frontier_is_1_for_equals_and_a_beta_function_for_strangers():
    p = np.array([0.2, 0.3, 0.5])
    assert area(p, p) == pytest.approx(1, abs=1e-6)
    assert area(np.ones(1), np.ones(1)) == 1
    apart = area(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert apart == pytest.approx(1 / 252, abs=2e-4)  # the integral of (1 - x^(1/5))^5
    numbers = np.random.default_rng(0)
    a, b = numbers.normal(size=(200, 4)), numbers.normal(size=(200, 4))
    alike, far = frontier(a, b), frontier(a, b + 6)
    assert whole(alike, 200) > 0.8
    assert whole(far, 200) < 0.02
    with pytest.raises(ValueError, match="clusters is 1"):
        frontier(a, b, clusters=1)


# How sure it is


@pytest.mark.parametrize("n", [1, 2, 3])
def test_intervals_of_entropies_are_as_wide_as_chance(n):
    numbers = np.random.default_rng(n)
    found = [estimate(Entropy(Grams.of(zipfian(numbers, 60, 30), n)), 60, draws=200, seed=i) for i in range(60)]
    real = float(np.std([each.value for each in found]))
    assert 0.75 < float(np.mean([each.stderr for each in found])) / real < 1.35
    middle = np.mean([each.value for each in found])
    assert np.mean([each.low <= middle <= each.high for each in found]) > 0.85


def test_of_a_mean_it_is_the_bootstrap_and_the_effect_is_cohens_d():
    numbers = np.random.default_rng(0)
    a, b = numbers.normal(1.0, 2.0, 300), numbers.normal(0.0, 2.0, 300)
    one, other = (estimate(Ratio.mean(x), 300, seed=i, draws=4000) for i, x in enumerate((a, b)))
    assert one.value == pytest.approx(a.mean())
    assert one.stderr == pytest.approx(a.std() / math.sqrt(300), rel=0.05)
    cohen = (a.mean() - b.mean()) / math.sqrt((a.var() + b.var()) / 2)
    assert difference(one, other).effect == pytest.approx(cohen, rel=0.05)
    assert difference(one, other).sign == 1
    same = estimate(Ratio.mean(b + 0.1), 300, seed=1, draws=4000)
    paired = difference(same, other, paired=True)
    assert (paired.low, paired.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert difference(estimate(Ratio.mean(b + 0.1), 300, seed=2, draws=4000), other).sign == 0


def test_many_texts_are_left_out_in_groups():
    values = np.random.default_rng(0).normal(size=1700)
    found = estimate(Ratio.mean(values), 1700)
    assert found.stderr == pytest.approx(values.std() / math.sqrt(1700), rel=0.1)


# Two sets


def test_the_same_texts_differ_in_nothing_and_sharper_ones_in_entropy(corpus):
    embedders = fitted(corpus)
    numbers = np.random.default_rng(5)
    mixed = [numbers.choice(list(TOPICS), 3) for _ in range(30)]
    plain = gather("plain", [". ".join(shuffled(numbers, topic) for topic in each) for each in mixed])
    again = gather("again", plain.texts)
    assert {each.word for each in compare(plain, again, embedders, paired=True).verdicts} == {"no difference"}
    dull = gather("dull", [". ".join(shuffled(numbers, "sea") for _ in range(3)) for _ in range(30)])
    found = compare(dull, plain, embedders)
    assert [each.word for each in found.verdicts] == ["holds", "holds", "reversed"]
    assert found.one.counted == found.other.counted == min(dull.size, plain.size)
    assert compare(dull, plain, embedders[:1]).verdicts[1].word == "not concluded"
    assert "entropy" in found.verdicts[0].sentence(found.differences)


def test_equal_sizes():
    texts = [f"w{i} " * (i + 1) for i in range(20)]
    one = gather("one", texts)
    assert sum(map(len, one.within(33))) == 33
    assert [len(each) for each in even(one, gather("two", texts[:12]))] == [12, 12]
    assert even(one, one.first(10))[0].texts == [texts[i] for i in range(0, 20, 2)]
    cut = gather("cut", texts, length=8)
    assert {len(row) for row in cut.tokens} == {8}
    assert cut.texts[1] == " ".join(["w8"] * 8)
    with pytest.raises(ValueError, match="pairs need as many"):
        compare(one, one.first(10), [], paired=True)
    assert "coherence/tfidf" not in describe(one, []).figures


# Bad input


def test_what_is_read_and_what_is_refused(tmp_path):
    rows = [f'{{"completion": "text {i}", "id": {i}}}' for i in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert collect(str(tmp_path / "a.jsonl")).texts[3] == "text 3"
    (tmp_path / "list.json").write_text(str([f"t {i}" for i in range(10)]).replace("'", '"'))
    assert len(collect(str(tmp_path / "list.json"))) == 10
    (tmp_path / "b.txt").write_text("<|endoftext|>".join("abcdefghijk"))
    assert len(collect(str(tmp_path / "b.txt"))) == 11
    for name, content, said in (
        ("latin.txt", "caf\u00e9".encode("latin-1"), "latin.txt is not UTF-8"),
        ("empty.jsonl", b"", "empty.jsonl is empty"),
        ("few.jsonl", rows[0].encode(), "holds 1 text; expected at least 10"),
        ("other.jsonl", b'{"prompt": "x"}', "no field 'text' or 'completion'"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=said):
            collect(str(tmp_path / name))
    with pytest.raises(ValueError, match="of 5 tokens or more"):
        collect(str(tmp_path / "a.jsonl"), length=5)
    with pytest.raises(ValueError, match="expected at least 20"):
        fitted(["a few words"])
    with pytest.raises(ValueError, match="modules.json"):
        Sentences(str(tmp_path))
    assert math.isnan(entropy(np.zeros(3)))
