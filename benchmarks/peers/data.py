"""Write the data every peer reads: simulated 1-1-1 data, residual variance .65 of m and .45 of y, 8 rows a cluster.

python benchmarks/peers/data.py FILE.csv CLUSTERS SEED

A process of its own, so that the runner, whose memory a child's peak starts from, stays small. Values are written with
all their digits.
"""

from __future__ import annotations

import sys

import pyarrow as pa
from pyarrow import csv

import jaxmed as jm

SIZE = 8


def main() -> None:
    path, clusters, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    csv.write_csv(pa.Table.from_pandas(jm.simulate(clusters=clusters, size=SIZE, seed=seed)), path)


if __name__ == "__main__":
    main()
