package httpserve

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

// A call that is under way when the end begins has come to its own before Run returns.
func TestRunWaitsForCallsUnderWay(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var over atomic.Bool
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		time.Sleep(100 * time.Millisecond)
		over.Store(true)
		io.WriteString(w, "done")
	})}
	l := listen(t)
	answer := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		answer <- string(text)
	}()
	require.NoError(t, Run(ctx, server, time.Minute, func() error { return server.Serve(l) }))
	require.True(t, over.Load())
	require.Equal(t, "done", <-answer)
}

// One that does not end is cut off.
func TestRunIsNotHeldUpForEver(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})}
	l := listen(t)
	answer := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err == nil {
			resp.Body.Close()
		}
		answer <- err
	}()
	require.NoError(t, Run(ctx, server, 10*time.Millisecond, func() error { return server.Serve(l) }))
	require.Error(t, <-answer)
}

func TestRunTellsWhyItEndedByItself(t *testing.T) {
	l := listen(t)
	require.NoError(t, l.Close())
	server := &http.Server{}
	require.ErrorIs(t, Run(t.Context(), server, time.Second, func() error { return server.Serve(l) }), net.ErrClosed)
}
