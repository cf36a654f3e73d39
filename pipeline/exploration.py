"""What the digits look like in numbers: by class, in a few dimensions, and which of them are alike."""

import importlib.util

import numpy as np

COMPONENTS = 50  # of PCA, before t-SNE and neighbours: 83% of the variance, and a sixteenth of the pixels
SAMPLE = 5_000  # rows of t-SNE where openTSNE is not installed: scikit-learn's takes hours for all
BLOCK = 2_000  # rows at a time where all pairs are looked at


def by_class(images, labels):
    """Of each digit: rows, mean and deviation image (10, 28, 28), counts of each grey (10, 256), and mean ink (10,).

    images: uint8 (n, 28, 28). Ink is the mean of all pixels, from 0 to 1; NaN of a digit that has no rows.
    """
    rows = np.bincount(labels, minlength=10)
    means, deviations = (np.full((10, *images.shape[1:]), np.nan) for _ in range(2))
    greys = np.zeros((10, 256), np.int64)
    for digit in np.flatnonzero(rows):
        mine = images[labels == digit]
        means[digit], deviations[digit] = mine.mean(0), mine.std(0)
        greys[digit] = np.bincount(mine.ravel(), minlength=256)
    return {"rows": rows, "mean": means, "deviation": deviations, "greys": greys, "ink": means.mean((1, 2)) / 255}


def principal_components(images, count=COMPONENTS):
    """scikit-learn's PCA of the pixels (from 0 to 1), fitted, and the images' coordinates (n, count), float32."""
    from sklearn.decomposition import PCA

    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    count = min(count, *pixels.shape)
    fitted = PCA(count, svd_solver="covariance_eigh" if len(pixels) > pixels.shape[1] else "full").fit(pixels)
    return fitted, fitted.transform(pixels).astype(np.float32)


def embed(coordinates, seed, on_progress=lambda done: None):
    """t-SNE in two dimensions (n, 2) of coordinates (n, d); `on_progress` is told the part that is done, up to 1.

    openTSNE's (P. Poličar et al., 2019: Fourier transforms, neighbours by Annoy), or scikit-learn's where that is not
    installed. Started from the first two components.
    """
    perplexity = min(30, (len(coordinates) - 1) / 3)
    if not has_open_tsne():
        from sklearn.manifold import TSNE as Slow

        return Slow(init="pca", perplexity=perplexity, random_state=seed, n_jobs=-1).fit_transform(coordinates)
    from openTSNE import TSNE

    steps, done, many = EARLY + LATE, 0, len(coordinates) > MANY

    def told(iteration, error, embedding):
        nonlocal done
        done += STEP
        on_progress(min(done / steps, 1.0))

    made = TSNE(
        early_exaggeration_iter=EARLY,
        n_iter=LATE,
        perplexity=perplexity,
        neighbors="annoy" if many else "exact",
        negative_gradient_method="fft" if many else "bh",
        callbacks=told,
        callbacks_every_iters=STEP,
        random_state=seed,
        n_jobs=-1 if len(coordinates) > FEW else 1,
    ).fit(coordinates)
    return np.asarray(made)


FEW = 2_000  # points, up to which threads cost more than they bring
MANY = (
    10_000  # up to which Fourier transforms do: on 2 cores, 3,000 take 15 s with them and 4 s without, 10,000 26 and 16
)
EARLY, LATE, STEP = 250, 500, 25  # steps of t-SNE: with early exaggeration, without it, and between two signs of life


def has_open_tsne():
    """Whether the quick t-SNE is installed."""
    return importlib.util.find_spec("openTSNE") is not None


def spread(places, labels):
    """Of each digit, the root of the mean squared distance of its points (n, 2) from their mean (10,)."""
    found = np.full(10, np.nan)
    for digit in np.unique(labels):
        mine = places[labels == digit]
        found[digit] = np.sqrt(((mine - mine.mean(0)) ** 2).sum(1).mean())
    return found


def neighbour_accuracy(places, labels, neighbours=5):
    """The part of points (n, d) whose digit is that of most of their nearest others, of a tie the nearest one's."""
    from sklearn.neighbors import NearestNeighbors

    neighbours = min(neighbours, len(places) - 1)
    found = NearestNeighbors(n_neighbors=neighbours, n_jobs=-1).fit(places).kneighbors(return_distance=False)
    votes = labels[found]
    counts = np.stack([(votes == digit).sum(1) for digit in range(10)], 1)
    best = counts == counts.max(1, keepdims=True)
    nearest = np.take_along_axis(best, votes, 1).argmax(1)  # the first neighbour among the digits with most votes
    return float(np.mean(votes[np.arange(len(votes)), nearest] == labels))


def look_alikes(coordinates, labels, one, other, most):
    """Index pairs (at most `most`, 2) of a row of digit `one` and one of `other`, the nearest first, each row once."""
    from sklearn.neighbors import NearestNeighbors

    first, second = np.flatnonzero(labels == one), np.flatnonzero(labels == other)
    if not len(first) or not len(second):
        return np.empty((0, 2), np.int64)
    distances, found = NearestNeighbors(n_neighbors=1).fit(coordinates[second]).kneighbors(coordinates[first])
    pairs, seen = [], set()
    for at in np.argsort(distances[:, 0], kind="stable"):
        partner = second[found[at, 0]]
        if partner not in seen:
            seen.add(partner)
            pairs.append((first[at], partner))
        if len(pairs) == most:
            break
    return np.array(pairs, np.int64)


def copies(images, others=None):
    """Index pairs (k, 2) of equal images: within `images`, the later with the first; or of `images` with `others`."""
    known = {}
    for index, image in enumerate(images):
        known.setdefault(image.tobytes(), index)
    if others is None:
        found = [(known[image.tobytes()], index) for index, image in enumerate(images)]
        return np.array([pair for pair in found if pair[0] != pair[1]], np.int64).reshape(-1, 2)
    found = [(known[image.tobytes()], index) for index, image in enumerate(others) if image.tobytes() in known]
    return np.array(found, np.int64).reshape(-1, 2)


def nearest(images, others=None):
    """For each of `images`, the index of the nearest of the others, and the distance: the root mean squared difference
    of their pixels, from 0 to 255. Without `others`, within `images`, an image not being its own neighbour.
    """
    left, right = (
        each.reshape(len(each), -1).astype(np.float32) for each in (images, images if others is None else others)
    )
    squares = (right**2).sum(1)
    indices, distances = np.empty(len(left), np.int64), np.empty(len(left))
    for start in range(0, len(left), BLOCK):
        block = left[start : start + BLOCK]
        away = squares - 2 * (block @ right.T)  # and the square of the block's own, which is the same for all
        if others is None:
            away[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf
        best = away.argmin(1)
        indices[start : start + len(block)] = best
        distances[start : start + len(block)] = np.sqrt(((block - right[best]) ** 2).mean(1))
    return indices, distances
