"""Results of the peer benchmark as a markdown table and a log-log plot, and the check of the log likelihoods."""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import machine

LABELS = {
    "jaxmed-moments": "jaxmed, from moments",
    "jaxmed-frame": "jaxmed, from a data frame",
    "lme4-no-derivatives": "lme4, no derivative check",
    "lme4": "lme4",
    "glmmTMB": "glmmTMB",
    "nlme": "nlme",
    "mixedlm": "mixedlm",
    "statsmodels": "statsmodels",
}
OURS, OTHERS = list(LABELS)[:2], list(LABELS)[2:]
BLUE = "#0072B2"  # colours of Okabe and Ito, and a grey
STYLES = {
    "jaxmed-moments": (BLUE, "-"),
    "jaxmed-frame": (BLUE, "-."),
    "lme4-no-derivatives": ("#000000", "-"),
    "lme4": ("#7F7F7F", "-"),
    "glmmTMB": ("#D55E00", "-"),
    "nlme": ("#009E73", "-"),
    "mixedlm": ("#E69F00", "-"),
    "statsmodels": ("#CC79A7", "-"),
}
SHORT, ABOVE = 0.01, 0.001  # log likelihood units below and above jaxmed's

Record = dict[str, Any]


class Results:
    """Records by peer and size."""

    def __init__(self, records: list[Record]) -> None:
        self.of = {(r["peer"], r["clusters"]): r for r in records}
        self.sizes = sorted({r["clusters"] for r in records})
        self.peers = [peer for peer in LABELS if any(r["peer"] == peer for r in records)]

    def get(self, peer: str, size: int, what: str) -> Any:
        return self.of.get((peer, size), {}).get(what)

    def seconds(self, peer: str, size: int) -> float | None:
        """Median of the fits."""
        fits = self.get(peer, size, "seconds_fit")
        return statistics.median(fits) if fits else None

    def fastest(self, size: int) -> float | None:
        """Seconds of the fastest of the others."""
        return min((s for peer in OTHERS if (s := self.seconds(peer, size))), default=None)

    def first(self, size: int) -> float | None:
        """Seconds of jaxmed in a fresh process: import, compilation and fit from a data frame."""
        parts = [self.get("jaxmed-frame", size, what) for what in ("seconds_import", "seconds_first")]
        return sum(parts) if all(parts) else None

    def ratio(self, peer_seconds: float | None, ours: str, size: int) -> float | None:
        own = self.seconds(ours, size)
        return peer_seconds / own if peer_seconds and own else None

    def gap(self, peer: str, size: int) -> float | None:
        """Log likelihood, minus jaxmed's on the same data."""
        own = [v for ours in OURS if (v := self.get(ours, size, "loglik")) is not None]
        value = self.get(peer, size, "loglik")
        return value - own[0] if own and value is not None else None


def digits(value: float | None) -> str:
    """Two significant digits, from 100 on whole numbers."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 10 else f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def seconds_cell(results: Results, peer: str, size: int) -> str:
    seconds = results.seconds(peer, size)
    if seconds is None:
        for word, form in {"skipped": "not run: {}", "killed": "ended {}", "failed": "failed"}.items():
            if (said := results.get(peer, size, word)) is not None:
                return form.format(said)
        return "–"
    gap = results.gap(peer, size)
    marks = "†" if gap is not None and gap < -SHORT else ""
    return digits(seconds) + marks + ("" if results.get(peer, size, "converged") else "‡")


def ratio_cell(results: Results, seconds: float | None, size: int) -> str:
    ratios = [digits(results.ratio(seconds, ours, size)) for ours in OURS]
    return "–" if set(ratios) == {"–"} else " / ".join(ratios)


def gap_cell(results: Results, peer: str, size: int) -> str:
    gap = results.gap(peer, size)
    return "–" if gap is None else f"{gap:+.1e}"


def markdown(results: Results, columns: list[str], cell: Callable[[str, int], str]) -> list[str]:
    """Rows are sizes, columns peers."""
    lines = [
        "| clusters | " + " | ".join(LABELS.get(c, c) for c in columns) + " |",
        "| --: |" + " --: |" * len(columns),
    ]
    return lines + [f"| {size:,} | " + " | ".join(cell(c, size) for c in columns) + " |" for size in results.sizes]


def cold_cell(results: Results, what: str, size: int) -> str:
    if what == "fastest peer's fit":
        return digits(results.fastest(size))
    part = {"import": "seconds_import", "first fit, compiling": "seconds_first"}.get(what)
    return digits(results.get("jaxmed-frame", size, part) if part else results.first(size))


def break_even(results: Results) -> str:
    """From which size on a whole fresh process of jaxmed is faster than the fit alone of the fastest peer."""
    both = [(n, f, p) for n in results.sizes if (f := results.first(n)) and (p := results.fastest(n))]
    faster = next((k for k, (_, first, peer) in enumerate(both) if first < peer), None)
    if faster is None:
        return "No measured size is large enough for import and compilation to pay in a single fit."
    size, first, peer = both[faster]
    text = f"A single fit, import and compilation included, pays at {size:,} clusters: "
    text += f"{digits(first)} against {digits(peer)} s"
    if faster:
        before, first0, peer0 = both[faster - 1]
        low, high = math.log(first0 / peer0), math.log(first / peer)
        at = before * (size / before) ** (low / (low - high))
        text += f" ({digits(first0)} against {digits(peer0)} s at {before:,}; even at about {float(f'{at:.1g}'):,.0f})"
    return text + "."


def check(results: Results) -> tuple[list[str], list[str]]:
    """Remarks for the reader, and errors that fail the run."""
    remarks, errors = [], []
    for (peer, size), record in results.of.items():
        name, gap = f"{LABELS[peer]} at {size:,} clusters", results.gap(peer, size)
        if "failed" in record:
            errors.append(f"{name} failed: {record['failed']}")
        if gap is not None and gap > ABOVE:
            errors.append(f"{name}: log likelihood {gap:.4f} above jaxmed's, which is then not at the maximum")
        if gap is not None and gap < -SHORT:
            remarks.append(f"† {name} stopped short by {-gap:.3f} log likelihood units.")
            if peer in OURS:
                errors.append(f"{name}: its two log likelihoods differ")
        if record.get("converged") is False:
            remarks.append(f"‡ {name} did not converge by its own account. {record.get('message', '')}".strip())
            if peer in OURS:
                errors.append(f"{name} did not converge: {record['message']}")
    return remarks, errors


def on(plain: Record) -> str:
    """One paragraph on the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in plain["versions"].items())
    threads = ", ".join(f"{name} {value}" for name, value in plain["threads"].items())
    return (
        f"{plain['processor']}, {plain['cores']} cores, {plain['memory_gib']} GiB, {plain['system']}. {versions}. "
        f"Threads: each program's own default ({threads})."
    )


