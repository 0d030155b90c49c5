// Package httpcall makes the HTTP clients of programs that know whom they call: a redirect would send them, and what they
// hold, to somebody else, so that it is an answer like any other. Only package repo, whose mirrors may redirect, and the
// lab's stand-ins for other programs have clients of their own.
package httpcall

import (
	"net/http"
	"time"
)

// Client uses no proxy but that of the transport, and follows no redirects. A limit of zero is none.
func Client(transport *http.Transport, limit time.Duration) *http.Client {
	return &http.Client{Transport: transport, Timeout: limit,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}
