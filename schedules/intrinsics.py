"""TIR expressions for vector instructions and the nonlinearities of recurrent cells.

TVM 0.27's own VNNI intrinsic does not compile with LLVM 22 (``vpdpbusd`` wants 8-bit operand
vectors), and its pre-VNNI one saturates silently; hence the direct LLVM calls.
"""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.cpu import Isa


def _llvm(name: str, dtype: str, *operands):
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *operands, dtype=dtype)


def dot4(isa: Isa, accumulator, unsigned, signed):
    """Add to each 32-bit lane the sum of four products of unsigned and signed bytes.

    Parameters
    ----------
    isa : Isa
        Level to generate for.
    accumulator : PrimExpr
        ``int32`` vector of ``isa.lanes``.
    unsigned, signed : PrimExpr
        ``int8`` vectors of ``isa.vector_bytes``; the first is read as unsigned bytes. Without VNNI
        it must not exceed ``isa.activation_levels``.
    """
    if isa.vnni:
        name = f"llvm.x86.avx512.vpdpbusd.{isa.vector_bytes * 8}"
        return _llvm(name, f"int32x{isa.lanes}", accumulator, unsigned, signed)
    return add_pairs(isa, accumulator, multiply_pairs(isa, unsigned, signed))


def multiply_pairs(isa: Isa, unsigned, signed):
    """Return in each 16-bit lane the sum of two products of unsigned and signed bytes, cut off at 16 bits.

    Operands are those of `dot4`.
    """
    name = "avx512.pmaddubs.w.512" if isa.vector_bytes == 64 else "avx2.pmadd.ub.sw"
    return _llvm(f"llvm.x86.{name}", f"int16x{isa.vector_bytes // 2}", unsigned, signed)


