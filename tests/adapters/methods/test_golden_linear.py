"""Linear and residual heads on closed-form inputs: printed values (methods/trained.md, section 9), and each formula
written out in numpy to 1e-9."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from onceclip.adapters import (
    CLAP,
    RLA,
    CrossModalAdapter,
    CrossModalLinearProbe,
    LPPlusPlus,
    ProLIP,
    Rows,
    TaskRes,
    WiseFT,
    ZeroShotLinearProbe,
)

from ..golden import golden_queries, golden_task, grid, numpy_unit

QUERY_LABEL = torch.tensor([0, 1, 2, 0])


def raw_mean():
    return np.asarray(grid((3, 5, 8), 1.1)).mean(axis=1)


def unit_mean():
    return numpy_unit(numpy_unit(grid((3, 5, 8), 1.1)).mean(axis=1))


def logits_of(method, parameters, task=None, rows=None):
    """Logits in the precision of the parameters, before a classifier makes float32 of them."""
    task = golden_task(next(iter(parameters.values())).dtype) if task is None else task
    rows = golden_queries(task.text.embedding.dtype) if rows is None else rows
    classifier = method.classifier(task, method.prepare(task), parameters)
    return classifier.head(classifier.prepared(rows))


def test_taskres_logits(dtype, agree):
    residual = (0.1 * grid((3, 8), 6)).to(dtype)
    logits = logits_of(TaskRes(preset="reference"), {"residual": residual})
    agree(logits[0], (-7.070153, 24.306667, 23.291642))
    if dtype == torch.float64:
        expected = 100 * numpy_unit(golden_queries()) @ numpy_unit(raw_mean() + 0.5 * residual.numpy()).T
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)


def test_zs_lp_logits(dtype, agree):
    prototype = golden_task(dtype).text.raw_mean + (0.05 * grid((3, 8), 5)).to(dtype)
    logits = logits_of(ZeroShotLinearProbe(preset="reference"), {"prototype": prototype})
    agree(logits[0], (-5.109131, 32.109459, 23.079831))
    if dtype == torch.float64:
        expected = 100 * numpy_unit(golden_queries()) @ numpy_unit(prototype).T
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)


def test_clap_constraint_weights_and_penalty(dtype, agree):
    task, method = golden_task(dtype), CLAP(preset="reference")
    prepared = method.prepare(task)
    agree(prepared.weight, (0.5, 0.499544, 0.5))
    moved = (0.05 * grid((3, 8), 5)).to(dtype)
    penalty = method.penalty(prepared, {"prototype": task.text.raw_mean + moved})
    agree(penalty, 0.005543)
    if dtype == torch.float64:
        logits = 100 * numpy_unit(grid((6, 8), 0.3)) @ numpy_unit(raw_mean()).T
        likely = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        weight = likely[np.arange(6), [0, 0, 1, 1, 2, 2]].reshape(3, 2).mean(axis=1)
        np.testing.assert_allclose(prepared.weight, weight, rtol=0, atol=1e-9)
        expected = (weight * (moved.numpy() ** 2).sum(axis=1)).mean()
        np.testing.assert_allclose(penalty, expected, rtol=0, atol=1e-9)


def test_lp_plus_plus_start_and_step_sizes(dtype, agree):
    method = LPPlusPlus(share=1)
    prepared = method.prepare(golden_task(dtype))
    start = method.initial(prepared, torch.Generator())
    agree(start["alpha"], [31.877447] * 3)
    agree(prepared.alpha_step, 1.362496)
    agree(prepared.weight_step, 12.441601)
    logits = logits_of(method, start)
    agree(logits[0], (1.378867, 7.486204, 7.498910))
    if dtype == torch.float64:
        rows, text = numpy_unit(grid((6, 8), 0.3)), unit_mean()
        own = (rows * text[[0, 0, 1, 1, 2, 2]]).sum(axis=1)
        summed = rows.reshape(3, 2, 8).sum(axis=1)
        expected = numpy_unit(golden_queries()) @ (summed + 250 * own.mean() * text).T
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)
        largest = np.linalg.eigvalsh(rows.T @ rows)[-1]
        assert prepared.weight_step == pytest.approx(4 * 6 / largest, rel=1e-9)
        assert prepared.alpha_step == pytest.approx(6 / (4 * ((rows @ text.T) ** 2).sum(axis=0).max()), rel=1e-9)


@pytest.mark.parametrize("gradient", ["fresh", "mean", "accumulate"])
def test_lp_plus_plus_trains_like_a_loop_of_torch(gradient):
    """Twenty-five epochs with torch's own gradients and SGD; alpha moves after the tenth and the twentieth."""
    task, method = golden_task(), LPPlusPlus(alpha_gradient=gradient, epochs=25)
    prepared = method.prepare(task)
    start = method.initial(prepared, torch.Generator())
    found = method.solve(prepared, start, lambda part: None)
    weight, bias, alpha = (start[name].clone().requires_grad_() for name in ("weight", "bias", "alpha"))
    rows, text = torch.from_numpy(numpy_unit(grid((6, 8), 0.3))), torch.from_numpy(unit_mean())
    optimizer = torch.optim.SGD([weight, bias], lr=prepared.weight_step, momentum=0.9)
    gradients = []
    for epoch in range(25):
        optimizer.zero_grad()
        alpha.grad = None
        logits = rows @ weight.T + bias + (rows @ text.T) * alpha
        cross_entropy(logits, task.support.label).backward()
        gradients.append(alpha.grad)
        optimizer.step()
        if epoch % 10 == 9:
            step = {"fresh": gradients[-1], "mean": sum(gradients[-10:]) / 10, "accumulate": sum(gradients)}[gradient]
            with torch.no_grad():
                alpha -= prepared.alpha_step * step
    for name, expected in (("weight", weight), ("bias", bias), ("alpha", alpha)):
        torch.testing.assert_close(found[name], expected.detach(), rtol=0, atol=1e-9)
    assert not torch.allclose(found["alpha"], start["alpha"])


