"""Data sets: two bundled (simulated by jaxmed), one fetched (the worked Stata example's)."""

from __future__ import annotations

import os
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import platformdirs

from jaxmed._support import DataError

BPG2006_URL = "https://stats.idre.ucla.edu/stat/data/ml_sim.dta"
_BPG2006 = {  # mean and sd as the worked example prints them, to its digits
    "x": (-0.1539876, 1.330374),
    "m": (-0.0247739, 1.483614),
    "y": (-0.1833981, 1.66918),
}
_BPG2006_CORRELATIONS = {("x", "m"): 0.5404, ("x", "y"): 0.5537, ("m", "y"): 0.7591}


def load_example() -> pd.DataFrame:
    """Simulated 1-1-1 data, bundled: 100 clusters of 8, columns id, x, m, y.

    Population of Bauer, Preacher & Gil (2006): a = b = .6, c' = .2, intercepts 0, random intercepts of variance .6 (m)
    and .4 (y), Var(a_j) = Var(b_j) = .16, Var(c'_j) = .04, cov(a_j, b_j) = .113, residual variances .65 (m) and .45
    (y); so the average indirect effect is .473 and the total .673. Made by ``jaxmed.simulate`` with a fixed seed.

    Returns
    -------
    DataFrame, shape (800, 4)

    Examples
    --------
    >>> import jaxmed as jm
    >>> jm.datasets.load_example().shape
    (800, 4)
    """
    return _bundled("example.csv")


def load_schools() -> pd.DataFrame:
    """Simulated pupils in schools, bundled, for models beyond the 1-1-1: 1025 rows, 90 schools of 6 to 16.

    Of the school: ``school`` (the cluster id), ``sector`` (public, private, church), ``training`` (0, 1), ``climate``,
    ``morale``. Of the pupil: ``age``, ``support``, ``motivation``, ``effort``, ``achievement`` (missing in 5% of rows).
    In the population support moves motivation (.5 + .2 climate, varying between schools with sd .35), motivation and
    support move effort (.3, .4), and motivation (.5, sd .35; correlation with the former slope .5), effort (.3),
    support (.2) and morale (.4) move achievement; training moves morale (.8) and motivation (.3). The population is
    written out in ``tests/reference/make_schools.py``.

    Returns
    -------
    DataFrame, shape (1025, 10)

    Examples
    --------
    >>> import jaxmed as jm
    >>> jm.datasets.load_schools().shape
    (1025, 10)
    """
    return _bundled("schools.csv")


def _bundled(name: str) -> pd.DataFrame:
    with resources.files("jaxmed.datasets").joinpath(name).open(encoding="utf-8") as stream:
        return pd.read_csv(stream)


def load_bpg2006(download: bool = True) -> pd.DataFrame:
    """The data of the worked Stata example (UCLA, after Bauer, Preacher & Gil 2006): columns id, x, m, y.

    Looked for as ``bpg2006.csv`` in the folder named by the environment variable JAXMED_DATA, then in the download
    cache, then fetched once from the UCLA statistics site (needs ``pip install 'jaxmed[data]'``). The values are
    checked: 800 rows, 100 clusters of 8, and the means, standard deviations and correlations that the example prints.

    Parameters
    ----------
    download : bool
        Whether to fetch the data where they are not at hand.

    Returns
    -------
    DataFrame, shape (800, 4)

    Raises
    ------
    DataError
        It is nowhere and cannot be fetched, or the file found has other values.
    """
    folder = os.environ.get("JAXMED_DATA")
    if folder and (path := Path(folder) / "bpg2006.csv").is_file():
        return _checked(pd.read_csv(path), path)
    try:
        cache = Path(platformdirs.user_cache_dir("jaxmed")) / "data" / "ml_sim.dta"
    except RuntimeError as error:  # no HOME, and no such user
        raise DataError(f"not in the folder named by JAXMED_DATA, and there is no download cache ({error})") from error
    if not cache.is_file():
        if not download:
            raise DataError("not in the folder named by JAXMED_DATA, and not in the download cache")
        _download(cache)
    return _checked_file(cache)


def _download(target: Path) -> None:
    try:
        import pooch
    except ImportError as error:
        raise DataError("downloading needs pooch: pip install 'jaxmed[data]'") from error
    # Beside the cache until its content is known to be right, so that nobody reads a part of it or something else.
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            fetched = Path(pooch.retrieve(BPG2006_URL, known_hash=None, fname=target.name, path=folder))
            _checked_file(fetched)
            os.replace(fetched, target)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{BPG2006_URL} could not be fetched ({error}); put the data as bpg2006.csv (columns id, x, m, y) into a "
            "folder and name that folder in the environment variable JAXMED_DATA"
        ) from error


def _checked_file(path: Path) -> pd.DataFrame:
    try:
        data = pd.read_stata(path)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # pandas has many words for what is no Stata file
        raise DataError(
            f"{str(path)!r} is not the worked example's data: no Stata file; remove or replace it"
        ) from error
    return _checked(data, path)


def _checked(data: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The four columns, if their values are those of the worked example."""

    def wrong(what: str) -> DataError:
        return DataError(f"{str(path)!r} is not the worked example's data: {what}; remove or replace this file")

    absent = [name for name in ("id", "x", "m", "y") if name not in data.columns]
    if absent:
        raise wrong(f"it has no column {absent[0]!r}")
    data = data[["id", "x", "m", "y"]].astype({"id": np.int64, "x": float, "m": float, "y": float})
    sizes = data["id"].value_counts()
    if len(data) != 800 or len(sizes) != 100 or sizes.nunique() != 1:
        raise wrong(f"{len(data)} rows in {len(sizes)} clusters instead of 800 in 100 clusters of 8")
    for name, (mean, sd) in _BPG2006.items():
        if abs(data[name].mean() - mean) > 1e-6 or abs(data[name].std() - sd) > 1e-5:
            raise wrong(f"column {name!r} has mean {data[name].mean():.7f} and sd {data[name].std():.6f}")
    for (one, other), correlation in _BPG2006_CORRELATIONS.items():
        if abs(data[one].corr(data[other]) - correlation) > 1e-4:
            raise wrong(f"the correlation of {one!r} and {other!r} is {data[one].corr(data[other]):.4f}")
    return data
