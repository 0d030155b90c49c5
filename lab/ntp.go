package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"time"
)

// stageNTP is not a part of a machine, but the rack's time server: ADDRESS. Machines of an isolated rack have no
// other, and wait for one before they trust certificates.
const stageNTP = "ntp"

// ntpEpoch is where NTP's seconds begin, in Unix time (RFC 5905, section 6).
const ntpEpoch = 2208988800

// serveNTP answers with the host's clock, until the process is ended.
func serveNTP(address string) error {
	conn, err := net.ListenPacket("udp", net.JoinHostPort(address, "123"))
	if err != nil {
		return fmt.Errorf("ntp: %w", err)
	}
	defer conn.Close()
	packet := make([]byte, 512)
	for {
		n, from, err := conn.ReadFrom(packet)
		if err != nil {
			return fmt.Errorf("ntp: %w", err)
		}
		if reply := ntpReply(packet[:n], time.Now()); reply != nil {
			conn.WriteTo(reply, from)
		}
	}
}

// ntpReply answers a client's request (RFC 5905, section 7.3); nil for anything else.
func ntpReply(request []byte, now time.Time) []byte {
	const modeClient, modeServer = 3, 4
	if len(request) < 48 || request[0]&7 != modeClient {
		return nil
	}
	version := request[0] >> 3 & 7
	if version < 3 || version > 4 {
		return nil
	}
	stamp := func(t time.Time) uint64 {
		return uint64(t.Unix()+ntpEpoch)<<32 | uint64(t.Nanosecond())<<32/1e9
	}
	reply := make([]byte, 48)
	reply[0] = version<<3 | modeServer
	reply[1] = 3                                // stratum: below some server that the host has
	reply[2] = request[2]                       // poll
	reply[3] = 0xec                             // precision: 2^-20 s
	binary.BigEndian.PutUint32(reply[8:], 1<<6) // root dispersion: 1 ms
	copy(reply[12:], "LAB\x00")
	binary.BigEndian.PutUint64(reply[16:], stamp(now.Add(-time.Second))) // when the clock was last set
	copy(reply[24:32], request[40:48])                                   // origin: when the client sent
	binary.BigEndian.PutUint64(reply[32:], stamp(now))
	binary.BigEndian.PutUint64(reply[40:], stamp(now))
	return reply
}
