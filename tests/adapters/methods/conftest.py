"""How the values that formulas gave elsewhere are compared with."""

import pytest
import torch


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture
def agree(dtype):
    """Function that compares with printed values: six decimals in float64, 1e-4 of the largest in float32."""

    def check(actual, printed):
        expected = torch.tensor(printed, dtype=torch.float64)
        rtol, atol = (1e-6, 6e-7) if dtype == torch.float64 else (1e-4, 1e-4 * max(1.0, float(expected.abs().max())))
        torch.testing.assert_close(torch.as_tensor(actual).double(), expected, rtol=rtol, atol=atol)

    return check


@pytest.fixture(scope="session")
def _fitted():
    return {}


@pytest.fixture
def classifier(case, method, make_task, _fitted):
    """A method fitted on the plain task; not to be changed."""
    if str(case) not in _fitted:
        _fitted[str(case)] = method.fit(make_task())
    return _fitted[str(case)]
