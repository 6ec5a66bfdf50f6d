"""Peer: gpuzoo's networks and their training in Flax (NNX).

Written as usual for speed on small data: the whole dataset is one array on the device;
each step is one compiled call that takes its rows of a random permutation, updates the
weights in place and runs asynchronously. See turns.py for the protocol.
"""

import os

import jax
import optax
import turns
from flax import nnx
from jax import numpy as jnp


def pooled(x):
    """Max-pool by 2x2; the gradient of XLA's own is slow on a CPU."""
    above = jnp.maximum(x[:, ::2, ::2], x[:, ::2, 1::2])
    return jnp.maximum(above, jnp.maximum(x[:, 1::2, ::2], x[:, 1::2, 1::2]))


def doubled(x):
    """Turn four channels into 2x2 pixels: (batch, 2 height, 2 width, 1)."""
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, 2, 2).transpose(0, 1, 3, 2, 4)
    return x.reshape(batch, 2 * height, 2 * width, 1)


def flat(x):
    return x.reshape(len(x), -1)


def unflat(*shape):
    return lambda x: x.reshape(len(x), *shape)


def leaky(x):
    return nnx.leaky_relu(x, 0.2)


def conv(rngs, *sizes, strides=1, padding="SAME"):
    """A convolution: channels in and out, then the kernel size."""
    *channels, side = sizes
    return nnx.Conv(
        *channels, (side, side), strides=strides, padding=padding, rngs=rngs
    )


class Halved(nnx.Module):
    """A 4x4 convolution with stride 2 as one matrix product: its second derivative,
    which the penalty needs, is twice as fast on a CPU."""

    def __init__(self, rngs, before, after):
        initial = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (4, 4, before, after)))
        self.bias = nnx.Param(jnp.zeros(after))

    def __call__(self, x):
        side = -(-x.shape[1] // 2)  # odd sides round up
        fill = (1, 2 * side + 1 - x.shape[1])
        x = jnp.pad(x, ((0, 0), fill, fill, (0, 0)))
        around = [
            x[:, down : down + 2 * side : 2, right : right + 2 * side : 2]
            for down in range(4)
            for right in range(4)
        ]
        kernel = self.kernel[...].reshape(-1, self.bias.shape[0])
        return jnp.concatenate(around, -1) @ kernel + self.bias[...]


class Transposed(nnx.Module):
    """A transposed convolution with stride 2 and kernel size 3 or 4 as one matrix
    product: the gradient of XLA's own is six times as slow on a CPU."""

    def __init__(self, rngs, *sizes, bias=True):
        before, self.after, side = sizes
        self.side = side
        initial = nnx.initializers.lecun_normal()
        shape = (side, side, before, self.after)
        self.kernel = nnx.Param(initial(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(self.after)) if bias else None

    def __call__(self, x):
        batch, height, width, before = x.shape
        fill = (0, 4 - self.side)
        kernel = jnp.pad(self.kernel[...], (fill, fill, (0, 0), (0, 0)))
        kernel = kernel.transpose(2, 0, 1, 3).reshape(before, -1)
        x = (x.reshape(-1, before) @ kernel).reshape(
            batch, height, width, 2, 2, 2, 2, self.after
        )
        # Of each pixel 4x4, which reach into the 2x2 blocks of its neighbours.
        none = (0, 0)
        blocks = sum(
            jnp.pad(
                x[:, :, :, down, :, right],
                (none, (down, 1 - down), (right, 1 - right), none, none, none),
            )
            for down in (0, 1)
            for right in (0, 1)
        )
        x = blocks.transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, 2 * height + 2, 2 * width + 2, self.after)
        first = self.side - 3
        x = x[:, first : first + 2 * height, first : first + 2 * width]
        return x if self.bias is None else x + self.bias[...]


def cnn(rngs) -> nnx.Module:
    return nnx.Sequential(
        conv(rngs, 1, 16, 5, padding="VALID"), pooled, nnx.relu,
        conv(rngs, 16, 32, 3, padding="VALID"), pooled, nnx.relu,
        flat, nnx.Linear(800, 128, rngs=rngs), nnx.relu,
        nnx.Linear(128, 10, rngs=rngs),
    )  # fmt: skip


class Rows(nnx.Module):
    """An LSTM over the rows of an image."""

    def __init__(self, rngs):
        self.row = nnx.Linear(28, 512, rngs=rngs)
        self.state = nnx.Linear(
            128, 512, use_bias=False, kernel_init=nnx.initializers.orthogonal(),
            rngs=rngs,
        )  # fmt: skip
        self.logits = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images):
        rows = self.row(images[..., 0].transpose(1, 0, 2))  # all at once
        nothing = jnp.zeros((images.shape[0], 128), rows.dtype)

        def forward(carry, row):
            cell, state = carry
            come, stay, new, show = jnp.split(row + self.state(state), 4, axis=-1)
            cell = nnx.sigmoid(stay) * cell + nnx.sigmoid(come) * jnp.tanh(new)
            return (cell, nnx.sigmoid(show) * jnp.tanh(cell)), None

        (_, state), _ = jax.lax.scan(forward, (nothing, nothing), rows)
        return self.logits(state)


