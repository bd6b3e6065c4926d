"""The objective of the embedded model: known photos are named, foreign ones get the even answer, a teacher's
answers and maps are told, and competing clusters hold together.

Foreign photos are outlier exposure (Hendrycks et al. 2019). A crop's targets are cut from the teacher's maps
of the whole photo, so that the teacher is asked once and not at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..paca.clustering.learned import LearnedClustering
from ..paca.layout import Grid, to_map, to_tokens
from ..paca.model import Features, PaCaViT
from .augment import augment_with_crops, normalise, view
from .coherence import Coherence, coherence_loss, seed_clusters, things
from .data import Pictures
from .locality import OWN, distract, region_loss
from .objective import Batch, Usual, autocast, channels
from .teacher import DEEP, FINE, TEN, Lessons

SOFTNESS = 2.0  # temperature of the teacher's ten answers (Hinton et al. 2015)
SEEDED_ON = 512  # pictures that clusters start from


@dataclass(frozen=True)
class Supervision:
    """Weights of the parts, 0 = off; foreign: pictures of none of the classes in a batch.

    even: cross-entropy of foreign pictures to the even answer, but for what the teacher sees of the ten.
    ten: share of the teacher in the answer to known pictures. thousand: its 1,000 answers, by an auxiliary
    head. deep, fine: its feature maps, told by the last tokens and by those of the stage before; off, since
    two epochs with them cost seven points (docs/training.md).
    """

    foreign: int = 24
    even: float = 0.5
    ten: float = 0.5
    thousand: float = 0.5
    deep: float = 0.0
    fine: float = 0.0
    coherence: Coherence = field(default_factory=Coherence)

    @property
    def taught(self) -> bool:
        return any((self.ten, self.thousand, self.deep, self.fine))


@dataclass(frozen=True)
class Material:
    """known: photos of the classes. foreign: photos (n, S, S, 3) of none. plain: pictures of none that the
    teacher was not asked about. lessons: of `known` and of `foreign`, in their order."""

    known: Pictures
    foreign: Tensor
    plain: Tensor
    lessons: tuple[Lessons, Lessons] | None = None


@dataclass(frozen=True)
class Lesson:
    """The teacher on one batch of crops. logits: (B, 1000). deep, fine: (B, C, h, w) on the grids of the last
    stage and of the one before. has: (B,), whether it was asked about a picture."""

    logits: Tensor
    deep: Tensor
    fine: Tensor
    has: Tensor


class Auxiliary(nn.Module):
    """Heads that only the training has. book: what each cluster means in every picture (M, D)."""

    def __init__(self, model: PaCaViT, clusters: int, width: int) -> None:
        super().__init__()
        before, last = (stage.dim for stage in model.config.stages[-2:])
        self.thousand = nn.Linear(last, 1000)
        self.deep, self.fine = nn.Linear(last, DEEP), nn.Linear(before, FINE)
        self.book = nn.Parameter(torch.zeros(max(clusters, 1), width))


class OpenWorld:
    """An `Objective`. `extra` holds the auxiliary heads."""

    def __init__(self, material: Material, how: Supervision, usual: Usual, model: PaCaViT) -> None:
        self.how, self.usual = how, usual
        self.images, self.labels = (
            torch.from_numpy(material.known.images),
            torch.from_numpy(material.known.labels),
        )
        self.others = torch.cat([material.foreign, material.plain])
        self.lessons = material.lessons if how.taught else None
        stages = model.config.stages
        competing = [i for i, reader in model.config.shown.items() if stages[reader - 1].competes]
        self.shown = competing[-1] - 1 if competing else None  # the stage whose memberships cohere, from 0
        clusters = 0 if self.shown is None else stages[self.shown].clusters
        width = FINE + DEEP if self.lessons else stages[-2].dim + stages[-1].dim
        self.extra = Auxiliary(model, clusters, width)

    def prepare(self, model: PaCaViT) -> None:
        """Starts competing clusters from k-means over what `things` sees of some pictures."""
        nets = [m for m in model.modules() if isinstance(m, LearnedClustering) and m.competing]
        if self.shown is None or not nets or not self.how.coherence:
            return
        device = next(model.parameters()).device
        inputs: list[tuple[Tensor, Grid]] = []
        hooks = [net.register_forward_pre_hook(lambda net, args: inputs.append(args)) for net in nets]
        side = model.config.image_size
        rows, none = torch.arange(min(SEEDED_ON, len(self.images))), torch.empty(0, dtype=torch.int64)
        images = F.interpolate(self.images[rows].permute(0, 3, 1, 2).float(), size=(side, side))
        with torch.no_grad():
            x = normalise(images.permute(0, 2, 3, 1).to(device), *channels(model, device))
            found = model.eval().features(x)
        for hook in hooks:
            hook.remove()
        lesson = self._lesson(rows, none, torch.eye(2, 3).expand(len(rows), 2, 3).to(device), found.grids)
        targets = self._things(found, lesson, found.grids[self.shown])
        centres = seed_clusters(nets, inputs, targets.cpu())
        self.extra.book.data.copy_(centres)

    def loss(self, batch: Batch) -> Tensor:
        how, usual, model, generator = self.how, self.usual, batch.model, batch.generator
        device, known = next(model.parameters()).device, len(batch.rows)
        others = torch.randint(0, len(self.others), (how.foreign,), generator=generator)
        images = torch.cat([self.images[batch.rows], self.others[others]]).to(device)
        scale = channels(model, device)
        x, crops = augment_with_crops(images, batch.size, usual.augmentation, scale, generator)
        grids = model.config.grids((batch.size, batch.size))
        cells = torch.full((len(x), *grids[-1]), OWN, device=device)
        regional = usual.locality and batch.step % 2 == 1
        if regional:
            changed, cells[:known] = distract(x[:known], grids[-1][0], generator)
            x = torch.cat([changed, x[known:]])
        with autocast(device):
            found = model.features(x)
            logits = model.classify(found.tokens[-1]).float()
        lesson = self._lesson(batch.rows, others, crops, list(grids))
        labels = self.labels[batch.rows].to(device)
        if regional:
            own = Features(tokens=[found.tokens[-1][:known]], shares=found.shares[:known])
            total = region_loss(own, model.head, labels, cells[:known], usual.smoothing)
        else:
            total = self._named(logits[:known], labels, lesson)
        if how.foreign:
            total = total + how.even * self._even(logits[known:], lesson)
        if lesson is not None:
            total = total + self._taught(found, lesson, cells)
        if how.coherence and self.shown is not None and not regional:
            total = total + self._coherent(found, lesson, x)
        return total

    def _lesson(self, rows: Tensor, others: Tensor, crops: Tensor, grids: list[Grid]) -> Lesson | None:
        """What the teacher says of the crops at hand: a crop's logits are those of the whole picture plus
        what the mean of its map adds, as in the teacher itself."""
        if self.lessons is None:
            return None
        known, foreign = self.lessons
        at = others.clamp(max=len(foreign) - 1)
        logits, deep, fine = (
            torch.cat([getattr(known, name)[rows], getattr(foreign, name)[at]]).to(crops.device).float()
            for name in ("logits", "deep", "fine")
        )
        here = view(deep, crops, grids[-1])
        shift = (here.mean((2, 3)) - deep.mean((2, 3))) @ known.classifier.to(crops.device).float()
        has = torch.cat([torch.ones(len(rows)), (others < len(foreign)).float()]).to(crops.device)
        return Lesson(logits + shift, here, view(fine, crops, grids[-2]), has)

    def _named(self, logits: Tensor, labels: Tensor, lesson: Lesson | None) -> Tensor:
        """Cross-entropy of known pictures, partly to the teacher's ten answers."""
        hard = F.cross_entropy(logits, labels, label_smoothing=self.usual.smoothing)
        if lesson is None or not self.how.ten:
            return hard
        soft = (lesson.logits[: len(logits), list(TEN)] / SOFTNESS).softmax(1)
        told = F.kl_div((logits / SOFTNESS).log_softmax(1), soft, reduction="batchmean") * SOFTNESS**2
        return (1 - self.how.ten) * hard + self.how.ten * told

    def _even(self, logits: Tensor, lesson: Lesson | None) -> Tensor:
        """Cross-entropy of foreign pictures."""
        target = torch.full_like(logits, 1 / logits.shape[1])
        if lesson is not None:
            ten = lesson.logits[-len(logits) :].softmax(1)[:, list(TEN)]
            has = lesson.has[-len(logits) :, None]
            target = has * (ten + (1 - ten.sum(1, keepdim=True)) / logits.shape[1]) + (1 - has) * target
        return -(target * logits.log_softmax(1)).sum(1).mean()

    def _taught(self, found: Features, lesson: Lesson, cells: Tensor) -> Tensor:
        """The teacher's 1,000 answers on untouched pictures, and its maps on untouched cells."""
        how, extra = self.how, self.extra
        own = (cells == OWN).float() * lesson.has.view(-1, 1, 1)
        whole = own.flatten(1).amin(1)
        answers = extra.thousand(found.tokens[-1].float().mean(1)).log_softmax(1)
        told = F.kl_div(answers, lesson.logits.softmax(1), reduction="none").sum(1)
        total = how.thousand * (told * whole).sum() / whole.sum().clamp(min=1)
        for weight, head, tokens, maps in (
            (how.deep, extra.deep, found.ungated, lesson.deep),
            (how.fine, extra.fine, found.tokens[-2], lesson.fine),
        ):
            asked = F.interpolate(own[:, None], size=maps.shape[-2:])[:, 0].flatten(1)
            error = (head(tokens.float()) - to_tokens(maps)).square().sum(-1)
            total = total + weight * (error * asked).sum() / asked.sum().clamp(min=1)
        return total

    def _coherent(self, found: Features, lesson: Lesson | None, x: Tensor) -> Tensor:
        assert self.shown is not None
        grid, membership = found.grids[self.shown], found.memberships[self.shown]
        assert membership is not None
        told = torch.ones(len(x), dtype=torch.bool, device=x.device) if lesson is None else lesson.has.bool()
        targets = self._things(found, lesson, grid)[told]
        maps = membership[told].unflatten(2, grid)
        return coherence_loss(maps, targets, self.extra.book, x[told], self.how.coherence)

    @staticmethod
    def _things(found: Features, lesson: Lesson | None, grid: Grid) -> Tensor:
        """The teacher's maps, or without a teacher the network's own tokens, as targets of clusters."""
        if lesson is not None:
            return things(lesson.fine, lesson.deep, grid)
        return things(to_map(found.tokens[-2], found.grids[-2]), to_map(found.ungated, found.grids[-1]), grid)
