"""Adapters of several encoders as one, and adapters of several seeds whose hidden units are put in one order."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import (
    GDA,
    ClipAdapter,
    MethodError,
    Rows,
    TipAdapter,
    ZeroShot,
    ensemble,
    load_classifier,
    merge,
)
from onceclip.adapters.ensembles import aligned, average
from onceclip.adapters.heads import Bottleneck, Columns, Linear
from onceclip.adapters.heads.answers import Answers
from onceclip.adapters.ops import unit


def waves(shape, shift):
    number = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(shift + 1.7 * number + 0.37 * number * number).reshape(shape)


PLAIN, COMMON, LABEL = unit(unit(waves((3, 5, 8), 1.1)).mean(dim=1)), unit(waves((8,), 8.0)), torch.arange(12) % 3
WEIGHTS = unit(COMMON + 0.12 * PLAIN)
QUERIES = unit(COMMON + 0.15 * PLAIN[LABEL] + 0.20 * unit(waves((12, 8), 5.1)))
SECOND, OTHER = unit(waves((6,), 3.0)), unit(waves((3, 6), 1.7))
WEIGHTS_2 = unit(SECOND + 0.12 * OTHER)
QUERIES_2 = unit(SECOND + 0.15 * OTHER[LABEL] + 0.2 * unit(waves((12, 6), 4.9)))
BOTH = torch.cat([QUERIES, QUERIES_2], dim=1)


def answers(rule):
    heads = Columns(torch.arange(8), Linear(100 * WEIGHTS)), Columns(torch.arange(8, 14), Linear(100 * WEIGHTS_2))
    return Answers(heads, (1.0, 1.0), (0.5, 0.5), rule)


def test_two_encoders_answer_by_mean_log_probability_and_by_confidence():
    assert_close(answers("log-probability")(BOTH)[0], torch.tensor([-0.750418, -1.677811, -1.569900]).double(), rtol=0,
                 atol=1e-6)
    assert_close(answers("confidence")(BOTH)[0].exp(), torch.tensor([0.761566, 0.094736, 0.143699]).double(), rtol=0,
                 atol=1e-6)


def test_an_ensemble_of_one_classifier_with_itself_answers_as_it_does(make_task, make_rows, tmp_path):
    task, queries = make_task((3, 3, 3)), make_rows((7, 7, 7), 10, seed=50).embedding
    fitted = replace(GDA().fit(task), temperature=3.0)
    for rule in ("mean", "confidence"):
        both = ensemble({"": fitted, "again": fitted}, rule)
        assert both.inputs == ("embedding", "again/embedding")
        assert_close(both.probabilities(torch.cat([queries, queries], dim=1)), fitted.probabilities(queries), rtol=1e-4,
                     atol=1e-5)
    both.save(tmp_path)
    assert torch.equal(load_classifier(tmp_path).logits(torch.cat([queries, queries], dim=1)),
                       both.logits(torch.cat([queries, queries], dim=1)))


def test_validation_rows_choose_the_weight_of_the_better_encoder(make_task, make_rows):
    task, rows = make_task((4, 4, 4)), make_rows((20, 20, 20), 10, noise=0.6, seed=70)
    good, noise = GDA().fit(task), torch.randn(60, 10, generator=torch.Generator().manual_seed(1))
    val = Rows(rows.embedding, rows.label, others={"blind/embedding": noise})
    both = ensemble({"": good, "blind": ZeroShot().fit(task)}, rule="weight", rows=val)
    assert both.hyperparameters["gda weight"] > 0.9
    other = Rows(noise, rows.label, others={"seeing/embedding": rows.embedding})
    seeing = ensemble({"": ZeroShot().fit(task), "seeing": good}, "weight", other)
    assert seeing.hyperparameters["seeing/gda weight"] > 0.9


def test_a_network_trained_on_validation_rows_trusts_the_encoder_that_is_right_about_an_image(make_task, make_rows,
                                                                                            tmp_path):
    """Of two encoders each sees half of the images, and noise of length ten in place of the others."""
    task = make_task((8, 8, 8), noise=0.1)

    def rows(seed):
        plain, random = make_rows((40, 40, 40), 10, noise=0.1, seed=seed), torch.Generator().manual_seed(seed)
        blind = torch.arange(120).unsqueeze(1) % 2 == 0
        noise = 3 * torch.eye(10)[9] + torch.randn(120, 10, generator=random)
        return Rows(torch.where(blind, noise, plain.embedding), plain.label,
                    others={"b/embedding": torch.where(blind, plain.embedding, noise)})

    fitted, val, test = replace(GDA().fit(task), temperature=10.0), rows(1), rows(2)
    both = {rule: ensemble({"": fitted, "b": fitted}, rule, val) for rule in ("mean", "synergy")}
    values = test.input(both["mean"].inputs)
    accuracy = {rule: float((each.logits(values).argmax(1) == test.label).double().mean())
                for rule, each in both.items()}
    assert accuracy["synergy"] > accuracy["mean"] + 0.05
    assert_close(both["synergy"].logits(7 * values), both["synergy"].logits(values), rtol=1e-4, atol=1e-4)
    both["synergy"].save(tmp_path)
    assert torch.equal(load_classifier(tmp_path).logits(values), both["synergy"].logits(values))


def test_adapters_of_one_encoder_read_its_columns_once(make_task, make_rows):
    task, queries = make_task((3, 3, 3)), make_rows((7, 7, 7), 10, seed=50).embedding
    parts = [GDA().fit(task), TipAdapter().fit(task), TipAdapter(alpha=3.0).fit(task)]
    both = ensemble({"": parts})
    assert both.inputs == ("embedding",)
    assert both.hyperparameters["tip-adapter 2 alpha"] == 3.0
    expected = torch.stack([each.logits(queries).log_softmax(1) for each in parts]).mean(dim=0)
    assert_close(both.logits(queries), expected, rtol=1e-4, atol=1e-4)


def test_the_encoder_of_the_store_is_that_of_its_own_member_wherever_it_stands(make_task):
    task = make_task((3, 3, 3))
    own, other = (replace(ZeroShot().fit(task), provenance={"encoder": {"fingerprint": each}}) for each in "ab")
    both = ensemble({"dino": other, "": own})
    assert both.encoder == {"fingerprint": "a"}
    assert both.provenance["encoders"] == {"dino": {"fingerprint": "b"}, "": {"fingerprint": "a"}}
    assert ensemble({"dino": other, "sig": other}).encoder == {}


def test_what_is_no_ensemble_is_one_line(make_task):
    one, other = ZeroShot().fit(make_task((3, 3, 3))), ZeroShot().fit(make_task((3, 3)))
    for classifiers, rule, text in (({"": one}, "confidence", "two classifiers or more"),
                                    ({"": one, "b": other}, "confidence", "of the same class names"),
                                    ({"": one, "b": one}, "best", "no rule 'best'"),
                                    ({"": [one, one, one]}, "weight", "is for two classifiers, and here are 3"),
                                    ({"": one, "b": one}, "synergy", "needs labelled validation images")):
        with pytest.raises(MethodError, match=text):
            ensemble(classifiers, rule)


def test_a_copy_with_its_units_in_another_order_merges_to_itself():
    down, up, order = waves((2, 8), 0.5), waves((8, 2), 0.7), torch.tensor([1, 0])
    head = Bottleneck(down, up, 0.2, Linear(100 * WEIGHTS))
    copy = replace(head, down=down[order], up=up[:, order])
    assert_close(copy(QUERIES), head(QUERIES))
    assert_close(average(head, aligned(copy, head), 0.5)(QUERIES), head(QUERIES))
    assert float((average(head, copy, 0.5).down - down).abs().max()) == pytest.approx(0.773280, abs=1e-6)


def test_aligned_trainings_of_two_seeds_merge_and_nothing_else_changes(make_task, make_rows):
    task, queries = make_task((3, 3, 3), noise=1.0), make_rows((7, 7, 7), 10, seed=50).embedding
    method = ClipAdapter(share=1.0, reduction=1, epochs=10, learning_rate=0.02)
    first, second = (method.fit(task, seed) for seed in (1, 2))
    moved = replace(second, head=aligned(second.head, first.head))
    assert_close(moved.logits(queries), second.logits(queries), rtol=1e-4, atol=1e-4)
    merged = merge(second, first, align=True)
    assert merged.logits(queries).isfinite().all()
    assert_close(merge(second, first, 1.0, align=True).logits(queries), second.logits(queries), rtol=1e-4, atol=1e-4)
    cache = TipAdapter().fit(task)
    assert_close(merge(cache, ZeroShot().fit(task), align=True).logits(queries),
                 merge(cache, ZeroShot().fit(task)).logits(queries))
