"""The transformer for tokens: bidirectional for discrete diffusion, causal for its autoregressive peer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core.categorical import FactoredLogits

from .conditioning import Embedding, check_call, split_condition
from .dit import DiTBlock, modulate
from .layers import ZEROS, Dtype, rematerialise, sites

TABLE = nn.initializers.normal(0.02)


def token_angles(length: int, head_width: int, base: float = 10000.0) -> np.ndarray:
    """Angles of the rotary embedding of a sequence (Su et al. (2021), arXiv:2104.09864, eq. 15).

    Returns:
        `(length, head_width / 2)` float32 radians, at geometric frequencies from 1 down to about 1 / `base`.
    """
    frequencies = base ** -(np.arange(head_width // 2) / (head_width // 2))
    return (np.arange(length)[:, None] * frequencies).astype(np.float32)


def vocabulary_shardings(params: Any, mesh: jax.sharding.Mesh, axis: str) -> Any:
    """Shardings that cut the vocabulary over a mesh axis: the embedding's rows and the head's columns.

    Args:
        params: parameters of a `TokenTransformer`, or their shapes.
        mesh: a mesh with Auto axes.
        axis: name of the mesh axis; its size divides the vocabulary.

    Returns:
        A tree of `NamedSharding`, for `jax.device_put` or `jax.jit`; everything else is replicated.
    """
    rules = {("tokens", "embedding"): jax.P(axis, None), ("logits", "kernel"): jax.P(None, axis)}

    def sharding(path, _):
        names = tuple(entry.key for entry in path[-2:])
        return jax.NamedSharding(mesh, rules.get(names, jax.P()))

    return jax.tree_util.tree_map_with_path(sharding, params)


class Kernel(nn.Module):
    """The head's parameter by itself, `(width, vocabulary)`."""

    shape: tuple[int, int]
    param_dtype: Dtype

    @nn.compact
    def __call__(self):
        return self.param("kernel", ZEROS, self.shape, self.param_dtype)


