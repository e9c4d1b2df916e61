from dataclasses import replace

import pytest
import torch

from tests.kept import kept_bytes
from torch_utils import extension
from torch_utils.ops.triplane_sample import channels_last
from training.field import FieldValues, TriplaneField
from training.networks.decoder import TriplaneDecoder
from training.rendering.cameras import orbit_camera
from training.rendering.rays import camera_rays
from training.rendering.renderer import RenderOptions, render

OPTIONS = RenderOptions(2.25, 3.3, 8, 8, deterministic=True)


class Balls:
    """Spheres of given centres; part p is sphere p, the whole is their union; colour is the position."""

    def __init__(self, centres=((0.0, 0.0, 0.0),), radius=0.3, beta=0.005):
        self.centres = torch.tensor(centres)
        self.radius = torch.tensor(radius, requires_grad=True)
        self.beta = beta

    def _parts(self, points):
        return (points.unsqueeze(-2) - self.centres).norm(dim=-1) - self.radius

    def sdf(self, points):
        return self._parts(points).amin(-1, keepdim=True)

    def density(self, sdf):
        return torch.sigmoid(-sdf / self.beta) / self.beta

    def query(self, points, *, colour, parts):
        part_sdf = self._parts(points)
        sdf = part_sdf.amin(-1, keepdim=True)
        return FieldValues(sdf, self.density(sdf), points + 0.5, part_sdf)


def planes_field(dtype=torch.float32):
    decoder = TriplaneDecoder(channels=3, width=4, parts=3, part_width=3, feature_channels=4).to(dtype)
    # of the layout that a field works with, so that it keeps these very leaves
    texture, shape = (channels_last(torch.randn(2, 3, 3, 8, 8, dtype=dtype)).requires_grad_() for _ in "ts")
    return TriplaneField(texture, shape, decoder)


def view(yaw=0.0, pitch=0.0, resolution=6, **kwargs):
    return camera_rays(orbit_camera(yaw, pitch, **kwargs), resolution)


def tensors(rendered, samples=True):
    found = {k: v for k, v in vars(rendered).items() if isinstance(v, torch.Tensor)}
    if samples and rendered.samples is not None:
        found |= {f"samples.{k}": v for k, v in vars(rendered.samples).items() if v is not None}
    return found


