"""Everything a checkpoint says apart from its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral

from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.checkpoint.prompts import check_default_prompt, check_prompts
from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.models.architecture import Architecture
from stella_jax.models.heads import Head, Pooling
from stella_jax.option_values import ScoreActivation

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything a checkpoint says apart from its weights.

    Attributes:
      transformer: folder of config.json, tokenizer.json and the encoder's weights; "" is the checkpoint's own folder.
      heads: all Dense heads, by dimension.
      default_dim: dimension of the head that modules.json names, or None.
      normalize: whether embeddings are scaled to unit length (modules.json ends with Normalize).
      prompts: name -> text to put before a text.
      lower: whether texts are lowercased before tokenization.
      end_of_text: token to end each text with (tokenizer_config.json's `add_eos_token`) if tokenizer.json adds none.
      dropout_rate: of the encoder in training.
      score_activation: of a reranker's scores; None for an embedding model.
    """

    transformer: str
    architecture: Architecture
    config: EncoderConfig
    pooling: Pooling
    heads: dict[int, Head]
    default_dim: int | None
    normalize: bool
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity: str
    max_seq_length: int
    lower: bool
    end_of_text: str | None
    dropout_rate: float
    score_activation: ScoreActivation | None = None

    @property
    def is_reranker(self) -> bool:
        """Whether it scores pairs of texts and embeds none."""
        return self.score_activation is not None

    def head(self, dim: int | None) -> Head | None:
        """The head of this dimension (None: the default head), or None if the checkpoint has no heads.

        Raises:
          StellaError: there is no such head; the error lists all.
        """
        if dim is None:
            return None if self.default_dim is None else self.heads[self.default_dim]
        if isinstance(dim, Integral) and dim in self.heads:
            return self.heads[dim]
        if not self.heads and isinstance(dim, Integral) and dim == self.config.hidden_size:
            return None
        raise StellaError(f"dim = {short_repr(dim)}: this checkpoint has no such head; it has {join_words(self.dims)}.")

    def chosen_heads(self, dim: int | tuple[int, ...] | None) -> tuple[Head | None, ...]:
        """The head of one dimension, or of each of several; see `head`.

        Raises:
          StellaError: there is no such head, or the tuple is empty.
        """
        if not isinstance(dim, tuple):
            return (self.head(dim),)
        if not dim:
            raise StellaError("dim: empty; pass at least one dimension.")
        return tuple(map(self.head, dim))

    def changed(
        self,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity: str | None = None,
    ) -> "ModelSpec":
        """A copy with a caller's settings: prompts replace those of the same name; None changes nothing.

        Raises:
          StellaError: names the setting that is malformed or unknown.
        """
        merged = self.prompts | check_prompts({} if prompts is None else prompts)
        name = self.default_prompt_name if default_prompt_name is None else default_prompt_name
        return replace(
            self,
            prompts=merged,
            default_prompt_name=check_default_prompt(name, merged),
            similarity=self.similarity if similarity is None else check_similarity(similarity),
        )

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions of its embeddings, one per head."""
        return tuple(sorted(self.heads)) or (self.config.hidden_size,)

    def prompt(self, name: str) -> str:
        """The prompt of this name.

        Raises:
          StellaError: there is no such prompt; the error lists all.
        """
        if not isinstance(name, str) or name not in self.prompts:
            raise StellaError(
                f"prompt {short_repr(name)}: this checkpoint has no such prompt; it has {join_words(self.prompts)}."
            )
        return self.prompts[name]

    def file(self, name: str) -> str:
        """Path of a file of the transformer module, relative to the checkpoint."""
        return f"{self.transformer}/{name}" if self.transformer else name


def check_similarity(name: object, where: str = "") -> str:
    """The name of a supported similarity.

    Raises:
      StellaError: it is not supported; the error starts with `where`.
    """
    value = getattr(name, "value", name)  # sentence-transformers has an Enum of them
    if isinstance(value, str) and value in SIMILARITIES:
        return value
    known = join_words(SIMILARITIES)
    raise StellaError(f"{where}similarity_fn_name = {short_repr(name)} is not supported; supported: {known}.")
