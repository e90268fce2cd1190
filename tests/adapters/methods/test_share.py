"""How much of training counts: from zero-shot at 0 to the trained head alone at 1."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from onceclip.adapters import (
    METHODS,
    ClipAdapter,
    ZeroShot,
    ZeroShotLinearProbe,
    fit_selected,
    load_classifier,
    transfer,
)
from onceclip.adapters.heads import Linear
from onceclip.adapters.method import Shared, class_head, share_setting
from onceclip.adapters.training import engine
from onceclip.adapters.training.engine import train
from onceclip.adapters.training.loop import Run

SHARED = sorted(name for name, method in METHODS.items() if issubclass(method, Shared))


def test_the_methods_that_share():
    assert sorted(["lp++", "zs-lp", "clap", "taskres", "clip-adapter", "cross-modal-lp",
                             "cross-modal-adapter"]) == SHARED
    for name in SHARED:
        for preset in METHODS[name].presets:
            assert METHODS[name](preset=preset).share == 1.0, (name, preset)


@pytest.mark.parametrize("name", SHARED)
def test_share_goes_from_zero_shot_to_the_trained_head(make_task, make_method, queries, name):
    task = make_task((3, 3, 3), noise=0.6)
    zero_shot = ZeroShot().fit(task).logits(queries)
    part = {share: make_method((name, {"share": share})).fit(task).logits(queries) for share in (0.0, 0.3, 1.0)}
    assert torch.equal(part[0.0], zero_shot)
    assert_close(part[0.3], 0.7 * zero_shot + 0.3 * part[1.0], rtol=1e-4, atol=1e-3)
    method = make_method((name, {}))
    prepared = method.prepare(task)
    parameters, = train([Run(method, task, prepared, 0)])
    assert_close(part[1.0], method.training_head(prepared, parameters)(torch.nn.functional.normalize(queries, dim=1)))


class Flipped(Shared):
    """Without training, and with more than the task prepared."""

    hyperparameters = share_setting(0.25)

    def prepare(self, task):
        return task, task.text.class_weights.flip(1)

    def training_head(self, prepared, parameters):
        return class_head(*prepared)


def test_a_method_without_training_is_mixed_with_zero_shot_too(make_task, queries):
    task = make_task((3, 3, 3))
    zero_shot, own = (Flipped(share=share).fit(task).logits(queries) for share in (0.0, 1.0))
    assert torch.equal(zero_shot, ZeroShot().fit(task).logits(queries))
    assert_close(Flipped().fit(task).logits(queries), 0.75 * zero_shot + 0.25 * own, rtol=1e-5, atol=1e-4)


def test_taskres_with_an_enhanced_base_shares_with_zero_shot_itself(make_task, make_method, queries):
    task = make_task((3, 3, 3), noise=0.6)
    fitted = make_method(("taskres", {"share": 0.0, "enhanced": 5})).fit(task)
    assert torch.equal(fitted.logits(queries), ZeroShot().fit(task).logits(queries))


@pytest.mark.parametrize("name", SHARED)
def test_it_is_chosen_without_another_training_and_saved(make_task, make_method, queries, name, monkeypatch, tmp_path):
    task = make_task((4, 4, 4), val=12, noise=0.6)
    wrong = replace(task, support=replace(task.support, label=task.support.label.roll(4)))
    method = make_method((name, {"keep": "last"} if "keep" in METHODS[name].hyperparameters else {}))
    trained = []
    monkeypatch.setattr("onceclip.adapters.selection.selection.train",
                        lambda runs, *more: trained.extend(runs) or engine.train(runs, *more))
    chosen = fit_selected(method, wrong, "val", {"learning_rate"} & set(method.values))
    found = chosen.classifier
    assert len(trained) == 1
    assert chosen.interval[0] <= found.hyperparameters["share"] <= chosen.interval[1]
    if name in ("lp++", "zs-lp", "clap"):  # the others learn little in so few epochs
        assert found.hyperparameters["share"] < method.suited(wrong).share
    assert isinstance(found.head, Linear) == (name not in ("clip-adapter", "cross-modal-adapter"))
    found.save(tmp_path)
    loaded = load_classifier(tmp_path)
    assert torch.equal(loaded.logits(queries), found.logits(queries))
    assert loaded.hyperparameters == found.hyperparameters


def test_runs_of_different_shares_train_alike(make_task, queries):
    task = make_task((3, 3, 3), noise=0.6)
    runs = [Run(ClipAdapter(epochs=5, share=share), task, task, 0) for share in (0.2, 1.0)]
    first, second = train(runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_classes_are_served_with_the_share_and_an_adapter_of_before_with_all(make_task, queries, tmp_path):
    task, other = make_task((3, 3, 3), noise=0.6), make_task((0, 0, 0), seed=9)
    fitted = ClipAdapter(epochs=15, share=0.4).fit(task)
    zero_shot = ZeroShot().fit(other).logits(queries)
    fitted.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    del config["hyperparameters"]["share"], config["weights_sha256"]  # as versions of before wrote them
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    weights = tmp_path / "adapter_model.safetensors"
    save_file(load_file(weights), weights)
    whole = transfer(load_classifier(tmp_path), other).logits(queries)
    assert_close(transfer(fitted, other).logits(queries), 0.6 * zero_shot + 0.4 * whole, rtol=1e-4, atol=1e-3)


def test_dropping_the_last_batch_leaves_whole_ones():
    order = torch.Generator().manual_seed(0)
    whole, dropped = (ZeroShotLinearProbe(batch_size=4, drop_last=drop).batches(10, order) for drop in (False, True))
    assert [len(batch) for batch in whole] == [4, 4, 2]
    assert [len(batch) for batch in dropped] == [4, 4]
    assert ZeroShotLinearProbe(batch_size=16, drop_last=True).batches(10, order) == [slice(None)]
    assert ZeroShotLinearProbe(preset="reference").drop_last
    assert not ZeroShotLinearProbe.stored_values({"preset": "reference"})["drop_last"]
