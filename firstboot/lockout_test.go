package firstboot

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/firstboot/api"
	"rackstrap/internal/fakenode"
)

// What a stranger does from a machine's address is not counted against the machine, in any phase; what the machine itself
// does wrong is.
func TestStrangersAtAMachinesAddress(t *testing.T) {
	a := newAppliance(t, 1, 0)
	n := a.node("kmaster1", fakenode.New()).install()
	stranger := a.node("kmaster1", fakenode.New())
	stranger.attempt = 1
	guess := func() {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 125 {
					stranger.call(context.Background(), http.MethodGet, "kmaster1/work", "guess", nil, nil)
				}
			})
		}
		all.Wait()
		status, err := stranger.call(t.Context(), http.MethodGet, "kmaster1/work", "guess", nil, nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusTooManyRequests, status)
	}
	guess()
	status, err := n.call(t.Context(), http.MethodPost, "kmaster1/events", n.token, api.Event{Attempt: 1, Kind: "progress", Text: "x"}, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, status, "in its installer")
	status, err = n.exchange(t.Context())
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, "its first call")
	guess()
	for range 50 {
		status, err = n.call(t.Context(), http.MethodGet, "kmaster1/work", n.credential, nil, nil)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, status)
	}
	n.attempt = 2 // wrong, with its own credential
	for range 40 {
		status, err = n.call(t.Context(), http.MethodGet, "kmaster1/work", n.credential, nil, nil)
		require.NoError(t, err)
	}
	require.Equal(t, http.StatusTooManyRequests, status)
}

// TLS 1.2 is spoken with authenticated encryption alone: as EL7's curl offers it, and not with what it also would.
func TestSuites(t *testing.T) {
	a := newAppliance(t, 1, 0)
	for suite, good := range map[uint16]bool{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: true,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384: true,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA:    false,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA:    false,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256: false,
	} {
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.port), &tls.Config{InsecureSkipVerify: true,
			MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite}})
		require.Equal(t, good, err == nil, "%s: %v", tls.CipherSuiteName(suite), err)
		if err == nil {
			conn.Close()
		}
	}
}
