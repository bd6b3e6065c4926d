"""The classic clusterings against scikit-learn on the same points: adjusted Rand index, 1 = the same
partition.

The points are the 16x16 patches of real photographs as layer-normed tokens. Measured: 1.000 for every
photograph and every kind (docs/training.md).
"""

import warnings

import numpy as np
import pytest
import skimage.data
import torch
from sklearn import cluster, mixture
from sklearn.metrics import adjusted_rand_score
from torch.nn import functional as F

from export.paca.clustering.dbscan import Dbscan
from export.paca.clustering.gmm import FLOOR, GaussianMixture
from export.paca.clustering.hierarchical import Hierarchical, cut, ward_tree
from export.paca.clustering.kmeans import KMeans
from export.paca.clustering.membership import centred, evenly_spaced

SIDE, PATCH, CLUSTERS = 16, 4, 12
FLOOR_OF_AGREEMENT = 0.99


@pytest.fixture(scope="module", params=["astronaut", "coffee", "chelsea"])
def tokens(request: pytest.FixtureRequest) -> torch.Tensor:
    """(1, 256, 48): the patches of a photograph at 64 px."""
    photo = torch.from_numpy(getattr(skimage.data, request.param)()).permute(2, 0, 1)[None].float() / 255
    photo = F.interpolate(photo, size=(SIDE * PATCH, SIDE * PATCH), mode="bilinear", antialias=True)
    patches = F.unfold(photo, PATCH, stride=PATCH).transpose(1, 2)
    return F.layer_norm(patches, patches.shape[-1:])


def points(tokens: torch.Tensor) -> np.ndarray:
    return centred(tokens)[0].double().numpy()


def partition(z: torch.Tensor) -> np.ndarray:
    """The cluster of each patch where rows are uniform over their patches; -1 where none has it."""
    own = z[0] > 0
    return torch.where(own.any(0), own.float().argmax(0), -1).numpy()


def test_k_means_takes_the_same_steps(tokens: torch.Tensor) -> None:
    seeds = evenly_spaced(centred(tokens), CLUSTERS)[0].double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that the fixed number of steps did not converge
        theirs = cluster.KMeans(
            CLUSTERS, init=seeds, n_init=1, max_iter=8, tol=0, algorithm="lloyd"
        ).fit_predict(points(tokens))
    ours = partition(KMeans(tokens.shape[2], CLUSTERS)(tokens, (SIDE, SIDE)))
    assert adjusted_rand_score(ours, theirs) > FLOOR_OF_AGREEMENT


def test_the_mixture_takes_the_same_steps(tokens: torch.Tensor) -> None:
    p = points(tokens)
    narrow = FLOOR * p.var(0) + 1e-6
    model = mixture.GaussianMixture(
        CLUSTERS,
        covariance_type="diag",
        means_init=evenly_spaced(centred(tokens), CLUSTERS)[0].double().numpy(),
        weights_init=np.full(CLUSTERS, 1 / CLUSTERS),
        precisions_init=np.tile(1 / narrow, (CLUSTERS, 1)),
        reg_covar=narrow.mean(),
        max_iter=5,
        tol=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        theirs = model.fit(p).predict_proba(p)
    z = GaussianMixture(tokens.shape[2], CLUSTERS)(tokens, (SIDE, SIDE))[0].numpy()
    assert adjusted_rand_score((z.T * theirs.sum(0)).argmax(1), theirs.argmax(1)) > FLOOR_OF_AGREEMENT
    np.testing.assert_allclose(z, (theirs / theirs.sum(0)).T, atol=5e-3)


def test_ward_finds_the_same_clusters(tokens: torch.Tensor) -> None:
    ours = partition(Hierarchical(tokens.shape[2], CLUSTERS)(tokens, (SIDE, SIDE)))
    theirs = cluster.AgglomerativeClustering(CLUSTERS, linkage="ward").fit_predict(points(tokens))
    assert adjusted_rand_score(ours, theirs) > FLOOR_OF_AGREEMENT


@pytest.mark.parametrize("clusters", [1, 2, 40, 255, 256])
def test_ward_is_cut_at_any_number_of_clusters(tokens: torch.Tensor, clusters: int) -> None:
    label = cut(*ward_tree(centred(tokens)), clusters)[0]
    assert len(label.unique()) == clusters
    theirs = cluster.AgglomerativeClustering(clusters, linkage="ward").fit_predict(points(tokens))
    assert adjusted_rand_score(label.numpy(), theirs) > FLOOR_OF_AGREEMENT


@pytest.mark.parametrize("eps", [2.0, 3.0, 4.0])
def test_dbscan_finds_the_same_clusters_and_the_same_noise(tokens: torch.Tensor, eps: float) -> None:
    ours = partition(Dbscan(tokens.shape[2], SIDE * SIDE, eps=eps)(tokens, (SIDE, SIDE)))
    theirs = cluster.DBSCAN(eps=eps, min_samples=5).fit_predict(points(tokens))
    assert (theirs >= 0).any()
    assert adjusted_rand_score(ours, theirs) > FLOOR_OF_AGREEMENT
