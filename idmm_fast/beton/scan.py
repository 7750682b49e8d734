"""Whether a baseline JPEG is whole: its Huffman codes read from the first to the last, without making a pixel.

Several times as fast as decoding. It knows the common form only (one interleaved scan, 8 bits, tables 0 and 1, sampling factors 1 and
2) and says no to everything else, so a "no" means: ask libjpeg-turbo. A "yes" means that libjpeg-turbo reads it without a warning.
ITU-T T.81, annexes B, C and F.
"""

import numpy as np

from ..jit import kernel

_QUICK = 10  # codes up to this length are found in one look
_END = 128  # what an end-of-block code moves the coefficient number by: so far that it can't be mistaken for a run


@kernel
def _read_tables(data, at, end, quick, longest, offset, symbols):
    """A DHT segment. Returns whether it is in order.

    quick: int32 (4, 1 << _QUICK): bits of a code with its value | coefficients it moves by << 8, or 0 for a longer code. longest, offset:
    int32 (4, 17), for each length the last code, and what to add to a code to get the number of its symbol. symbols: uint8 (4, 256).
    """
    while at < end:
        if at + 17 > end:
            return False
        kind, number = data[at] >> 4, data[at] & 15
        if kind > 1 or number > 1:
            return False
        t = 2 * kind + number
        quick[t] = 0
        code = count = 0
        for length in range(1, 17):
            some = int(data[at + length])
            if count + some > 256 or at + 17 + count + some > end or code + some > 1 << length:
                return False
            offset[t, length] = count - code
            longest[t, length] = code + some - 1 if some else -1
            for i in range(some):
                symbol = data[at + 17 + count + i]
                symbols[t, count + i] = symbol
                if kind == 0 and symbol > 11:
                    return False
                if length <= _QUICK:
                    first = (code + i) << (_QUICK - length)
                    quick[t, first : first + (1 << (_QUICK - length))] = _move(kind, length, symbol)
            count += some
            code = (code + some) << 1
        at += 17 + count
    return at == end


@kernel
def _move(kind, length, symbol):
    """An entry of the table of codes."""
    run, size = symbol >> 4, symbol & 15
    step = run + 1
    if kind == 0:
        return length + symbol | 1 << 8
    if size == 0 and run < 15:
        step = _END
    return length + size | step << 8


@kernel(inline=True)
def _fill(data, at, buffer, bits, made_up):
    """At least 33 bits in `buffer` (uint64, the next bit on top). Beyond a marker or the end they are made up, and counted."""
    if at + 4 <= data.size:
        word = np.uint32(data[at]) << np.uint32(24) | np.uint32(data[at + 1]) << np.uint32(16)
        word |= np.uint32(data[at + 2]) << np.uint32(8) | np.uint32(data[at + 3])
        if (~word - np.uint32(0x01010101)) & word & np.uint32(0x80808080) == 0:  # none of the four is 255
            return at + 4, buffer | np.uint64(word) << np.uint64(32 - bits), bits + 32, made_up
    while bits <= 32:
        byte = np.uint64(0)
        if at < data.size and data[at] != 255:
            byte = np.uint64(data[at])
            at += 1
        elif at + 1 < data.size and data[at + 1] == 0:
            byte = np.uint64(255)
            at += 2
        else:
            made_up += 8
        buffer |= byte << np.uint64(56 - bits)
        bits += 8
    return at, buffer, bits, made_up


@kernel
def _long_code(kind, table, buffer, longest, offset, symbols):
    """As an entry of the table of codes, for a code longer than _QUICK; 0 if there is none."""
    for length in range(_QUICK + 1, 17):
        code = int(buffer >> np.uint64(64 - length))
        if code <= longest[table, length]:
            return _move(kind, length, symbols[table, code + offset[table, length]])
    return 0