def add_pairs(isa: Isa, accumulator, words):
    """Add to each 32-bit lane of `accumulator` the two 16-bit lanes of `words` that it lies over."""
    name = "avx512.pmaddw.d.512" if isa.vector_bytes == 64 else "avx2.pmadd.wd"
    ones = T.broadcast(T.int16(1), isa.vector_bytes // 2)
    return accumulator + _llvm(f"llvm.x86.{name}", f"int32x{isa.lanes}", words, ones)


def horizontal_sum(vector, dtype: str):
    """Sum of an ``int32`` vector's lanes."""
    return _llvm("llvm.vector.reduce.add", dtype, vector)


def sum_each(vectors: list, lanes: int, kept=lambda value, lanes: value):
    """Return one vector of the sums of each of `vectors`' lanes; both numbers are powers of two.

    What comes of two vectors is used twice; ``kept(value, lanes)`` may store it, where code for it should not be
    generated twice.

    Each addition folds two vectors into one, so that four sums take five additions, not sixteen; and
    LLVM's ``reduce.fadd`` would add one lane after another.
    """
    width = lanes
    while width > 1:
        # Each vector holds a number of sums, `width` lanes wide; their halves are added.
        half = width // 2
        pairs = [vectors[i : i + 2] for i in range(0, len(vectors), 2)]
        starts = range(0, lanes * len(pairs[0]), width)
        low, high = ([start + part + i for start in starts for i in range(half)] for part in (0, half))
        vectors = [kept(T.Shuffle(pair, low) + T.Shuffle(pair, high), len(low)) for pair in pairs]
        lanes, width = len(low), half
    return vectors[0]


def prefetch(element, level: int = 1):
    """Ask for the cache line of a buffer's element to be brought into the first level, or the second; a statement."""
    read, nearest, data = T.int32(0), T.int32(4 - level), T.int32(1)
    return T.evaluate(
        T.call_llvm_intrin(
            T.llvm_lookup_intrinsic_id("llvm.prefetch"), T.address_of(element), read, nearest, data, dtype="void"
        )
    )


def horizontal_max(vector, width: int):
    """Largest of an ``int32`` vector's `width` lanes."""
    return _llvm("llvm.vector.reduce.smax", "int32", vector) if width > 1 else vector


def magnitude_bits(vector, width: int):
    """Bits of ``|x|`` of `width` ``float32`` lanes: integers in the same order as the magnitudes."""
    return T.reinterpret(vector, dtype=f"int32x{width}" if width > 1 else "int32") & T.int32(0x7FFFFFFF)


def exp(x):
    """``e**x`` for a scalar expression, within 3e-7 relative, 0 or large instead of under/overflow.

    2**n times a polynomial on [-ln2/2, ln2/2] (Cephes' ``expf`` scheme): plain arithmetic, so LLVM
    vectorises a loop over it, where a call to libm would stay scalar.
    """
    x = T.max(T.min(x, T.float32(88.0)), T.float32(-87.0))
    n = T.floor(x * T.float32(1.4426950408889634) + T.float32(0.5))
    r = x - n * T.float32(0.693359375) - n * T.float32(-2.12194440e-4)
    p = T.float32(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + T.float32(c)
    p = p * r * r + r + T.float32(1)
    return p * T.reinterpret((T.Cast("int32", n) + 127) << 23, dtype="float32")


# tanh x = x P(x^2) / Q(x^2) on [-8, 8], at whose ends tanh is within 2.3e-7 of one; fitted for the
# least absolute error, 1.3e-7 before rounding. Lowest power first.
_TANH_P = (0.9999993638372489, 0.12913667495003628, 0.0029388529557249792, 1.1310439341489336e-05)
_TANH_Q = (1.0, 0.4624676670353643, 0.023763937834544578, 0.00023703169462718508, 2.4238996117610424e-07)
_TANH_LIMIT = 8.0


def _polynomial(x, coefficients):
    result = T.float32(coefficients[-1])
    for c in coefficients[-2::-1]:
        result = result * x + T.float32(c)
    return result


def _tanh_ratio(x, stretch: float, height: float):
    """``height * tanh(x * stretch)``, both factors folded into the coefficients."""
    limit = _TANH_LIMIT / stretch
    x = T.max(T.min(x, T.float32(limit)), T.float32(-limit))
    numerator = [c * height * stretch ** (2 * i + 1) for i, c in enumerate(_TANH_P)]
    denominator = [c * stretch ** (2 * i) for i, c in enumerate(_TANH_Q)]
    return x * _polynomial(x * x, numerator) / _polynomial(x * x, denominator)


def sigmoid(x):
    """``1 / (1 + e**-x)`` within 4e-7 absolute, for a scalar or vector expression."""
    return _tanh_ratio(x, 0.5, 0.5) + T.float32(0.5)


def tanh(x):
    """``tanh x`` within 5e-7 absolute, never beyond 1, for a scalar or vector expression.

    A ratio of polynomials takes about half the instructions of ``2 / (1 + exp(-2 x)) - 1``.
    """
    return _tanh_ratio(x, 1.0, 1.0)


def compress(isa: Isa, dtype: str, vector, mask):
    """Move the lanes of a vector where the boolean `mask` holds to its front (AVX-512 alone).

    `dtype` is the vector's element type, ``int32`` or ``float32``.
    """
    zero = T.float32(0) if dtype == "float32" else T.int32(0)
    return _llvm("llvm.x86.avx512.mask.compress", f"{dtype}x{isa.lanes}", vector, T.broadcast(zero, isa.lanes), mask)


def _bits(isa: Isa, mask):
    """Return a boolean vector of AVX2's eight lanes as the low bits of an ``int32``."""
    signs = T.reinterpret(T.int32(0) - T.Cast(f"int32x{isa.lanes}", mask), dtype=f"float32x{isa.lanes}")
    return _llvm("llvm.x86.avx.movmsk.ps.256", "int32", signs)


def kept_first(isa: Isa, dtype: str, vector, mask):
    """Move the lanes of a vector where the boolean `mask` holds to its front; behind them stands anything.

    `dtype` is the vector's element type, ``int32`` or ``float32``. AVX2 has no instruction for it: there each bit
    of the mask becomes a byte, and of the bytes 0 to 7 those are taken out that are kept.
    """
    if isa.vector_bytes == 64:
        return compress(isa, dtype, vector, mask)
    each = T.Cast("int64", T.Cast("uint32", _bits(isa, mask)))
    bytes_ = _llvm("llvm.x86.bmi.pdep.64", "int64", each, T.int64(0x0101010101010101)) * T.int64(255)
    order = _llvm("llvm.x86.bmi.pext.64", "int64", T.int64(0x0706050403020100), bytes_)
    lanes = T.Cast("int32x8", T.reinterpret(order, dtype="uint8x8"))
    if dtype == "int32":
        return _llvm("llvm.x86.avx2.permd", "int32x8", vector, lanes)
    return _llvm("llvm.x86.avx2.permps", "float32x8", vector, lanes)


def count_true(isa: Isa, mask):
    """Return how many lanes of a boolean vector hold, by a population count."""
    if isa.vector_bytes == 32:
        return _llvm("llvm.ctpop.i32", "int32", _bits(isa, mask))
    return horizontal_sum(T.Cast(f"int32x{isa.lanes}", mask), "int32")


def chunk(isa: Isa, n: int) -> int:
    """Return the widest vector, in 32-bit lanes, that fits in `n` elements: a power of two."""
    return min(isa.lanes, 1 << (n.bit_length() - 1))


def vector_lanes(isa: Isa, n: int, dtype: str) -> int:
    """Return the widest vector of `dtype` (``float32`` or ``uint8``) that fits in `n` elements: a power of two."""
    return min(isa.vector_bytes if dtype == "uint8" else isa.lanes, 1 << (n.bit_length() - 1))


def span(start, width: int):
    """Index of `width` neighbours from `start` on."""
    return T.ramp(start, 1, width) if width > 1 else start
