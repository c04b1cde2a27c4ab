"""The search index: derived tables written inside publishing transactions, and read for QIDO, C-FIND and
SearchImageSets.

What SQL can decide exactly is asked of the database, the rest of `gateway.domain.matching`, row by row in order.
`gateway.domain.plan` defines the answers; a property test holds both to it. The way in:

- `rows`: which rows are kept, and how a published version writes them; `purging`: how the last of them go;
- `clauses`: one condition in SQL; `selecting`: all of them, in the order of the answer; `loading`: rows by their keys;
- `searching`: QIDO's and C-FIND's answers out of these; `held`: those over image sets in memory; `image_sets`:
  SearchImageSets.
"""

from adapters.sql.index.purging import forget_texts, forgotten, purge_set
from adapters.sql.index.rows import SetRow, publish_set, rebuild, remove_set
from adapters.sql.index.searching import SqlIndex

__all__ = [
    "SetRow",
    "SqlIndex",
    "forget_texts",
    "forgotten",
    "publish_set",
    "purge_set",
    "rebuild",
    "remove_set",
]
