"""Reading a saved fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxmed._data import moments_file
from jaxmed._inference import fields_from_dict, problem_of
from jaxmed._likelihood import value_shards
from jaxmed._results.result import Fit
from jaxmed._support import DataError, FitError, Floats, JaxmedError, Status, check_flag
from jaxmed._support.runtime import float64


def load(path: str | Path, verify: bool = False) -> Fit:
    """Read a fit that :meth:`Fit.save` wrote.

    Parameters
    ----------
    path : str or Path
    verify : bool
        Evaluate the likelihood again at the stored estimates, from the stored moments, and compare.

    Returns
    -------
    Fit

    Raises
    ------
    DataError
        No such file, or not a saved fit.
    FitError
        ``verify`` found another log likelihood than the stored one.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import jaxmed as jm
    >>> fit = jm.fit(jm.datasets.load_example(), x="x", m="m", y="y", cluster="id")
    >>> with TemporaryDirectory() as folder:
    ...     fit.save(f"{folder}/fit.jaxmed")
    ...     again = jm.load(f"{folder}/fit.jaxmed", verify=True)
    >>> again.params.equals(fit.params)
    True
    """
    check_flag("verify", verify)
    plain, moments = moments_file.read(path)
    try:
        fit = Fit(**fields_from_dict(plain), moments=moments)
        _check_whole(fit)
    except (JaxmedError, ValueError) as error:
        raise DataError(f"{str(path)!r} is not a fit that jaxmed saved, or is damaged ({error})") from error
    if verify:
        clusters = problem_of(fit, fit.moments).totals.clusters
        if clusters != fit.n_clusters:
            raise FitError(
                f"{str(path)!r} holds {clusters} of the {fit.n_clusters} clusters of a fit over several processes, so "
                "its log likelihood cannot be verified; load it with verify=False"
            )
        again, values = _at_stored(fit)
        if not np.allclose(values, fit.values, rtol=1e-9, atol=1e-9 * np.max(np.abs(values)), equal_nan=True):
            raise FitError(f"{str(path)!r}: its estimates are not those in the units of its optimiser")
        if not abs(again - fit.loglik) <= 1e-9 * (1 + abs(fit.loglik)):
            raise FitError(f"{str(path)!r}: log likelihood is {again!r} from its moments, but {fit.loglik!r} is stored")
    return fit


def _check_whole(fit: Fit) -> None:
    """Refuse a model, estimates and moments that do not belong together."""
    system, moments, n = fit.system, fit.moments, len(fit.labels)
    n_theta = n - len(system.labels)
    shapes = {"values": (n,), "joint": (n, n), "block": (n, n)}
    wrong = [name for name, shape in shapes.items() if getattr(fit, name).shape != shape]
    shapes["theta"] = (n_theta,)
    wrong += [name for name, part in fit.working._asdict().items() if part.shape != shapes[name]]
    if fit.estimable is not None:
        kept, p = fit.estimable, n - n_theta
        shapes["directions"] = (n, max(kept.directions.size // n, 1))
        shapes["changes"] = (len(kept.changes), p, p) if kept.changes.size else kept.changes.shape
        wrong += [
            name
            for name, part in fit.estimable._asdict().items()
            if part.shape != shapes[name] or not np.all(np.isfinite(part))
        ]
    if wrong:
        raise ValueError(f"{wrong[0]} are not those of its model")
    if fit.free != system.random_pairs or len(fit.sample_summary.used) != len(system.equations):
        raise ValueError("its equations are not those of its model")
    if fit.status not in set(Status):
        raise ValueError(f"status {fit.status} is not known")
    if system.cluster != moments.cluster or not set(system.columns) <= set(moments.columns):
        raise ValueError("its moments are of other columns")
    of = [name for name, _ in fit.spec.moderators] if fit.spec.has_effects else []
    if list(fit.moderator_values) != of or not all(fit.moderator_values.values()):
        raise ValueError("its values of moderators are not those of its model")


@float64
def _at_stored(fit: Fit) -> tuple[float, Floats]:
    """Log likelihood, from its moments, and estimates on the user's scale, of a fit's estimates in working units."""
    problem = problem_of(fit, fit.moments)
    root, tau = problem.root_and_precision(fit.working.theta)
    value = value_shards(problem.layout, root, tau, problem.shards())
    return problem.scale.loglik - value, problem.scale.carried(fit.working.values)
