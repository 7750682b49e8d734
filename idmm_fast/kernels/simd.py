"""Vectors of float32 and uint16 as values inside kernels, for loops that LLVM's vectoriser does not find.

The values live in registers. They are LLVM's own vector types, not those of one processor: where there are no vectors
that wide, LLVM splits them. Float vectors have the operators +, -, * and /, both sides of one width.

Names: a function ends in the type, if that is not float32, and the number of lanes: `load8` loads eight float32,
`load_u16x8` eight uint16. `u8` are pixels: levels 0..255. `index` is that of the first of neighbouring elements.

Fixed point: a uint16 holds a level at one of two scales.

- q8.8, 256 units a level: for weighted sums of bytes (`resize`); the weights' sum is at most 1.
- q9.7, 128 units a level: where two levels are added before they are weighted (`blur`).

In both, a weight of 1 is 65,536 (65,535 where it must fit into 16 bits); a product keeps its upper 16 bits.

One file of over 300 lines: a flat list of small functions in the order of their types.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

_I32, _U16, _U8 = ir.IntType(32), ir.IntType(16), ir.IntType(8)


class Float32x(types.Type):
    """numba type: a vector of `width` float32."""

    def __init__(self, width) -> None:
        self.width = width
        super().__init__(name=f"float32x{width}")


class UInt16x(types.Type):
    """numba type: a vector of `width` uint16."""

    def __init__(self, width) -> None:
        self.width = width
        super().__init__(name=f"uint16x{width}")


@register_model(UInt16x)
class _UInt16xModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_U16, fe_type.width))


f32x4, f32x8 = Float32x(4), Float32x(8)
u16x8, u16x16 = UInt16x(8), UInt16x(16)


@register_model(Float32x)
class _Float32xModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(ir.FloatType(), fe_type.width))


def _vector(lanes, element=None):
    return ir.VectorType(element or ir.FloatType(), lanes.width)


def _pointer(context, builder, array_type, array, index, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _shuffle(builder, a, b, mask):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(mask)), mask))


def _splat(lanes):
    @intrinsic
    def splat(typing, value):
        def code(context, builder, signature, args):
            value = context.cast(builder, args[0], signature.args[0], types.float32)
            one = builder.insert_element(ir.Constant(_vector(lanes), ir.Undefined), value, ir.Constant(_I32, 0))
            return _shuffle(builder, one, one, [0] * lanes.width)

        return lanes(value), code

    return splat


def _load(lanes):
    @intrinsic
    def load(typing, array, index):
        def code(context, builder, signature, args):
            at = _pointer(context, builder, signature.args[0], args[0], args[1], _vector(lanes))
            return builder.load(at, align=4)

        return lanes(array, types.intp), code

    return load


def _store(lanes):
    @intrinsic
    def store(typing, array, index, value):
        def code(context, builder, signature, args):
            at = _pointer(context, builder, signature.args[0], args[0], args[1], _vector(lanes))
            builder.store(args[2], at, align=4)
            return context.get_dummy_value()

        return types.void(array, types.intp, lanes), code

    return store


splat4, splat8 = _splat(f32x4), _splat(f32x8)
load4, load8 = _load(f32x4), _load(f32x8)  # (array of float32, index of the first)
store4, store8 = _store(f32x4), _store(f32x8)  # (array of float32, index of the first, value)


@intrinsic
def iota8(typing):
    """0.0, 1.0, ... 7.0."""
    return f32x8(), lambda context, builder, signature, args: ir.Constant(_vector(f32x8), [float(k) for k in range(8)])


@intrinsic
def load_u8x8(typing, array, index):
    """Eight levels (uint8) from `index` on, as float32."""

    def code(context, builder, signature, args):
        at = _pointer(context, builder, signature.args[0], args[0], args[1], _vector(f32x8, _U8))
        wide = builder.zext(builder.load(at, align=1), _vector(f32x8, _I32))
        return builder.sitofp(wide, _vector(f32x8))

    return f32x8(array, types.intp), code


@intrinsic
def store_u8x8(typing, array, index, value):
    """Eight float32 in 0..255 as uint8 from `index` on, rounded down."""

    def code(context, builder, signature, args):
        levels = builder.trunc(builder.fptosi(args[2], _vector(f32x8, _I32)), _vector(f32x8, _U8))
        at = _pointer(context, builder, signature.args[0], args[0], args[1], levels.type)
        builder.store(levels, at, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, f32x8), code


@intrinsic
def store_rgb8(typing, array, index, red, green, blue):
    """Eight pixels as 24 uint8 (R, G, B, R, ...) from `index` on, rounded down; the float32 must be in 0..255."""

    def code(context, builder, signature, args):
        red, green, blue = (builder.fptosi(v, _vector(f32x8, _I32)) for v in args[2:])
        for shift, channel in ((8, green), (16, blue)):  # RGBx in the bytes of an integer, little-endian
            red = builder.or_(red, builder.shl(channel, ir.Constant(channel.type, [shift] * 8)))
        quads = builder.bitcast(red, ir.VectorType(_U8, 32))
        pixels = _shuffle(builder, quads, quads, [4 * k + c for k in range(8) for c in range(3)])
        at = _pointer(context, builder, signature.args[0], args[0], args[1], pixels.type)
        builder.store(pixels, at, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, f32x8, f32x8, f32x8), code


@intrinsic
def transpose4(typing, a, b, c, d):
    """From four pixels RGBx, a vector each, to their R, G and B, three vectors: the first columns of a 4 x 4 matrix."""

    def code(context, builder, signature, args):
        a, b, c, d = args
        low, high = _shuffle(builder, a, b, [0, 4, 1, 5]), _shuffle(builder, c, d, [0, 4, 1, 5])
        last = [_shuffle(builder, p, q, [2, 6, 2, 6]) for p, q in ((a, b), (c, d))]
        columns = [
            _shuffle(builder, low, high, [0, 1, 4, 5]),
            _shuffle(builder, low, high, [2, 3, 6, 7]),
            _shuffle(builder, *last, [0, 1, 4, 5]),
        ]
        return context.make_tuple(builder, signature.return_type, columns)

    return types.UniTuple(f32x4, 3)(f32x4, f32x4, f32x4, f32x4), code


def _function(name, emit, arguments):
    """An intrinsic over vectors of one width."""

    @intrinsic
    def call2(typing, a, b):
        if isinstance(a, Float32x) and a == b:
            return a(a, a), lambda context, builder, signature, args: emit(builder, *args)
        return None

    @intrinsic
    def call3(typing, a, b, c):
        if isinstance(a, Float32x) and a == b == c:
            return a(a, a, a), lambda context, builder, signature, args: emit(builder, *args)
        return None

    @intrinsic
    def call1(typing, a):
        if isinstance(a, Float32x):
            return a(a), lambda context, builder, signature, args: emit(builder, *args)
        return None

    return (call1, call2, call3)[arguments - 1]


def _named(builder, name, *values):
    vector = values[0].type
    function = ir.FunctionType(vector, [vector] * len(values))
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"{name}.v{vector.count}f32"), values)


vmin = _function("vmin", lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y), 2)
vmax = _function("vmax", lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y), 2)
floor = _function("floor", lambda b, x: _named(b, "llvm.floor", x), 1)
multiply_add = _function("multiply_add", lambda b, x, y, z: _named(b, "llvm.fmuladd", x, y, z), 3)  # x * y + z


@intrinsic
def where_equal(typing, a, b, then, otherwise):
    """Lane by lane: `then` where a == b, else `otherwise`."""

    def code(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("==", args[0], args[1]), args[2], args[3])

    return f32x8(f32x8, f32x8, f32x8, f32x8), code


@intrinsic
def hsum8(typing, a):
    """The sum of the eight lanes, in the order of a tree, so that it is always the same number."""

    def code(context, builder, signature, args):
        value = args[0]
        for width in (4, 2, 1):
            halves = [_shuffle(builder, value, value, list(range(first, first + width))) for first in (0, width)]
            value = builder.fadd(*halves)
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return types.float32(f32x8), code


def _operator(symbol, emit):
    low = _function(symbol.__name__, emit, 2)

    @overload(symbol)
    def both(a, b):
        if isinstance(a, Float32x) and a == b:
            return lambda a, b: low(a, b)
        return None


_operator(operator.add, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, lambda b, x, y: b.fmul(x, y))
_operator(operator.truediv, lambda b, x, y: b.fdiv(x, y))


# Fixed point, see the head of this file.


def _splat_u16(builder, value, width):
    vector = ir.VectorType(_U16, width)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), builder.trunc(value, _U16), ir.Constant(_I32, 0))
    return _shuffle(builder, one, one, [0] * width)


def _upper_half(builder, a, b):
    """The upper 16 bits of the products of uint16: one instruction on x86 and on ARM."""
    wide = ir.VectorType(_I32, a.type.count)
    product = builder.mul(builder.zext(a, wide), builder.zext(b, wide))
    return builder.trunc(builder.lshr(product, ir.Constant(wide, [16] * a.type.count)), a.type)


def _splat_u16_of(width):
    @intrinsic
    def splat(typing, value):
        def code(context, builder, signature, args):
            return _splat_u16(builder, context.cast(builder, args[0], signature.args[0], types.int32), width)

        return UInt16x(width)(value), code

    return splat


splat_u16x8, splat_u16x16 = _splat_u16_of(8), _splat_u16_of(16)


@intrinsic
def add_weighted_u8x16(typing, total, array, index, weight):
    """total + weight * the sixteen levels (uint8) from `index` on, in q8.8; weight: int32 in 0..65535."""

    def code(context, builder, signature, args):
        total, array, index, weight = args
        vector = ir.VectorType(_U16, 16)
        at = _pointer(context, builder, signature.args[1], array, index, ir.VectorType(_U8, 16))
        levels = builder.shl(builder.zext(builder.load(at, align=1), vector), ir.Constant(vector, [8] * 16))
        return builder.add(total, _upper_half(builder, levels, _splat_u16(builder, weight, 16)))

    return u16x16(u16x16, array, types.intp, types.int32), code


def _load_u16_of(kind):
    @intrinsic
    def load(typing, array, index):
        def code(context, builder, signature, args):
            at = _pointer(context, builder, signature.args[0], *args, ir.VectorType(_U16, kind.width))
            return builder.load(at, align=2)

        return kind(array, types.intp), code

    return load


def _add_weighted_u16_of(kind):
    @intrinsic
    def add(typing, total, array, index, weight):
        def code(context, builder, signature, args):
            total, array, index, weight = args
            at = _pointer(context, builder, signature.args[1], array, index, total.type)
            weight = _splat_u16(builder, weight, kind.width)
            return builder.add(total, _upper_half(builder, builder.load(at, align=2), weight))

        return kind(kind, array, types.intp, types.int32), code

    return add


load_u16x8 = _load_u16_of(u16x8)  # (array of uint16, index of the first)
# (total, array of uint16, index of the first, weight): total + weight * those from there on; weight: int32 in 0..65535
add_weighted_u16x8, add_weighted_u16x16 = _add_weighted_u16_of(u16x8), _add_weighted_u16_of(u16x16)


@intrinsic
def add_weighted_pairs_u16x16(typing, total, array, one, other, weight):
    """total + weight * (the sixteen uint16 from `one` on + those from `other` on); the sums must fit into 16 bits."""

    def code(context, builder, signature, args):
        total, array, one, other, weight = args
        one, other = (
            builder.load(_pointer(context, builder, signature.args[1], array, index, total.type), align=2)
            for index in (one, other)
        )
        product = _upper_half(builder, builder.add(one, other), _splat_u16(builder, weight, 16))
        return builder.add(total, product)

    return u16x16(u16x16, array, types.intp, types.intp, types.int32), code


@intrinsic
def store_q9_7x8(typing, array, index, value):
    """Eight float32 levels in 0..255 as q9.7, rounded, from `index` on."""

    def code(context, builder, signature, args):
        array, index, value = args
        half, unit = (ir.Constant(value.type, [x] * 8) for x in (0.5, 128.0))
        units = builder.fptosi(builder.fadd(builder.fmul(value, unit), half), _vector(f32x8, _I32))
        units = builder.trunc(units, _vector(f32x8, _U16))
        builder.store(units, _pointer(context, builder, signature.args[0], array, index, units.type), align=2)
        return context.get_dummy_value()

    return types.void(array, types.intp, f32x8), code


@intrinsic
def load_q9_7x8(typing, array, index):
    """Eight q9.7 from `index` on, as float32 levels."""

    def code(context, builder, signature, args):
        at = _pointer(context, builder, signature.args[0], *args, _vector(f32x8, _U16))
        units = builder.sitofp(builder.zext(builder.load(at, align=2), _vector(f32x8, _I32)), _vector(f32x8))
        return builder.fmul(units, ir.Constant(units.type, [1 / 128] * 8))

    return f32x8(array, types.intp), code


def _store_u16_of(kind):
    @intrinsic
    def store(typing, array, index, value):
        def code(context, builder, signature, args):
            builder.store(
                args[2], _pointer(context, builder, signature.args[0], args[0], args[1], args[2].type), align=2
            )
            return context.get_dummy_value()

        return types.void(array, types.intp, kind), code

    return store


store_u16x8, store_u16x16 = _store_u16_of(u16x8), _store_u16_of(u16x16)  # (array of uint16, index of the first, value)


def _transpose8(builder, rows):
    """Transpose the 8 x 8 matrices whose rows these vectors hold, one for each eight lanes, by interleaving thrice."""
    parts = rows[0].type.count // 8
    for _ in range(3):
        turned = []
        for a, b in zip(rows[:4], rows[4:]):
            for half in (0, 4):
                mask = [8 * p + half + k // 2 + (k % 2) * 8 * parts for p in range(parts) for k in range(8)]
                turned.append(_shuffle(builder, a, b, mask))
        rows = turned
    return rows


@intrinsic
def store_transposed16(typing, out, index, array, first, pitch):
    """Transpose eight rows of sixteen uint16 to sixteen columns, one after another from `index` of `out` on.

    The rows are `pitch` apart, from `first` of `array` on.
    """

    def code(context, builder, signature, args):
        out, index, array, first, pitch = args
        vector = ir.VectorType(_U16, 16)
        rows = []
        for _ in range(8):
            rows.append(builder.load(_pointer(context, builder, signature.args[2], array, first, vector), align=2))
            first = builder.add(first, pitch)
        for k, column in enumerate(_transpose8(builder, rows)):
            for part in range(2):
                half = _shuffle(builder, column, column, list(range(8 * part, 8 * part + 8)))
                at = builder.add(index, ir.Constant(index.type, 8 * (k + 8 * part)))
                builder.store(half, _pointer(context, builder, signature.args[0], out, at, half.type), align=2)
        return context.get_dummy_value()

    return types.void(out, types.intp, array, types.intp, types.intp), code


@intrinsic
def store_transposed_q8_8x8(typing, out, index, pitch, array, first):
    """Eight rows of eight q8.8, one after another from `first` of `array` on, transposed, as float32 levels up to 255.

    The rows of the result are `pitch` apart, from `index` of `out` on.
    """

    def code(context, builder, signature, args):
        out, index, pitch, array, first = args
        rows = []
        for k in range(8):
            at = builder.add(first, ir.Constant(first.type, 8 * k))
            rows.append(
                builder.load(_pointer(context, builder, signature.args[3], array, at, ir.VectorType(_U16, 8)), align=2)
            )
        white = ir.Constant(rows[0].type, [255 * 256] * 8)
        for row in _transpose8(builder, rows):
            row = builder.select(builder.icmp_unsigned("<", row, white), row, white)
            levels = builder.sitofp(builder.zext(row, _vector(f32x8, _I32)), _vector(f32x8))
            levels = builder.fmul(levels, ir.Constant(_vector(f32x8), [1 / 256] * 8))
            builder.store(levels, _pointer(context, builder, signature.args[0], out, index, levels.type), align=4)
            index = builder.add(index, pitch)
        return context.get_dummy_value()

    return types.void(out, types.intp, types.intp, array, types.intp), code
