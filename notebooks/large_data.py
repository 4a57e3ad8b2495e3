# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Large data: parquet, DuckDB and Spark
#
# jaxmed reads rows once, into cross-products per cluster. Those are summed where the rows are: chunk by chunk from a
# parquet file, inside DuckDB, or on the machines of a Spark cluster. Only the sums, 80 bytes a cluster, come to Python.
# Here 400,000 rows in 20,000 clusters are written to a temporary folder and fitted from each.

# %%
import importlib.util
import os
import shutil
import tempfile
import time
from pathlib import Path

import jaxmed as jm

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
rows = jm.simulate(clusters=20_000, size=20, seed=1)
rows.to_parquet(folder / "rows.parquet")
size = (folder / "rows.parquet").stat().st_size / 1e6
print(f"{len(rows):,} rows, {rows['id'].nunique():,} clusters, {size:.0f} MB of parquet")
del rows


# %%
def timed(data, spec, **options):
    """Fit and say how long it took."""
    start = time.perf_counter()
    found = jm.fit(data, spec, **options)
    print(f"{time.perf_counter() - start:.1f} s, {found.sample_summary.rows:,} rows")
    return found


# %% [markdown]
# ## From the file
#
# A path is read in pieces, so that the file may be larger than memory. Fits of tens of thousands of clusters are compiled by
# JAX, for some seconds the first time, and use all cores; smaller ones need no compilation.

# %%
spec = jm.Mediation(x="x", m="m", y="y", cluster="id")
timed(folder / "rows.parquet", spec)
fit = timed(folder / "rows.parquet", spec)
print(fit.effects().round(4))

# %% [markdown]
# The population's indirect effect is .473. Standard errors are a fourteenth of those of 100 clusters.

# %% [markdown]
# ## Reading once
#
# Other random effects, maximum likelihood, an interval: none of it needs the rows again. The moments of the 20,000 clusters
# can be saved, and stand for the data.

# %%
moments = jm.read_moments(folder / "rows.parquet", spec)
jm.save_moments(moments, folder / "rows.moments")
print(f"{(folder / 'rows.moments').stat().st_size / 1e6:.1f} MB of moments")
intercepts = jm.Mediation(x="x", m="m", y="y", cluster="id", random={"m": ["1"], "y": ["1"]})
smaller = timed(folder / "rows.moments", intercepts)
print(jm.compare(smaller, fit))

# %% [markdown]
# Parts of the rows, read in different places, add up, also where a cluster has rows in both:

# %%
some = jm.simulate(clusters=500, size=20, seed=2)
some[::2].to_parquet(folder / "first.parquet")
some[1::2].to_parquet(folder / "second.parquet")
added = jm.read_moments(folder / "first.parquet", spec) + jm.read_moments(folder / "second.parquet", spec)
print(f"{added.n_clusters} clusters, {added.sample_summary.rows:,} rows")

# %% [markdown]
# ## DuckDB
#
# A relation of DuckDB is not fetched: jaxmed adds its group-by to the query, and DuckDB runs it. So rows can be selected
# and columns made in SQL first.

# %%
if importlib.util.find_spec("duckdb"):
    import duckdb

    relation = duckdb.sql(f"select id, x, m, y from '{folder / 'rows.parquet'}'")
    from_duckdb = timed(relation, spec)
    print("largest difference from the file's estimates:", f"{(from_duckdb.params - fit.params).abs().max():.0e}")
    half = timed(duckdb.sql(f"select * from '{folder / 'rows.parquet'}' where id % 2 = 0"), spec)
    print(half.n_clusters, "clusters,", half.effects().loc["indirect", ["estimate", "se"]].round(4).to_dict())
else:
    print("DuckDB is not installed: pip install 'jaxmed[data]'")

# %% [markdown]
# ## Spark
#
# The same with a Spark table: a group-by on its executors, then sums by cluster on the driver. Needs pyspark and Java; on
# a real cluster the session comes from there.

# %%
java = shutil.which("java") or os.environ.get("JAVA_HOME")
if importlib.util.find_spec("pyspark") and java:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = builder.config("spark.sql.shuffle.partitions", "4").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    from_spark = timed(session.read.parquet(str(folder / "rows.parquet")), spec)
    print("largest difference from the file's estimates:", f"{(from_spark.params - fit.params).abs().max():.0e}")
    session.stop()
else:
    print("the Spark part needs pyspark and Java: pip install 'jaxmed[spark]', and a Java runtime")

# %%
temporary.cleanup()
