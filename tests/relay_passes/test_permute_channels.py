"""PermuteChannels: outputs in another order, and all that reads them in the same."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from relay_passes.mark_sites import MarkSites
from relay_passes.permute_channels import PermuteChannels, channel_groups, site_orders

NHWC = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}


class Net:
    """Builds ``main``, with constants in the orders that are given by name: small integers, whose sums are exact."""

    def __init__(self, orders=None, channels=3):
        self.orders, self.builder, self.random = orders or {}, relax.BlockBuilder(), np.random.default_rng(0)
        self.x = relax.Var("x", relax.TensorType([1, 4, 4, channels], "float32"))

    def constant(self, *shape, **orders):
        """Return a constant whose axes, by position, are in orders by name."""
        value = self.random.integers(-3, 4, shape).astype("float32")
        for axis, order in orders.items():
            order = self.orders.get(order) if isinstance(order, str) else order
            value = value if order is None else np.take(value, order, axis=int(axis[1:]))
        return relax.const(value)

    def conv(self, x, outputs, read="", given="", residual=None, relu=True):
        inputs = int(x.ty.shape[-1])
        weight = self.constant(outputs, 3, 3, inputs, a0=given, a3=read)
        y = self.emit(relax.op.nn.conv2d(x, weight, padding=(1, 1), **NHWC))
        y = self.emit(relax.op.add(y, self.constant(1, 1, 1, outputs, a3=given)))
        y = y if residual is None else self.emit(relax.op.add(y, residual))
        return self.emit(relax.op.nn.relu(y)) if relu else y

    def dense(self, x, read=None):
        weight = self.constant(int(x.ty.shape[-1]), 5, a0=read)
        return self.emit(relax.op.matmul(x, weight))

    def emit(self, value):
        return self.builder.emit(value)

    def done(self, body):
        with self.builder.function("main", [self.x]):
            with self.builder.dataflow():
                output = self.builder.emit_output(body(self))
            self.builder.emit_func_output(output)
        return MarkSites()(self.builder.get())


def same(found, wanted):
    tidy = tvm.transform.Sequential(
        [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination(["main"])]
    )
    tvm.ir.assert_structural_equal(tidy(found), tidy(wanted), map_free_vars=True)


def outputs(module):
    """Return what a module gives for an image of small integers."""
    main = module["main"]
    shape = [int(extent) for extent in main.params[0].ty.shape]
    image = np.random.default_rng(1).integers(-3, 4, shape).astype("float32")
    machine = relax.VirtualMachine(tvm.compile(relax.transform.LegalizeOps()(module), target="llvm"), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(image)).numpy()


def check(body, orders, **net):
    """Before: `body`, and the pass. Expected: the same with constants in order. Both give the same, bit for bit."""
    before = Net(**net).done(body)
    found = PermuteChannels({name: order for name, order in orders.items() if name.startswith("conv2d")})(before)
    same(found, Net(orders, **net).done(body))
    np.testing.assert_array_equal(outputs(found), outputs(before))
    return before


ORDER, OTHER = np.array([2, 0, 3, 1]), np.array([1, 3, 0, 2])


def test_chain_and_flattened_dense():
    def body(net):
        y = net.conv(net.x, 4, given="conv2d0")
        y = net.conv(y, 4, read="conv2d0", given="conv2d1")
        y = net.emit(relax.op.nn.max_pool2d(y, (2, 2), strides=(2, 2), layout="NHWC", out_layout="NHWC"))
        y = net.emit(relax.op.permute_dims(y, [0, 3, 1, 2]))
        return net.dense(net.emit(relax.op.reshape(y, (1, 16))), read="flat")

    flat = (OTHER[:, None] * 4 + np.arange(4)).reshape(-1)
    module = check(body, {"conv2d0": ORDER, "conv2d1": OTHER, "flat": flat})
    assert [group.stays for group in channel_groups(module)] == ["", ""]
    found = site_orders(module, {"conv2d0": ORDER, "conv2d1": OTHER})
    assert found["conv2d0"].read is None and (found["conv2d1"].read == ORDER).all()
    assert (found["conv2d1"].given == OTHER).all() and (found["dense0"].read == flat).all()


def test_mean_over_pixels_and_channels_last_dense():
    def body(net):
        y = net.conv(net.x, 4, given="conv2d0")
        return net.dense(net.emit(relax.op.mean(y, axis=[1, 2])), read="conv2d0")

    check(body, {"conv2d0": ORDER})


def test_additions_share_an_order():
    def body(net):
        y = net.conv(net.x, 4, given="conv2d0")
        inner = net.conv(y, 6, read="conv2d0", given="conv2d1")
        z = net.conv(inner, 4, read="conv2d1", given="conv2d0", residual=y)
        return net.dense(net.emit(relax.op.mean(z, axis=[1, 2])), read="conv2d0")

    six = np.array([5, 1, 0, 3, 2, 4])
    module = check(body, {"conv2d0": ORDER, "conv2d1": six})
    assert [group.sites for group in channel_groups(module)] == [("conv2d0", "conv2d2"), ("conv2d1",)]
    assert (site_orders(module, {"conv2d0": ORDER})["conv2d2"].given == ORDER).all()
    with pytest.raises(ValueError, match="shares its order"):
        PermuteChannels({"conv2d0": ORDER, "conv2d2": OTHER})(module)


def test_concatenation():
    def body(net):
        a, b = net.conv(net.x, 4, given="conv2d0"), net.conv(net.x, 4, given="conv2d1")
        y = net.emit(relax.op.concat([a, net.x, b], axis=3))
        y = net.conv(y, 2, read="both")
        return net.dense(net.emit(relax.op.reshape(y, (1, 32))))

    both = np.concatenate([ORDER, 4 + np.arange(3), 7 + OTHER])
    check(body, {"conv2d0": ORDER, "conv2d1": OTHER, "both": both})


def test_constants_and_depthwise_convolutions():
    def body(net):
        y = net.conv(net.x, 4, given="conv2d0")
        y = net.emit(relax.op.multiply(y, net.constant(1, 1, 1, 4, a3="conv2d0")))
        y = net.emit(relax.op.permute_dims(y, [0, 3, 1, 2]))
        y = net.emit(relax.op.nn.conv2d(y, net.constant(4, 1, 3, 3, a0="conv2d0"), padding=(1, 1), groups=4))
        y = net.emit(relax.op.add(y, net.constant(1, 4, 1, 1, a1="conv2d0")))
        y = net.emit(relax.op.permute_dims(y, [0, 2, 3, 1]))
        y = net.conv(y, 2, read="conv2d0")
        return net.dense(net.emit(relax.op.reshape(y, (1, 32))))

    check(body, {"conv2d0": ORDER})


def grouped(net):
    y = net.emit(relax.op.permute_dims(net.conv(net.x, 4), [0, 3, 1, 2]))
    y = net.emit(relax.op.nn.conv2d(y, net.constant(4, 2, 3, 3), groups=2))
    return net.dense(net.emit(relax.op.reshape(y, (1, 16))))


def added_to_input(net):
    return net.dense(net.emit(relax.op.reshape(net.conv(net.x, 4, residual=net.x), (1, 64))))


def softmax(net):
    return net.dense(net.emit(relax.op.reshape(relax.op.nn.softmax(net.conv(net.x, 4)), (1, 64))))


def output(net):
    return net.conv(net.x, 4)


@pytest.mark.parametrize(
    ("body", "channels", "reason"),
    [
        (output, 3, "an output"),
        (grouped, 3, "read by relax.nn.conv2d"),
        (softmax, 3, "read by relax.nn.softmax"),
        (added_to_input, 4, "added to"),
    ],
)
def test_where_the_order_is_needed_it_stays(body, channels, reason):
    module = Net(channels=channels).done(body)
    (group,) = channel_groups(module)
    assert group.sites == ("conv2d0",) and reason in group.stays
    with pytest.raises(ValueError, match="keep their order"):
        PermuteChannels({"conv2d0": ORDER})(module)


def test_without_orders_nothing_changes():
    module = Net(channels=4).done(added_to_input)
    same(PermuteChannels({})(module), module)
    with pytest.raises(ValueError, match="no convolution 'conv2d7'"):
        PermuteChannels({"conv2d7": ORDER})(module)
