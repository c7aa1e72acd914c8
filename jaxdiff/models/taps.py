"""Reading a layer of a network and adding to it, from outside."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .layers import SelfAttention


def tapped(model, layer):
    """The network with one of its layers in the open: bottleneck ("h") features, read and moved.

    Args:
      model: a Flax module of `jd.models`.
      layer: name of a submodule that returns one array, such as "middle_0" of a U-Net; `layer_shapes` lists
        them.

    Returns:
      `apply(variables, x, c_noise, condition=None, change=None) -> (F, h)`: the output with `change` added to
      the layer's output, and that output before it was added.

    Raises:
      ValueError: at the call, if there is no such layer.
    """

    def apply(variables, x, c_noise, condition=None, change=None):
        seen = []

        def intercept(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if "/".join(context.module.path) != layer or context.method_name != "__call__":
                return out
            seen.append(out)
            return out if change is None else out + jnp.asarray(change, out.dtype)

        with nn.intercept_methods(intercept):
            output = _plain(model).apply(variables, x, c_noise, condition)
        if not seen:
            raise ValueError(f"tapped: expected a layer of {type(model).__name__}, got {layer!r}")
        return output, seen[0]

    return apply


def attending(model):
    """The network with self-attention that also sees an exemplar: keys of both, queries of its own.

    Zhang et al. (2023), arXiv:2305.18729, section 3.2 (RIVAL); beside `jd.editing.aligned`. Early in the walk
    they look at the exemplar alone, down to .6 of the forward process's time:

        apply(params, x, jd.editing.chain_at(chain, grid)(t), c_noise, alone=t > 0.6)

    (the exemplar scaled by c_in as x is, where a parameterization scales).

    Args:
      model: a Flax module of `jd.models` for images.

    Returns:
      `apply(variables, x, exemplar, c_noise, condition=None, alone=False) -> F` of `x` alone; `exemplar` has
      the shape of `x`, such as the exemplar's inversion at the same time, and with `x` itself nothing
      changes. `alone`, a boolean that may be traced: keys of the exemplar only.

    Raises:
      ValueError: at the call, for an exemplar of another shape.
    """

    def apply(variables, x, exemplar, c_noise, condition=None, alone=False):
        if exemplar.shape != x.shape:
            raise ValueError(
                f"attending: expected an exemplar of the shape of x, {x.shape}, got {exemplar.shape}"
            )
        both = jax.tree.map(lambda a: jnp.concatenate([a, a]), (jnp.broadcast_to(c_noise, len(x)), condition))

        def intercept(call, args, kwargs, context):
            if not isinstance(context.module, SelfAttention) or context.method_name != "__call__":
                return call(*args, **kwargs)
            tokens, angles = args[0], (args[1:] + (kwargs.get("angles"),))[0]
            own, other = jnp.split(tokens, 2)
            # twice the same keys and values are as good as once: the exemplar sees itself alone
            first = jnp.concatenate([jnp.where(alone, other, own), other])
            tokens = jnp.concatenate([tokens, first, jnp.concatenate([other, other])], 1)
            angles = None if angles is None else np.concatenate([angles] * 3)
            return call(tokens, angles, len(args[0][0]))

        with nn.intercept_methods(intercept):
            return _plain(model).apply(variables, jnp.concatenate([x, exemplar]), *both)[: len(x)]

    return apply


def _plain(model):
    """The network without rematerialisation, in which a layer's arrays cannot be told from outside."""
    return model.clone(remat=False) if getattr(model, "remat", False) else model


def layer_shapes(model, variables, x, c_noise, condition=None):
    """Names and output shapes of the layers that return one array, in the order of their calls."""
    found = {}

    def intercept(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and context.module.path and hasattr(out, "shape"):
            found["/".join(context.module.path)] = out.shape
        return out

    with nn.intercept_methods(intercept):
        model.apply(variables, x, c_noise, condition)
    return found
