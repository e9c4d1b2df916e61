import torch

from torch_utils.ops.march_rays import interval_weights
from training.rendering.sampling import importance, stratified


def test_importance_agrees_with_the_published_sampler(parity):
    arrays = {
        name: torch.as_tensor(value).squeeze(-1) for name, value in parity("marcher").items() if name != "rgb"
    }
    new = importance(arrays["depths"], arrays["weights"], torch.linspace(0, 1, 9))
    torch.testing.assert_close(new, arrays["importance_depths_deterministic"], atol=1e-4, rtol=1e-4)


def test_stratified_by_hand():
    got = stratified(1.0, 2.0, torch.tensor([[0.0, 0.5, 0.25]]))
    torch.testing.assert_close(got, torch.tensor([[1.0, 1.75, 2.125]]))


def test_equal_weights_give_even_samples():
    depths = torch.linspace(0, 1, 11).expand(2, 3, 11)
    new = importance(depths, torch.full((2, 3, 10), 0.1), torch.linspace(0, 1, 5))
    # between the first and the last-but-one midpoint, 0.05 and 0.85: there are as many edges as interior bins
    # + 1
    torch.testing.assert_close(new, torch.linspace(0.05, 0.85, 5).expand(2, 3, 5), atol=1e-5, rtol=0)


def test_samples_gather_where_the_weight_is():
    depths = torch.linspace(0, 1, 12).expand(1, 1, 12)
    density = torch.zeros(1, 1, 12)
    density[..., 6] = 50.0
    weights = interval_weights(density, depths, "sigma")
    new = importance(depths, weights, torch.rand(1, 1, 1000))
    assert ((new - depths[0, 0, 6]).abs() < 0.2).float().mean() > 0.8
    assert new.min() >= depths[0, 0, :2].mean() and new.max() <= depths[0, 0, -2:].mean()


def test_no_weight_at_all_still_gives_finite_samples():
    depths = torch.linspace(2, 3, 6).expand(1, 2, 6)
    new = importance(depths, torch.zeros(1, 2, 5), torch.linspace(0, 1, 4))
    assert new.isfinite().all() and (new.diff() > 0).all()