def prolip_task(dtype):
    task = golden_task(dtype)
    support = Rows(golden_queries(dtype), QUERY_LABEL, others={"preproj": grid((4, 10), 1.4).to(dtype)})
    return replace(task, support=support, projection=grid((10, 8), 0.8).to(dtype),
                   projection_bias=(0.1 * grid((8,), 0.9)).to(dtype))


def test_prolip_logits_and_loss(dtype, agree):
    task, rows = prolip_task(dtype), grid((4, 10), 1.4).to(dtype)
    moved = (0.05 * grid((10, 8), 2.7)).to(dtype)
    parameters = {"matrix": (task.projection + moved).T.contiguous()}
    logits = logits_of(ProLIP(), parameters, task, rows)
    agree(logits[0], (25.428906, -13.724951, -44.290453))
    method = ProLIP(strength=0.25, power=0)
    loss = method.loss(task, parameters, rows, QUERY_LABEL, torch.Generator())
    agree(loss, 12.317830)
    if dtype == torch.float64:
        projected = rows.numpy() @ (np.asarray(grid((10, 8), 0.8)) + moved.numpy()) + 0.1 * np.asarray(grid((8,), 0.9))
        np.testing.assert_allclose(logits, 100 * numpy_unit(projected) @ unit_mean().T, rtol=0, atol=1e-9)


def test_cross_modal_adapter_logits(dtype, agree):
    parameters = {"down": grid((2, 8), 0.5).to(dtype), "up": grid((8, 2), 0.7).to(dtype),
                  "weight": torch.nn.functional.normalize(golden_task(dtype).text.raw_mean, dim=1)}
    logits = logits_of(CrossModalAdapter(ratio=0.2, share=1), parameters)
    agree(logits[0], (5.725361, 22.533050, 19.130794))
    if dtype == torch.float64:
        rows = numpy_unit(golden_queries())
        hidden = np.maximum(rows @ np.asarray(grid((2, 8), 0.5)).T, 0)
        mixed = 0.2 * np.maximum(hidden @ np.asarray(grid((8, 2), 0.7)).T, 0) + 0.8 * rows
        np.testing.assert_allclose(logits, 100 * mixed @ numpy_unit(raw_mean()).T, rtol=0, atol=1e-9)


def test_cross_modal_probe_starts_as_zero_shot_of_raw_mean_prompts():
    method = CrossModalLinearProbe(share=1)
    logits = logits_of(method, method.initial(golden_task(), torch.Generator()))
    np.testing.assert_allclose(logits, 100 * numpy_unit(golden_queries()) @ numpy_unit(raw_mean()).T, rtol=0, atol=1e-9)


def test_cross_modal_loss_is_that_of_images_plus_that_of_prompts():
    """Twice the mean over batches of as many images as prompts."""
    task, method = golden_task(), CrossModalLinearProbe()
    weight = grid((3, 8), 7)
    loss = method.loss(task, {"weight": weight}, task.support.unit, task.support.label, torch.Generator())
    total = 0.0
    for rows, label in ((numpy_unit(grid((6, 8), 0.3)), np.repeat(range(3), 2)),
                        (numpy_unit(grid((15, 8), 1.1)), np.repeat(range(3), 5))):
        logits = 100 * rows @ weight.numpy().T
        total += (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(label)), label]).mean()
    np.testing.assert_allclose(loss, total, rtol=1e-12)


def test_wise_ft_logits(dtype, agree):
    task = golden_task(dtype)
    fitted = {"weight": task.zero_shot_weights + grid((3, 8), 7).to(dtype), "bias": torch.zeros(3, dtype=dtype)}
    logits = logits_of(WiseFT(alpha=0.5), fitted)
    agree(logits[0], (7.656966, 22.792829, 22.114321))
    if dtype == torch.float64:
        expected = numpy_unit(golden_queries()) @ (100 * unit_mean() + 0.5 * np.asarray(grid((3, 8), 7))).T
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)


def test_rla_logits_and_penalty():
    """The printed values have none of RLA: the formula in numpy."""
    matrix = torch.eye(8, dtype=torch.float64) + 0.05 * grid((8, 8), 2.7)
    expected = 100 * numpy_unit(numpy_unit(golden_queries()) @ matrix.numpy().T) @ unit_mean().T
    np.testing.assert_allclose(logits_of(RLA(), {"matrix": matrix}), expected, rtol=0, atol=1e-9)
    squared = (0.05 * np.asarray(grid((8, 8), 2.7))) ** 2
    for power in (0, 1, 2):
        penalty = RLA(strength=3.0, power=power).penalty(golden_task(), {"matrix": matrix})
        np.testing.assert_allclose(penalty, 3 / 2**power * squared.sum(), rtol=1e-9)
