package media

import (
	"encoding/binary"
	"time"
)

// both32 reads a 32-bit number recorded in both byte orders (ECMA-119 7.3.3). The halves must agree: that
// is the only redundancy ISO 9660 has, and it finds most damage. Some mastering programs leave the
// big-endian half zero, which is accepted.
func both32(b []byte, at int64, what string) (uint32, error) {
	little, big := binary.LittleEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if little != big && big != 0 {
		return 0, corrupt(at, "%s is %d in little-endian but %d in big-endian order", what, little, big)
	}
	return little, nil
}

// both16 reads a 16-bit number recorded in both byte orders (ECMA-119 7.2.3); see both32.
func both16(b []byte, at int64, what string) (uint16, error) {
	little, big := binary.LittleEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if little != big && big != 0 {
		return 0, corrupt(at, "%s is %d in little-endian but %d in big-endian order", what, little, big)
	}
	return little, nil
}

// shortTime reads the 7-byte time of directory records (ECMA-119 9.1.5) and of Rock Ridge's "TF": years
// since 1900, month, day, hour, minute, second, and the zone in quarters of an hour east of GMT. A time that
// cannot be is the zero time: dates are no reason to refuse an image.
func shortTime(b []byte) time.Time {
	return civil(1900+int(b[0]), int(b[1]), int(b[2]), int(b[3]), int(b[4]), int(b[5]), 0, int8(b[6]))
}

// longTime reads the 17-byte time of volume descriptors (ECMA-119 8.4.26.1) and of the long form of "TF":
// the digits YYYYMMDDhhmmsscc and the zone as in shortTime. All zeros mean "not specified".
func longTime(b []byte) time.Time {
	digits := func(from, to int) int {
		n := 0
		for _, c := range b[from:to] {
			if c < '0' || c > '9' {
				return -1
			}
			n = 10*n + int(c-'0')
		}
		return n
	}
	return civil(digits(0, 4), digits(4, 6), digits(6, 8), digits(8, 10), digits(10, 12), digits(12, 14), digits(14, 16), int8(b[16]))
}

func civil(year, month, day, hour, minute, second, centisecond int, quarters int8) time.Time {
	ok := year > 0 && month >= 1 && month <= 12 && day >= 1 && day <= 31 &&
		hour >= 0 && hour < 24 && minute >= 0 && minute < 60 && second >= 0 && second < 61 && centisecond >= 0
	if !ok {
		return time.Time{}
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, centisecond*int(10*time.Millisecond), time.UTC)
	return t.Add(-time.Duration(quarters) * 15 * time.Minute)
}
