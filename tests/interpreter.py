"""Triton's interpreter, made to round as a GPU does where it does not, in a third of the time.

It multiplies float32 numbers in full whatever precision is asked for; a tensor core reads the upper
19 bits of them, so operands that nobody rounded are cut, and their products biased, and cuts its
sums to float32. The interpreter cuts float32 numbers where they become bfloat16; a GPU rounds them
to the nearest. And its products are NumPy's: which of a processor's instructions and which order of
the sums OpenBLAS takes depends on shape and layout, so that a pair has other bits in the scan than
in the gradient, where a GPU has the same.

It teaches the language to compute at a launch, and once more at each call of a function inside it,
which changes nothing; and it looks for overflows of every integer sum, of which it says nothing
unless it is asked to: test_interpreter.py asks. It reduces by a function of ours one number after
the other; here by halves, as a GPU does, of whole blocks. And for each number that it makes it
builds a table of all types.
"""

import dataclasses
import sys

import numpy as np

TF32_BITS = np.int32(-(1 << 13))


def round_as_a_gpu() -> None:
    """From now on; nothing where kernels were not imported."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None or hasattr(interpreter, "exact_dot"):
        return
    interpreter.exact_dot = dot = interpreter.InterpreterBuilder.create_dot
    convert = interpreter._convert_float

    def create_dot(self, a, b, sums, precision, *rest):
        if str(precision).endswith("TF32"):
            a, b = (_cut(interpreter, operand) for operand in (a, b))
        if "TF32" in str(precision) and sums.data.dtype == np.float32:
            found = added_by_a_tensor_core(a.data, b.data, sums.data)
            return interpreter.TensorHandle(found, sums.dtype.scalar)
        if a.data.dtype == b.data.dtype == sums.data.dtype == np.float32:
            return interpreter.TensorHandle(product(a.data, b.data) + sums.data, sums.dtype.scalar)
        return dot(self, a, b, sums, precision, *rest)

    def convert_float(x, source, target, mode):
        if (source.name, target.name) == ("fp32", "bf16"):
            return _to_bfloat16(x)
        return convert(x, source, target, mode)

    taught = []

    def call(self, *arguments, **options):
        # Functions of Triton's own speak of tl.core, which a launch does not teach.
        if not taught and "core" in self.fn.__globals__:
            taught.append(interpreter._patch_lang(self.fn))
        try:
            return self.rewrite()(*arguments, **options)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    dtype_of, known = interpreter._get_np_dtype, {}

    def np_dtype(dtype):
        scalar = dtype.scalar
        if scalar.name not in known:
            known[scalar.name] = dtype_of(scalar)
        return known[scalar.name]

    interpreter._get_np_dtype = np_dtype
    interpreter.ReduceOps.generic_reduce = reduce_by_halves
    interpreter.InterpretedFunction.__call__ = call
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter._convert_float = convert_float


def reduce_by_halves(self, blocks):
    """Blocks, each of its own values, along one axis, whose length is a power of two."""
    blocks, axis = self.unravel(blocks, self.axis)
    dtypes = [block.dtype for block in blocks]
    parts = [block.handle.data for block in blocks]
    while (length := parts[0].shape[axis]) > 1:
        halves = [np.split(part, [length // 2], axis) for part in parts]
        first, second = (
            [self.to_tensor(part, dtype) for part, dtype in zip(side, dtypes, strict=True)]
            for side in zip(*halves, strict=True)
        )
        found = self.combine_fn.fn(*first, *second)
        found = found if isinstance(found, (tuple, list)) else (found,)
        parts = [each.handle.data for each in found]
    if not self.keep_dims:
        parts = [part.squeeze(axis) for part in parts]
    return [self.to_tensor(part, dtype) for part, dtype in zip(parts, dtypes, strict=True)]


def added_by_a_tensor_core(a, b, sums):
    """sums + a @ b, cut to float32 after each instruction, which takes 8 of the depth: as losses on
    an H200 err."""
    found = sums.copy()
    with np.errstate(all="ignore"):
        for k in range(0, a.shape[-1], 8):
            part = a[..., :, k : k + 8].astype(np.float64) @ b[..., k : k + 8, :].astype(np.float64)
            exact = found.astype(np.float64) + part
            near = exact.astype(np.float32)
            over = np.abs(near.astype(np.float64)) > np.abs(exact)
            found = np.where(over, np.nextafter(near, np.float32(0)), near)
    return found


def product(a, b):
    """a @ b in ascending depth, whatever their shapes and layout: one pair, one number."""
    found = np.zeros((*a.shape[:-1], b.shape[-1]), a.dtype)
    with np.errstate(all="ignore"):  # infinities are ordinary operands
        for k in range(a.shape[-1]):
            found += a[..., :, k, None] * b[..., k, None, :]
    return found


def _cut(interpreter, operand):
    if operand.data.dtype != np.float32:
        return operand
    bits = np.ascontiguousarray(operand.data).view(np.int32) & TF32_BITS
    return interpreter.TensorHandle(bits.view(np.float32), operand.dtype)


def _to_bfloat16(x):
    """Bits of the nearest bfloat16, ties to even; of a NaN a quiet one."""
    bits = np.frombuffer(x.tobytes(), np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16) | 0x40, nearest).astype(np.uint16).reshape(np.shape(x))
