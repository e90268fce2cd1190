"""The head of Gaussian classes, beside torch's own densities."""

import torch
from torch.testing import assert_close

from onceclip.adapters.heads import Quadratic


def test_gaussian_logits_are_log_densities_but_for_a_constant_of_all_classes():
    random = torch.Generator().manual_seed(2)
    mean, variance = torch.randn(4, 6, generator=random), torch.rand(4, 6, generator=random) + 0.1
    rows = torch.randn(9, 6, generator=random)
    density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(rows[:, None]).sum(dim=2)
    found = Quadratic.gaussian(mean, variance)(rows)
    assert_close(found.log_softmax(dim=1), density.log_softmax(dim=1), rtol=1e-4, atol=1e-4)
