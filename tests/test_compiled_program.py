"""Reading compiled programs, where what they send and compute is known by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tests.benchmarks.compiled_program import collectives, product_flops
from xmodal_jax import partitioning

SPLIT, WHOLE = PartitionSpec("data"), PartitionSpec()


def compiled(function, mesh, *arguments, out=WHOLE):
    """arguments: pairs of a shape and a spec."""
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in arguments
    ]
    out_shardings = NamedSharding(mesh, out)
    return jax.jit(function, out_shardings=out_shardings).lower(*shapes).compile().as_text()


def test_a_sum_over_devices_is_an_all_reduce():
    mesh = partitioning.make_mesh()
    text = compiled(
        lambda a, b: a.T @ b, mesh, ((16, 24), SPLIT), ((16, 40), SPLIT)
    )  # partial products [24, 40]
    (found,) = collectives(text).items()
    assert found == ("all-reduce", (1, 2 * 24 * 40 * 4 * 7 / 8))


def test_gathers_count_what_the_others_send():
    mesh = partitioning.make_mesh(4, 2)
    text = compiled(lambda a: a + 1, mesh, ((16, 24), SPLIT))
    (found,) = collectives(text).items()
    assert found == ("all-gather", (1, 16 * 24 * 4 * 3 / 4))


def test_loops_count_as_often_as_they_run():
    mesh = partitioning.make_mesh()

    @partial(jax.shard_map, mesh=mesh, in_specs=SPLIT, out_specs=WHOLE)
    def summed(x):
        turn = lambda carry, _: (jax.lax.psum(jnp.tanh(carry), "data") * 0.1 + x[0, 0], None)
        total, _ = jax.lax.scan(turn, jnp.zeros(6) + x[0, 0], length=5)
        return jax.lax.psum(total, "data")

    text = compiled(summed, mesh, ((8, 3), SPLIT))
    found = collectives(text)
    assert found.keys() == {"all-reduce"}
    assert found["all-reduce"].count == 6
    np.testing.assert_allclose(found["all-reduce"].bytes, 6 * 2 * 6 * 4 * 7 / 8)


def test_products_are_counted_in_every_part_of_a_program():
    @jax.jit
    def inner(a, b):
        return jax.lax.scan(lambda c, x: (c + x @ b, None), jnp.zeros((2, 5)), a)[0]

    def whole(a, b):
        return jnp.einsum("ij,kj->ik", inner(a, b), b)

    a, b = jnp.zeros((7, 2, 3)), jnp.zeros((3, 5))
    expected = 7 * (2 * 2 * 5 * 3) + 2 * 2 * 3 * 5
    assert product_flops(jax.make_jaxpr(whole)(a, b).jaxpr) == expected
