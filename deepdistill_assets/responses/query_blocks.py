"""The queries of a partition in the order of their ids, block by block: memory holds the ids, and texts of a block."""

from collections.abc import Collection, Iterator

import polars as pl

from deepdistill_assets.tables import QUERY
from deepdistill_resources.stage_result import TableParts

BLOCK = 16_384
READ = {name: QUERY[name] for name in ("query_id", "category", "query_text", "messages", "reference_answer")} | {
    name: QUERY[name] for name in ("options", "test_cases", "constraints")
}


class QueryBlocks:
    """Queries in files, sorted by id from one to the next.

    Args:
        queries: QUERY rows in any order.

    `ids` has their columns query_id and category, sorted.
    """

    def __init__(self, queries: pl.LazyFrame) -> None:
        self._queries = queries.select(*READ)
        self.ids = queries.select("query_id", "category").collect(engine="streaming").sort("query_id")
        firsts = self.ids["query_id"].gather_every(BLOCK)
        self._blocks = [TableParts(READ) for _ in firsts]
        for batch in self._queries.collect_batches(chunk_size=BLOCK, engine="streaming"):
            place = firsts.search_sorted(batch["query_id"], side="right") - 1
            for (block,), part in batch.group_by(place.alias("block")):
                self._blocks[int(block)].add(part)

    def windows(self, size: int, without: Collection[str] = ()) -> Iterator[pl.DataFrame]:
        """Yield READ rows sorted by id, `size` at a time, but for some ids."""
        left, waiting = ~pl.col("query_id").is_in(list(without)), pl.DataFrame(schema=READ)
        for block in self._blocks:
            waiting = pl.concat([waiting, block.scan().filter(left).collect().sort("query_id")])
            while waiting.height >= size:
                yield waiting[:size]
                waiting = waiting[size:]
        if waiting.height:
            yield waiting

    def of(self, query_ids: pl.Series) -> pl.DataFrame:
        """Return the READ rows of some ids."""
        wanted = query_ids.unique().to_frame("query_id").lazy()
        return self._queries.join(wanted, on="query_id", how="semi").collect(engine="streaming")
