package httpcall

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRedirectsAreAnswers(t *testing.T) {
	reached := false
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer elsewhere.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, status))
		resp, err := Client(&http.Transport{}, time.Minute).Get(server.URL)
		require.NoError(t, err)
		resp.Body.Close()
		server.Close()
		require.Equal(t, status, resp.StatusCode)
	}
	require.False(t, reached)
}
