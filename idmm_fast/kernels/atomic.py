"""Bytes by which threads and processes agree: what is written before a byte is published is seen by whoever sees it."""

from numba import types
from numba.extending import intrinsic


def _address(context, builder, array_type, array, index):
    """Of the byte `index` of `array` (uint8, 1-d)."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def load(typing, array, index):
    """The byte `index` of `array` (uint8, 1-d): nothing that follows is read before it."""

    def code(context, builder, signature, args):
        return builder.load_atomic(_address(context, builder, signature.args[0], *args), "acquire", align=1)

    return types.uint8(array, types.intp), code


@intrinsic
def store(typing, array, index, value):
    """Set the byte `index` of `array` (uint8, 1-d): everything that was written before is seen first."""

    def code(context, builder, signature, args):
        at = _address(context, builder, signature.args[0], *args[:2])
        builder.store_atomic(args[2], at, "release", align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint8), code


@intrinsic
def replace(typing, array, index, old, new):
    """Whether the byte `index` of `array` (uint8, 1-d) was `old`; it is `new` then. One caller alone is told so."""

    def code(context, builder, signature, args):
        at = _address(context, builder, signature.args[0], *args[:2])
        return builder.extract_value(builder.cmpxchg(at, args[2], args[3], "acq_rel", "acquire"), 1)

    return types.boolean(array, types.intp, types.uint8, types.uint8), code