class TokenTransformer(nn.Module):
    """A transformer from tokens to logits, with rotary positions (Su et al. (2021), arXiv:2104.09864).

    With time it is the diffusion transformer of discrete diffusion, modulated by adaLN-zero (Lou et al.
    (2024), arXiv:2310.16834, section 5); without, a plain pre-norm transformer, as absorbing diffusion needs
    no time (Ou et al. (2024), arXiv:2406.03736). Causal, it is the autoregressive peer of the same size:
    token i is predicted from those before it alone, the mask token standing before the first, so
    `sum(log_softmax(logits)[x])` is the log-probability of a sequence. Logits are zero at initialisation
    unless embeddings are tied.

    Attributes:
        vocabulary: number of clean tokens; the mask token is `vocabulary`, and always understood.
        width: size of a token's features; divisible by `heads`, each head by two.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_ratio: hidden size of the MLPs over `width`.
        time: whether the network is told `c_noise`, and classes and side information with it.
        causal: predict each token from those before it.
        tied: the head is the embedding, transposed.
        factored: return `FactoredLogits`, with which the losses of the absorbing process never hold all
            logits of a batch; for training, with the same parameters.
        qk_norm: normalise queries and keys.
        num_classes: number of classes (label `num_classes` is the null class), or None.
        vector_size: length of the continuous side information, or None.
        dropout: share of the MLPs' hidden values dropped when keys are given, in [0, 1).
        remat: what the backward pass recomputes of the blocks instead of storing it: False or True, or
            "dots", everything but the results of matrix products (`layers.POLICIES`).
        logits_sharding: where the logits lie, such as `NamedSharding(mesh, P(None, None, "vocabulary"))`
            beside parameters laid out by `vocabulary_shardings`; None leaves it to the compiler.
        dtype: dtype of the computation and of the logits; None takes that of the parameters.
        param_dtype: dtype of the parameters.
    """

    vocabulary: int = 256
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    time: bool = True
    causal: bool = False
    tied: bool = False
    factored: bool = False
    qk_norm: bool = False
    num_classes: int | None = None
    vector_size: int | None = None
    dropout: float = 0.0
    remat: bool | str = False
    logits_sharding: jax.sharding.NamedSharding | None = None
    dtype: Dtype = None
    param_dtype: Any = jnp.float32

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if one example cannot have this shape, or the fields do not go together."""
        if len(shape) != 1:
            raise ValueError(
                f"TokenTransformer: expected examples of shape (length,), got {shape}; flatten the tokens"
            )
        if self.width % (2 * self.heads):
            raise ValueError(
                "TokenTransformer: expected a width divisible by twice the heads, got width "
                f"{self.width} and {self.heads} heads; change either"
            )
        if not self.time and (self.num_classes or self.vector_size):
            raise ValueError(
                "TokenTransformer: expected no num_classes and no vector_size without time; set time=True"
            )

    def check_tokens(self, x: jax.Array) -> None:
        """Raises ValueError unless `x` is integer tokens `(batch, length)`, as far as is known in range."""
        if not jnp.issubdtype(x.dtype, jnp.integer) or x.ndim != 2:
            raise ValueError(
                f"TokenTransformer: expected integer tokens (batch, length), got {x.dtype} of shape {x.shape}"
            )
        if not isinstance(x, jax.core.Tracer) and x.size:
            low, high = np.asarray(x).min(), np.asarray(x).max()
            if low < 0 or high > self.vocabulary:
                raise ValueError(
                    f"TokenTransformer: expected tokens in [0, {self.vocabulary}], where "
                    f"{self.vocabulary} is the mask token, got {low} to {high}; check the vocabulary"
                )

    @nn.compact
    def __call__(self, x, c_noise=None, condition=None, *, keys=None):
        """Returns logits of the clean tokens, `(batch, length, vocabulary)`, or `FactoredLogits`.

        Args:
            x: `(batch, length)` integers in [0, vocabulary], where `vocabulary` is the mask token; clean
                tokens if causal.
            c_noise: `(batch,)` or a scalar, of order one; not looked at without time.
            condition: None, labels `(batch,)`, or a dict of `label` and `vector`.
            keys: `(batch,)` keys for dropout, or None for none.

        Raises:
            ValueError: for tokens, shapes or labels that do not fit, or a missing time.
        """
        x = x if isinstance(x, jax.Array) else np.asarray(x)
        self.check_tokens(x)
        self.check_shape(x.shape[1:])
        if self.time and c_noise is None:
            raise ValueError("TokenTransformer: expected c_noise, got None; pass it, or set time=False")
        c_noise = check_call(
            "TokenTransformer", len(x), c_noise if self.time else 0.0, keys, self.dropout
        )
        dtypes = {"dtype": self.dtype or self.param_dtype, "param_dtype": self.param_dtype}
        embedding = self._embedding(c_noise, condition, dtypes)
        table = nn.Embed(self.vocabulary, self.width, embedding_init=TABLE, name="tokens", **dtypes)
        h = self._embed(table, jnp.asarray(x, jnp.int32), dtypes["dtype"])
        angles = token_angles(x.shape[1], self.width // self.heads)
        block = rematerialise(DiTBlock, self.remat)
        for index, own_keys in enumerate(sites(keys, self.depth, self.dropout)):
            layer = block(
                self.heads, self.mlp_ratio, self.qk_norm, self.dropout, **dtypes, causal=self.causal,
                name=f"block_{index}",
            )
            h = layer(h, embedding, angles, own_keys)
        return self._head(table, h, embedding, dtypes)

    def _embedding(self, c_noise, condition, dtypes):
        label, vector = split_condition(
            "TokenTransformer", condition, len(c_noise), self.num_classes, self.vector_size
        )
        if not self.time:
            return None
        return Embedding(
            self.width, features=256, num_classes=self.num_classes, vector_size=self.vector_size,
            name="embedding", **dtypes,
        )(c_noise, label, vector)

    def _embed(self, table, x, dtype):
        """The mask has a vector of its own, so that the table's rows are cut evenly over devices."""
        mask = self.param("mask", TABLE, (self.width,), self.param_dtype).astype(dtype)[None, None]
        h = jnp.where((x == self.vocabulary)[..., None], mask, table(jnp.minimum(x, self.vocabulary - 1)))
        if not self.causal:
            return h
        start = jnp.broadcast_to(mask, (len(x), 1, self.width))
        return jnp.concatenate([start, h[:, :-1]], axis=1)

    def _head(self, table, h, embedding, dtypes):
        norm = nn.LayerNorm(use_scale=embedding is None, use_bias=False, epsilon=1e-6, **dtypes)
        h = norm(h)
        if embedding is not None:
            final = nn.Dense(2 * self.width, kernel_init=ZEROS, name="modulation", **dtypes)
            shift, scale = jnp.split(final(embedding), 2, axis=-1)
            h = modulate(h, scale, shift)
        own = Kernel((self.width, self.vocabulary), self.param_dtype, name="logits")
        logits = FactoredLogits(h, table.embedding.T if self.tied else own())
        if self.factored:
            return logits
        logits = logits.dense()
        if self.logits_sharding is None:
            return logits
        return jax.lax.with_sharding_constraint(logits, self.logits_sharding)
