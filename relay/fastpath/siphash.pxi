# SipHash-2-4 with a result of 128 bits (Aumasson and Bernstein, https://www.aumasson.jp/siphash/siphash.pdf): a keyed hash
# that nobody can foretell without the key. A verified secret is known again by it, at a hundredth of an HMAC's cost.

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    typedef struct { uint64_t low, high; } relay_hash128;
    #define RELAY_ROTATE(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
    #define RELAY_SIP_ROUND do { \\
        a += b; b = RELAY_ROTATE(b, 13); b ^= a; a = RELAY_ROTATE(a, 32); \\
        c += d; d = RELAY_ROTATE(d, 16); d ^= c; \\
        a += d; d = RELAY_ROTATE(d, 21); d ^= a; \\
        c += b; b = RELAY_ROTATE(b, 17); b ^= c; c = RELAY_ROTATE(c, 32); } while (0)
    /* Words are read in the machine's order: the key is random, so only equality within one process matters. */
    static relay_hash128 relay_siphash(uint64_t k0, uint64_t k1, const uint8_t *p, long n)
    {
        uint64_t a = k0 ^ 0x736f6d6570736575u, b = k1 ^ 0x646f72616e646f6du ^ 0xee;
        uint64_t c = k0 ^ 0x6c7967656e657261u, d = k1 ^ 0x7465646279746573u, m;
        long i, left = n & 7;
        relay_hash128 out;
        for (i = 0; i + 8 <= n; i += 8) {
            memcpy(&m, p + i, 8);
            d ^= m; RELAY_SIP_ROUND; RELAY_SIP_ROUND; a ^= m;
        }
        m = (uint64_t)n << 56;
        while (left--)
            m |= (uint64_t)p[i + left] << (8 * left);
        d ^= m; RELAY_SIP_ROUND; RELAY_SIP_ROUND; a ^= m;
        c ^= 0xee;
        RELAY_SIP_ROUND; RELAY_SIP_ROUND; RELAY_SIP_ROUND; RELAY_SIP_ROUND;
        out.low = a ^ b ^ c ^ d;
        b ^= 0xdd;
        RELAY_SIP_ROUND; RELAY_SIP_ROUND; RELAY_SIP_ROUND; RELAY_SIP_ROUND;
        out.high = a ^ b ^ c ^ d;
        return out;
    }
    """
    ctypedef struct hash128 "relay_hash128":
        uint64_t low
        uint64_t high
    hash128 siphash "relay_siphash"(uint64_t k0, uint64_t k1, const uint8_t* p, long n) noexcept nogil


def keyed_hash(bytes key not None, bytes data not None):
    """For tests: SipHash-2-4-128 of `data` under a key of 16 bytes, as 16 bytes; ValueError for another key."""
    cdef uint64_t k[2]
    cdef hash128 h
    if len(key) != 16:
        raise ValueError("the key has 16 bytes")
    memcpy(k, PyBytes_AS_STRING(key), 16)
    h = siphash(k[0], k[1], <const uint8_t*>PyBytes_AS_STRING(data), len(data))
    return PyBytes_FromStringAndSize(<const char*>&h, 16)