class Vae(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Sequential(
            conv(rngs, 1, 16, 3, strides=2), nnx.relu,
            conv(rngs, 16, 32, 3, strides=2), nnx.relu,
            flat, nnx.Linear(1568, 256, rngs=rngs), nnx.relu,
        )  # fmt: skip
        self.mean = nnx.Linear(256, 20, rngs=rngs)
        self.log_variance = nnx.Linear(256, 20, rngs=rngs)
        self.decoder = nnx.Sequential(
            nnx.Linear(20, 256, rngs=rngs), nnx.relu,
            nnx.Linear(256, 1568, rngs=rngs), nnx.relu, unflat(7, 7, 32),
            Transposed(rngs, 32, 16, 3), nnx.relu, conv(rngs, 16, 4, 3), doubled,
        )  # fmt: skip

    def __call__(self, images, key):
        x = self.encoder(images)
        mean, log_variance = self.mean(x), self.log_variance(x)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        logits = self.decoder(mean + jnp.exp(0.5 * log_variance) * noise)
        return logits, mean, log_variance


class Adversaries(nnx.Module):
    def __init__(self, rngs):
        def norm(channels):
            return nnx.LayerNorm(channels, epsilon=1e-3, rngs=rngs)

        self.generator = nnx.Sequential(
            nnx.Linear(64, 4 * 4 * 128, use_bias=False, rngs=rngs), unflat(4, 4, 128),
            norm(128), nnx.relu, Transposed(rngs, 128, 64, 4, bias=False),
            lambda x: x[:, :7, :7],
            norm(64), nnx.relu, Transposed(rngs, 64, 32, 4, bias=False),
            norm(32), nnx.relu, conv(rngs, 32, 4, 3), doubled, nnx.sigmoid,
        )  # fmt: skip
        self.discriminator = nnx.Sequential(
            lambda x: 2 * x - 1, Halved(rngs, 1, 32), leaky,
            Halved(rngs, 32, 64), leaky, Halved(rngs, 64, 128), leaky,
            flat, nnx.Linear(128 * 4 * 4, 1, rngs=rngs),
        )  # fmt: skip


def moved(optimizer, loss_of, weights, moments, numbers):
    """Return the weights after one optimizer step; the loss is computed in the given
    dtype."""

    def lowered(weights):
        return loss_of(jax.tree.map(lambda w: w.astype(numbers), weights))

    loss, gradient = jax.value_and_grad(lowered)(weights)
    changes, moments = optimizer.update(gradient, moments, weights)
    return optax.apply_updates(weights, changes), moments, loss


def classifier(model, optimizer):
    """Cross-entropy with smoothed labels."""
    graph, weights = nnx.split(model)

    def step(state, images, labels, key):
        goal = optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.1)

        def loss_of(weights):
            logits = nnx.merge(graph, weights)(images)
            return optax.softmax_cross_entropy(logits, goal).mean()

        *state, loss = moved(optimizer, loss_of, *state, images.dtype)
        return state, loss

    return step, [weights, optimizer.init(weights)]