def text_of(plain: Record, results: Results) -> tuple[str, list[str]]:
    remarks, errors = check(results)
    others = [peer for peer in OTHERS if peer in results.peers]
    parts = [
        ["# Peers", "", f"Made by `python benchmarks/run.py`, which says how it is measured. {on(plain['machine'])}"],
        [f"Full REML model, five random effects, clusters of {plain['size']} rows. Seconds of one fit, median:"],
        markdown(results, results.peers, lambda peer, size: seconds_cell(results, peer, size)),
        remarks,
        ["Times jaxmed's seconds, from moments / from a data frame, compilation excluded:"],
        markdown(
            results,
            [*others, "fastest of them"],
            lambda p, n: ratio_cell(results, results.seconds(p, n) if p in LABELS else results.fastest(n), n),
        ),
        ["jaxmed from a data frame in a fresh process, and the fastest of the others, seconds:"],
        markdown(
            results,
            ["import", "first fit, compiling", "both", "fastest peer's fit"],
            lambda what, size: cold_cell(results, what, size),
        ),
        [break_even(results)],
        ["Peak memory of the whole process, MiB, libraries and the data it read included:"],
        markdown(results, results.peers, lambda peer, size: f"{results.get(peer, size, 'peak_rss_mib') or '–'}"),
        ["Log likelihood minus that of jaxmed from moments:"],
        markdown(results, results.peers[1:], lambda peer, size: gap_cell(results, peer, size)),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n", errors


def plot(results: Results, path: Path) -> None:
    """Seconds against clusters; every line is named at its end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    curves = [
        (LABELS[peer], *STYLES[peer], [(n, s) for n in results.sizes if (s := results.seconds(peer, n))])
        for peer in results.peers
    ]
    curves.append(
        ("jaxmed, import and first fit", BLUE, "--", [(n, s) for n in results.sizes if (s := results.first(n))])
    )
    figure, axes = plt.subplots(figsize=(7.6, 4.6), layout="constrained")
    taken: list[tuple[float, float]] = []  # label positions, as logarithms
    for label, colour, style, points in sorted((c for c in curves if c[3]), key=lambda c: c[3][-1][1]):
        axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=3.5, linewidth=1.6)
        clusters, seconds = points[-1]
        height = max([math.log10(seconds), *(at + 0.22 for size, at in taken if size == clusters)])
        taken.append((clusters, height))
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8}
        axes.text(clusters * 1.12, 10**height, label, color=colour, va="center", fontsize=8, bbox=box, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="clusters of 8 rows", ylabel="seconds of one REML fit")
    axes.set_xlim(right=max(results.sizes) * (max(results.sizes) / min(results.sizes)) ** 0.4)
    axes.set_xticks(results.sizes, [f"{size:,}" for size in results.sizes])
    axes.minorticks_off()
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    with Image.open(path) as image:  # a palette makes a third of the file
        small = image.convert("RGB").quantize(64)
    small.save(path, optimize=True)


def write(plain: Record, folder: Path) -> tuple[str, list[str]]:
    """Write table.md and, where matplotlib is there, peers.png; returns the table and the errors."""
    results = Results(plain["records"])
    text, errors = text_of(plain, results)
    (folder / "table.md").write_text(text)
    if importlib.util.find_spec("matplotlib"):
        plot(results, folder / "peers.png")
    else:
        print(f"no plot; missing: {machine.remedy('matplotlib')}")
    return text, errors
