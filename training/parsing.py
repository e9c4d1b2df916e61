"""A parser among the judges: it learns masks from true pictures and asks for them in generated ones.

The mask discriminator sees whether masks fit their pictures, but by the method only the mask may answer to it
(its RGB is detached), and one number for a picture says little about a pair of glasses. A parser says of each
pixel what it looks like. It learns from the true pairs, beside the discriminators, and the generator is told
where its picture does not look like its mask: there the picture changes, so a hat in the mask gets drawn.
(OASIS, Sushko et al. 2021, makes its discriminator such a parser; here it stands beside them.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.networks.inputs import one_hot, resize
from training.networks.unet import parsing_loss, soften
from training.phases import Context, Term
from training.reconstruction import mask_loss, pixel_weights
from training.updates import Updater
from training.views import Views

_SOFTENED = 0.3  # share of the true pictures that the parser sees at half their resolution
_BETAS = (0.9, 0.98)


class Parsing:
    """The parser of a run, its optimiser and its losses; see :class:`training.config.ParserConfig`."""

    def __init__(self, context: Context) -> None:
        self.config = context.config.parser
        self.weight = context.config.loss.mask_parsing
        self.balance = context.config.warm_start.balance
        self.weight_mask = context.config.loss.mask_parsed
        self.parser = context.models.parser
        self.curves = context.curves
        self.seen = 0  # true pictures, over all processes
        self.ready = torch.zeros((), device=context.device)  # share of the loss's weight
        self.updater = Updater(
            "parser", self.parser.parameters(), context.guard, lr=self.config.lr, betas=_BETAS
        )

    def learn(self, reals: Views) -> None:
        """A step on true pictures with their masks."""
        self.gradients(reals)
        self.updater.apply()

    def grow(self, batch: int) -> None:
        """After a step on ``batch`` true pictures (over all processes): the weight of the loss grows."""
        self._count(self.seen + batch)

    def _count(self, seen: int) -> None:
        self.seen = seen
        self.ready.fill_(min(1.0, seen / max(1.0, 1000 * self.config.warm_up_kimg)))

    def gradients(self, reals: Views) -> None:
        """Adds the gradients of the parser's own loss, on true pictures with their masks."""
        image, mask = self._seen(reals.image), self._seen(reals.mask)
        chosen = torch.rand(len(image), device=image.device) < _SOFTENED
        loss = parsing_loss(self.parser(soften(image, chosen)), (mask + 1) / 2)
        loss.backward()
        self.curves.add("parser/true", loss)

    def terms(self, views: Views) -> list[Term]:
        """How far the parser's reading of generated pictures is from their masks, and these from the reading.

        The first changes pictures and detaches masks, the second changes masks and detaches pictures. The
        weights grow from nothing while the parser is young.
        """
        classes = one_hot(views.mask.argmax(1), views.mask.shape[1])
        logits = self.parser(self._seen(views.image))
        terms = [
            Term("generator/parsing", self.weight * self.ready, parsing_loss(logits, self._seen(classes)))
        ]
        if self.weight_mask:
            read = one_hot(logits.argmax(1), classes.shape[1])
            value = mask_loss(views, read, pixel_weights(read, self.balance))
            terms.append(Term("generator/parsed_mask", self.weight_mask * self.ready, value))
        return terms

    def _seen(self, x: Tensor) -> Tensor:
        """Reduced to the parser's resolution where it is larger."""
        return resize(x, min(self.config.resolution, x.shape[-1]))

    def state_dict(self) -> dict:
        return {"seen": self.seen, "optimiser": self.updater.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self._count(state["seen"])
        self.updater.load_state_dict(state["optimiser"])
