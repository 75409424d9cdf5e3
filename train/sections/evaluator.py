"""The tables [[evaluators]]."""

from dataclasses import dataclass, field

from train.sections.fields import number, one_of


@dataclass(frozen=True, slots=True)
class EvaluatorSection:
    """An evaluator besides the one of the split's rows; its scores are named `name/score`.

    Attributes:
      name: prefix of its scores; unique, and different from the names of sets.
      kind: retrieval, pairs (of texts with a score), reranking or triplets.
      path: for retrieval, a directory in BEIR's layout: `queries` and `corpus` (`_id`, `text`, optional `title`) as
        .jsonl, .csv or .parquet, and `qrels`. For others a file: pairs with columns `sentence1`, `sentence2`, `score`;
        reranking with `query`, `positive`, `negative`, the latter two lists or single texts; triplets with `anchor`,
        `positive`, `negative`.
      split: run it with the evaluations of "eval", or of "test" (before and after training).
      qrels: of retrieval, file in the directory with tab-separated query id, corpus id and score; relevant above 0.
      measure: similarity of retrieval and reranking; pairs and triplets are scored with each.
      k: cutoffs of retrieval and reranking; empty is sentence-transformers' default.
      prompts: of `query` and `document`, as in `data.prompts`; by default those of anchor and positive there. Pairs
        use the prompt of `query` for both texts, by default none.
    """

    name: str
    kind: str = field(metadata={"choices": ("retrieval", "pairs", "reranking", "triplets")})
    path: str
    split: str = one_of("eval", "test")
    qrels: str = "qrels/test.tsv"
    measure: str = one_of("cosine", "dot", "euclidean", "manhattan")
    k: tuple[int, ...] = number((), least=1)
    prompts: dict[str, str] = field(default_factory=dict, metadata={"keys": ("query", "document")})
