"""Safetensors: bit for bit, with the configuration."""

import os

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxdiff.interop import load_safetensors, save_safetensors
from jaxdiff.training import CannotSave

pytest.importorskip("safetensors")

PARAMS = {
    "conv": {"kernel": np.float32([[np.nan, -0.0], [1e-45, np.inf]]).T, "bias": np.float32(3)},
    "norm": {"scale": np.array([1, 2, 3], ml_dtypes.bfloat16)},
    "whole": {str(size): np.array([1, 2], f"u{size}") for size in (1, 2, 4, 8)},
}


def test_round_trip_is_bit_for_bit(tmp_path):
    path, config = tmp_path / "a.safetensors", {"steps": 3, "model": "MLP-S", "step": 2, "text": "ü"}
    save_safetensors(path, PARAMS, config)
    params, back = load_safetensors(path)
    assert back == config
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)
    for got, want in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS), strict=True):
        assert (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())
    assert not (tmp_path / "a.safetensors.tmp").exists()


def test_files_of_others_have_no_configuration(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.arange(3)}, tmp_path / "b.safetensors")
    params, config = load_safetensors(tmp_path / "b.safetensors")
    assert config is None and params["a"].tolist() == [0, 1, 2]


def test_torn_and_missing_files_are_named(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(ValueError, match="expected a safetensors file"):
        load_safetensors(path)
    (tmp_path / "d").mkdir()
    with pytest.raises(CannotSave, match="d could not be written"):
        save_safetensors(tmp_path / "d", PARAMS, {})
    assert os.listdir(tmp_path) == ["d"], "nothing is left behind"
    save_safetensors(path, PARAMS, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="expected a safetensors file"):
        load_safetensors(path)