@pytest.mark.timeout(800)  # native operations may have to be built
@pytest.mark.parametrize("impl", ["reference", "native"])
def test_agrees_with_the_published_renderer(parity, impl, monkeypatch):
    every = {operation: {"cpu": 0} for operation in extension.NATIVE}
    monkeypatch.setattr(extension, "AUTO", every if impl == "native" else {})
    arrays = {name: torch.as_tensor(value) for name, value in parity("renderer").items()}
    params = {
        k[6:]: torch.as_tensor(v) for k, v in parity("triplane_decoder").items() if k.startswith("param/")
    }
    decoder = TriplaneDecoder(channels=8, width=64, parts=6, part_width=64, feature_channels=8)
    decoder.load_published(params)
    field = TriplaneField(arrays["planes_texture"], arrays["planes_shape"], decoder, "published")
    options = replace(OPTIONS, parts=True, samples=True)
    with torch.no_grad():
        got = render(field, arrays["ray_origins"], arrays["ray_directions"], options)
    order = got.samples.depth.argsort(dim=-1).unsqueeze(-1)  # the published samples come sorted
    sorted_samples = {
        name: getattr(got.samples, name).take_along_dim(order, dim=2)
        for name in ("points", "sdf", "density", "part_sdf")
    }
    sorted_samples["part_density"] = field.density(sorted_samples["part_sdf"])
    rendered = {
        "rgb": got.features,
        "depth": got.depth,
        "weight_total": got.weight,
        "semantic": got.mask,
        "part_rgb": got.part_features,
        "part_depth": got.part_depth,
    }
    for name, value in (rendered | sorted_samples).items():
        torch.testing.assert_close(
            value, arrays[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_sphere_has_its_depth_normals_and_outline():
    field = Balls(radius=0.3, beta=0.003)
    options = replace(OPTIONS, samples_coarse=48, samples_fine=48, marching="sigma", normals=True)
    origins, directions = view(yaw=0.5, pitch=0.2, resolution=33, pivot=(0.0, 0.0, 0.0))
    with torch.no_grad():
        got = render(field, origins, directions, options)
    along = -(origins * directions).sum(-1)  # depth of the point of the ray that is nearest to the centre
    miss = (origins.square().sum(-1) - along.square()).clamp_min(0).sqrt()
    hit = miss < 0.27  # clear of the outline, where the surface is seen edge-on
    depth = along - (0.3**2 - miss.square()).clamp_min(0).sqrt()
    # within half a coarse step, which is 0.022; finer samples lie around the surface, but not all of them
    torch.testing.assert_close(got.depth[hit][:, 0], depth[hit], atol=0.011, rtol=0)
    normal = (origins + depth.unsqueeze(-1) * directions) / 0.3
    torch.testing.assert_close(got.normals[hit], normal[hit], atol=0.05, rtol=0)
    assert got.weight[hit].min() > 0.99 and got.weight[miss > 0.35].max() < 0.01
    torch.testing.assert_close(
        got.features[hit] / 2, got.normals[hit] * 0.3, atol=0.03, rtol=0
    )  # colour = position


def test_a_ray_through_the_centre_stays_in_the_centre():
    field = Balls(centres=((0.0, 0.0, 0.2),), radius=0.2)
    for yaw in (0.0, 0.9, -2.0):
        origins, directions = view(yaw=yaw, resolution=5)
        options = replace(OPTIONS, samples_coarse=48, samples_fine=48, marching="sigma")
        with torch.no_grad():
            got = render(field, origins[:, 12:13], directions[:, 12:13], options)
        surface = origins[:, 12] + got.depth[:, 0] * directions[:, 12]
        towards = torch.nn.functional.normalize(origins[:, 12] - field.centres, dim=-1)
        # colour is the position: both it and the depth meet the ball where the camera looks at it
        torch.testing.assert_close(surface, field.centres + 0.2 * towards, atol=0.02, rtol=0)
        torch.testing.assert_close(got.features[:, 0] / 2, surface, atol=0.02, rtol=0)


def test_mask_and_part_images_tell_the_parts_apart():
    field = Balls(centres=((-0.2, 0.0, 0.0), (0.2, 0.0, 0.0)), radius=0.15)
    options = replace(OPTIONS, samples_coarse=32, samples_fine=32, parts=True, marching="sigma")
    with torch.no_grad():
        got = render(field, *view(resolution=16, pivot=(0.0, 0.0, 0.0)), options)
    mask = got.mask.view(16, 16, 2)
    # a ray stops at the surface, where s_p = 0 and sigmoid(-20 s_p) = 0.5: the part's own channel is near 0
    assert mask[8, 3, 0] > -0.1 and mask[8, 3, 1] < -0.9 and mask[8, 12, 0] < -0.9 and mask[8, 12, 1] > -0.1
    alone = got.part_features.view(2, 16, 16, 3)
    assert alone[1, 8, 3].max() < -0.99 and alone[0, 8, 3].max() > -0.5  # -1 where the part is not
    assert got.part_depth.view(2, 16, 16)[0, 8, 3] < 2.7


def test_depth_is_clamped_to_the_range_of_the_whole_batch():
    field = Balls(radius=0.1)
    with torch.no_grad():
        for chunk in (None, 5):
            options = replace(OPTIONS, deterministic=False, samples=True, marching="sigma", chunk=chunk)
            field.beta = 1e-4  # exactly nothing outside
            got = render(field, *view(resolution=8), options)
            missed = got.weight == 0
            assert missed.any() and not missed.all()
            assert torch.equal(got.depth[missed], got.samples.depth.max().expand(int(missed.sum())))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("proposals", [0, 2])
def test_chunks_change_nothing(grad, proposals):
    field, rays = planes_field(), view(torch.tensor([0.3, -0.2]), resolution=5)
    others = [planes_field() for _ in range(proposals)]
    parameters = [field.planes_texture, field.planes_shape, *field.decoder.parameters()]
    options = replace(OPTIONS, deterministic=False, normals=True, parts=True, samples=True)
    results = []
    for chunk in (None, 14, 1):
        generator = torch.Generator().manual_seed(3)
        with torch.set_grad_enabled(grad):
            got = tensors(
                render(field, *rays, replace(options, chunk=chunk), proposals=others, generator=generator)
            )
        results.append(got)
        if grad:
            loss = sum((v.float() * torch.linspace(0, 1, v.shape[-1])).square().mean() for v in got.values())
            got["gradients"] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(
                other[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
            assert value.requires_grad == other[name].requires_grad


def test_gradients_of_everything_that_is_rendered():
    field = planes_field(torch.float64)
    origins, directions = (x.double() for x in view(torch.tensor([0.3, -0.2]), resolution=2))
    options = replace(OPTIONS, samples_coarse=4, samples_fine=0, normals=True, parts=True)

    def of(planes_texture, planes_shape):
        scene = TriplaneField(planes_texture, planes_shape, field.decoder)
        got = tensors(render(scene, origins, directions, options))
        got.pop("mask")  # its weights are detached on purpose
        return tuple(got.values())

    assert torch.autograd.gradcheck(of, (field.planes_texture, field.planes_shape), fast_mode=True)


def test_the_mask_teaches_the_parts_only():
    field = planes_field()
    render(field, *view(torch.zeros(2)), OPTIONS).mask.sum().backward()
    decoder = field.decoder
    assert decoder.part_shapes.weight1.grad.abs().sum() > 0
    assert decoder.shape.weight1.grad is None and field.planes_texture.grad is None


def test_normals_reach_the_shape_and_not_the_texture():
    field = planes_field()
    render(field, *view(torch.zeros(2)), replace(OPTIONS, normals=True)).normals.sum().backward()
    assert field.planes_shape.grad.abs().sum() > 0 and field.decoder.shape.weight1.grad.abs().sum() > 0
    assert field.planes_texture.grad is None or field.planes_texture.grad.abs().sum() == 0


def test_normals_without_gradients_leave_no_graph():
    field = planes_field()
    with torch.no_grad():
        got = tensors(render(field, *view(torch.zeros(2)), replace(OPTIONS, normals=True, samples=True)))
    assert not any(value.requires_grad for value in got.values())


def test_only_what_is_wanted_is_rendered():
    got = render(planes_field(), *view(torch.zeros(2)), replace(OPTIONS, mask=False))
    assert got.mask is None and got.normals is None and got.part_features is None and got.samples is None


class Counting(Balls):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.sdf_points = self.query_points = self.largest_query = 0

    def sdf(self, points):
        self.sdf_points += points.shape[1]
        return super().sdf(points)

    def query(self, points, **kwargs):
        self.query_points += points.shape[1]
        self.largest_query = max(self.largest_query, points.shape[0] * points.shape[1])
        return super().query(points, **kwargs)


def test_no_sample_is_evaluated_twice():
    field, rays = Counting(), view(resolution=3)
    render(field, *rays, OPTIONS)
    assert field.query_points == 9 * 16 and field.sdf_points == 0
    field, proposal = Counting(), Counting()
    render(field, *rays, OPTIONS, proposals=(proposal,))
    assert (field.query_points, field.sdf_points) == (9 * 16, 0)
    assert (proposal.query_points, proposal.sdf_points) == (0, 9 * 8)


def test_chunks_bound_what_is_evaluated_at_once():
    """``chunk`` counts the rays of all scenes together."""
    field = Counting()
    got = render(field, *view(torch.zeros(3), resolution=8), replace(OPTIONS, chunk=12))
    assert field.largest_query == 12 * 8 and field.query_points == 64 * 16
    got.features.sum().backward()  # evaluates all of it again, at most as much at once
    assert field.largest_query == 12 * 8 and field.query_points == 2 * 64 * 16


@pytest.mark.parametrize("normals", [False, True])
def test_what_is_kept_for_the_gradients_grows_with_the_chunk_and_not_with_the_picture(normals):
    """Of a larger picture with chunks of one size, only what goes in and comes out of the rays is more."""
    field = planes_field()
    parameters = [field.planes_texture, field.planes_shape, *field.decoder.parameters()]

    def kept(resolution, chunk):
        options = replace(OPTIONS, normals=normals, chunk=chunk)
        rays = view(torch.zeros(2), resolution=resolution)
        return kept_bytes(lambda: render(field, *rays, options), parameters)

    more_rays = 2 * (16**2 - 8**2)
    inputs = 3 + 3 + 8 + 8  # origin, direction, offsets of the coarse and quantiles of the fine samples
    outputs = 4 + 1 + 1 + 3 + 3  # features, depth, weight, mask, normals
    most = more_rays * 4 * (inputs + outputs)
    assert kept(16, 32) - kept(8, 32) <= most
    assert kept(16, 64) - kept(8, 64) <= most
    assert kept(16, None) - kept(8, None) > 10 * most  # each ray's samples, and what was computed on the way


def test_the_field_itself_is_the_default_proposal():
    field, rays = Balls(), view(resolution=5)
    with torch.no_grad():
        alone = tensors(render(field, *rays, OPTIONS))
        named = tensors(render(field, *rays, OPTIONS, proposals=(field,)))
    for name, value in alone.items():
        torch.testing.assert_close(named[name], value)


def test_proposals_see_what_the_others_miss():
    """A small ball in front of the first proposal's is found by the union's samples, not by the first's."""
    old, new = Balls(radius=0.2, beta=0.002), Balls(((0.0, 0.0, 0.4),), radius=0.06, beta=0.002)
    rays = [x[:, 12:13] for x in view(resolution=5, pivot=(0.0, 0.0, 0.0))]
    options = replace(OPTIONS, samples_coarse=24, samples_fine=16, samples=True)
    inside = {}
    for name, proposals in (("old", (old,)), ("union", (old, new))):
        with torch.no_grad():
            fine = render(old, *rays, options, proposals=proposals).samples.depth[0, 0, 24:]
        inside[name] = ((fine > 2.25) & (fine < 2.35)).sum()  # the new ball spans 2.24 to 2.36
    assert inside["union"] >= 6 and inside["old"] <= 1


def test_random_samples_are_reproducible():
    field, rays = Balls(), view(resolution=3)
    options = replace(OPTIONS, deterministic=False, samples=True)
    depths = [
        render(field, *rays, options, generator=torch.Generator().manual_seed(seed)).samples.depth
        for seed in (1, 1, 2)
    ]
    assert torch.equal(depths[0], depths[1]) and not torch.equal(depths[0], depths[2])
    torch.manual_seed(5)
    first = render(field, *rays, options).samples.depth
    assert not torch.equal(first, render(field, *rays, options).samples.depth)


def test_no_importance_samples():
    got = render(Balls(), *view(resolution=3), replace(OPTIONS, samples_fine=0, samples=True))
    assert got.samples.sdf.shape == (1, 9, 8, 1)


@pytest.mark.parametrize(
    ("change", "message"), [({"samples_coarse": 3}, "at least 4"), ({"samples_fine": 7}, "divide")]
)
def test_sample_counts_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        render(Balls(), *view(), replace(OPTIONS, **change), proposals=(Balls(), Balls()))
