"""Parameters and their configuration in one safetensors file, which loads without running anything."""

import json

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxdiff.training.runs import replacing
from jaxdiff.training.state import leaves_by_path

_CONFIG = "jaxdiff"
_KINDS = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16,
    "U8": np.uint8, "BOOL": np.bool_,
}


def save_safetensors(path, params, config):
    """Writes parameters, named by their paths such as `conv/kernel`, bit for bit.

    Args:
      path: of the file; a reader sees the old file or the new one, never half of one.
      params: nested dicts of arrays.
      config: dict that JSON can hold; it goes into the file's metadata, under `jaxdiff`.

    Raises:
      ValueError: if the package safetensors is not installed.
      CannotSave: an OSError, if the file cannot be written; the old one stays.
    """
    leaves = {name: np.array(leaf, order="C") for name, leaf in leaves_by_path(params).items()}
    _library()
    from safetensors.numpy import save

    content = save(leaves, metadata={_CONFIG: json.dumps(config)})
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def load_safetensors(path):
    """What `save_safetensors` wrote.

    Args:
      path: of the file.

    Returns:
      `(params, config)`: nested dicts of numpy arrays, and the configuration; None for that of a file
      that others wrote.

    Raises:
      ValueError: if the package safetensors is not installed, or there is no such file at `path`.
    """
    library = _library()

    try:
        with open(path, "rb") as file:
            content = file.read()
        leaves = {name: _array(entry) for name, entry in library.deserialize(content)}
    except (OSError, library.SafetensorError) as error:
        raise ValueError(f"load_safetensors: expected a safetensors file, got {path} ({error})") from None
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    return unflatten_dict(leaves, sep="/"), json.loads(metadata[_CONFIG]) if _CONFIG in metadata else None


def _array(entry):
    """numpy of one tensor; the package's own reader knows no bfloat16."""
    kind = _KINDS.get(entry["dtype"])
    if kind is None:
        raise ValueError(f"load_safetensors: expected one of {', '.join(_KINDS)}, got {entry['dtype']}")
    return np.frombuffer(entry["data"], kind).reshape(entry["shape"])


def _library():
    try:
        import safetensors
    except ImportError:
        raise ValueError(
            "safetensors: expected the package safetensors, got none; pip install safetensors"
        ) from None
    return safetensors
