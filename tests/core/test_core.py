import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import (
    batch_keys,
    check_choice,
    check_made,
    check_output,
    check_positive,
    dataclass,
    host,
    is_concrete,
    match_dims,
    namespace,
    normal_like,
    safe_divide,
    safe_sqrt,
    static_field,
)


@dataclass
class Point:
    x: float
    label: str = static_field(default="p")

    def __post_init__(self):
        check_positive("Point", x=self.x)


def test_match_dims_gives_trailing_axes():
    x = np.zeros((4, 3, 2))
    assert match_dims(0.5, x) == 0.5
    assert match_dims(np.arange(4.0), x).shape == (4, 1, 1)
    assert match_dims(np.zeros((4, 3)), x).shape == (4, 3, 1)
    with pytest.raises(ValueError, match=r"perturb: expected t of shape \(\) or \(4,\), got \(3,\)"):
        match_dims(np.zeros(3), x, "perturb")
    with pytest.raises(ValueError, match="one time per"):
        match_dims(np.zeros((4, 1)), x)


def test_namespace_is_numpy_until_traced():
    assert namespace(0.5, 2.0) is np
    assert namespace(jnp.ones(3)) is jnp
    seen = []
    jax.jit(lambda beta: seen.append(namespace(0.5, beta)))(1.0)
    assert seen == [jnp]
    jax.jit(lambda _: seen.append((namespace(0.5, 1.0), is_concrete(1.0))))(1.0)
    assert seen[1] == (np, True)


def test_safe_functions_have_finite_gradients_at_zero():
    assert jax.grad(safe_sqrt)(0.0) == 0.0 and safe_sqrt(4.0) == 2.0
    assert jax.grad(safe_sqrt)(4.0) == 0.25
    assert jax.grad(lambda d: safe_divide(1.0, d))(0.0) == 0.0
    assert safe_divide(3.0, 0.0, 7.0) == 7.0 and safe_divide(3.0, 2.0) == 1.5


def test_dataclass_is_a_frozen_pytree_with_static_fields():
    point = Point(2.0, label="q")
    assert jax.tree.leaves(point) == [2.0]
    assert jax.tree.map(lambda v: v + 1, point) == Point(3.0, label="q")
    assert point.replace(x=5.0).x == 5.0
    with pytest.raises(AttributeError):
        point.x = 3.0
    with pytest.raises(ValueError, match="Point: expected x to be a finite number above 0, got -1"):
        Point(-1.0)
    for value in ("2.0", np.float32(-1)):
        with pytest.raises(ValueError, match="expected x to be a finite number above 0"):
            Point(value)
    assert jax.tree.map(lambda v: -v, point).x == -2.0  # rebuilding does not check


@pytest.mark.keys_again
def test_keys_do_not_depend_on_the_batch():
    key = jax.random.key(3)
    few, many = batch_keys(key, 3), batch_keys(key, 7)
    assert jnp.array_equal(jax.random.key_data(few), jax.random.key_data(many[:3]))
    assert batch_keys(few, 3) is few
    noise, of_few = (np.asarray(jax.jit(normal_like)(keys, np.zeros((len(keys), 4)))) for keys in (many, few))
    assert np.array_equal(noise[:3], of_few)
    assert len(np.unique(noise)) == 28
    assert batch_keys(jax.random.PRNGKey(3), 3).shape == (3,)
    with pytest.raises(ValueError, match=r"one key or \(4,\) keys, got shape \(3,\)"):
        batch_keys(few, 4)
    with pytest.raises(ValueError, match="expected a key"):
        batch_keys(jnp.zeros(3), 3)


def test_noise_of_a_pytree_differs_between_leaves_of_equal_shape():
    like = {name: np.zeros((2, 3), np.float32) for name in "ab"}
    noise = jax.jit(lambda key: normal_like(batch_keys(key, 2), like))(jax.random.key(0))
    assert not np.any(np.asarray(noise["a"]) == np.asarray(noise["b"]))


def test_host_is_float64():
    assert host(jnp.ones(2, jnp.bfloat16)).dtype == np.float64
    assert host({"n": np.arange(2)})["n"].dtype.kind == "i"


def test_unknown_names_list_the_near_ones():
    with pytest.raises(ValueError, match=r"unknown solver 'hein'; did you mean heun\? known: ddim, heun"):
        check_choice("list", "solver", "hein", ["ddim", "heun"])


def test_a_class_or_a_name_is_no_object():
    check_made("f", "point", Point(1.0), "x", "Point(1.0)")
    for value in (Point, "Point", None):
        with pytest.raises(ValueError, match=r"f: expected point to be an object such as Point\(1.0\), got"):
            check_made("f", "point", value, "x", "Point(1.0)")


def test_an_output_that_would_broadcast_is_refused():
    x = jnp.zeros((4, 3))
    assert check_output("denoise", x, x) is x
    with pytest.raises(ValueError, match=r"denoise: expected net\(x, c_noise\) to return x's shape \(4, 3\)"):
        check_output("denoise", x[:, :1], x)
