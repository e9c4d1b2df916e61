"""upfirdn2d: against the published operation, against its definition, and its derivatives."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

ARGUMENTS = {
    "up2": ("f1", dict(up=2, padding=(2, 1, 2, 1), gain=4)),
    "down2": ("f1", dict(down=2, padding=(1, 1, 1, 1))),
    "asym": ("f2", dict(up=(3, 2), down=(2, 1), padding=(1, 2, 0, 3), flip_filter=True, gain=1.5)),
    "crop": ("f1", dict(padding=(-1, -1, 0, -2))),
}
CASES = list(
    product([(1, 1), (2, 2), (3, 1)], [(1, 1), (2, 2), (1, 3)], [(0, 0, 0, 0), (2, 1, 3, 0), (-1, 3, 0, -2)])
)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_values_equal_the_published_ones(parity, name):
    fixture = {key: torch.from_numpy(value) for key, value in parity("upfirdn2d").items()}
    filter_name, arguments = ARGUMENTS[name]
    y = upfirdn2d(fixture["x"], fixture[filter_name], **arguments)
    torch.testing.assert_close(y, fixture[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("function", [upsample2d, downsample2d, filter2d])
def test_convenience_forms_equal_the_published_ones(parity, function):
    fixture = {key: torch.from_numpy(value) for key, value in parity("upfirdn2d").items()}
    y = function(fixture["x"], fixture["f1"])
    torch.testing.assert_close(y, fixture[function.__name__], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("up", "down", "padding"), CASES)
@pytest.mark.parametrize("flip", [False, True])
def test_definition(up, down, padding, flip):
    x, f = torch.randn(2, 2, 8, 7, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    y = upfirdn2d(x, f, up=up, down=down, padding=padding, flip_filter=flip, gain=1.5)
    expected = step_by_step(x, f if flip else f.flip((0, 1)), up, down, padding) * 1.5
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)  # sums of twelve float64 products


@pytest.mark.parametrize(("up", "down", "padding"), CASES[::2])
def test_derivatives(up, down, padding):
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    f = torch.randn(4, 3, dtype=torch.float64)

    def function(x):
        return upfirdn2d(x, f, up=up, down=down, padding=padding)

    torch.autograd.gradcheck(function, (x,))
    torch.autograd.gradgradcheck(function, (x,))


def test_constant_picture_stays_constant():
    x, f = torch.ones(1, 1, 8, 8), setup_filter((1, 3, 3, 1))
    for function in (upsample2d, downsample2d, filter2d):
        inner = function(x, f)[..., 2:-2, 2:-2]
        torch.testing.assert_close(inner, torch.ones_like(inner))


def test_up_then_down_keeps_a_ramp():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    f = setup_filter((1, 3, 3, 1))
    back = downsample2d(upsample2d(ramp, f), f)  # no shift: both are centred
    torch.testing.assert_close(back[..., 3:-3, 3:-3], ramp[..., 3:-3, 3:-3])


def test_setup_filter():
    f = setup_filter((1, 3, 3, 1))
    assert f.shape == (4, 4) and f.dtype == torch.float32
    assert f.sum() == 1 and f[0, 0] == 1 / 64 and f[1, 1] == 9 / 64
    torch.testing.assert_close(
        setup_filter([[1.0, 2.0]], normalize=False, gain=2), torch.tensor([[2.0, 4.0]])
    )
    with pytest.raises(ValueError, match="dimensions"):
        setup_filter(torch.zeros(1, 1, 1))


def test_vector_and_absent_filters():
    x = torch.randn(1, 2, 5, 5)
    taps = torch.tensor([1.0, 2.0, 1.0])
    assert torch.equal(upfirdn2d(x, taps, padding=1), upfirdn2d(x, taps.outer(taps), padding=1))
    assert torch.equal(upfirdn2d(x, None), x)


def step_by_step(x, correlate, up, down, padding):
    """Zeros inserted, padded, correlated pixel by pixel, every down-th pixel kept."""
    left, right, top, bottom = padding
    wide = x.new_zeros(*x.shape[:2], x.shape[2] * up[1], x.shape[3] * up[0])
    wide[:, :, :: up[1], :: up[0]] = x
    wide = torch.nn.functional.pad(wide, (left, right, top, bottom))
    fh, fw = correlate.shape
    windows = wide.unfold(2, fh, down[1]).unfold(3, fw, down[0])
    return (windows * correlate).sum((-1, -2))
