// Package httpserve ends an HTTP server in order.
package httpserve

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// Run has serve, which is the server's Serve or ServeTLS, work until ctx ends. Calls under way then have grace to end;
// their connections are closed after it. It returns when that is over: net/http's own Serve returns when the end begins,
// and who closes a store then has handlers still write into it. The error is why it ended before ctx did.
func Run(ctx context.Context, server *http.Server, grace time.Duration, serve func() error) error {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		server.Shutdown(bounded)
		server.Close() // whoever is still at it
	})
	err := serve()
	if !stop() {
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	server.Close()
	return err
}
