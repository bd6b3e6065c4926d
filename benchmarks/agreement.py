"""The classic clusterings against scikit-learn on the same points: the adjusted Rand index, 1 = the same
partition, 0 = no better than chance.

    python benchmarks/agreement.py

Points: 16x16 patches of photographs as layer-normed tokens of 48 numbers, 16 clusters. Same start and steps,
where there is a start (k-means, mixture); same linkage (Ward) and same radius (DBSCAN). "Best of ten" is
scikit-learn left free: its own random starts, until they converge; how far a fixed start and few steps are
from it is the price of a graph that is the same for every picture. Needs the extra `train` and scikit-image.
The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import skimage.data
import torch
from rich.console import Console
from rich.table import Table
from sklearn import cluster, mixture
from sklearn.metrics import adjusted_rand_score
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from export.paca.clustering.dbscan import Dbscan
from export.paca.clustering.gmm import FLOOR, GaussianMixture
from export.paca.clustering.hierarchical import Hierarchical
from export.paca.clustering.kmeans import KMeans
from export.paca.clustering.membership import centred, evenly_spaced

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins")
SIDE, PATCH, CLUSTERS, EPS = 16, 4, 16, 3.0
GRID = (SIDE, SIDE)


def main() -> None:
    warnings.simplefilter("ignore")  # scikit-learn remarks that a fixed number of steps has not converged
    found = {name: agreement(tokens(name)) for name in PHOTOS}
    rows = list(found[PHOTOS[0]])
    table = Table("adjusted Rand index", *PHOTOS, "mean", title="against scikit-learn, same points")
    for row in rows:
        values = [found[name][row] for name in PHOTOS]
        table.add_row(row, *(f"{v:.3f}" for v in values), f"{np.mean(values):.3f}")
    Console(stderr=True).print(table)
    print(json.dumps({row: {name: round(found[name][row], 4) for name in PHOTOS} for row in rows}))


def tokens(name: str) -> torch.Tensor:
    """(1, 256, 48)."""
    pixels = np.atleast_3d(getattr(skimage.data, name)())[..., :3]
    photo = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().expand(1, 3, -1, -1) / 255
    small = F.interpolate(photo, size=(SIDE * PATCH, SIDE * PATCH), mode="bilinear", antialias=True)
    patches = F.unfold(small, PATCH, stride=PATCH).transpose(1, 2)
    return F.layer_norm(patches, patches.shape[-1:])


def agreement(x: torch.Tensor) -> dict[str, float]:
    points, dim = centred(x)[0].double().numpy(), x.shape[2]
    seeds = evenly_spaced(centred(x), CLUSTERS)[0].double().numpy()
    narrow = FLOOR * points.var(0) + 1e-6
    kmeans = partition(KMeans(dim, CLUSTERS)(x, GRID))
    ward = partition(Hierarchical(dim, CLUSTERS)(x, GRID))
    dbscan = partition(Dbscan(dim, SIDE * SIDE, eps=EPS)(x, GRID))
    their_mixture = mixture.GaussianMixture(
        CLUSTERS,
        covariance_type="diag",
        means_init=seeds,
        weights_init=np.full(CLUSTERS, 1 / CLUSTERS),
        precisions_init=np.tile(1 / narrow, (CLUSTERS, 1)),
        reg_covar=narrow.mean(),
        max_iter=5,
        tol=0,
    ).fit(points)
    theirs = their_mixture.predict_proba(points)
    z = GaussianMixture(dim, CLUSTERS)(x, GRID)[0].numpy()
    ours = (z.T * theirs.sum(0)).argmax(1)
    free = cluster.KMeans(CLUSTERS, n_init=10, random_state=0).fit_predict(points)
    free_mixture = mixture.GaussianMixture(
        CLUSTERS, covariance_type="diag", reg_covar=narrow.mean(), n_init=10, random_state=0
    ).fit_predict(points)
    lloyd = cluster.KMeans(CLUSTERS, init=seeds, n_init=1, max_iter=8, tol=0, algorithm="lloyd").fit_predict(
        points
    )
    return {
        "k-means": adjusted_rand_score(kmeans, lloyd),
        "k-means, best of ten": adjusted_rand_score(kmeans, free),
        "Gaussian mixture": adjusted_rand_score(ours, theirs.argmax(1)),
        "Gaussian mixture, best of ten": adjusted_rand_score(ours, free_mixture),
        "hierarchical (Ward)": adjusted_rand_score(
            ward, cluster.AgglomerativeClustering(CLUSTERS).fit_predict(points)
        ),
        "DBSCAN": adjusted_rand_score(dbscan, cluster.DBSCAN(eps=EPS, min_samples=5).fit_predict(points)),
    }


def partition(z: torch.Tensor) -> np.ndarray:
    """The cluster of each patch where rows are uniform over their patches; -1 where none has it."""
    own = z[0] > 0
    return torch.where(own.any(0), own.float().argmax(0), -1).numpy()


if __name__ == "__main__":
    main()