def encoder(model, optimizer):
    graph, weights = nnx.split(model)

    def step(state, images, labels, key):
        def loss_of(weights):
            logits, mean, log_variance = nnx.merge(graph, weights)(images, key)
            missed = optax.sigmoid_binary_cross_entropy(logits, images).sum()
            kl = jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance
            return (missed + 0.5 * kl.sum()) / len(images)

        *state, loss = moved(optimizer, loss_of, *state, images.dtype)
        return state, loss

    return step, [weights, optimizer.init(weights)]


def adversaries(model, optimizer):
    """Train both networks in turn; the discriminator with a gradient penalty."""
    judge, judging = nnx.split(model.discriminator)
    draw, drawing = nnx.split(model.generator)
    softplus = nnx.softplus

    def step(state, images, labels, key):
        judging, moments, drawing, others = state
        one, other = (
            jax.random.uniform(part, (len(images), 64), images.dtype, -1, 1)
            for part in jax.random.split(key)
        )
        fake = nnx.merge(draw, drawing)(one)

        def judged(weights):
            told, back = jax.vjp(nnx.merge(judge, weights), images)
            (slope,) = back(jnp.ones_like(told))
            penalty = 0.025 * jnp.square(slope).sum((1, 2, 3)).mean()
            lie = nnx.merge(judge, weights)(fake)
            return softplus(-told).mean() + softplus(lie).mean() + penalty

        numbers = images.dtype
        judging, moments, _ = moved(optimizer, judged, judging, moments, numbers)

        def drawn(weights):
            images = nnx.merge(draw, weights)(other)
            return softplus(-nnx.merge(judge, judging)(images)).mean()

        drawing, others, loss = moved(optimizer, drawn, drawing, others, numbers)
        return (judging, moments, drawing, others), loss

    both = (judging, optimizer.init(judging), drawing, optimizer.init(drawing))
    return step, both


def prepare(asked: dict, arrays):
    os.environ["NPROC"] = str(asked["threads"])
    jax.config.update("jax_platforms", "cpu")
    rngs, batch = nnx.Rngs(0), asked["batch"]
    numbers = asked["precision"].removeprefix("mixed_")
    images, labels = jnp.asarray(arrays[0], numbers), jnp.asarray(arrays[1], jnp.int32)
    begun, state = {
        "cnn": lambda: classifier(cnn(rngs), optax.adam(0.01, 0.7, 0.9)),
        "lstm": lambda: classifier(Rows(rngs), optax.adam(0.004, 0.9, 0.99)),
        "vae": lambda: encoder(Vae(rngs), optax.adam(0.003)),
        "gan": lambda: adversaries(Adversaries(rngs), optax.adam(0.003, 0.5, 0.99)),
    }[asked["work"]]()
    per_epoch = len(images) // batch

    def one(state, images, labels, order, number, key):
        taken = jax.lax.dynamic_slice_in_dim(order, number % per_epoch * batch, batch)
        key = jax.random.fold_in(key, number)
        state, _ = begun(state, images[taken], labels[taken], key)
        return state, number + 1

    step = jax.jit(one, donate_argnums=(0, 4))
    shuffled = jax.jit(jax.random.permutation, static_argnums=1)
    key, done, number, order = jax.random.key(0), 0, jnp.int32(0), None

    def steps(count: int) -> None:
        nonlocal state, done, number, order
        for _ in range(count):
            if done % per_epoch == 0:
                order = shuffled(jax.random.fold_in(key, done), len(images))
            state, number = step(state, images, labels, order, number, key)
            done += 1
        jax.block_until_ready(state)

    return steps


if __name__ == "__main__":
    turns.take_turns(prepare)
