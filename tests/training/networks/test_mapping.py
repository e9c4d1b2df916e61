"""The mapping network: against the published one; truncation, the average, and a mapping without z."""

from __future__ import annotations

import pytest
import torch

from training.networks.mapping import MappingNetwork


def published(parity):
    fixture = {key: torch.from_numpy(value) for key, value in parity("mapping").items()}
    network = MappingNetwork(z_dim=16, c_dim=25, w_dim=32, num_ws=6)
    network.load_state_dict(
        {k.removeprefix("param/"): v for k, v in fixture.items() if k.startswith("param/")}
    )
    return network, fixture


def test_values_equal_the_published_ones(parity):
    network, fixture = published(parity)
    ws = network(fixture["z"], fixture["c"])
    torch.testing.assert_close(ws, fixture["ws"], rtol=0, atol=1e-4)
    truncated = network(fixture["z"], fixture["c"], truncation_psi=0.7, truncation_cutoff=4)
    torch.testing.assert_close(truncated, fixture["ws_truncated"], rtol=0, atol=1e-4)


def test_truncation_to_nothing_is_the_average():
    network = MappingNetwork(4, 25, 8, num_ws=3)
    network.w_avg.normal_()
    ws = network(torch.randn(2, 4), torch.randn(2, 25), truncation_psi=0.0)
    torch.testing.assert_close(ws, network.w_avg.expand(2, 3, 8))


def test_average_moves_only_when_asked():
    network = MappingNetwork(4, 25, 8, num_ws=3, w_avg_beta=0.75)
    z, c = torch.randn(16, 4), torch.randn(16, 25)
    ws = network(z, c)
    assert torch.equal(network.w_avg, torch.zeros(8))
    network(z, c, update_average=True)
    torch.testing.assert_close(network.w_avg, ws[:, 0].mean(0).detach() * 0.25)
    assert not network.w_avg.requires_grad


def test_scale_of_z_does_not_matter():
    network = MappingNetwork(4, 0, 8, num_ws=2)
    z = torch.randn(3, 4)
    torch.testing.assert_close(network(z, None), network(z * 7, None))


def test_mapping_of_a_label_alone_is_not_repeated():
    network = MappingNetwork(0, 25, 8, num_ws=None, num_layers=8)
    assert network(None, torch.randn(3, 25)).shape == (3, 8)
    assert "w_avg" not in network.state_dict()


def test_no_input_is_refused():
    with pytest.raises(ValueError, match="latent or a label"):
        MappingNetwork(0, 0, 8, num_ws=2)
