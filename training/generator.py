"""The generator: latent and camera to image, mask, depth, normals (method section 2).

There is one synthesis path, :meth:`Generator.synthesise`; what it computes beyond the picture is asked for
with :class:`Want`. Editing passes its own field (a blend of two generators) through the same path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dnnlib import config as config_files
from dnnlib.errors import UserError
from torch_utils import checkpoint
from training import recompute
from training.config import GeneratorConfig
from training.field import Field, TriplaneField
from training.networks.decoder import TriplaneDecoder
from training.networks.mapping import MappingNetwork
from training.networks.superresolution import SuperResolution
from training.networks.synthesis import PlaneSynthesis
from training.precision import scaled_gradients
from training.rendering.cameras import split_label
from training.rendering.rays import camera_rays
from training.rendering.renderer import RaySamples, RenderOptions, VolumeRendering, render

CAMERA_DIM = 25  # 4x4 camera-to-world and 3x3 intrinsics, flattened
FORMAT = "mate3d-generator-1"


@dataclass(frozen=True)
class Want:
    """What a synthesis computes; everything else is left out, with its cost."""

    image: bool = True  # super-resolved image (the raw one comes with the rendering anyway)
    mask: bool = True  # raw mask and, with ``image``, its super-resolution
    normals: bool = False
    parts: bool = False  # each class composited alone
    samples: bool = False  # points, SDFs and densities along the rays, for the losses


@dataclass(frozen=True)
class Rendering:
    """Pictures of N scenes. P classes, H the final and r the raw resolution, F feature channels.

    ``depth`` is the distance along the ray in world units; ``normals`` are the composite of unit normals in
    view space (x right, y up, z towards the viewer), so shorter than 1 where the ray is not opaque; masks are
    class scores in about [-1, 1], their argmax over dim 1 is the class map.
    """

    image_raw: Tensor  # (N, 3, r, r) in [-1, 1]
    features_raw: Tensor  # (N, F, r, r)
    depth: Tensor  # (N, 1, r, r)
    weight: Tensor  # (N, 1, r, r) accumulated opacity in [0, 1]
    image: Tensor | None = None  # (N, 3, H, H) in about [-1, 1]
    mask: Tensor | None = None  # (N, P, H, H)
    mask_raw: Tensor | None = None  # (N, P, r, r)
    normals: Tensor | None = None  # (N, 3, r, r)
    part_images: Tensor | None = None  # (N, P, 3, r, r) in [-1, 1]
    samples: RaySamples | None = None


@dataclass(frozen=True)
class Planes:
    """Tri-planes of N scenes, each (N, 3, C, H, W)."""

    texture: Tensor
    shape: Tensor


class Generator(nn.Module):
    """z, camera -> pictures. See :class:`training.config.GeneratorConfig` for the sizes."""

    def __init__(self, config: GeneratorConfig, fp16: bool = False) -> None:
        """``fp16``: the super-resolution runs in float16 on CUDA, as the published training has it."""
        super().__init__()
        self.config = config
        self.parts = config.parts
        self.synthesis = PlaneSynthesis(
            w_dim=config.w_dim,
            resolution=config.plane_resolution,
            plane_channels_total=3 * config.plane_channels,
            channel_base=config.channel_base,
            channel_max=config.channel_max,
            conv_clamp=config.backbone_clamp,
        )
        self.mapping = MappingNetwork(
            z_dim=config.z_dim,
            c_dim=CAMERA_DIM,
            w_dim=config.w_dim,
            num_ws=self.synthesis.num_ws,
            num_layers=config.mapping_layers,
        )
        self.decoder = TriplaneDecoder(
            channels=config.plane_channels,
            width=config.decoder_width,
            parts=self.parts,
            part_width=config.part_width,
            feature_channels=config.feature_channels,
            beta=config.beta,
            learn_beta=config.learn_beta,
            direct=config.density == "direct",
        )
        self.superresolution, self.superresolution_semantic = (
            SuperResolution(
                in_channels=config.feature_channels,
                img_channels=channels,
                w_dim=config.w_dim,
                input_resolution=config.sr_resolution,
                channels=config.sr_channels,
                use_fp16=fp16,
                conv_clamp=config.sr_clamp,
            )
            if channels
            else None
            for channels in (3, self.parts)
        )

    def map(
        self,
        z: Tensor,
        camera: Tensor,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_average: bool = False,
    ) -> Tensor:
        """z (N, z_dim), conditioning camera (N, 25) -> ws (N, num_ws, w_dim)."""
        return self.mapping(
            z,
            camera,
            truncation_psi=truncation_psi,
            truncation_cutoff=truncation_cutoff,
            update_average=update_average,
        )

    def planes(self, ws: Tensor, *, noise_mode: str = "const") -> Planes:
        """ws (N, num_ws, w_dim) -> texture and shape planes."""
        texture, shape = (
            flat.unflatten(1, (3, self.config.plane_channels))
            for flat in self.synthesis(ws, noise_mode=noise_mode)
        )
        return Planes(texture, shape)

    def field(self, planes: Planes) -> TriplaneField:
        """The scene that a renderer marches through."""
        return TriplaneField(
            planes.texture,
            planes.shape,
            self.decoder,
            projection=self.config.plane_projection,
            box_warp=self.config.camera.box_warp,
        )

    def options(self, want: Want, *, deterministic: bool, chunk: int | None) -> RenderOptions:
        """Rendering options of this generator's rays."""
        config = self.config
        return RenderOptions(
            near=config.camera.near,
            far=config.camera.far,
            samples_coarse=config.samples_coarse,
            samples_fine=config.samples_fine,
            marching=config.marching,
            deterministic=deterministic,
            chunk=chunk,
            mask=want.mask and self.parts > 0,
            normals=want.normals,
            parts=want.parts and self.parts > 0,
            samples=want.samples,
        )

    def synthesise(
        self,
        ws: Tensor,
        camera: Tensor,
        *,
        want: Want | None = None,
        raw_resolution: int | None = None,
        planes: Planes | None = None,
        field: Field | None = None,
        proposals: Sequence[Field] = (),
        deterministic: bool = False,
        noise_mode: str = "const",
        chunk: int | None = None,
        checkpointing: bool = False,
    ) -> Rendering:
        """Renders N scenes, one view each.

        ws (N, num_ws, w_dim) and camera (N, 25). ``planes`` or ``field`` skip what comes before them (several
        views of one scene; an edit's blend). ``chunk`` bounds the rays that are evaluated at once.
        ``checkpointing`` recomputes the super-resolutions in the backward pass.
        """
        want = want or Want()
        resolution = raw_resolution or self.config.raw_resolution
        if field is None:
            field = self.field(planes if planes is not None else self.planes(ws, noise_mode=noise_mode))
        origins, directions = camera_rays(camera, resolution)
        options = self.options(want, deterministic=deterministic, chunk=chunk)
        volume = render(field, origins, directions, options, proposals=proposals)
        raw = self._to_images(volume, camera, resolution)
        if not want.image:
            return raw
        features = raw.features_raw
        image = enlarge(self.superresolution, raw.image_raw, features, ws, again=checkpointing)
        mask = None
        if want.mask and self.parts:
            # Colour features must not be bent to serve the mask: they enter its super-resolution detached.
            inputs = raw.mask_raw, features.detach(), ws
            mask = enlarge(self.superresolution_semantic, *inputs, again=checkpointing)
        return replace(raw, image=image, mask=mask)

    def _to_images(self, volume: VolumeRendering, camera: Tensor, resolution: int) -> Rendering:
        def square(rays: Tensor) -> Tensor:  # (N, R, K) -> (N, K, r, r)
            return rays.transpose(1, 2).unflatten(2, (resolution, resolution))

        features = square(volume.features)
        normals = part_images = None
        if volume.normals is not None:
            normals = square(view_space(volume.normals, camera))
        if volume.part_features is not None:
            part_images = volume.part_features[..., :3].transpose(2, 3).unflatten(3, (resolution, resolution))
        return Rendering(
            image_raw=features[:, :3],
            features_raw=features,
            depth=square(volume.depth),
            weight=square(volume.weight),
            mask_raw=None if volume.mask is None else square(volume.mask),
            normals=normals,
            part_images=part_images,
            samples=volume.samples,
        )

    def save(self, path: Path | str, extra: dict | None = None) -> None:
        """Writes PATH.safetensors and its JSON (config inside); ``extra`` joins the JSON."""
        meta = {"format": FORMAT, "config": config_files.to_dict(self.config), **(extra or {})}
        checkpoint.save(path, self.state_dict(), meta)

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> Generator:
        """Reads what :meth:`save` wrote. Raises UserError when the file is something else."""
        tensors, meta = checkpoint.load(path, device=device)
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{path}: not a generator of this project (format {meta.get('format')!r}, want {FORMAT!r})"
            )
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise UserError(f"{path} holds weights that are not numbers (nan): its training had broken")
        try:
            generator = cls(config_files.load(GeneratorConfig, dict(meta["config"])))
            generator.load_state_dict(tensors)
        except (KeyError, RuntimeError, TypeError, ValueError, UserError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path} is damaged, or of another version: {reason}") from error
        return generator.eval().requires_grad_(False).to(device)


def enlarge(network: SuperResolution, raw: Tensor, features: Tensor, ws: Tensor, *, again: bool) -> Tensor:
    """Raw picture (N, K, r, r) and features (N, F, r, r) to (N, K, H, H); ``again`` as :func:`recompute.call`
    has it.

    A frozen network in float16, as an edit and an inversion have it, keeps small gradients by scaling them:
    those of a mean over 512 x 512 pixels are smaller than what float16 holds. Where the network itself learns
    its weights need gradients too, and float16 has those of published training, unscaled.
    """
    frozen = not any(parameter.requires_grad for parameter in network.parameters())
    if network.use_fp16 and frozen:
        return scaled_gradients(network, torch.float16, raw, features, ws)
    return recompute.call(network, raw, features, ws, again=again)


def view_space(normals: Tensor, camera: Tensor) -> Tensor:
    """World directions (N, R, 3) in view space: x right, y up, z to the viewer (OpenCV's y and z negated)."""
    cam2world, _ = split_label(camera)
    opencv = normals @ cam2world[:, :3, :3]  # R^T n for row vectors
    return torch.cat([opencv[..., :1], -opencv[..., 1:]], dim=-1)
