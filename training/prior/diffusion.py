"""Training objective of the diffusion model: UNet, ControlNet and text encoder learn together, on latents."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.labels import LabelSet
from training.prior.config import DiffusionConfig
from training.prior.data import PriorData, sent
from training.prior.models import NORMAL_PREFIX, PriorParts


def normal_caption(caption: str) -> str:
    """The caption of a picture's normal map."""
    return f"{NORMAL_PREFIX} {caption}"


def coarsened(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Class maps (N, H, W) at half their resolution: one pixel of each 2 x 2 stands for all of it."""
    y, x = torch.randint(2, (2,), generator=generator).tolist()
    return masks[:, y::2, x::2].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


@torch.no_grad()
def encode_all(parts: PriorParts, data: PriorData, batch: int = 64) -> Tensor:
    """Unscaled latents (2, n, C, h, w) float32 of all images and of all normal maps: the posterior's mean."""
    chunks = torch.arange(len(data)).split(batch)
    progress = tqdm(total=2 * len(data), desc="encoding", unit="img", leave=False)

    def latents(is_normal: bool) -> Iterator[Tensor]:
        for index in chunks:
            pictures = data.pictures(index, torch.full((len(index),), is_normal))
            yield parts.vae.encode(pictures).latent_dist.mode()
            progress.update(len(index))

    encoded = torch.stack([torch.cat(list(latents(False))), torch.cat(list(latents(True)))])
    progress.close()
    return encoded


def snr_weights(alphas: Tensor, limit: float) -> Tensor:
    """Loss weights min(snr, limit) / snr of all levels (T,), snr = a / (1 - a); 1 where the limit is 0."""
    snr = alphas / (1 - alphas)
    return snr.clamp(max=limit) / snr if limit else torch.ones_like(snr)


def controlled(
    unet: nn.Module,
    controlnet: nn.Module,
    noisy: Tensor,
    t: Tensor,
    text: Tensor,
    condition: Tensor,
    seen: Tensor,
) -> Tensor:
    """What the UNet makes of noisy latents (N, C, h, w) at levels t (N,) with text (N, L, D), steered by the
    ControlNet on mask pictures (N, 3, H, W); ``seen`` (N,) 0: as if there were no ControlNet."""
    down, mid = controlnet(noisy, t, text, condition, return_dict=False)
    weight = seen.view(-1, 1, 1, 1)
    return unet(
        noisy,
        t,
        text,
        down_block_additional_residuals=[residual * weight for residual in down],
        mid_block_additional_residual=mid * weight,
    ).sample


class DiffusionStage:
    """What the training loop needs to know of this stage.

    loss = mean_t w(t) |eps - e(z_t, t, caption, mask)|^2, w = min(snr, c) / snr, snr = a_t / (1 - a_t).
    """

    def __init__(
        self, config: DiffusionConfig, data: PriorData, parts: PriorParts, latents: Tensor, labels: LabelSet
    ) -> None:
        self.config = config
        self.data = data
        self.latents = latents  # (2, n, C, h, w), scaled to unit variance
        self.device = latents.device
        self.palette = torch.tensor(labels.palette, dtype=torch.float32, device=self.device) / 255
        self.alphas = parts.scheduler.alphas_cumprod.to(self.device)
        self.weights = snr_weights(self.alphas, config.min_snr)
        # n samples with K captions each, their own first
        retold = data.retold or [()] * len(data)
        tellings = [(own, *others) for own, others in zip(data.captions, retold, strict=True)]
        captions = list(dict.fromkeys(text for told in tellings for text in told))
        texts = dict.fromkeys(["", NORMAL_PREFIX, *captions, *map(normal_caption, captions)])
        rows = {text: row for row, text in enumerate(texts)}
        self.tokens = parts.tokenizer(
            list(texts),
            padding="max_length",
            max_length=parts.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.device)  # (texts, L)
        self.text_rows = torch.tensor(
            [[[rows[how(text)] for text in told] for told in tellings] for how in (str, normal_caption)]
        )  # (2, n, K) into tokens; on the CPU, where captions are drawn
        self.empty_row, self.prefix_row = rows[""], rows[NORMAL_PREFIX]

    def losses(self, module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch drawn with ``generator``; 'loss' is what is minimised.

        Everything random is drawn on the CPU, the same for every device, and sent to where the latents are.
        """
        count = self.config.optimiser.batch

        def chance(share: float) -> Tensor:
            return torch.rand(count, generator=generator) < share

        index = self.data.draw(count, generator)
        is_normal = chance(self.config.normals_share)
        t = torch.randint(len(self.alphas), (count,), generator=generator)
        noise = torch.randn((count, *self.latents.shape[2:]), generator=generator)
        rows = self.text_rows[is_normal.long(), index]  # (count, K)
        if rows.shape[1] > 1:
            rows = rows.gather(1, torch.randint(rows.shape[1], (count, 1), generator=generator))
        rows = rows[:, 0]
        # a normal map without its caption is known by the bare prefix half of the time, so that guidance can
        # compare normal maps with normal maps
        nothing = torch.where(is_normal & chance(0.5), self.prefix_row, self.empty_row)
        rows = torch.where(chance(self.config.drop_caption), nothing, rows)
        is_coarse = chance(self.config.coarse_mask)
        index, is_normal, t, noise, rows, is_coarse = sent(
            self.device, index, is_normal, t, noise, rows, is_coarse
        )
        masks = self.data.masks[index]
        masks = torch.where(is_coarse.view(-1, 1, 1), coarsened(masks, generator), masks)
        (seen,) = sent(self.device, (~chance(self.config.drop_mask)).float())
        clean = self.latents[is_normal.long(), index]
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        predicted = self._predict(module, noisy, t, self.tokens[rows], masks, seen)

        error = (predicted - noise).square().mean(dim=(1, 2, 3))
        loss = (self.weights[t] * error).mean()
        return {"loss": loss, "mse_image": _mean(error, ~is_normal), "mse_normal": _mean(error, is_normal)}

    def _predict(
        self, module: nn.Module, noisy: Tensor, t: Tensor, tokens: Tensor, masks: Tensor, seen: Tensor
    ) -> Tensor:
        text = module["text_encoder"](tokens)[0]
        condition = self.palette[masks.long()].permute(0, 3, 1, 2)
        return controlled(module["unet"], module["controlnet"], noisy, t, text, condition, seen)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; not a number where none is."""
    return values.detach().where(chosen, 0).sum() / chosen.sum()
