import torch

from torch_utils.ops.triplane_sample import channels_last
from training.field import TriplaneField, sdf_gradient
from training.networks.decoder import TriplaneDecoder


def small_field(dtype=torch.float32, projection="orthogonal"):
    decoder = TriplaneDecoder(channels=3, width=4, parts=2, part_width=3, feature_channels=3).to(dtype)
    # of the layout that a field works with, so that it keeps these very leaves
    texture, shape = (channels_last(torch.randn(2, 3, 3, 8, 8, dtype=dtype)).requires_grad_() for _ in "ts")
    return TriplaneField(texture, shape, decoder, projection)


class Sphere:
    """|x| - radius, exactly."""

    def sdf(self, points):
        return points.norm(dim=-1, keepdim=True) - 0.3


def test_agrees_with_the_published_field(parity):
    arrays = {name: torch.as_tensor(value) for name, value in parity("triplane_decoder").items()}
    decoder = TriplaneDecoder(channels=8, width=64, parts=6, part_width=64, feature_channels=8)
    decoder.load_published({name[6:]: value for name, value in arrays.items() if name.startswith("param/")})
    field = TriplaneField(arrays["planes_texture"], arrays["planes_shape"], decoder, "published")
    got = field.query(arrays["xyz"], colour=True, parts=True)
    for name, value in (
        ("rgb", got.colour),
        ("sdf", got.sdf),
        ("sigma", got.density),
        ("part_sdf", got.part_sdf),
        ("part_sigma", field.density(got.part_sdf)),
    ):
        torch.testing.assert_close(value, arrays[name], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(field.sdf(arrays["xyz"]), got.sdf)


def test_query_leaves_out_what_is_not_wanted():
    values = small_field().query(torch.rand(2, 5, 3) - 0.5, colour=False, parts=False)
    assert values.colour is None and values.part_sdf is None


def test_orthogonal_planes_see_every_axis_and_published_ones_miss_y_z():
    """A scene that differs only in its third plane changes along y when that plane is y-z, and only then."""
    point = torch.tensor([[[0.1, -0.2, 0.15]]]).expand(2, 1, 3)
    moved = point + torch.tensor([0.0, 0.11, 0.0])
    for projection, differs in (("orthogonal", True), ("published", False)):
        field = small_field(projection=projection)
        with torch.no_grad():
            field.planes_shape[:, :2] = 0
            change = (field.sdf(point) - field.sdf(moved)).abs().max()
        assert (change > 1e-4) == differs


def test_gradient_of_a_sphere_is_its_outward_normal():
    points = torch.randn(1, 9, 3)
    with torch.no_grad():
        gradient = sdf_gradient(Sphere(), points)
    assert not gradient.requires_grad
    torch.testing.assert_close(gradient, torch.nn.functional.normalize(points, dim=-1))


def test_gradient_agrees_with_differences_and_is_right_to_second_order():
    field = small_field(torch.float64)
    # cell interiors: bilinear features have kinks at the pixel centres, where differences mean nothing
    points = ((torch.randint(0, 6, (2, 3, 3)) + 0.3 + 0.4 * torch.rand(2, 3, 3)) / 8 - 0.5 + 1 / 16).double()
    points.requires_grad_()
    gradient = sdf_gradient(field, points)
    step = torch.tensor([1e-6, 0, 0], dtype=torch.float64)
    differences = (field.sdf(points + step) - field.sdf(points - step)) / 2e-6
    torch.testing.assert_close(gradient[..., :1], differences, atol=1e-6, rtol=1e-6)

    weight = field.decoder.shape.weight1

    def of(points, planes, first):
        other = TriplaneField(field.planes_texture, planes, field.decoder)
        return torch.func.functional_call(
            _GradientModule(other), {"decoder.shape.weight1": first}, (points,), strict=False
        )

    assert torch.autograd.gradcheck(of, (points, field.planes_shape, weight))


class _GradientModule(torch.nn.Module):
    def __init__(self, field):
        super().__init__()
        self.decoder = field.decoder
        self.field = field

    def forward(self, points):
        return sdf_gradient(self.field, points, create_graph=True)


def test_gradient_reaches_the_field_but_not_through_detached_points():
    field = small_field()
    points = torch.rand(2, 4, 3) - 0.5
    sdf_gradient(field, points).square().sum().backward()
    assert field.planes_shape.grad.abs().sum() > 0
    assert field.planes_texture.grad is None
    assert not sdf_gradient(field, points, create_graph=False).requires_grad
