package lab

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNTPReply(t *testing.T) {
	request := make([]byte, 48)
	request[0], request[2] = 4<<3|3, 6
	copy(request[40:], "when-it-was-sent")
	now := time.Date(2026, 11, 26, 12, 0, 0, 500_000_000, time.UTC)
	reply := ntpReply(request, now)
	require.Len(t, reply, 48)
	require.Equal(t, byte(4<<3|4), reply[0], "the client's version, mode server, no leap second")
	require.Equal(t, request[40:48], reply[24:32], "the client recognises its request by the time in it")
	seconds := int64(binary.BigEndian.Uint32(reply[40:])) - ntpEpoch
	require.Equal(t, now.Unix(), seconds)
	require.InDelta(t, 1<<31, binary.BigEndian.Uint32(reply[44:]), 1e3, "half a second")

	for _, other := range [][]byte{nil, request[:47], append([]byte{4<<3 | 4}, request[1:]...), append([]byte{1<<3 | 3}, request[1:]...)} {
		require.Nil(t, ntpReply(other, now), "not a request")
	}
}