@kernel
def _read_scan(data, at, units, restart, plan, quick, longest, offset, symbols):
    """The entropy-coded data from `at` on: `units` MCUs with the blocks of `plan` (int32 (blocks, 2): their DC and AC tables).
    Returns where the marker after it is, or -1."""
    buffer, bits, made_up, marker = np.uint64(0), 0, 0, 0
    for unit in range(units):
        if restart and unit and unit % restart == 0:
            if not 0 <= bits - made_up < 8 or at + 2 > data.size or data[at] != 255 or data[at + 1] != 0xD0 + marker:
                return -1
            at += 2
            marker = (marker + 1) % 8
            buffer, bits, made_up = np.uint64(0), 0, 0
        for block in range(plan.shape[0]):
            table = plan[block, 0]
            k = 0
            while k < 64:
                if bits <= 32:
                    at, buffer, bits, made_up = _fill(data, at, buffer, bits, made_up)
                move = quick[table, buffer >> np.uint64(64 - _QUICK)]
                if move == 0:
                    move = _long_code(1 if k else 0, table, buffer, longest, offset, symbols)
                    if move == 0:
                        return -1
                buffer <<= np.uint64(move & 255)
                bits -= move & 255
                k += move >> 8
                table = plan[block, 1]
            if 64 < k < _END:
                return -1
        if bits < made_up:
            return -1
    return at if bits - made_up < 8 else -1


@kernel
def is_whole(data):
    """Whether all of `data` (uint8, 1-d) is a plain JPEG that can be read to its end."""
    quick, symbols = np.empty((4, 1 << _QUICK), np.int32), np.empty((4, 256), np.uint8)
    longest, offset = np.empty((4, 17), np.int32), np.empty((4, 17), np.int32)
    have = np.zeros(8, np.bool_)  # quantisation tables, then Huffman tables: DC 0, DC 1, AC 0, AC 1
    sampling, quantisation, names = np.zeros(3, np.int32), np.zeros(3, np.int32), np.zeros(3, np.int32)
    components, width, height, restart, at = 0, 0, 0, 0, 2
    if data.size < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return False
    while at + 4 <= data.size and data[at] == 0xFF:
        marker, length = data[at + 1], int(data[at + 2]) << 8 | int(data[at + 3])
        at += 4
        end = at + length - 2
        if length < 2 or end > data.size:
            return False
        if marker == 0xDB:
            while at < end:
                if data[at] > 3 or at + 65 > end:
                    return False
                have[data[at]] = True
                at += 65
        elif marker == 0xC4:
            if not _read_tables(data, at, end, quick, longest, offset, symbols):
                return False
            while at < end:
                have[4 + 2 * (data[at] >> 4) + (data[at] & 15)] = True
                count = 0
                for k in range(1, 17):
                    count += int(data[at + k])
                at += 17 + count
        elif marker == 0xC0:
            if components or length < 11:
                return False
            components, height, width = int(data[at + 5]), int(data[at + 1]) << 8 | int(data[at + 2]), int(data[at + 3]) << 8 | int(data[at + 4])
            if data[at] != 8 or (components != 1 and components != 3) or length != 8 + 3 * components or height * width == 0:
                return False
            for c in range(components):
                names[c], sampling[c], quantisation[c] = data[at + 6 + 3 * c], data[at + 7 + 3 * c], data[at + 8 + 3 * c]
                for factor in (sampling[c] >> 4, sampling[c] & 15):
                    if factor < 1 or factor > 2:
                        return False
                if quantisation[c] > 3:
                    return False
            if components == 3 and (sampling[1] != 0x11 or sampling[2] != 0x11):
                return False
        elif marker == 0xDD:
            if length != 4:
                return False
            restart = int(data[at]) << 8 | int(data[at + 1])
        elif marker == 0xDA:
            if components == 0 or length != 6 + 2 * components or data[at] != components:
                return False
            wide, high = (sampling[0] >> 4, sampling[0] & 15) if components == 3 else (1, 1)
            plan = np.empty((wide * high + components - 1, 2), np.int32)
            for c in range(components):
                dc, ac = data[at + 2 + 2 * c] >> 4, data[at + 2 + 2 * c] & 15
                if data[at + 1 + 2 * c] != names[c] or dc > 1 or ac > 1:
                    return False
                if not (have[4 + dc] and have[6 + ac] and have[quantisation[c]]):
                    return False
                first = 0 if c == 0 else wide * high + c - 1
                for block in range(first, wide * high if c == 0 else first + 1):
                    plan[block, 0], plan[block, 1] = dc, 2 + ac
            if data[end - 3] != 0 or data[end - 2] != 63 or data[end - 1] != 0:
                return False
            units = ((width + 8 * wide - 1) // (8 * wide)) * ((height + 8 * high - 1) // (8 * high))
            at = _read_scan(data, end, units, restart, plan, quick, longest, offset, symbols)
            return at >= 0 and at + 2 <= data.size and data[at] == 0xFF and data[at + 1] == 0xD9
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            return False
        at = end
    return False
